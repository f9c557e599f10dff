"""The file operations of a program, one by one, for those who break them (see power_cut.py,
failing_calls.py and kill_anywhere.py).

Inside `watched`, every open, read, write, truncate, fsync, rename, unlink and mkdir below the given
folders is announced before it is done, and told again once it was. Whoever is announced to may
raise OSError, or end the process.
"""

from __future__ import annotations

import builtins
import io
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock


@dataclass(frozen=True)
class Call:
    """An operation on a file: `other` is the new name, `offset` and `data` are what is written."""

    kind: str
    path: str
    other: str = ""
    offset: int = 0
    data: bytes = b""


def nothing(call: Call) -> None:
    """Whom nothing is to be told."""


@contextmanager
def watched(
    folders: Sequence[Path],
    before: Callable[[Call], None] = nothing,
    after: Callable[[Call], None] = nothing,
) -> Iterator[None]:
    """Announce every file operation below `folders` to `before`, and tell `after` of those done."""
    roots = [os.path.abspath(folder) for folder in folders]
    plain_open, PlainRaw, names = io.open, io.FileIO, dict[int, str]()

    def inside(path: Any) -> str:
        """The path as text if it is to be watched, else ""."""
        if isinstance(path, int):
            return names.get(path, "")
        text = os.path.abspath(os.fsdecode(path))
        return text if any(text == r or text.startswith(r + os.sep) for r in roots) else ""

    def told(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """An operation of `os` whose first argument is a path or a descriptor."""

        def work(path: Any, *args: Any, **options: Any) -> Any:
            name = inside(path)
            if not name:
                return function(path, *args, **options)
            call = Call(kind, name, inside(args[0]) if kind == "rename" else "")
            before(call)
            result = function(path, *args, **options)
            if kind == "open":
                names[result] = name
            after(call)
            return result

        return work

    class Raw(PlainRaw):
        def __init__(self, file: Any, mode: str = "r", closefd: bool = True, opener: Any = None):
            self.name_ = inside(file)
            self.writes = mode.strip("b") != "r"
            call = Call("open", self.name_, "w" if mode[0] in "wx" else "")
            if self.name_:
                before(call)
            super().__init__(file, mode, closefd, opener)
            if self.name_:
                names[self.fileno()] = self.name_
                if self.writes:
                    after(call)

        def _told(
            self, kind: str, work: Callable[[], Any], offset: int = 0, data: Any = b""
        ) -> Any:
            if not self.name_:
                return work()
            call = Call(kind, self.name_, "", offset, bytes(data))
            before(call)
            result = work()
            after(call)
            return result

        def write(self, data: Any) -> int:
            size = os.fstat(self.fileno()).st_size
            offset = size if "a" in self.mode else self.tell()
            return self._told("write", lambda: PlainRaw.write(self, data), offset, data)

        def truncate(self, size: int | None = None) -> int:
            end = self.tell() if size is None else size
            return self._told("truncate", lambda: PlainRaw.truncate(self, end), end)

        def readinto(self, buffer: Any) -> int | None:
            return self._told("read", lambda: PlainRaw.readinto(self, buffer))

        def readall(self) -> bytes:
            return self._told("read", lambda: PlainRaw.readall(self))

        def read(self, size: int = -1) -> bytes | None:
            return self._told("read", lambda: PlainRaw.read(self, size))

    def watched_open(
        file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
        newline: Any = None, closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        if isinstance(file, int) or not inside(file):
            return plain_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        if "+" in mode:
            buffered: Any = io.BufferedRandom(raw)
        elif "r" in mode:
            buffered = io.BufferedReader(raw)
        else:
            buffered = io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding, errors, newline)

    kinds = {"open": "open", "fsync": "fsync", "replace": "rename", "rename": "rename"}
    kinds |= {"unlink": "unlink", "mkdir": "mkdir"}
    work = {name: told(kind, getattr(os, name)) for name, kind in kinds.items()}
    # Python 3.10's paths hold on to the functions of when pathlib was imported.
    paths = getattr(pathlib, "_NormalAccessor", SimpleNamespace(**work))
    of_paths = {name: staticmethod(work[name]) for name in work if name not in ("open", "fsync")}
    with (
        mock.patch.multiple(os, **work),
        mock.patch.multiple(paths, open=staticmethod(watched_open), **of_paths, create=True),
        mock.patch.object(io, "open", watched_open),
        mock.patch.object(io, "FileIO", Raw),
        mock.patch.object(builtins, "open", watched_open),
    ):
        yield
