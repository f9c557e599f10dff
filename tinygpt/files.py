"""Files: written so that a reader never sees half of one, locked, hashed; and where caches are."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from minitensor import files
from tinygpt import Error


@contextlib.contextmanager
def replacing(path: str | Path, keep: bool = False) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`; when the block ends well, it becomes `path`.

    The bytes are flushed to disk before the renaming, so after a crash there is the old file or the
    new one. With `keep`, the old one stays as ``NAME.bak``. Raises Error if it cannot be written.
    """
    with replacing_by_name(path, keep) as temporary, temporary.open("xb") as handle:
        yield handle


@contextlib.contextmanager
def replacing_by_name(path: str | Path, keep: bool = False) -> Iterator[Path]:
    """The same for what opens files itself: the name of the temporary file, or folder."""
    path = Path(path)
    try:
        with files.replacing(path, keep=backup(path) if keep else None) as temporary:
            yield temporary
    except OSError as error:
        raise Error(f"{path}: cannot be written: {error.strerror or error}") from error


def backup(path: Path) -> Path:
    """Where `replacing` keeps the previous version."""
    return path.with_name(path.name + ".bak")


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


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal, read block by block."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where this user's caches are: TINYGPT_CACHE, or the platform's place."""
    if os.environ.get("TINYGPT_CACHE"):
        return Path(os.environ["TINYGPT_CACHE"])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "tinygpt"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/tinygpt"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tinygpt"
