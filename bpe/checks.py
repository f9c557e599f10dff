"""Checks of what a file holds, with errors that say where and why."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Container, Mapping
from typing import Any

from bpe.errors import TokenizerError


def parse_json(data: bytes) -> dict[str, Any]:
    """The object in `data`.

    Refuses what Python's reader accepts: a key that is there twice, NaN, numbers of thousands of
    digits.
    """

    def integer(digits: str) -> int:
        if len(digits) > 20:
            raise TokenizerError(f"a number of {len(digits)} digits")
        return int(digits)

    def constant(name: str) -> None:
        raise TokenizerError(f"{name} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise TokenizerError(f"the key {twice!r} is twice")
        return result

    hooks: dict[str, Any] = {"parse_int": integer, "parse_constant": constant}
    try:
        content = json.loads(data.decode("utf-8-sig"), object_pairs_hook=unique, **hooks)
    except UnicodeDecodeError as error:
        raise TokenizerError(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise TokenizerError(f"not JSON: {error}") from error
    except RecursionError as error:
        raise TokenizerError("not a tokenizer: nested too deeply") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"an object is expected, not {name_of(content)}")
    return content


_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number with a point",
    bool: "true or false",
    type(None): "null",
}


def name_of(value: Any) -> str:
    return _NAMES.get(type(value), type(value).__name__)


def field(data: Any, key: str, *types: type, default: Any = ..., where: str = "") -> Any:
    """`data[key]`, which must be of one of `types`."""
    value = data.get(key, default)
    if value is ...:
        raise TokenizerError(f"{where}{key}: missing")
    if type(value) not in types and value is not default:
        expected = " or ".join(_NAMES[t] for t in types)
        raise TokenizerError(f"{where}{key}: {expected} is expected, not {name_of(value)}")
    return value


def special_ids(data: Any) -> dict[str, int]:
    """`data`, if it maps special tokens to ids."""
    if not isinstance(data, Mapping):
        raise TokenizerError(f"special_tokens: names with their ids, not {name_of(data)}")
    for name, id in data.items():
        if type(name) is not str or type(id) is not int:
            raise TokenizerError(f"special_tokens: {name!r} has {id!r} for an id, not a number")
    return dict(data)


def is_id(id: Any, known: Container[int]) -> bool:
    """Whether `id`, which may be anything, is one of `known`."""
    try:
        return id in known
    except TypeError:  # not hashable, so no id
        return False


def warn(message: str) -> None:
    """Warn the caller of `Tokenizer.save`."""
    warnings.warn(message, stacklevel=6)
