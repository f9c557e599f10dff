"""The tokenizer inside a model file of NumPy's `.npz`, read without NumPy.

Such a file is a zip archive, stored without compression, whose first member is ``meta.npy``: bytes
that hold a JSON object, with the tokenizer under "tokenizer". Only this member is read. The weights
behind it may be of any size, and the archive's directory, which a stranger may have made of
millions of entries, is not looked at.
"""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path
from typing import Any

from bpe.checks import json_object
from bpe.errors import TokenizerError
from bpe.untrusted import MAX_JSON

MAGIC = b"PK\3\4"
_LOCAL = struct.Struct("<4s5H3L2H")  # before each member of an archive
_LARGE = struct.Struct("<2H2Q")  # the extra field of a member whose size takes 64 bits
_WIDE = 0xFFFFFFFF  # the size that says so
MAX_HEADER = 1 << 12
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '\|u1', 'fortran_order': False, "
    rb"'shape': \((\d{1,12}),\), \} *\n",
    re.DOTALL,
)


def is_model(path: Path) -> bool:
    """Whether a file begins as an archive does."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise TokenizerError(f"{path}: {error.strerror}") from error


def tokenizer_fields(path: Path) -> dict[str, Any]:
    """The object that describes the tokenizer of a model file, as `bpe.from_dict` takes it."""
    try:
        member = _first_member(path)
    except OSError as error:
        raise TokenizerError(f"cannot be read: {error.strerror}") from error
    header = _NPY.match(member[:MAX_HEADER])
    if header is None or len(member) - header.end() != int(header[1]):
        raise TokenizerError("a model file whose 'meta' is not plain bytes")
    tokenizer = json_object(member[header.end() :]).get("tokenizer")
    if not isinstance(tokenizer, dict):
        raise TokenizerError("a model file without a tokenizer")
    return tokenizer


def _first_member(path: Path) -> bytes:
    """The bytes of ``meta.npy``, which the file must begin with."""
    with path.open("rb") as file:
        raw = file.read(_LOCAL.size)
        if len(raw) < _LOCAL.size:
            raise TokenizerError("an archive that is cut off")
        magic, _, flags, method, _, _, crc, packed, size, name, extra = _LOCAL.unpack(raw)
        if magic != MAGIC or file.read(name) != b"meta.npy":
            raise TokenizerError("an archive, but not a model file: it does not begin with 'meta'")
        more = file.read(extra)
        if size == _WIDE and len(more) >= _LARGE.size:
            id, _, size, packed = _LARGE.unpack_from(more)
            if id != 1:
                raise TokenizerError("a model file whose 'meta' does not tell its size")
        if method or flags & ~0x800 or packed != size:  # the flag says that names are UTF-8
            raise TokenizerError("a model file whose 'meta' is not stored as it is")
        if size > MAX_JSON + MAX_HEADER:
            raise TokenizerError(f"a model file whose 'meta' has more than {MAX_JSON >> 20} MB")
        data = file.read(size)
    if len(data) != size or zlib.crc32(data) != crc:
        raise TokenizerError("a model file that is cut off or damaged")
    return data
