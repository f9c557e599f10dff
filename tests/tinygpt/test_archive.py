"""What `numpy.savez` writes is read to the bit; whatever else calls itself so is refused."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest

from tinygpt import archive
from tinygpt.archive import BadFile

ARRAYS = {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(4, dtype=np.uint8)}


@pytest.fixture
def data() -> bytes:
    file = io.BytesIO()
    np.savez(file, **ARRAYS)
    return file.getvalue()


def end_of(data: bytes) -> tuple[int, ...]:
    """Entries, length and begin of an archive's directory."""
    return struct.unpack("<4s4H2LH", data[-22:])[4:7]


def with_end(data: bytes, entries: int, length: int, begin: int) -> bytes:
    return data[:-22] + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, entries, entries, length, begin, 0)


def large(data: bytes, moved: int = 0, mark: bytes = b"PK\6\6") -> bytes:
    """The archive with the end that one of more than 4 GB has: 64 bits for each number."""
    entries, length, begin = end_of(data)
    place = len(data) - 22
    end = struct.pack("<4sQ2H2L4Q", mark, 44, 45, 45, 0, 0, entries, entries, length, begin)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, place + moved, 1)
    return with_end(data[:-22] + end + locator + bytes(22), 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)


def read(data: bytes) -> dict[str, np.ndarray]:
    file = io.BytesIO(data)
    return {name: archive.read(file, stored) for name, stored in archive.members(file).items()}


def test_an_archive_of_more_than_4_gb_has_another_end(data):
    for raw in (data, large(data)):
        for name, array in read(raw).items():
            np.testing.assert_array_equal(array, ARRAYS[name])
    with np.load(io.BytesIO(large(data))) as loaded:  # NumPy thinks so, too
        np.testing.assert_array_equal(loaded["a"], ARRAYS["a"])


def array(descr: str, shape: str, elements: bytes = b"") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + elements


def test_headers_that_are_no_arrays_of_numbers():
    for raw, message in (
        (array("<Q9", "()"), "its type <Q9 is not one of NumPy's"),
        (array("<M8", "()", bytes(8)), "datetime64, are not numbers"),
        (array("<f4", "(999999999, 999999999, 9)"), r"its shape \(.*\) is impossible"),
        (array("<f4", "(2,)", bytes(4)), "8 bytes for its shape .* but 4 are there"),
    ):
        with pytest.raises(BadFile, match=message):
            archive.array_header(io.BytesIO(raw), "x", 0, len(raw))


def test_a_directory_that_does_not_fit(data):
    entries, length, begin = end_of(data)
    middle, many = begin + length, bytes(4 * 46 * 65536)
    changed = {
        "the archive's directory is cut off": with_end(data, entries + 1, length, begin),
        "bytes that belong to no member": with_end(data, entries - 1, length, begin),
        "its directory is not where the end": with_end(data, entries, length, begin + 1),
        "expected at most 65,536 members": with_end(
            data[:middle] + many + data[-22:], entries, length + len(many), begin
        ),
        "two ends of the archive": large(data, moved=1),
        "two ends of": large(data, mark=b"PK\6\5"),
        "the archive ends inside of it": grown(data, begin),
    }
    for message, raw in changed.items():
        with pytest.raises(BadFile, match=message):
            read(raw)


def grown(data: bytes, begin: int) -> bytes:
    """Both headers of the last member say that it goes on beyond the directory."""
    raw = bytearray(data)
    entry, local = raw.rindex(b"PK\1\2"), raw.rindex(b"PK\3\4", 0, begin)
    struct.pack_into("<2L", raw, entry + 20, 10**6, 10**6)
    struct.pack_into("<2L", raw, local + 18, 0xFFFFFFFF, 0xFFFFFFFF)  # Python 3.10 does not
    name, extra = struct.unpack_from("<2H", raw, local + 26)
    at = local + 30 + name
    assert struct.unpack_from("<2H", raw, at) == (1, 16) and extra == 20  # sizes of 64 bits
    struct.pack_into("<2Q", raw, at + 4, 10**6, 10**6)
    return bytes(raw)


def test_a_file_that_grows_shorter_while_it_is_read(data):
    file = io.BytesIO(data)
    stored = archive.members(file)["a"]
    with pytest.raises(BadFile, match="a: the file is cut off inside of it"):
        archive.read(io.BytesIO(data[: stored.start + 3]), stored)
    damaged = data[: stored.start] + b"\xff" + data[stored.start + 1 :]
    with pytest.raises(BadFile, match="a: its checksum is another"):
        archive.read(io.BytesIO(damaged), stored)
