"""Every file operation of training, resuming, preparing, exporting and importing fails once, with
every error.

    python benchmarks/failing_calls.py [WORK …] [--error ENOSPC] [--every N]

For the n-th open, read, write, truncate, fsync, rename, unlink and mkdir, for every n, and for
ENOSPC, EIO and EACCES: the command ends with status 1 and one line that names a file and the error,
or goes on to the right end; and the same command without the fault then ends with the same bits as
if nothing had happened. Prints how many calls failed and how the commands ended. `--every N` takes
each N-th call only (the tests do). What the libraries safetensors and gguf read and write without
Python's files is not seen here; `test_a_full_disk_while_exporting` fills the disk instead.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the two modules beside this one
from tiny_runs import difference, interrupted, outcome, tiny, train
from watched_files import Call, watched

import bpe
from tinygpt import cli
from tinygpt.formats import checkpoint
from tinygpt.formats.checkpoint import Saved
from tinygpt.model.transformer import GPT

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


def call(*args: str | Path) -> tuple[int, str]:
    """A command of `tinygpt` in this process: its status and what standard error got."""
    messages = io.StringIO()
    with contextlib.redirect_stderr(messages), contextlib.redirect_stdout(io.StringIO()):
        status = cli.main(list(map(str, args)))
    return status, messages.getvalue()


def held(out: Path) -> dict[str, Any]:
    """Everything that a folder holds, by path."""
    return {str(p.relative_to(out)): content(p) for p in out.rglob("*") if p.is_file()}


def content(path: Path) -> Any:
    """The bytes of a file; the header of a safetensors file has its keys in no fixed order."""
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        return data
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def other(out: Path, wanted: dict[str, Any]) -> str:
    """What `out` holds otherwise than `wanted`, and what is missing or too much; "" if nothing."""
    mine = held(out)
    keys = sorted(mine.keys() | wanted.keys())
    return ", ".join(key for key in keys if mine.get(key) != wanted.get(key))


def check(
    work: Callable[[Path], tuple[int, str]],
    again: Callable[[Path], tuple[int, str]],
    start: Path | None,
    same: Callable[[Path], str],
    folder: Path,
    every: int,
    offset: int = 0,
    errors: Sequence[int] = ERRORS,
) -> Counter[str]:
    """Let calls of `work` fail in a copy of `start`, and go on with `again`; count the endings."""
    counts: Counter[str] = Counter()
    n = 1 + offset % every
    while True:
        for code in errors if every == 1 else [errors[n // every % len(errors)]]:
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


def training(folder: Path, **options: Any) -> Counter[str]:
    """A new run."""
    c = tiny("quick", steps=5)
    train(c, folder / "whole")
    wanted = outcome(folder / "whole")

    def again(out: Path) -> tuple[int, str]:
        return train(c, out, resume=(out / "config.json").exists())

    return check(
        lambda out: train(c, out), again, None, lambda out: difference(outcome(out), wanted),
        folder, **options,
    )  # fmt: skip


def resuming(folder: Path, **options: Any) -> Counter[str]:
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
        folder, **options,
    )  # fmt: skip


def preparing(folder: Path, **options: Any) -> Counter[str]:
    """`tinygpt data prepare`."""
    source = folder / "text.txt"
    source.write_text("\n<|endoftext|>\n".join(f"Story {n}. The end." for n in range(200)), "utf-8")

    def work(out: Path) -> tuple[int, str]:
        to = ("--out", out, "--tokenizer", "char", "--processes", "1")
        return call("data", "prepare", source, *to)

    work(folder / "whole")
    wanted = held(folder / "whole")
    return check(work, work, None, lambda out: other(out, wanted), folder, **options)


FORMATS = {  # what `tinygpt export --to` takes: (what it writes, whether it can be read again)
    "safetensors": ("model.safetensors", True),
    "hf": ("model", True),
    "llama2c": ("model.bin", True),
    "gguf": ("model.gguf", False),
}


def exchanging(folder: Path, back: bool, **options: Any) -> Counter[str]:
    """`tinygpt export` to all formats, or `tinygpt import` from them."""
    tokenizer = bpe.BPETokenizer.train(["Once upon a time there was a hedgehog."], 260)
    c = tiny("mini-1m").replace(vocab_size=260, norm="rms", norm_eps=1e-5, positions="rope")
    c = c.replace(
        ffn="swiglu", **dict.fromkeys(("qkv_bias", "out_bias", "ffn_bias", "norm_bias"), False)
    )
    counts: Counter[str] = Counter()
    for to, (name, readable) in FORMATS.items():
        start, whole = folder / f"start of {to}", folder / f"whole {to}"
        start.mkdir()
        checkpoint.save(start / "m.npz", Saved(c, tokenizer, GPT(c).state_dict()))
        if back and not readable:
            continue
        args: tuple[str, ...] = ("export", "m.npz", "--to", to, "--out", name)
        if back:
            call_in(start, *args)
            args = ("import", name, "--out", "again.npz")
        shutil.copytree(start, whole)
        status, told = call_in(whole, *args)
        if status:
            raise AssertionError(f"{to}: {told}")
        wanted = held(whole)

        def work(out: Path, args: tuple[str, ...] = args) -> tuple[int, str]:
            return call_in(out, *args)

        def again(out: Path, args: tuple[str, ...] = args) -> tuple[int, str]:
            # A folder that got its name before the call failed is whole, and not written over.
            if args[0] == "export" and (out / args[-1]).is_dir():
                return 0, ""
            return call_in(out, *args)

        counts += check(work, again, start, partial(other, wanted=wanted), folder, **options)
    return counts


def call_in(folder: Path, *args: str) -> tuple[int, str]:
    """`call` of COMMAND SOURCE … TARGET, both taken in `folder`."""
    command, source, *rest = args
    return call(command, folder / source, *rest[:-1], folder / rest[-1])


def exporting(folder: Path, **options: Any) -> Counter[str]:
    """`tinygpt export`, to each format."""
    return exchanging(folder, False, **options)


def importing(folder: Path, **options: Any) -> Counter[str]:
    """`tinygpt import`, from each format."""
    return exchanging(folder, True, **options)


WORKS = (training, resuming, preparing, exporting, importing)


def main() -> None:
    """Some of the works or all, and their counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [work.__name__ for work in WORKS]
    parser.add_argument("work", nargs="*", default=names, metavar="WORK", help=", ".join(names))
    parser.add_argument("--every", type=int, default=1, metavar="N")
    known = [errno.errorcode[code] for code in ERRORS]
    parser.add_argument("--error", choices=known, action="append", help="default: all")
    args = parser.parse_args()
    errors = [getattr(errno, name) for name in args.error or known]
    for work in (work for work in WORKS if work.__name__ in args.work):
        with tempfile.TemporaryDirectory() as name:
            counts = work(Path(name).resolve(), every=args.every, errors=errors)
        total = sum(n for key, n in counts.items() if key != "calls in all")
        print(f"{work.__name__}: {counts.pop('calls in all')} calls, {total} failures")
        for key, n in sorted(counts.items()):
            print(f"    {key:20} {n:6}", flush=True)


if __name__ == "__main__":
    main()
