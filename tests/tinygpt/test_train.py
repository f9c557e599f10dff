"""Training: the same bits whatever happens, and clear words when it cannot go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import minitensor as mt
from tinygpt import Error, UsageError, cli
from tinygpt.data import streams
from tinygpt.files import alone
from tinygpt.formats import checkpoint
from tinygpt.model import config
from tinygpt.model.config import Config
from tinygpt.training import command, folder, report, train
from tinygpt.training.optimizers import MUON

ROOT = Path(__file__).resolve().parents[2]


def params(folder: Path, name: str = "model.npz") -> dict[str, np.ndarray]:
    return checkpoint.load(folder / name).params


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture
def recipe(tmp_path, tiny) -> Path:
    """A configuration file of the tiny model."""
    config.save(tiny, tmp_path / "tiny.json")
    return tmp_path / "tiny.json"


def run(recipe: Path, out: Path, *options: str) -> int:
    return cli.main(
        ["train", "--config", str(recipe), "--out", str(out), "--threads", "1", "--debug", *options]
    )


def start(out: Path, *options: str) -> subprocess.Popen:
    """Train in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tinygpt", "train", "--out", str(out), "--threads", "1", *options],
        cwd=ROOT,
        env=dict(os.environ),
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def wait_for_step(process: subprocess.Popen, out: Path, step: int) -> None:
    """Until the log tells of a step."""
    for _ in range(6000):  # looks, and not seconds, which pass for a machine that sleeps, too
        log = out / "log.jsonl"
        if log.exists() and f'{{"step": {step}, "loss"' in log.read_text("utf-8"):
            return
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"no step {step}: {process.communicate()[1]}")


# ------------------------------------------------------------------------------- the same bits


def test_a_run_leaves_everything_one_needs(recipe, tmp_path, tiny, capsys):
    assert run(recipe, tmp_path / "run") == 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "config.json",
        "tokenizer.json",
        "token_counts.json",
        "log.jsonl",
        "samples.txt",
        "model.npz",
        "best.npz",
        "checkpoint.npz",
        "checkpoint.npz.bak",
    }
    assert config.load(tmp_path / "run" / "config.json") == tiny
    log = records(tmp_path / "run")
    assert [r["step"] for r in log if "loss" in r] == list(range(6))
    assert [r["step"] for r in log if "valid_loss" in r] == [0, 3, 6]
    assert log[0]["event"] == "start" and log[-1]["event"] == "end"
    told = capsys.readouterr()
    assert told.out == ""
    assert "5,760 parameters (5,632 + 128)" in told.err
    assert "=== step 6 ===" in (tmp_path / "run" / "samples.txt").read_text("utf-8")


@pytest.mark.slow
def test_a_seed_gives_one_run_on_any_number_of_threads(recipe, tmp_path):
    run(recipe, tmp_path / "one")
    run(recipe, tmp_path / "two", "--threads", "3")
    assert (tmp_path / "one" / "model.npz").read_bytes() == (
        tmp_path / "two" / "model.npz"
    ).read_bytes()
    run(recipe, tmp_path / "other", "--seed", "2")
    assert not same(params(tmp_path / "one"), params(tmp_path / "other"))


def test_a_run_has_its_folder_to_itself(recipe, tmp_path):
    pytest.importorskip("fcntl")
    run(recipe, tmp_path / "run")
    with (
        alone(tmp_path / "run", "training"),
        pytest.raises(Error, match="another process is training"),
    ):
        cli.main(["train", "--resume", "--out", str(tmp_path / "run"), "--debug"])


@pytest.mark.slow
def test_resume_takes_the_run_that_was_at_work_last(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("old", "my first"):
        run(recipe, Path("runs") / name)
    for path in Path("runs/old").iterdir():
        os.utime(path, (1, 1))
    assert "runs/my first" in str(folder.latest_folder(None))
    assert "tinygpt generate 'runs/my first'" in capsys.readouterr().err
    with pytest.raises(UsageError, match="not of mini-1m"):
        cli.main(["train", "mini-1m", "--resume", "--out", "runs/old", "--debug"])


@pytest.mark.slow
def test_accumulation_gives_the_bits_of_one_large_batch(recipe, tmp_path):
    run(recipe, tmp_path / "large", "--set", "batch_size=8")
    run(recipe, tmp_path / "small", "--set", "batch_size=2", "--set", "accumulation=4")
    assert same(params(tmp_path / "large"), params(tmp_path / "small"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"optimizer": "muon", "embedding_lr": 3.0}, {"head": "tied", "dtype": "float64"}]
)
def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path, tiny, changes):
    config.save(tiny.replace(**changes), tmp_path / "c.json")
    run(tmp_path / "c.json", tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Trainer, "step", interrupt_after(5))
        assert run(tmp_path / "c.json", tmp_path / "cut") == 130
    assert cli.main(["train", "--resume", "--out", str(tmp_path / "cut"), "--threads", "2"]) == 0
    for name in ("model.npz", "best.npz"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    assert (tmp_path / "whole" / "samples.txt").read_bytes() == (
        tmp_path / "cut" / "samples.txt"
    ).read_bytes()


def losses(folder: Path) -> list[tuple[int, float]]:
    return [
        (r["step"], r.get("loss", r.get("valid_loss"))) for r in records(folder) if "event" not in r
    ]


def interrupt_after(steps: int):
    """A `Trainer.step` after which Ctrl-C is pressed once."""
    plain = train.Trainer.step

    def step(self, number):
        result = plain(self, number)
        if number == steps - 1:
            signal.raise_signal(signal.SIGINT)
        return result

    return step


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_bits(recipe, tmp_path):
    options = (
        "--set",
        "max_iters=60",
        "--set",
        "checkpoint_interval=7",
        "--set",
        "eval_interval=0",
        "--set",
        "sample_interval=0",
    )
    run(recipe, tmp_path / "whole", *options)
    process = start(tmp_path / "cut", "--config", str(recipe), *options)
    wait_for_step(process, tmp_path / "cut", 16)
    process.kill()
    process.communicate()
    if not any(r.get("event") == "end" for r in records(tmp_path / "cut")):
        assert cli.main(["train", "--resume", "--out", str(tmp_path / "cut")]) == 0
    assert same(params(tmp_path / "whole"), params(tmp_path / "cut"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent in another way")
def test_an_interrupt_saves_and_says_how_to_go_on(recipe, tmp_path):
    process = start(
        tmp_path / "run",
        "--config",
        str(recipe),
        "--max-iters",
        "100000",
        "--set",
        "eval_interval=0",
        "--set",
        "sample_interval=0",
    )
    wait_for_step(process, tmp_path / "run", 3)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"go on with 'tinygpt train --resume --out {tmp_path / 'run'}'" in err
    assert "Traceback" not in err
    step = checkpoint.load(tmp_path / "run" / "checkpoint.npz").training["step"]
    assert records(tmp_path / "run")[-1] == {
        "event": "stop",
        "step": step,
        "seconds": records(tmp_path / "run")[-1]["seconds"],
    }


# ---------------------------------------------------------------------------- when it cannot go on


@pytest.mark.slow
def test_a_damaged_checkpoint_falls_back_to_the_one_before(recipe, tmp_path):
    run(recipe, tmp_path / "whole")
    run(recipe, tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.npz"
    path.write_bytes(path.read_bytes()[:-200])
    assert cli.main(["train", "--resume", "--out", str(tmp_path / "run")]) == 0
    assert same(params(tmp_path / "whole"), params(tmp_path / "run"))


def test_a_folder_that_holds_a_run_is_not_overwritten(recipe, tmp_path, capsys):
    run(recipe, tmp_path / "run")
    before = (tmp_path / "run" / "model.npz").read_bytes()
    with pytest.raises(Error, match="holds a run already; go on with it with --resume"):
        run(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "model.npz").read_bytes() == before


def test_new_runs_are_numbered_and_the_latest_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert folder.new_folder(None, "quick") == Path("runs/quick")
    with pytest.raises(Error, match="no run to go on with"):
        folder.latest_folder("quick")
    for name in ("quick", "quick-2"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").write_text("{}", encoding="utf-8")
    assert folder.new_folder(None, "quick") == Path("runs/quick-3")
    assert folder.latest_folder("quick") == Path("runs/quick-2")


@pytest.mark.slow
def test_what_shapes_the_bits_cannot_be_changed_on_the_way(recipe, tmp_path):
    run(recipe, tmp_path / "run")
    args = ["train", "--resume", "--out", str(tmp_path / "run"), "--debug"]
    with pytest.raises(UsageError, match="lr cannot be changed"):
        cli.main([*args, "--set", "lr=1"])
    with pytest.raises(Error, match="not the data that the run"):
        (tmp_path / "t.txt").write_text("another text " * 20, encoding="utf-8")
        cli.main([*args, "--data", str(tmp_path / "t.txt")])
    assert cli.main([*args, "--max-iters", "7"]) == 0
    assert checkpoint.load(tmp_path / "run" / "model.npz").provenance["step"] == 7


@pytest.mark.mostly_slow
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("weight", "the first tensor that is not finite is the weight blocks.1.ffn.down.weight"),
        ("gradient", "the first tensor that is not finite is the gradient of embedding.weight"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_loss_that_is_not_finite_stops_the_run(recipe, tmp_path, monkeypatch, what, message):
    plain, good = train.Trainer.gradients, {}

    def gradients(self, step):
        if step == 3:
            good.update({n: np.array(p.data) for n, p in self.named})
            if what == "weight":
                with mt.no_grad():
                    dict(self.named)["blocks.1.ffn.down.weight"][0, 0] = np.nan
            else:
                loss, grads = plain(self, step)
                grads[0][0] = np.inf
                return loss, grads
        return plain(self, step)

    monkeypatch.setattr(train.Trainer, "gradients", gradients)
    with pytest.raises(Error, match=message) as caught:
        run(recipe, tmp_path / "run", "--set", "eval_interval=0")
    assert str(caught.value).startswith("step 3: the loss is")
    assert "the last good checkpoint, of step 2" in str(caught.value)
    assert checkpoint.load(tmp_path / "run" / "checkpoint.npz").training["step"] == 2


def resume(out: Path) -> int:
    return cli.main(["train", "--resume", "--out", str(out), "--threads", "1", "--debug"])


def change_sizes(out: Path, sizes: object) -> None:
    """Give the checkpoint of a run other lengths of the files that grow."""
    saved = checkpoint.load(out / "checkpoint.npz")
    saved.training["sizes"] = sizes
    checkpoint.save(out / "checkpoint.npz", saved)


@pytest.mark.slow
def test_a_checkpoint_reaches_no_file_but_the_runs_own(recipe, tmp_path):
    run(recipe, tmp_path / "run")
    victim = tmp_path / "victim"
    victim.write_text("precious", encoding="utf-8")
    change_sizes(
        tmp_path / "run", {str(victim): 0, "../victim": 0, "config.json": 1, "log.jsonl": 0}
    )
    before = (tmp_path / "run" / "config.json").read_bytes()
    assert resume(tmp_path / "run") == 0
    assert victim.read_text("utf-8") == "precious"
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    (tmp_path / "run" / "checkpoint.npz.bak").unlink()
    good = checkpoint.load(tmp_path / "run" / "checkpoint.npz")
    for sizes in ({"log.jsonl": -1}, {"log.jsonl": 1.5}, {"log.jsonl": True}, [0]):
        good.training["sizes"] = sizes
        checkpoint.save(tmp_path / "run" / "checkpoint.npz", good)
        with pytest.raises(Error, match="sizes"):
            resume(tmp_path / "run")


@pytest.mark.slow
def test_a_log_shorter_than_the_checkpoint_says_is_told(recipe, tmp_path, capsys):
    run(recipe, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Trainer, "step", interrupt_after(5))
        run(recipe, tmp_path / "run")
    log = tmp_path / "run" / "log.jsonl"
    text = log.read_bytes()
    log.write_bytes(text[: text.index(b'"step": 3, "loss"') + 5])  # a power cut, say
    capsys.readouterr()
    assert resume(tmp_path / "run") == 0
    assert "what steps 3 to 4 logged is missing" in capsys.readouterr().err
    assert [r["step"] for r in records(tmp_path / "run") if "loss" in r] == [0, 1, 2, 5]
    assert same(params(tmp_path / "whole"), params(tmp_path / "run"))


@pytest.mark.slow
def test_a_sample_is_not_repeated_and_litter_is_swept(recipe, tmp_path, monkeypatch):
    run(recipe, tmp_path / "whole")

    class Killed(BaseException):
        pass

    plain = train.Trainer.step

    def step(self, number):
        if number == 3:
            raise Killed
        return plain(self, number)

    monkeypatch.setattr(train.Trainer, "step", step)
    out = tmp_path / "run"
    with pytest.raises(Killed):
        run(recipe, out)
    monkeypatch.undo()
    assert "=== step 3 ===" in (out / "samples.txt").read_text("utf-8")  # the checkpoint is of 2
    (out / ".checkpoint.npz.123.tmp").write_bytes(b"half")
    (out / ".notes.tmp").write_bytes(b"mine")
    assert resume(out) == 0
    assert (out / "samples.txt").read_bytes() == (tmp_path / "whole" / "samples.txt").read_bytes()
    assert [path.name for path in out.glob(".*")] == [".notes.tmp"]


def test_a_validation_that_is_not_finite_stops_the_run(recipe, tmp_path, monkeypatch, capsys):
    plain = train.Trainer.validate

    def validate(self):
        loss = plain(self)
        return loss if len(seen) == 0 or seen[-1] < 3 else float("nan")

    seen: list[int] = []
    advance = train.Run.advance

    def count(self, times):
        loss = advance(self, times)
        seen.append(self.step)
        return loss

    monkeypatch.setattr(train.Trainer, "validate", validate)
    monkeypatch.setattr(train.Run, "advance", count)
    with pytest.raises(Error, match="step 3: the validation loss is not finite") as caught:
        run(recipe, tmp_path / "run")
    assert "the last good checkpoint, of step 2" in str(caught.value)
    last = records(tmp_path / "run")[-1]
    assert last["step"] == 3
    assert last["valid_loss"] is last["valid_perplexity"] is last["valid_bits_per_byte"] is None
    monkeypatch.undo()
    assert resume(tmp_path / "run") == 0


@pytest.mark.mostly_slow
@pytest.mark.parametrize("what", ["weight", "moment"])
def test_what_is_not_finite_is_not_saved(recipe, tmp_path, monkeypatch, what):
    plain = train.Trainer.step

    def step(self, number):
        result = plain(self, number)
        if number == 3 and what == "weight":
            with mt.no_grad():
                dict(self.named)["blocks.1.ffn.down.weight"][0, 0] = np.inf
        elif number == 3:
            state = self.optimizer.state_dict()
            state["state"][1]["exp_avg_sq"] = np.full_like(state["state"][1]["exp_avg_sq"], np.nan)
            self.optimizer.load_state_dict(state)
        if number == 3:
            signal.raise_signal(signal.SIGINT)  # which saves before there is another loss
        return result

    monkeypatch.setattr(train.Trainer, "step", step)
    name = {"weight": "blocks.1.ffn.down.weight", "moment": "state/state/1/exp_avg_sq"}[what]
    with pytest.raises(Error, match=rf"step 4: .*{name}.* nothing was saved") as caught:
        run(recipe, tmp_path / "run", "--set", "eval_interval=0")
    assert "the last good checkpoint, of step 2" in str(caught.value)
    assert not list((tmp_path / "run").glob(".*"))
    monkeypatch.undo()
    assert resume(tmp_path / "run") == 0


def test_weights_whose_loss_is_not_finite_are_no_checkpoint(recipe, tmp_path, monkeypatch):
    """Finite they may be, at 1e30; a run that goes on from them would fail again."""
    plain = train.Trainer.gradients

    def gradients(self, step, trial=False):
        loss, grads = plain(self, step, trial)
        return (float("nan") if step == 3 else loss), grads

    monkeypatch.setattr(train.Trainer, "gradients", gradients)
    with pytest.raises(Error, match="step 3: the loss is nan") as caught:
        run(recipe, tmp_path / "run", "--set", "checkpoint_interval=1")
    assert "the last good checkpoint, of step 2" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["Ctrl-C", "the last step"])
def test_finite_weights_that_no_step_can_follow_are_not_saved(recipe, tmp_path, monkeypatch, end):
    plain, last = train.Trainer.step, 3 if end == "Ctrl-C" else 5

    def step(self, number):
        result = plain(self, number)
        if number == last:
            with mt.no_grad():
                dict(self.named)["norm.weight"][...] = 3e38
            if end == "Ctrl-C":
                signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(train.Trainer, "step", step)
    with pytest.raises(Error, match=f"step {last + 1}: .* nothing was saved") as caught:
        run(recipe, tmp_path / "run", "--set", "eval_interval=0", "--set", "valid_fraction=0")
    assert f"the last good checkpoint, of step {last - 1}" in str(caught.value)
    assert not list((tmp_path / "run").glob(".*"))
    monkeypatch.undo()
    assert resume(tmp_path / "run") == 0


@pytest.mark.slow
def test_a_damaged_checkpoint_does_not_take_the_place_of_a_good_one(recipe, tmp_path, monkeypatch):
    """Not even if the power goes between the two renamings of the next save."""
    run(recipe, tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.npz"
    path.write_bytes(path.read_bytes()[:-200])
    good = (tmp_path / "run" / "checkpoint.npz.bak").read_bytes()
    seen = []
    plain = os.replace

    def replace(source, target):
        plain(source, target)
        seen.append((Path(target).name, (tmp_path / "run" / "checkpoint.npz.bak").read_bytes()))

    monkeypatch.setattr("tinygpt.files.os.replace", replace)
    assert resume(tmp_path / "run") == 0
    first = next(bak for name, bak in seen if name.startswith("checkpoint.npz"))
    assert first == good


@pytest.mark.slow
def test_a_machine_that_slept_is_in_the_log(recipe, tmp_path, monkeypatch, capsys):
    slept, stopped = [0.0], [0.0]
    clock = time.perf_counter
    plain = train.Trainer.step

    def step(self, number):
        slept[0] += 3600 * (number == 5)
        stopped[0] += 100 * (number == 25)
        return plain(self, number)

    monkeypatch.setattr(train, "asleep", lambda: slept[0])
    monkeypatch.setattr(train.Trainer, "step", step)
    monkeypatch.setattr(train.time, "perf_counter", lambda: clock() + stopped[0])
    run(recipe, tmp_path / "run", "--max-iters", "30")
    pauses = [r for r in records(tmp_path / "run") if r.get("event") == "pause"]
    assert [(r["step"], round(r["paused"], -1)) for r in pauses] == [(5, 3600), (25, 100)]
    assert records(tmp_path / "run")[-1]["seconds"] < 100
    assert "nothing was done for 60 min" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_training_goes_on_where_messages_cannot_be_written(recipe, tmp_path):
    call = [sys.executable, "-m", "tinygpt", "train", "--config", str(recipe), "--threads", "1"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*call, "--out", str(tmp_path / "run")], cwd=ROOT, stderr=full, check=False
        )
    assert done.returncode == 0
    assert records(tmp_path / "run")[-1]["event"] == "end"


def test_the_second_signal_is_the_one_that_is_told(monkeypatch):
    with train.signals() as received:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt) as caught:
            signal.raise_signal(signal.SIGTERM)
    assert received == [signal.SIGTERM]

    def stopped(args):
        raise caught.value

    monkeypatch.setattr("tinygpt.model.recipes.main", stopped)
    assert cli.main(["recipes"]) == 128 + signal.SIGTERM


def test_a_full_disk_keeps_the_last_good_checkpoint(recipe, tmp_path, monkeypatch):
    plain = os.fsync

    def fsync(handle):
        if (tmp_path / "run" / "checkpoint.npz").exists():
            raise OSError(28, "No space left on device")
        plain(handle)

    monkeypatch.setattr("tinygpt.files.os.fsync", fsync)
    with pytest.raises(Error, match="cannot be written: No space left on device; the last good"):
        run(recipe, tmp_path / "run")
    monkeypatch.undo()
    checkpoint.load(tmp_path / "run" / "checkpoint.npz")
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_a_folder_that_cannot_be_made(recipe, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(Error, match="a file; --out is the folder of the run"):
        run(recipe, tmp_path / "file")
    with pytest.raises(Error, match="the run folder cannot be written"):
        run(recipe, tmp_path / "file" / "run")


# ------------------------------------------------------------------------------------- the step


def test_the_gradients_are_those_of_the_mean_over_the_batch(tiny):
    c = tiny.replace(dropout=0.0, dtype="float64", shard_tokens=16)
    dataset = streams.load(c)
    with mt.Workers(2) as workers:
        trainer = train.Trainer(c, dataset, workers)
        loss, grads = trainer.gradients(4)
    begin = streams.starts(c.seed, 4, c.batch_size, len(dataset.train), c.context)
    rows = streams.rows(dataset.train, begin, c.context + 1)
    model = trainer.model
    logits = model(rows[:, :-1])
    whole = mt.cross_entropy(logits, rows[:, 1:], axis=-1)
    assert loss == pytest.approx(whole.item(), rel=1e-12)
    for mine, wanted in zip(grads, mt.grad(whole, trainer.parameters), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-9, atol=1e-12)


def test_matrices_decay_and_vectors_do_not(tiny):
    with mt.Workers(1) as workers:
        trainer = train.Trainer(tiny, streams.load(tiny), workers)
    groups = trainer.optimizer.param_groups
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert {p.ndim for p in groups[0]["params"]} == {2}
    assert {p.ndim for p in groups[1]["params"]} == {1}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_embedding_and_head_have_a_rate_of_their_own(tiny, optimizer):
    c = tiny.replace(optimizer=optimizer, head="untied", embedding_lr=3.0, warmup=0, lr=1e-3)
    with mt.Workers(1) as workers:
        trainer = train.Trainer(c, streams.load(c), workers)
        trainer.step(0)
    rates = {id(p): g["lr"] for g in trainer.optimizer.param_groups for p in g["params"]}
    for name, p in trainer.named:
        inner = 1e-3 * (MUON if optimizer == "muon" and p.ndim > 1 else 1)
        outer = 3e-3 if p.ndim > 1 else 1e-3
        rate = inner if name.startswith("blocks.") else outer
        assert rates[id(p)] == pytest.approx(rate), name


def test_profile_prints_where_the_time_goes(recipe, tmp_path, capsys):
    assert cli.main(["profile", "--config", str(recipe), "--steps", "2"]) == 0
    told = capsys.readouterr().out
    assert "attention_sublayer" in told and "everything else" in told
    assert not (tmp_path / "run").exists()


def test_a_duration_reads_well():
    assert [report.duration(s) for s in (5, 100, 5999)] == ["5 s", "2 min", "1 h 40 min"]


def test_memory_grows_with_the_model():
    assert report.memory(Config(n_layer=8), 2) > report.memory(Config(n_layer=2), 2)


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_begins_again(recipe, tmp_path, tiny):
    run(recipe, tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    config.save(tiny, tmp_path / "cut" / "config.json")
    (tmp_path / "cut" / "log.jsonl").write_text('{"event": "start", "step": 0}\n', "utf-8")
    assert cli.main(["train", "--resume", "--out", str(tmp_path / "cut"), "--debug"]) == 0
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    assert same(params(tmp_path / "whole"), params(tmp_path / "cut"))


def test_an_end_above_the_lowest_validation_loss_is_told(recipe, tmp_path, capsys):
    """A short text is learned by heart; a run that went on getting better says nothing of it."""
    texts = tmp_path / "short.txt"
    texts.write_text("the cat saw a dog and the dog saw a cat; " * 12, encoding="utf-8")
    given = ("--data", str(texts), "--max-iters", "2", "--eval-interval", "1", "--warmup", "0")
    given += ("--head", "tied")
    for name, lr in (("better", "1e-3"), ("worse", "3")):
        assert run(recipe, tmp_path / name, *given, "--lr", lr, "--min-lr", lr) == 0
        said = " ".join(capsys.readouterr().err.split())
        assert ("the validation loss was lower before" in said) == (name == "worse"), said


def test_where_a_run_is_in_words(tiny, tmp_path):
    with command.ready(tiny.replace(warmup_copy=8, max_iters=20), 1) as trainer:
        it = train.Run(trainer, tmp_path)
        it.step = -3
        assert it.where() == "after 5 of 8 steps of copying"
        it.step = 1200
        assert it.where() == "at step 1,200"
