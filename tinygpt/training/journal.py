"""The files of a run that grow, its log and its samples: appended to, cut back, and read."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from bpe.files import open_ordinary
from tinygpt import Error

MAX_LINE = 1 << 16  # bytes of a record
MAX_LINES = 1 << 22  # of a log


class Journal:
    """A text file that is only appended to, and cut back when a run goes on from a checkpoint.

    What is appended is with the operating system at once, so that a killed process loses none of
    it. `sync` puts it on disk, where a power cut leaves it, and gives the length that a checkpoint
    records: whatever lies behind that length is written again by the run that goes on. Links are
    not followed: a run folder from elsewhere must not lead to another file.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = io.FileIO(path, "a+", opener=_no_links)
        except OSError as error:
            raise self._failed(error) from error
        if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            self._file.close()
            raise Error(f"{path}: not an ordinary file; move it away")

    def append(self, text: str) -> None:
        """Write `text`, whole or not at all. Raises Error if it cannot be written."""
        data = text.encode()
        end = os.fstat(self._file.fileno()).st_size
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            with contextlib.suppress(OSError):  # else half a line stays, and resuming cuts it off
                self._file.truncate(end)
            raise self._failed(error) from error

    def sync(self) -> int:
        """Put everything on disk; its length in bytes."""
        try:
            os.fsync(self._file.fileno())
            return os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise self._failed(error) from error

    def cut(self, size: int) -> bool:
        """Drop what lies behind `size` bytes, and half a line before; whether `size` are left."""
        try:
            self._file.seek(0)
            there = min(size, os.fstat(self._file.fileno()).st_size)  # `size` can be any number
            end = self._file.read(there).rfind(b"\n") + 1
            self._file.truncate(end)
        except OSError as error:
            raise self._failed(error) from error
        return end == size

    def close(self) -> None:
        """Let go of the file; nothing waits to be written."""
        self._file.close()

    def _failed(self, error: OSError) -> Error:
        return Error(f"{self.path}: cannot be written: {error.strerror or error}")


def _no_links(path: str, flags: int) -> int:
    # O_NONBLOCK: a pipe without a reader must not hold us up.
    more = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return os.open(path, flags | more, 0o666)


def as_json(record: dict[str, Any]) -> str:
    """A record as one line of JSON, which has no number for what is not finite: that is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(record))


def read_records(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The records of a log.jsonl, and the numbers of the lines that are none.

    A power cut or a full disk may leave half a line; such lines are for the caller to tell of.
    Infinities and NaN, which are no JSON, are read as null. Raises Error for a log that cannot be
    read at all, or has more than `MAX_LINES`.
    """
    records: list[dict[str, Any]] = []
    damaged: list[int] = []
    try:
        with open_ordinary(path) as file:
            for number, line in enumerate(_lines(file), 1):
                if number > MAX_LINES:
                    raise Error(f"{path}: expected at most {MAX_LINES:,} lines, got more")
                record = _record(line)
                if record is not None:
                    records.append(record)
                elif line.strip():
                    damaged.append(number)
    except OSError as error:
        raise Error(f"{path}: {error.strerror}; expected a run's folder") from error
    return records, damaged


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, of each no more than is needed to see that it is too long."""
    while line := file.readline(MAX_LINE + 1):
        yield line
        while len(line) > MAX_LINE and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE + 1)


def _record(line: bytes) -> dict[str, Any] | None:
    """The record that a line of a log is; None if it is none."""
    if len(line) > MAX_LINE:
        return None
    try:
        record = json.loads(line.decode(), parse_constant=lambda name: None)
    except (ValueError, RecursionError):
        return None
    plain = isinstance(record, dict) and all(map(_plain, record.values()))
    return record if plain else None


def _plain(value: Any) -> bool:
    """Whether a value is one that a run logs: a text, null, or a number to calculate with."""
    if isinstance(value, int):
        return abs(value) < 1 << 63
    if isinstance(value, float):
        return abs(value) < 1e300  # so that a float holds differences, and a picture its axes
    return value is None or isinstance(value, str)
