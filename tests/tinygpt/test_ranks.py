"""One run on several processes: the same bits, and one end for all. With a real MPI where it is."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from tinygpt import Error, UsageError, ranks
from tinygpt.formats import checkpoint
from tinygpt.model import config

ROOT = Path(__file__).resolve().parents[2]
MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
needs_mpi = pytest.mark.skipif(
    MPIEXEC is None or importlib.util.find_spec("mpi4py") is None,
    reason="needs mpi4py and mpiexec: pip install 'tinygpt[mpi]'",
)


def tinygpt(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tinygpt", *arguments]


def start(n: int, out: Path, *options: str, last: tuple[str, ...] = ()) -> subprocess.Popen:
    """Train on n ranks, without MPI if n is 0; `last` is what the last rank is told besides."""
    train = tinygpt("train", "--out", str(out), "--threads", "1", *options)
    command = [str(MPIEXEC), "-n", str(n), *train]
    if last:
        command = [str(MPIEXEC), "-n", str(n - 1), *train, ":", "-n", "1", *train, *last]
    return launch(command if n else train, said_by(out))


def said_by(out: Path) -> Path:
    """Where the words of a run lie that is still going on."""
    return out.with_suffix(".said")


def launch(
    command: list[str], said: Path, folder: Path = ROOT, **environment: str
) -> subprocess.Popen:
    kernels = {"MINITENSOR_KERNELS": "numpy", "OPENBLAS_NUM_THREADS": "1"}
    with said.open("wb") as handle:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **kernels, **environment},
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=subprocess.STDOUT,
        )


def ended(process: subprocess.Popen, said: Path) -> tuple[int, str]:
    """The exit status, and all that was said."""
    try:
        return process.wait(timeout=120), said.read_text("utf-8")
    except subprocess.TimeoutExpired:  # it would go on for hours, and be told of in other tests
        process.terminate()
        process.wait(timeout=60)
        raise


def run(n: int, out: Path, *options: str, last: tuple[str, ...] = ()) -> tuple[int, str]:
    return ended(start(n, out, *options, last=last), said_by(out))


def wait_for_step(process: subprocess.Popen, out: Path, step: int) -> None:
    for _ in range(5000):  # looks, and not seconds, which pass for a machine that sleeps, too
        log = out / "log.jsonl"
        if log.exists() and f'{{"step": {step}, "loss"' in log.read_text("utf-8"):
            return
        assert process.poll() is None, said_by(out).read_text("utf-8")
        time.sleep(0.02)
    process.terminate()
    process.wait(timeout=60)
    raise AssertionError(f"no step {step}")


def process_of(rank: int, out: Path) -> int:
    """The process of a rank, as the run's first lines tell it."""
    said = said_by(out).read_text("utf-8")
    return int(re.findall(rf"rank {rank} \(.*?, process (\d+)\)", said)[-1])


@pytest.fixture
def recipe(tmp_path, tiny) -> Path:
    """Five shards a step, which no number of ranks but one and five divides."""
    config.save(tiny.replace(batch_size=5, shard_tokens=16, max_iters=8), tmp_path / "tiny.json")
    return tmp_path / "tiny.json"


LONG = ("--set", "eval_interval=0", "--set", "sample_interval=0")


# ---------------------------------------------------------------------------------- with an MPI


@needs_mpi
@pytest.mark.slow
def test_a_run_has_the_same_bits_on_any_number_of_ranks(recipe, tmp_path):
    for n in range(5):
        status, said = run(n, tmp_path / str(n), "--config", str(recipe))
        assert status == 0, said
        assert said.count("peak memory") == 1  # rank 0 alone tells
    for name in ("model.npz", "best.npz", "samples.txt", "config.json"):
        assert len({(tmp_path / str(n) / name).read_bytes() for n in range(5)}) == 1, name


@needs_mpi
@pytest.mark.slow
def test_a_killed_run_goes_on_with_another_number_of_ranks(recipe, tmp_path):
    new = ("--config", str(recipe), *LONG, "--set", "schedule=constant", "--max-iters")
    process = start(3, tmp_path / "cut", *new, "100000")
    wait_for_step(process, tmp_path / "cut", 5)
    os.kill(process_of(1, tmp_path / "cut"), signal.SIGKILL)
    assert process.wait(timeout=60) != 0
    first = checkpoint.load(tmp_path / "cut" / "checkpoint.npz").training["step"]
    process = start(2, tmp_path / "cut", "--resume")
    wait_for_step(process, tmp_path / "cut", first + 9)
    process.send_signal(signal.SIGINT)
    status, said = ended(process, said_by(tmp_path / "cut"))
    assert status == 128 + signal.SIGINT and "saved at step" in said, said
    second = checkpoint.load(tmp_path / "cut" / "checkpoint.npz").training["step"]
    assert second > first + 9
    end = str(second + 5)
    for n, name, options in [(4, "cut", ("--resume", "--max-iters")), (0, "whole", new)]:
        status, said = run(n, tmp_path / name, *options, end)
        assert status == 0, said
    whole, cut = (checkpoint.load(tmp_path / name / "model.npz") for name in ("whole", "cut"))
    assert {k: v.tobytes() for k, v in whole.params.items()} == {
        k: v.tobytes() for k, v in cut.params.items()
    }


@needs_mpi
@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_replicas_that_meet_now_and_then_have_their_own_bits(recipe, tmp_path, optimizer):
    intervals = ("eval_interval", "sample_interval", "checkpoint_interval", "local_steps")
    settings = {**dict.fromkeys(intervals, 4), "replicas": 2, "schedule": "constant"}
    new = ["--config", str(recipe), "--set", f"optimizer={optimizer}"]
    new += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    for name, runs in [
        ("whole", [(*new, "--max-iters", "12")]),
        ("parts", [(*new, "--max-iters", "4"), ("--resume", "--max-iters", "12")]),
    ]:
        for options in runs:
            status, said = run(2, tmp_path / name, *options)
            assert status == 0 and "they meet every 4 steps" in said, said
    assert len({(tmp_path / name / "model.npz").read_bytes() for name in ("whole", "parts")}) == 1
    status, said = run(2, tmp_path / "exact", *new, "--set", "local_steps=0", "--set", "replicas=1")
    assert status == 0, said
    exact, local = (checkpoint.load(tmp_path / n / "model.npz").params for n in ("exact", "whole"))
    assert any((exact[name] != local[name]).any() for name in exact)
    for n in (0, 3):
        status, said = run(n, tmp_path / "whole", "--resume", "--max-iters", "16")
        assert status == 2 and f"expected as many ranks, 2, got {n or 1}" in said


@needs_mpi
@pytest.mark.slow
def test_ranks_begin_from_a_model_with_the_bits_of_one_process(recipe, tmp_path):
    assert run(0, tmp_path / "old", "--config", str(recipe))[0] == 0
    for n in (0, 3):
        options = ("--from", str(tmp_path / "old"), "--max-iters", "6")
        status, said = run(n, tmp_path / f"new{n}", *options)
        assert status == 0, said
    assert len({(tmp_path / f"new{n}" / "model.npz").read_bytes() for n in (0, 3)}) == 1


@needs_mpi
@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_stands_still_ends_the_run(recipe, tmp_path, rank):
    process = start(
        3, tmp_path / "run", "--config", str(recipe), *LONG, "--max-iters", "100000",
        "--patience", "4",
    )  # fmt: skip
    wait_for_step(process, tmp_path / "run", 3)
    os.kill(process_of(rank, tmp_path / "run"), signal.SIGSTOP)
    begin = time.monotonic()
    status, said = ended(process, said_by(tmp_path / "run"))
    assert status != 0 and time.monotonic() - begin < 30
    (line,) = [line for line in said.splitlines() if "no sign of life" in line]
    assert f"rank {rank} (" in line and "the last good checkpoint, of step" in line
    checkpoint.load(tmp_path / "run" / "checkpoint.npz")


@needs_mpi
@pytest.mark.slow
def test_ranks_that_were_told_different_things_are_refused(recipe, tmp_path):
    for last, what in [
        (("--seed", "7"), "--seed: rank 1"),
        (("--data", str(ROOT / "README.md")), "--data: rank 1"),
    ]:
        status, said = run(2, tmp_path / "run", "--config", str(recipe), last=last)
        assert status == 2, said
        assert said.count("tinygpt: error:") == 1 and what in said
        assert not (tmp_path / "run").exists()


@needs_mpi
@pytest.mark.slow
def test_the_order_of_mpi_is_told_and_comes_close(recipe, tmp_path):
    for name, options in [("exact", ()), ("fast", ("--reduce", "fast"))]:
        status, said = run(3, tmp_path / name, "--config", str(recipe), *options)
        assert status == 0, said
        assert ("MPI adds up the gradients in an order of its own" in said) == (name == "fast")
        start = (tmp_path / name / "log.jsonl").read_text("utf-8").splitlines()[0]
        assert f'"ranks": 3, "reduce": "{name}"' in start
    exact, fast = (checkpoint.load(tmp_path / n / "model.npz").params for n in ("exact", "fast"))
    for name in exact:
        np.testing.assert_allclose(fast[name], exact[name], atol=1e-3)


@needs_mpi
@pytest.mark.slow
def test_an_error_on_rank_0_ends_all(recipe, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    status, said = run(2, tmp_path / "file", "--config", str(recipe))
    assert status == 1, said
    assert said.count("tinygpt: error:") == 1 and "a file; --out is the folder" in said


def error_of(program: str, recipe: Path, tmp_path: Path, *options: str, n: int = 3) -> str:
    """The one line with which a run of this program on n ranks ends, and no other error."""
    (tmp_path / "wrong.py").write_text(program, encoding="utf-8")
    run = ["train", "--config", str(recipe), "--out", str(tmp_path / "run"), *options]
    command = [str(MPIEXEC), "-n", str(n), sys.executable, str(tmp_path / "wrong.py"), *run]
    said = tmp_path / "said"
    status, words = ended(launch(command, said, PYTHONPATH=str(ROOT)), said)
    assert status == 1, words
    (line,) = [line for line in words.splitlines() if "tinygpt: error:" in line]
    return line


@needs_mpi
@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_that_is_alive_but_stuck_ends_the_run(recipe, tmp_path, rank):
    # With two shards, ranks 2 and 3 only receive the sums. Until rank 2 does, rank 0 stands still
    # too. Rank 1 has come to the end of the step, and looks three times while rank 0 looks once.
    slow = "import os; from tinygpt import ranks; ranks.STALL = 2\n"
    slow += "if os.environ['PMI_RANK'] == '0': ranks.BEAT = 2.9\n"
    program = slow + WRONG.format(rank=rank, what="import time; time.sleep(1000)")
    options = ("--set", "batch_size=2", "--set", "d_model=32", "--patience", "6")
    line = error_of(program, recipe, tmp_path, *options, n=4)
    assert f"rank {rank} (" in line and "is alive, but" in line
    assert "the last good checkpoint" in line


# A command that on one rank does something wrong before step 5.
WRONG = """
import sys
from mpi4py import MPI
from tinygpt import cli
from tinygpt.training import train

plain = train.Trainer.step

def step(self, number):
    if number == 5 and MPI.COMM_WORLD.rank == {rank}:
        {what}
    return plain(self, number)

train.Trainer.step = step
sys.exit(cli.command())
"""


@needs_mpi
@pytest.mark.slow
@pytest.mark.parametrize(
    "what, told",
    [
        ("self.parameters[0].data[0, 0] += 1e-6", "step 6: the weights of rank 2 ("),
        ("raise MemoryError('no more')", "MemoryError: no more; the last good checkpoint, of step"),
    ],
)
def test_a_rank_that_goes_wrong_is_named(recipe, tmp_path, what, told):
    line = error_of(WRONG.format(rank=2, what=what), recipe, tmp_path, "--threads", "1")
    assert told in line and "rank 2 (" in line and "; the last good checkpoint, of step 4" in line


# ------------------------------------------------------------------------------- data on ranks

# The command, with pieces so small that a short text has many; `{also}` is done first.
PREPARE = """
import os, signal, sys
from tinygpt import cli
from tinygpt.data import corpus, documents
corpus.PIECE, corpus.FEW = 512, 1  # FEW: the workers are the first to read, not the scan
{also}
sys.exit(cli.command())
"""
KILLED = """
encode, calls = documents.encode, []
def encode_some(*arguments):
    calls.append(arguments)
    if os.environ.get("PMI_RANK") == "1" and len(calls) == 20:  # of the fourth piece
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(*arguments)
documents.encode = encode_some
"""
TEXT = "\n<|endoftext|>\n".join(
    f"Story {i}. Tom saw the {'big' if i % 2 else 'small'} dog.\n\nIt ran {i}0 times. “Oh!”"
    for i in range(120)
)


def prepare(
    n: int, out: Path, *options: str, also: str = "", last: tuple[str, ...] = ()
) -> tuple[int, str]:
    """Prepare text.txt, which lies beside `out`, on n ranks, or without MPI if n is 0; `last` says
    how the last rank is started."""
    script = out.parent / "prepare.py"
    script.write_text(PREPARE.format(also=also), encoding="utf-8")
    work = [sys.executable, str(script), "data", "prepare", "text.txt", "--out", str(out), *options]
    command = [str(MPIEXEC), "-n", str(n), "-wdir", str(out.parent), *work]
    if last:
        command[2] = str(n - 1)
        command += [":", "-n", "1", *last, *work]
    elif not n:
        command = [*work, "--processes", "1"]
    return ended(launch(command, said_by(out), out.parent, PYTHONPATH=str(ROOT)), said_by(out))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@needs_mpi
@pytest.mark.slow
@pytest.mark.parametrize(
    "tokenizer",
    ["bpe --vocab-size 300", "char", "reduced --vocab-size 280 --reduced-from 300"],
    ids=lambda words: words.split()[0],
)
def test_data_prepared_on_ranks_are_those_of_one_process(tokenizer, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    for n in (0, 2, 3):
        status, said = prepare(n, tmp_path / str(n), "--tokenizer", *tokenizer.split())
        assert status == 0, said
        assert said.count("wrote") == 1  # rank 0 alone tells
    first, *others = (files(tmp_path / str(n)) for n in (0, 2, 3))
    assert set(first) == {"train.npy", "valid.npy", "tokenizer.json", "meta.json"}
    assert others == [first, first]


@needs_mpi
@pytest.mark.slow
def test_data_that_a_killed_rank_left_are_gone_on_with(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    options = ("--tokenizer", "char")
    status, said = prepare(3, tmp_path / "cut", *options, also=KILLED)
    assert status != 0 and not (tmp_path / "cut" / "meta.json").exists(), said
    for n, name in [(2, "cut"), (0, "whole")]:
        status, said = prepare(n, tmp_path / name, *options)
        assert status == 0, said
        assert ("of an earlier call" in said) == (name == "cut")
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


@needs_mpi
@pytest.mark.slow
def test_ranks_refuse_what_one_process_does(tmp_path):
    text, other = tmp_path / "text.txt", tmp_path / "other"
    for content in (TEXT.encode() + b"caf\xe9 " + TEXT.encode() + b"\xff", b""):
        text.write_bytes(content)
        alone, told = prepare(0, tmp_path / "out", "--tokenizer", "char")
        status, said = prepare(3, tmp_path / "out", "--tokenizer", "char")
        assert alone == status == 1
        assert [line for line in said.splitlines() if "tinygpt: error:" in line] == [
            line for line in told.splitlines() if "tinygpt: error:" in line
        ]
    other.mkdir()
    (other / "text.txt").write_text(TEXT, encoding="utf-8")
    text.write_text(TEXT + ".", encoding="utf-8")
    status, said = prepare(2, tmp_path / "new", last=("-wdir", str(other)))
    assert status == 2 and said.count("tinygpt: error:") == 1
    assert "the sources (their SHA-256" in said and "rank 1 (" in said
    status, said = prepare(2, tmp_path / "new", "--processes", "2")
    assert status == 2 and said.count("tinygpt: error:") == 1 and "start more of them" in said
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------------ without one


@pytest.mark.slow
def test_without_mpi4py_one_line_says_what_to_install(recipe, tmp_path):
    (tmp_path / "mpi4py.py").write_text("raise ModuleNotFoundError('mpi4py')", encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = tinygpt("train", "--config", str(recipe), "--out", str(tmp_path / "run"))
    for name in ranks.SIZES:
        told = tmp_path / "told"
        status, said = ended(launch(command, told, **{name: "2", "PYTHONPATH": path}), told)
        assert status == 1
        assert said == (
            "tinygpt: error: started by mpiexec, but mpi4py is missing: install both with: "
            "pip install 'tinygpt[mpi]'\n"
        )


def test_an_mpi_of_another_kind_is_told(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.delenv("PMI_SIZE", raising=False)
    alone = SimpleNamespace(
        COMM_WORLD=SimpleNamespace(size=1), Get_library_version=lambda: "MPICH Version: 5.0\n…"
    )
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=alone))
    with pytest.raises(Error, match=r"started 4 processes.*\(MPICH Version: 5.0\) sees 1"):
        ranks.world().__enter__()


def test_an_mpi_that_cannot_be_loaded_is_told(monkeypatch):
    class Broken(ModuleType):
        def __getattr__(self, name):
            raise RuntimeError("cannot load MPI library")

    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setattr(ranks, "LATER", 0.0)
    monkeypatch.setitem(sys.modules, "mpi4py", Broken("mpi4py"))
    with pytest.raises(Error, match=r"mpi4py finds no MPI \(cannot load MPI library\): install"):
        ranks.world().__enter__()


def test_an_mpi_for_one_thread_is_refused(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")
    single = SimpleNamespace(
        COMM_WORLD=SimpleNamespace(size=2), Get_library_version=lambda: "MPICH",
        Query_thread=lambda: 1, THREAD_MULTIPLE=3,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=single))
    with pytest.raises(Error, match="MPICH: made without MPI_THREAD_MULTIPLE"):
        ranks.world().__enter__()


class Second(ranks.World):
    """The second of two ranks, without an MPI. (Where one is, `Abort` ends the process at once.)"""

    def __init__(self, *_):
        self.rank, self.size, self.statuses, self.closed = 1, 2, [], False
        self._where = [("here", 11, (0, 1)), ("there", 12, (0,))]
        self.kept = lambda: "; the last good checkpoint"

    def fail(self, status):
        self.statuses.append(status)

    def close(self):
        self.closed = True


def test_ranks_need_the_same_facts(monkeypatch):
    world = Second()
    monkeypatch.setattr(world, "_gather", lambda facts: [facts, {"data": "b", "version": "1"}])
    world.compare({"version": "1", "data": "b"})
    told = r"data: rank 1 \(there, process 12\) has b, rank 0 has a; all ranks of a run need"
    with pytest.raises(UsageError, match=told):
        world.compare({"version": "1", "data": "a"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    assert world.threads() == 3


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (UsageError("no"), 2, "rank 1 (there, process 12): no; the last good checkpoint"),
        (Error("bad"), 1, "rank 1 (there, process 12): bad; the last good checkpoint"),
        (
            ValueError("odd"),
            1,
            "rank 1 (there, process 12): ValueError: odd; the last good checkpo",
        ),
        (KeyboardInterrupt(), 130, ""),
        (KeyboardInterrupt(signal.SIGTERM), 143, ""),
        (None, None, ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_on_a_rank_is_told_and_ends_all(monkeypatch, capsys, error, status, told):
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setattr(ranks, "World", Second)
    two = SimpleNamespace(COMM_WORLD=SimpleNamespace(size=2))
    monkeypatch.setattr(ranks, "_load_mpi", lambda: two)
    world = None
    try:
        with ranks.world() as world:
            print("silence", file=sys.stderr)
            if error:
                raise error
    except BaseException as caught:
        assert type(caught) is (Error if status == 1 else type(error))
        assert str(caught).startswith(told)
    assert world.statuses == ([] if status is None else [status])
    assert world.closed is (status is None)
    assert capsys.readouterr().err == ""  # rank 0 alone tells how it goes


@pytest.mark.slow
def test_importing_tinygpt_does_not_import_mpi(tmp_path):
    code = (
        "import sys, pkgutil, importlib, tinygpt\n"
        "for m in pkgutil.walk_packages(tinygpt.__path__, 'tinygpt.'):\n"
        "    if not m.name.endswith('__main__'): importlib.import_module(m.name)\n"
        "sys.exit('mpi4py' in sys.modules)"
    )
    said = tmp_path / "said"
    assert ended(launch([sys.executable, "-c", code], said, PMI_SIZE="2"), said) == (0, "")


def test_the_rank_that_others_wait_for_is_behind_all_of_them():
    assert ranks.straggler({0: 7, 1: 7, 2: 7}) is None
    assert ranks.straggler({0: 8, 1: 9, 2: 7, 3: 8}) == 2  # rank 1 waits for 0, and 0 for 2
    assert ranks.straggler({1: 9, 2: 9, 0: 8}) == 0  # as rank 0 itself finds


def test_those_who_have_other_weights_than_most_are_named():
    assert ranks.strangers([b"a", b"a", b"a"]) == []
    assert ranks.strangers([b"a", b"b"]) == [1]
    assert ranks.strangers([b"a", b"b", b"b"]) == [0]
    assert ranks.strangers([b"b", b"a", b"b", b"c"]) == [1, 3]


def test_the_hash_of_weights_is_of_their_numbers_in_their_order():
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert ranks.weights_hash([a]) == ranks.weights_hash([np.asfortranarray(a)])
    assert ranks.weights_hash([a]) != ranks.weights_hash([a + np.float32(1e-6)])
    assert ranks.weights_hash([a[:1], a[1:]]) != ranks.weights_hash([a[1:], a[:1]])
