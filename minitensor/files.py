"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np


@contextlib.contextmanager
def replacing(path: Path, durable: bool = True, keep: Path | None = None) -> Iterator[Path]:
    """A name beside `path` under which a file or folder is to be written; it becomes `path` when
    the block ends well, and is gone if it does not.

    `durable`: all of it is flushed to disk before it is renamed, and the new name after, so that
    a power cut leaves the old or the new. `keep`: the name that the old one takes.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    sweep(path.parent, path.name)
    try:
        _remove(temporary)  # a dead process may have had our number
        yield temporary
        if durable:
            for written in [*temporary.iterdir()] if temporary.is_dir() else [temporary]:
                with written.open("rb") as handle:
                    os.fsync(handle.fileno())
        if keep and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
        if durable:
            sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            _remove(temporary)


def write_npz(handle: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """What ``np.savez(handle, **arrays)`` writes.

    NumPy 2.0 forgets to close its archive where a write fails, and Python then prints an error of
    its own, some time later.
    """
    with zipfile.ZipFile(handle, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make new names in a folder durable, where one can be opened (not on Windows)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sweep(folder: Path, name: str = "") -> None:
    """Remove what killed processes left in `folder`, which the caller has to itself.

    With `name`, only what was to become that file, and not what a living process writes.
    """
    for path in folder.glob(".*.tmp"):
        left = re.fullmatch(r"\.(.+)\.(\d{1,9})\.tmp", path.name)
        if left and (not name or (name == left[1] and not _alive(int(left[2])))):
            with contextlib.suppress(OSError):
                _remove(path)


def _alive(process: int) -> bool:
    if os.name != "posix":  # Windows by itself keeps a file that is open
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        pass
    return True
