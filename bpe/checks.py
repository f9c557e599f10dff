"""Checks of what a file holds, with errors that say where and why."""

from __future__ import annotations

import warnings
from collections.abc import Container, Mapping
from typing import Any

from bpe.errors import TokenizerError
from bpe.untrusted import parse_json, shown


def json_object(data: bytes) -> dict[str, Any]:
    """The object in `data`, within the bounds of `bpe.untrusted`."""
    try:
        content = parse_json(data)
    except ValueError as error:
        raise TokenizerError(str(error)) from error
    if not isinstance(content, dict):
        raise TokenizerError(f"expected an object, got {name_of(content)}")
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
        raise TokenizerError(f"{where}{key}: expected {expected}, got {name_of(value)}")
    return value


MAX_SPECIAL = 1 << 14  # each is a branch of the expression that finds them; Gemma has 6,000


def special_ids(data: Any) -> dict[str, int]:
    """`data`, if it maps special tokens to ids."""
    if not isinstance(data, Mapping):
        raise TokenizerError(f"special_tokens: expected names with their ids, got {name_of(data)}")
    for name, id in data.items():
        if type(name) is not str or type(id) is not int:
            raise TokenizerError(
                f"special_tokens: {shown(name)} has {shown(id)} for an id, not a number"
            )
    if len(data) > MAX_SPECIAL:
        raise TokenizerError(f"special_tokens: {len(data):,}; at most {MAX_SPECIAL:,} are allowed")
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
