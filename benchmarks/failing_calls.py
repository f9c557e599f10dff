"""Every file operation of training, resuming and preparing fails once, with every error.

    python benchmarks/failing_calls.py [--every N] [--seed S]

For the n-th open, read, write, truncate, fsync, rename, unlink and mkdir, for every n, and for
ENOSPC, EIO and EACCES: the command ends with status 1 and one line that names a file and the error,
or goes on to the right end; and the same command without the fault then ends with the same bits as
if nothing had happened. Prints how many calls failed and how the commands ended. `--every N` takes
each N-th call only (the tests do).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the two modules beside this one
from tiny_runs import difference, interrupted, outcome, tiny, train
from watched_files import Call, watched

from tinygpt import cli

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)


class Fault:
    """Fails the n-th call, and only that."""

    def __init__(self, n: int, number: int):
        self.n, self.number, self.count = n, number, 0
        self.failed: Call | None = None

    def __call__(self, call: Call) -> None:
        self.count += 1
        if self.count == self.n:
            self.failed = call
            raise OSError(self.number, os.strerror(self.number), call.path)


def prepare(source: Path, out: Path) -> tuple[int, str]:
    """`tinygpt data prepare` in this process."""
    messages = io.StringIO()
    with contextlib.redirect_stderr(messages), contextlib.redirect_stdout(io.StringIO()):
        args = ["data", "prepare", str(source), "--out", str(out), "--tokenizer", "char"]
        status = cli.main([*args, "--processes", "1"])
    return status, messages.getvalue()


def prepared(out: Path) -> dict[str, bytes]:
    """What a folder of prepared data holds."""
    return {path.name: path.read_bytes() for path in out.iterdir()}


def check(
    work: Callable[[Path], tuple[int, str]],
    again: Callable[[Path], tuple[int, str]],
    start: Path | None,
    same: Callable[[Path], str],
    folder: Path,
    every: int,
    offset: int = 0,
) -> Counter[str]:
    """Let calls of `work` fail in a copy of `start`, and go on with `again`; count the endings."""
    counts: Counter[str] = Counter()
    n = 1 + offset % every
    while True:
        number = ERRORS[n // every % len(ERRORS)] if every > 1 else 0
        for code in (number,) if number else ERRORS:
            out = folder / "run"
            shutil.rmtree(out, ignore_errors=True)
            if start:
                shutil.copytree(start, out)
            fault = Fault(n, code)
            with watched([out], before=fault):
                status, told = work(out)
            if fault.failed is None:
                counts["calls in all"] = fault.count
                return counts
            where = f"call {n}, {fault.failed.kind} of {fault.failed.path}, {errno.errorcode[code]}"
            lines = [line for line in told.splitlines() if "tinygpt: error:" in line]
            if status == 1:
                named = [line for line in lines if str(out) in line and os.strerror(code) in line]
                if len(lines) != 1 or not named or "Traceback" in told:
                    raise AssertionError(f"{where}: told {told[-600:]!r}")
            elif status != 0 or lines:
                raise AssertionError(f"{where}: status {status}, told {told[-600:]!r}")
            counts[f"{fault.failed.kind}: {'error' if status else 'went on'}"] += 1
            if status:
                status, told = again(out)
                if status:
                    raise AssertionError(f"{where}: afterwards status {status}: {told[-600:]!r}")
            if wrong := same(out):
                raise AssertionError(f"{where}: afterwards other {wrong}")
        n += every


def training(folder: Path, every: int, offset: int = 0) -> Counter[str]:
    """A new run."""
    c = tiny("quick", steps=5)
    train(c, folder / "whole")
    wanted = outcome(folder / "whole")

    def again(out: Path) -> tuple[int, str]:
        return train(c, out, resume=(out / "config.json").exists())

    return check(
        lambda out: train(c, out), again, None, lambda out: difference(outcome(out), wanted),
        folder, every, offset,
    )  # fmt: skip


def resuming(folder: Path, every: int, offset: int = 0) -> Counter[str]:
    """A run that was stopped."""
    c = tiny("quick", steps=5)
    train(c, folder / "whole")
    wanted = outcome(folder / "whole")
    with interrupted(3):
        train(c, folder / "begun")

    def go_on(out: Path) -> tuple[int, str]:
        return train(c, out, resume=True)

    return check(
        go_on, go_on, folder / "begun", lambda out: difference(outcome(out), wanted),
        folder, every, offset,
    )  # fmt: skip


def preparing(folder: Path, every: int, offset: int = 0) -> Counter[str]:
    """`tinygpt data prepare`."""
    source = folder / "text.txt"
    source.write_text("\n<|endoftext|>\n".join(f"Story {n}. The end." for n in range(200)), "utf-8")
    prepare(source, folder / "whole")
    wanted = prepared(folder / "whole")

    def work(out: Path) -> tuple[int, str]:
        return prepare(source, out)

    return check(
        work, work, None, lambda out: difference(prepared(out), wanted), folder, every, offset
    )


def main() -> None:
    """All three, and their counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, metavar="N")
    every = parser.parse_args().every
    for work in (training, resuming, preparing):
        with tempfile.TemporaryDirectory() as name:
            counts = work(Path(name).resolve(), every)
        total = sum(n for key, n in counts.items() if key != "calls in all")
        print(f"{work.__name__}: {counts.pop('calls in all')} calls, {total} failures")
        for key, n in sorted(counts.items()):
            print(f"    {key:20} {n:6}", flush=True)


if __name__ == "__main__":
    main()
