"""Faults on ranks: a run on several processes loses nothing, hangs nowhere, and says it failed.

    python benchmarks/rank_faults.py [KIND ...] [--faults 20] [--seed S] [--seconds 30]

A tiny run, which saves before every step, goes on and on with 2 to 4 ranks, another number each
time, and each time something happens to a random rank at a random moment:

    kill      it is killed (SIGKILL)
    save      it is killed while rank 0 writes a checkpoint
    dead      it is stopped (SIGSTOP) for good: ended after --patience
    stuck     its main thread does nothing more, but its signs of life go on: ended too
    disk      the disk of rank 0 is full (a file system in memory, which needs root to mount)
    stop      it is stopped for so many --seconds: the run goes on
    data      it has another text under the same name: refused
    version   it has another version of the code: refused

After each the run must have ended in a minute (or not, where it goes on), with the right status and
one line that names the rank; nothing may be left running; and its checkpoint must load. At the end
it goes on without MPI, and its weights must be those of a run of one process that nothing happened
to. All programs of the machine may be stopped and woken meanwhile, this one too: that time does not
count, nor does a try whose stopped rank was woken with the others. Needs `pip install
'tinygpt[mpi]'` and Linux.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the module beside this one
from tiny_runs import tiny, train

from tinygpt.formats import checkpoint
from tinygpt.model import config
from tinygpt.ranks import STALL

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("kill", "save", "dead", "stuck", "disk", "stop", "data", "version")
PATIENCE = {"dead": 4.0, "stuck": 8.0}  # seconds
ENOUGH = 60.0  # seconds to end in, beyond what it has to wait for
# The command, whose main thread can be made to stand still.
COMMAND = """
import signal, sys, time
def stand_still(number, frame):
    while True:
        time.sleep(1)
signal.signal(signal.SIGUSR1, stand_still)
from tinygpt import cli
sys.exit(cli.command())
"""


class Woken(Exception):
    """A rank that was to stand still was woken by somebody else: the try shows nothing."""


def within(seconds: float, done: Callable[[], Any]) -> bool:
    """Whether it is done in time, which begins anew when this process was itself stopped: then the
    ranks may have been too, and count anew."""
    spent, last = 0.0, time.monotonic()
    while not done():
        time.sleep(0.05)
        now = time.monotonic()
        spent, last = (spent + now - last if now - last < 1 else 0.0), now
        if spent > seconds:
            return False
    return True


def is_stopped(process: int) -> bool:
    """Whether it stands still after a SIGSTOP; see proc(5)."""
    return Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()[0] == "T"


class Job:
    """A run on n ranks, with its words in a file; `last` is for the last rank alone."""

    def __init__(
        self, n: int, folder: Path, *options: str, patience: float, last: tuple[str, ...] = ()
    ):
        self.n, self.said = n, folder / "said"
        here = Path(sys.executable).parent
        one = [sys.executable, str(folder / "command.py"), "train", "--threads", "1"]
        one += ["--patience", str(patience), *options]
        command = ["mpiexec", "-n", str(n if not last else n - 1), *one]
        if last:
            command += [":", "-n", "1", *last, *one]
        environment = {
            "MINITENSOR_KERNELS": "numpy",
            "PATH": os.pathsep.join([str(here), os.environ.get("PATH", "")]),
            "PYTHONPATH": str(ROOT),
        }
        with self.said.open("wb") as handle:
            self.launcher = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
            )
        self.ranks: list[int] = []
        self.stopped: list[int] = []  # those of them that `stop` was called for

    def words(self) -> str:
        """All that was said so far."""
        return self.said.read_text("utf-8")

    def wait_for_ranks(self) -> None:
        """Wait for the run's first lines, which tell the ranks' processes."""
        while not self.ranks:
            assert self.launcher.poll() is None, self.words()
            time.sleep(0.02)
            self.ranks = [
                int(p) for p in re.findall(r"rank \d+ \(.*?, process (\d+)\)", self.words())
            ]

    def stop(self, rank: int) -> None:
        """Let a rank stand still (SIGSTOP)."""
        self.stopped.append(self.ranks[rank])
        os.kill(self.ranks[rank], signal.SIGSTOP)

    def check_stopped(self) -> None:
        """Raise Woken, and kill all, if one that was stopped is not any more."""
        if not all(map(is_stopped, self.stopped)):
            self.kill()
            raise Woken

    def kill(self) -> None:
        """End all processes of a run that goes on."""
        for process in (*self.ranks, self.launcher.pid):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.launcher.wait()

    def end(self, seconds: float = ENOUGH) -> int:
        """The status; it is an error if the run takes longer, or leaves a process behind."""
        if not within(seconds, lambda: self.launcher.poll() is not None):
            self.check_stopped()
            self.kill()
            raise AssertionError(f"it hangs: {self.words()}")
        status = self.launcher.returncode
        assert "Traceback" not in self.words(), self.words()
        for _ in range(100):
            if not any(Path(f"/proc/{process}").exists() for process in self.ranks):
                return status
            time.sleep(0.05)
        raise AssertionError(f"processes are left: {self.ranks}")

    def line(self) -> str:
        """The one line that tells what was wrong."""
        (line,) = [line for line in self.words().splitlines() if "tinygpt: error:" in line]
        return line


class Chain:
    """A run to which one kind of fault happens, again and again."""

    def __init__(self, kind: str, folder: Path, rng: random.Random, seconds: float):
        self.kind, self.folder, self.rng, self.seconds = kind, folder, rng, seconds
        self.place = folder / "place"
        self.out = self.place / "run"
        (folder / "command.py").write_text(COMMAND, encoding="utf-8")
        rare = {"eval_interval": 7, "sample_interval": 50}  # a save a step, and validations
        self.config = tiny("pinv-0.8m").replace(
            schedule="constant", max_iters=10**6, checkpoint_interval=1, **rare
        )
        config.save(self.config, folder / "c.json")

    def options(self) -> list[str]:
        new = ["--config", "c.json"] if not self.out.exists() else ["--resume"]
        return [*new, "--out", str(self.out)]

    def step(self) -> int:
        """The step of the last good checkpoint, which can be read."""
        saved = checkpoint.load_latest(self.out / "checkpoint.npz")
        return saved.training["step"] if saved else 0

    def counted_fault(self) -> str:
        """Have one happen to which nobody else added anything. Returns what was seen."""
        while True:
            try:
                return self.fault()
            except Woken:
                print(f"{self.kind}: the stopped rank was woken from outside; again", flush=True)

    def fault(self) -> str:
        """Have one happen. Returns what was seen."""
        n = self.rng.choice([2, 3, 4])
        if self.kind in ("data", "version"):
            return self.refused(n)
        job = Job(n, self.folder, *self.options(), patience=PATIENCE.get(self.kind, 60))
        job.wait_for_ranks()
        time.sleep(self.rng.uniform(0, 2))
        rank = self.rng.randrange(n)
        before, begin = self.step(), time.monotonic()
        status = getattr(self, self.kind)(job, rank)
        after = self.step()
        assert after >= before, "a checkpoint is lost"
        if before and self.kind in ("dead", "stuck", "disk"):
            assert f"the last good checkpoint, of step {after}, is in" in job.line(), job.words()
        took = time.monotonic() - begin
        return f"rank {rank} of {n}: status {status} after {took:.1f} s, saved at step {after}"

    def kill(self, job: Job, rank: int) -> int:
        os.kill(job.ranks[rank], signal.SIGKILL)
        status = job.end()
        assert status == signal.SIGKILL, job.words()  # MPICH's, as the shell would say it
        return status

    def save(self, job: Job, rank: int) -> int:
        while not any(p.name.startswith(".") for p in self.out.iterdir()):  # a file half written
            assert job.launcher.poll() is None, job.words()
        return self.kill(job, rank)

    def dead(self, job: Job, rank: int) -> int:
        job.stop(rank)
        status = job.end()
        assert status == 1 and f"rank {rank} (" in job.line(), job.words()
        assert "no sign of life" in job.line(), job.words()
        return status

    def stuck(self, job: Job, rank: int) -> int:
        os.kill(job.ranks[rank], signal.SIGUSR1)
        status = job.end(STALL * PATIENCE["stuck"] + ENOUGH)
        assert status == 1 and f"rank {rank} (" in job.line(), job.words()
        assert "is alive" in job.line(), job.words()
        return status

    def disk(self, job: Job, rank: int) -> int:
        ballast = self.place / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 12))
        status = job.end()
        ballast.unlink()
        assert status == 1 and "No space left on device" in job.line(), job.words()
        return status

    def stop(self, job: Job, rank: int) -> int:
        job.stop(rank)
        time.sleep(self.seconds)
        assert job.launcher.poll() is None, job.words()
        job.check_stopped()
        before = self.step()
        os.kill(job.ranks[rank], signal.SIGCONT)
        goes_on = within(ENOUGH, lambda: job.launcher.poll() or self.step() >= before + 3)
        assert goes_on and job.launcher.poll() is None, job.words()
        job.launcher.send_signal(signal.SIGINT)
        status = job.end()
        assert status == 128 + signal.SIGINT and "tinygpt: error:" not in job.words()
        return status

    def refused(self, n: int) -> str:
        """Begin with a last rank that has another text, or other code."""
        other = self.folder / "other"
        shutil.rmtree(other, ignore_errors=True)
        own: tuple[str, ...] = ()
        options = [*self.options(), "--set", "max_iters=1000000"]
        if self.kind == "version":
            for name in ("minitensor", "bpe", "tinygpt"):
                shutil.copytree(ROOT / name, other / name)
            files = sorted(other.rglob("*.py"))
            with self.rng.choice(files).open("a", encoding="utf-8") as file:
                file.write("# another version\n")
            own = ("-env", "PYTHONPATH", str(other))
        else:
            other.mkdir()
            text = (ROOT / "README.md").read_text("utf-8")
            at = self.rng.randrange(len(text))
            (self.folder / "text.txt").write_text(text, "utf-8")
            (other / "text.txt").write_text(text[:at] + "another letter" + text[at:], "utf-8")
            for name in ("command.py", "c.json"):
                shutil.copy(self.folder / name, other / name)
            options += ["--data", "text.txt"]
            own = ("-wdir", str(other))
        begin = time.monotonic()
        job = Job(n, self.folder, *options, patience=60, last=own)
        status = job.end()
        assert status == 2 and f"rank {n - 1} (" in job.line(), job.words()
        expected = "the code" if self.kind == "version" else "text.txt (its SHA-256)"
        assert expected in job.line() and not self.out.exists(), job.words()
        return f"rank {n - 1} of {n}: status {status} after {time.monotonic() - begin:.1f} s"

    def compare(self) -> str:
        """Go on alone, and compare with a run that nothing happened to."""
        end = self.step() + 3
        arguments = ["train", "--resume", "--out", str(self.out), "--max-iters", str(end)]
        subprocess.run(
            [sys.executable, "-m", "tinygpt", *arguments], check=True, stderr=subprocess.DEVNULL
        )
        whole = self.folder / "whole"
        assert train(self.config.replace(max_iters=end), whole)[0] == 0
        mine, other = (checkpoint.load(path / "model.npz").params for path in (self.out, whole))
        assert mine.keys() == other.keys()
        assert all(mine[name].tobytes() == other[name].tobytes() for name in mine)
        return f"{end} steps, the bits of one process"


@contextmanager
def chain(kind: str, rng: random.Random, seconds: float) -> Iterator[Chain]:
    """A chain with its place on disk."""
    with tempfile.TemporaryDirectory() as folder:
        made = Chain(kind, Path(folder), rng, seconds)
        made.place.mkdir()
        if kind != "disk":
            yield made
            return
        size = ["-o", "size=16m"]
        subprocess.run(["mount", "-t", "tmpfs", *size, "none", str(made.place)], check=True)
        try:
            yield made
        finally:
            subprocess.run(["umount", str(made.place)], check=True)


def main() -> None:
    """Run the faults, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], metavar="KIND")
    parser.add_argument("--faults", type=int, default=20, help="of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=30.0, help="that a rank is stopped for")
    args = parser.parse_args()
    os.environ["MINITENSOR_KERNELS"] = "numpy"
    for kind in args.kinds or KINDS:
        with chain(kind, random.Random(f"{kind} {args.seed}"), args.seconds) as made:
            for number in range(1, args.faults + 1):
                print(f"{kind} {number}: {made.counted_fault()}", flush=True)
            seen = made.compare() if made.out.exists() else "nothing was written"
            print(f"{kind}: {args.faults} faults; {seen}", flush=True)


if __name__ == "__main__":
    main()
