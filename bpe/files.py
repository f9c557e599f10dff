"""Files: text in blocks, and tokenizers whole."""

from __future__ import annotations

import codecs
import errno
import glob
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from bpe.errors import TokenizerError

BLOCK = 1 << 20  # bytes of text read at a time
MAX_FILE = 64 << 20  # bytes of a tokenizer; the largest published ones have about 30 MB
ABANDONED = 3600.0  # seconds after which a temporary file is one of a process that was killed


def read_blocks(path: Path, advance: Callable[[int], Any] = lambda size: None) -> Iterator[str]:
    """The text of a UTF-8 file, in blocks of about a megabyte."""
    try:
        with path.open("rb") as file:
            yield from decode_blocks(file, str(path), advance)
    except OSError as error:
        raise TokenizerError(f"{path}: {error.strerror}") from error


def decode_blocks(
    file: BinaryIO, name: str, advance: Callable[[int], Any] = lambda size: None
) -> Iterator[str]:
    """The text of an open file."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    end = 0
    block = b"..."
    try:
        while block:
            block = file.read(BLOCK)
            end += len(block)
            yield decoder.decode(block, final=not block)
            advance(len(block))
    except UnicodeDecodeError as error:
        at = end - len(error.object) + error.start
        raise TokenizerError(f"{name}: not UTF-8: {error.reason} at byte {at}") from error


def open_ordinary(path: Path) -> BinaryIO:
    """Open a file that lies in a stranger's folder. OSError for a pipe, which would never answer,
    and for a device, which may never end; links to them are no better."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "not an ordinary file", str(path))
    return path.open("rb")


def read_file(path: Path, named: bool = True) -> bytes:
    """All of a file that can be a tokenizer: a larger one is refused unread.

    A file that was not `named`, but merely lies beside one, must be an ordinary file.
    """
    try:
        with path.open("rb") if named else open_ordinary(path) as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise TokenizerError(f"{path}: {error.strerror}") from error
    if len(data) > MAX_FILE:
        raise TokenizerError(f"{path}: more than {MAX_FILE >> 20} MB: no tokenizer file")
    return data


def write_file(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, flush it to disk, then rename it to `path`.

    What killed processes left behind is removed once it is an hour old.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be written: {error.strerror}") from error
