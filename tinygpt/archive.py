"""Arrays in `.npy` and `.npz` files, whose headers are checked before memory is set aside.

An `.npz` is a zip archive of `.npy` files. The size of an array stands in it five times: in the
archive's directory, before the member, in where the next one begins, in the array's header, and
in what the reader expects. `numpy.load` believes the first it meets, so a file of a kilobyte can
take gigabytes, and one member can stand for two arrays. Here they must all agree, and members must
be stored as they are, as `numpy.savez` writes them: then a file never asks for more memory than it
has bytes. What is not a plain array of numbers is refused: no objects, no records, no pickle.
"""

from __future__ import annotations

import math
import os
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from bpe.files import open_ordinary

Array = np.ndarray

MAX_MEMBERS = 1 << 16
MAX_HEADER = 1 << 12  # bytes before the elements of an array
MAX_NAME = 256
CHUNK = 1 << 20  # bytes that a checksum is taken of at a time

_ENTRY = struct.Struct("<4s6H3L5H2L")  # of the directory
_LOCAL = struct.Struct("<4s5H3L2H")  # before each member
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")  # the same for more than 2 GB, with where it is behind it
_LOCATOR = struct.Struct("<4sLQL")
_UTF8 = 0x800  # the one flag that says nothing about how a member is stored
_HEADER = re.compile(
    rb"\{'descr': '([<>|=]?[a-zA-Z][0-9]{0,4})', 'fortran_order': (False|True), "
    rb"'shape': \((|[0-9]{1,18},|[0-9]{1,18}(?:, [0-9]{1,18}){1,31})\), \} *\n"
)


class BadFile(ValueError):
    """A file is not a sound archive or array; the message says where and why."""


@dataclass(frozen=True)
class Stored:
    """An array in a file: what its header says, and where its elements are."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    columns_first: bool  # NumPy's "fortran_order"
    begin: int  # offset of the header
    start: int  # offset of the first element
    crc: int = 0  # of header and elements, where an archive gives it

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return math.prod(self.shape) * self.dtype.itemsize


def array_header(file: IO[bytes], name: str, begin: int, size: int, crc: int = 0) -> Stored:
    """The `.npy` of `size` bytes at `begin`. BadFile unless the size is that of its elements."""
    file.seek(begin)
    raw = file.read(min(size, MAX_HEADER))
    version, width = raw[6:7], 2 if raw[6:7] == b"\1" else 4
    if raw[:6] != b"\x93NUMPY" or version not in (b"\1", b"\2", b"\3") or len(raw) < 8 + width:
        raise BadFile(f"{name}: no array of NumPy's format")
    header = 8 + width + int.from_bytes(raw[8 : 8 + width], "little")
    match = _HEADER.fullmatch(raw[8 + width : header]) if header <= len(raw) else None
    if match is None:
        raise BadFile(f"{name}: its header is not that of a plain array")
    try:
        dtype = np.dtype(match[1].decode())
    except TypeError:
        raise BadFile(f"{name}: its type {match[1].decode()} is not one of NumPy's") from None
    shape = tuple(int(n) for n in match[3].decode().split(",") if n)
    stored = Stored(name, dtype, shape, match[2] == b"True", begin, begin + header, crc)
    if dtype.kind not in "biufc":
        raise BadFile(f"{name}: its elements, {dtype}, are not numbers")
    if math.prod(n or 1 for n in shape) >> 56:
        raise BadFile(f"{name}: its shape {shape_of(shape)} is impossible")
    if header + stored.nbytes != size:
        raise BadFile(
            f"{name}: {stored.nbytes:,} bytes for its shape {shape_of(shape)}, but "
            f"{size - header:,} are there"
        )
    return stored


def shape_of(shape: tuple[int, ...]) -> str:
    """A shape for a message, however many and large its numbers are."""
    text = str(shape)
    return text if len(text) <= 60 else text[:60] + "…"


def array_file(path: Path) -> Stored:
    """The header of a `.npy` file. BadFile if it is not sound, OSError if it cannot be read."""
    with open_ordinary(path) as file:
        return array_header(file, path.name, 0, os.fstat(file.fileno()).st_size)


def members(file: IO[bytes]) -> dict[str, Stored]:
    """The arrays of an open `.npz` by name, in their order; no element is read.

    Raises BadFile unless the archive is what `numpy.savez` writes: its members lie one behind the
    other without gaps, stored and not compressed, each an array whose name is there once.
    """
    begin, end, entries = _directory(file)
    file.seek(begin)
    raw = file.read(end - begin)
    found: dict[str, Stored] = {}
    place = expected = 0
    for _ in range(entries):
        if len(raw) < place + _ENTRY.size:
            raise BadFile("the archive's directory is cut off")
        fields = _ENTRY.unpack_from(raw, place)
        mark, _, _, flags, method, _, _, crc, packed, plain, n_name, n_extra, n_note = fields[:13]
        name_bytes, place = raw[place + 46 : place + 46 + n_name], place + 46 + n_name
        extra, place = raw[place : place + n_extra], place + n_extra + n_note
        name = _member_name(name_bytes)
        plain, packed, offset = _long_sizes(extra, plain, packed, fields[-1])
        if mark != b"PK\1\2" or place > len(raw) or offset != expected:
            raise BadFile(f"{name}: the archive's directory does not fit its members")
        if flags & ~_UTF8:
            raise BadFile(f"{name}: encrypted, or written by a program of another kind")
        if method or packed != plain:
            raise BadFile(f"{name}: compressed; expected members stored as numpy.savez stores them")
        if name in found:
            raise BadFile(f"{name}: there twice")
        start = _local_header(file, name, name_bytes, (flags, method, crc, packed, plain), offset)
        expected = start + plain
        if expected > begin:
            raise BadFile(f"{name}: the archive ends inside of it")
        found[name] = array_header(file, name, start, plain, crc)
    if place != len(raw) or expected != begin:
        raise BadFile("the archive holds bytes that belong to no member")
    return found


def _directory(file: IO[bytes]) -> tuple[int, int, int]:
    """Begin and end of an archive's directory, and how many entries it has."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _END64.size - _LOCATOR.size - _END.size, 0))
    tail = file.read()
    if len(tail) < _END.size:
        raise BadFile("too short for an archive")
    mark, disk, disk_too, entries, total, length, begin, note = _END.unpack(tail[-_END.size :])
    end = size - _END.size
    if mark != b"PK\5\6" or note:
        raise BadFile("no end of an archive at the end of the file")
    locator = tail[-_END.size - _LOCATOR.size : -_END.size]
    if locator[:4] == b"PK\6\7" and len(tail) == _END64.size + _LOCATOR.size + _END.size:
        end -= _END64.size + _LOCATOR.size
        place = _LOCATOR.unpack(locator)[2]
        fields = _END64.unpack(tail[: _END64.size])
        mark, _, _, _, disk, disk_too, entries, total, length, begin = fields
        if mark != b"PK\6\6" or place != end:
            raise BadFile("two ends of the archive that do not agree")
    if disk or disk_too or entries != total or begin + length != end:
        raise BadFile("its directory is not where the end of the archive says")
    if entries > MAX_MEMBERS or length > MAX_MEMBERS * _ENTRY.size * 4:
        raise BadFile(f"expected at most {MAX_MEMBERS:,} members, got {entries:,}")
    return begin, end, entries


def _member_name(raw: bytes) -> str:
    if len(raw) > MAX_NAME or not raw.endswith(b".npy"):
        raise BadFile(f"a member's name: expected NAME.npy, got {raw[:60]!r}")
    try:
        return raw[:-4].decode("utf-8")
    except UnicodeDecodeError:
        raise BadFile(f"a member's name: expected UTF-8, got {raw[:60]!r}") from None


def _local_header(
    file: IO[bytes], name: str, name_bytes: bytes, said: tuple[int, ...], offset: int
) -> int:
    """Where a member's bytes begin. BadFile unless the header before them agrees with `said`."""
    file.seek(offset)
    raw = file.read(_LOCAL.size)
    if len(raw) == _LOCAL.size:
        mark, _, flags, method, _, _, crc, packed, plain, n_name, n_extra = _LOCAL.unpack(raw)
        inside, extra = file.read(n_name), file.read(n_extra)
        plain, packed = _long_sizes(extra, plain, packed)
        here = mark, inside, len(extra), (flags, method, crc, packed, plain)
        if here == (b"PK\3\4", name_bytes, n_extra, said):
            return offset + _LOCAL.size + n_name + n_extra
    raise BadFile(f"{name}: the header before it is not that of the archive's directory")


def _long_sizes(extra: bytes, *sizes: int) -> list[int]:
    """`sizes`, those that 32 bits cannot hold taken from the extra field of type 1."""
    long: list[int] = []
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            long = [*struct.unpack_from(f"<{min(length, len(extra) - 4) // 8}Q", extra, 4)]
        extra = extra[4 + length :]
    return [long.pop(0) if n == 0xFFFFFFFF and long else n for n in sizes]


def read(file: IO[bytes], stored: Stored) -> Array:
    """The array that `stored` describes. BadFile if the archive's checksum is another."""
    file.seek(stored.begin)
    crc = zlib.crc32(file.read(stored.start - stored.begin))
    flat = np.empty(math.prod(stored.shape), stored.dtype)
    into = flat.view(np.uint8).data
    for place in range(0, len(into), CHUNK):
        part = into[place : place + CHUNK]
        if file.readinto(part) != len(part):  # type: ignore[attr-defined]
            raise BadFile(f"{stored.name}: the file is cut off inside of it")
        crc = zlib.crc32(part, crc)
    if crc != stored.crc:
        raise BadFile(f"{stored.name}: its checksum is another than when it was written")
    return flat.reshape(stored.shape, order="F" if stored.columns_first else "C")
