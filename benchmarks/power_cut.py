"""Every state that a power cut may leave of a run's folder, and the run that goes on from it.

    python benchmarks/power_cut.py [--recipe NAME] [--every N]

A tiny run is recorded operation by operation. After each of them the power may go; what was not
flushed to disk by then may be there or not:

    the bytes of a file since its last fsync    all; none; all but the last write, which is torn
                                                in the middle; as many zeros
    names since the last fsync of the folder    any subset of the creations, renamings and removals

Each different folder that this makes is built, and `train --resume` goes on in it: from the newest
checkpoint whose saving had come to its end, or a later one, to the bits of the run that nothing
happened to; what the log has is without a gap and told once. `without_fsync` records a run whose
flushes do nothing: then this must fail, and the tests see that it does.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the two modules beside this one
from tiny_runs import BEFORE, difference, newest_step, outcome, tiny, train
from watched_files import Call, watched

from tinygpt.model.config import Config
from tinygpt.training.train import Run

VARIANTS = ("all", "none", "torn", "zeros")


@dataclass
class File:
    """The bytes of a file that are on disk for certain, and the writes since."""

    safe: bytes = b""
    waiting: list[Call] = field(default_factory=list)

    def content(self, variant: str) -> bytes:
        """What a power cut may leave."""
        data = bytearray(self.safe)
        waiting = self.waiting if variant != "none" else []
        for n, call in enumerate(waiting):
            if call.kind == "truncate":
                data = data[: call.offset].ljust(call.offset, b"\0")
                continue
            new = call.data
            if variant == "torn" and n == len(waiting) - 1:
                new = new[: len(new) // 2]
            if variant == "zeros":
                new = bytes(len(new))
            data = data.ljust(call.offset, b"\0")
            data[call.offset : call.offset + len(new)] = new
        return bytes(data)


class Disk:
    """A folder as a power cut would find it, told of every operation in it."""

    def __init__(self, folder: Path):
        self.folder = str(folder)
        self.now: dict[str, File] = {}  # names as the running program sees them
        self.safe: dict[str, File] = {}  # names that are on disk for certain
        self.waiting: list[tuple[str, str, File | None]] = []  # (name, name that goes, file)

    def apply(self, call: Call) -> None:
        """Take in an operation that was done."""
        name = os.path.basename(call.path)
        if call.path == self.folder:
            if call.kind == "fsync":
                self.safe, self.waiting = dict(self.now), []
            return
        if call.kind == "open" and name not in self.now:
            self.now[name] = File()
            self.waiting.append((name, "", self.now[name]))
        elif call.kind == "open" and call.other == "w":
            self.now[name].waiting.append(Call("truncate", call.path))
        elif call.kind in ("write", "truncate"):
            self.now[name].waiting.append(call)
        elif call.kind == "fsync":
            self.now[name].safe = self.now[name].content("all")
            self.now[name].waiting.clear()
        elif call.kind == "rename":
            new = os.path.basename(call.other)
            self.now[new] = self.now.pop(name)
            self.waiting.append((new, name, self.now[new]))
        elif call.kind == "unlink":
            self.now.pop(name)
            self.waiting.append((name, "", None))

    def states(self) -> Iterator[dict[str, bytes]]:
        """Every folder that a power cut may leave at this moment."""
        for kept in itertools.product((True, False), repeat=len(self.waiting)):
            names = dict(self.safe)
            for (name, gone, file), keep in zip(self.waiting, kept, strict=True):
                if keep:
                    names.pop(gone, None)
                    names.pop(name, None)
                    if file:
                        names[name] = file
            for variant in VARIANTS:
                yield {name: file.content(variant) for name, file in names.items()}


def record(c: Config, out: Path, without_fsync: bool = False) -> list[tuple[Call | None, int]]:
    """Train, and list the operations, each with the step of the newest checkpoint then complete."""
    calls: list[tuple[Call | None, int]] = []
    saved = [BEFORE]
    plain = Run.save

    def save(self: Run) -> None:
        plain(self)
        saved[0] = self.step

    def after(call: Call) -> None:
        if not (without_fsync and call.kind == "fsync"):
            calls.append((call, saved[0]))

    with mock.patch.object(Run, "save", save), watched([out], after=after):
        status, told = train(c, out)
    if status:
        raise AssertionError(told)
    return calls


def cut_power(c: Config, folder: Path, every: int = 1, without_fsync: bool = False) -> int:
    """Resume from every `every`-th different state; how many. AssertionError where one is wrong."""
    train(c, folder / "whole")
    wanted = outcome(folder / "whole")
    out = folder / "run"
    calls = record(c, out, without_fsync)
    disk, seen, tried = Disk(out), set[int](), 0
    for n, (call, saved) in enumerate(calls):
        assert call is not None
        disk.apply(call)
        for state in disk.states():
            # What a temporary file holds makes no difference, so it makes no other state.
            key = hash(
                (saved, *sorted((k, b"" if k.startswith(".") else v) for k, v in state.items()))
            )
            if key in seen:
                continue
            seen.add(key)
            if len(seen) % every:
                continue
            tried += 1
            shutil.rmtree(out)
            out.mkdir()
            for name, data in state.items():
                (out / name).write_bytes(data)
            where = f"after operation {n} ({call.kind} of {os.path.basename(call.path)})"
            step = newest_step(out)
            if step < saved:
                raise AssertionError(f"{where}: step {saved} was saved, step {step} is left")
            status, told = train(c, out, resume=(out / "config.json").exists())
            if status:
                raise AssertionError(f"{where}: {told[-300:]}")
            if wrong := difference(outcome(out), wanted):
                raise AssertionError(f"{where}: other {wrong}")
    return tried


def main() -> None:
    """Cut the power of one recipe's tiny run, everywhere."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="quick")
    parser.add_argument("--every", type=int, default=1, metavar="N")
    args = parser.parse_args()
    c = tiny(args.recipe, steps=7)
    with tempfile.TemporaryDirectory() as name:
        states = cut_power(c, Path(name).resolve(), args.every)
    print(f"{states:,} states after a power cut, each gone on from to the same bits")


if __name__ == "__main__":
    main()
