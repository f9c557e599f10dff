"""Two commands that begin at once where no kernel is compiled yet.

    python benchmarks/cold_cache.py [--times 5] [--recipe quick]

Each time with a cache folder of its own, two processes train the same small run and write samples;
they have two threads, and so a helper each that compiles beside them. Both must end well and alike,
to the bit. Every kernel in the cache must then be whole, without a lock or half a file beside it,
and a third process must do the same run without compiling or writing any.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the module beside this one
from tiny_runs import difference, outcome, tiny

from tinygpt.model import config

COMPILES = "compiling kernels"


def start(recipe: str, out: Path, cache: Path) -> subprocess.Popen[str]:
    """A process that trains, with nothing but `cache` to take kernels from."""
    path = out.with_name(f"{out.name}.json")
    config.save(tiny(recipe, steps=5), path)
    args = ["train", "--config", path, "--out", out, "--threads", "2"]
    return subprocess.Popen(
        [sys.executable, "-m", "tinygpt", *args],
        env={**os.environ, "MINITENSOR_CACHE": str(cache), "MINITENSOR_KERNELS": "numba"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def told(process: subprocess.Popen[str]) -> str:
    """What a process wrote to standard error, once it ended well."""
    _, error = process.communicate(timeout=600)
    if process.returncode or "Traceback" in error:
        raise AssertionError(f"status {process.returncode}: {error[-2000:]}")
    return error


def sound(cache: Path) -> dict[str, tuple[int, int]]:
    """The kernels of a cache, each whole: inode and time of writing by name. And nothing else."""
    found = {}
    for path in (p for p in cache.rglob("*") if p.is_file()):
        data = path.read_bytes()
        # An entry opens with the checksum of the rest.
        if path.suffix != ".nbc" or hashlib.sha256(data[32:]).digest() != data[:32]:
            raise AssertionError(f"{path} is no whole kernel")
        found[path.name] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return found


def once(recipe: str, folder: Path) -> tuple[dict, int, int]:
    """Two processes at once, a third after them: their outcome, how many kernels there are, and how
    many of the two compiled some of them."""
    cache = folder / "cache"
    both = [start(recipe, folder / name, cache) for name in ("one", "other")]
    compiled = sum(COMPILES in told(process) for process in both)
    kernels = sound(cache)
    if COMPILES in told(start(recipe, folder / "third", cache)):
        raise AssertionError("the third process compiled kernels")
    if sound(cache) != kernels:
        raise AssertionError("the third process wrote kernels")
    one = outcome(folder / "one")
    for name in ("other", "third"):
        if wrong := difference(outcome(folder / name), one):
            raise AssertionError(f"{name} differs in {wrong}")
    return one, len(kernels), compiled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--recipe", default="quick")
    args = parser.parse_args()
    wanted = None
    for time in range(1, args.times + 1):
        with tempfile.TemporaryDirectory() as name:
            result, kernels, compiled = once(args.recipe, Path(name))
        if wanted and (wrong := difference(result, wanted)):
            raise AssertionError(f"time {time} differs from the first in {wrong}")
        wanted = wanted or result
        print(
            f"{time}: {kernels} kernels, compiled by {compiled} of 2, loaded by the third",
            flush=True,
        )


if __name__ == "__main__":
    main()
