"""Reading JSON from strangers, and telling what is wrong with it in one short line.

A small file may ask for much: 60 MB of ``[]`` become 1.5 GB of Python lists, a million opening
brackets overflow a stack, a number of a million digits takes minutes. So sizes, values and depth
are counted on the bytes, at the speed of `bytes.count`, before anything is made of them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

MAX_JSON = 64 << 20  # bytes; the largest published tokenizers have about 30 MB
MAX_MARKS = 1 << 20  # of "[", "{", "," and ":"; Llama 3's 128,000 tokens and their merges have 97 %
MAX_DEPTH = 64
MAX_DIGITS = 20

_OUTSIDE = bytes(sorted(set(range(256)) - set(b"[]{}")))  # all but brackets


def parse_json(data: bytes) -> Any:
    """The value that `data` holds as JSON in UTF-8.

    Raises ValueError, with one line that says why, for what is not JSON and for what exceeds
    `MAX_JSON` bytes, `MAX_MARKS` values, `MAX_DEPTH` levels or `MAX_DIGITS` digits in a whole
    number. A key that is there twice, NaN and Infinity, which Python's reader lets pass, are not
    JSON either.
    """
    if len(data) > MAX_JSON:
        raise ValueError(f"expected at most {MAX_JSON >> 20} MB of JSON, got {len(data) >> 20} MB")
    brackets = _brackets(data)
    for _ in range(MAX_DEPTH):
        if not brackets:
            break
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    try:
        value = json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_constant=_constant,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if brackets:  # sound, so what is left are levels further in
        raise ValueError(_TOO_DEEP)
    return value


_TOO_DEEP = f"JSON nested too deeply: expected at most {MAX_DEPTH} levels"


def _brackets(data: bytes) -> bytes:
    """The brackets of `data` outside of its strings. ValueError if it holds too many values."""
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")  # each quote now opens or closes
    strings = data.count(b'"') // 2  # each but one is followed by a mark
    if strings <= MAX_MARKS + 1:
        data = re.sub(rb'"[^"]*"', b"", data)
    if max(strings - 1, sum(map(data.count, (b"[", b"{", b",", b":")))) > MAX_MARKS:
        raise ValueError(f"more than {MAX_MARKS:,} values and keys, more than any file needs")
    return data.translate(None, _OUTSIDE)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {shown(twice)} is twice")
    return result


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def shown(value: Any, most: int = 60) -> str:
    """`value` for a message: short whatever it is, without control characters, never failing."""
    if isinstance(value, (str, bytes)):
        return repr(value) if len(value) <= most else f"{value[:most]!r}…"
    if isinstance(value, bool) or value is None or isinstance(value, float):
        return repr(value)
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 100 else f"a number of {value.bit_length()} bits"
    if isinstance(value, (list, tuple, dict)):
        if len(value) <= 4 and not any(isinstance(v, (list, tuple, dict)) for v in value):
            inside = ", ".join(shown(v, 20) for v in value)
            return {list: f"[{inside}]", tuple: f"({inside})"}.get(type(value), f"{{{inside}}}")
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def one_line(text: str, most: int = 400) -> str:
    """`text` as one line of about `most` characters at most that is safe on any terminal.

    Line ends become spaces, other characters that are not printable are written as Python does
    (``\\x1b``); of a longer text the beginning and the end are kept, which say where and why.
    """
    text = " ".join(text.splitlines())
    if len(text) > most:
        text = f"{text[: most * 3 // 4]} … {text[-most // 4 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
