"""Writing files so that a reader never sees half of one, and where a user's caches are."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tinygpt import Error


@contextlib.contextmanager
def replacing(path: str | Path, keep: bool = False) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`; when the block ends well, it becomes `path`.

    The bytes are flushed to disk before the renaming, so after a crash there is the old file or the
    new one. With `keep`, the old one stays as ``NAME.bak``. Raises Error if it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # with "x", no link that waits there is followed
        with temporary.open("xb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        if keep and path.exists():
            os.replace(path, backup(path))
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise Error(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def backup(path: Path) -> Path:
    """Where `replacing` keeps the previous version."""
    return path.with_name(path.name + ".bak")


def sweep(folder: Path, shared: bool = False) -> None:
    """Remove what killed processes left in `folder` of the files that they were replacing.

    The caller has the folder to itself. In a shared one what a living process writes is left alone.
    """
    for path in folder.glob(".*.tmp"):
        name = re.fullmatch(r"\..+\.(\d{1,9})\.tmp", path.name)
        if name and not (shared and _alive(int(name[1]))):
            with contextlib.suppress(OSError):
                path.unlink()


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


def sync_folder(folder: Path) -> None:
    """Make new names in a folder durable, where one can be opened (not on Windows)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def alone(folder: Path, doing: str) -> Iterator[None]:
    """Keep other processes out of a folder; the lock goes with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Error(f"{folder}: another process is {doing} here") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


def cache_folder() -> Path:
    """Where this user's caches are: TINYGPT_CACHE, or the platform's place."""
    if os.environ.get("TINYGPT_CACHE"):
        return Path(os.environ["TINYGPT_CACHE"])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "tinygpt"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/tinygpt"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tinygpt"
