"""Run folders: a new one, the latest one."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinygpt import Error


def new_folder(out: Path | None, name: str) -> Path:
    """The folder for a new run: `out`, or the first of runs/NAME, runs/NAME-2, … that is free."""
    if out is None:
        return next(path for path in _numbered(name) if not _holds_run(path))
    if _holds_run(out):
        raise Error(
            f"{out}: holds a run already; go on with it with --resume, or give another --out"
        )
    if out.exists() and not out.is_dir():
        raise Error(f"{out}: a file; --out is the folder of the run")
    return out


def latest_folder(name: str | None) -> Path:
    """The highest-numbered run of a recipe, or of all in runs/ the one that was at work last."""
    if name is None:
        every = [path for path in Path("runs").glob("*") if (path / "config.json").is_file()]
        if not every:
            raise Error("runs: no run to go on with; give its folder with --out")
        return max(every, key=lambda path: max(f.stat().st_mtime for f in path.iterdir()))
    found = None
    for path in _numbered(name):
        if not _holds_run(path):
            break
        found = path
    if found is None:
        raise Error(f"runs/{name}: no run to go on with; give its folder with --out")
    return found


@contextmanager
def made(out: Path) -> Iterator[None]:
    """Make the run folder; it is removed again if nothing was put into it.

    Raises Error before the work, not after it, if it cannot be written.
    """
    new = [path for path in (out, *out.parents) if not path.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise Error(
            f"{out}: the run folder cannot be written: {error.strerror or error}"
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # that one is not empty
            for path in new:
                path.rmdir()


def _numbered(name: str) -> Iterator[Path]:
    yield Path("runs") / name
    number = 2
    while True:
        yield Path("runs") / f"{name}-{number}"
        number += 1


def _holds_run(path: Path) -> bool:
    names = ("config.json", "log.jsonl", "checkpoint.npz", "model.npz")
    return any((path / name).exists() for name in names)
