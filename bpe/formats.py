"""Tokenizer files: the package's own JSON, and those of Hugging Face, tiktoken and llama2.c.

Nothing in a file is believed. Everything that does not add up is a `TokenizerError` that names
the file, the place and the reason in one line; sizes are checked before memory is spent on them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bpe.char import CharTokenizer
from bpe.checks import field, name_of, parse_json, special_ids, token_of
from bpe.errors import TokenizerError
from bpe.huggingface import from_gpt2, from_huggingface, write_gpt2, write_huggingface
from bpe.ranks import from_llama2c, from_tiktoken, write_llama2c, write_tiktoken
from bpe.reduced import ReducedTokenizer
from bpe.tokenizer import MAX_ID, BPETokenizer, Tokenizer

MAX_FILE = 64 << 20  # bytes; the largest published tokenizers have about 30 MB


def load(
    path: str | os.PathLike[str],
    *,
    pattern: str | None = None,
    special_tokens: Mapping[str, int] | None = None,
) -> Tokenizer:
    """Read a tokenizer: a file of any known format, told by its content, or a folder with one.

    Known are this package's JSON, Hugging Face's `tokenizer.json`, `vocab.json` with `merges.txt`
    beside it, tiktoken's ranks, and llama2.c's `tokenizer.bin`. `pattern` and `special_tokens`
    complete the formats that do not hold them: `vocab.json` and tiktoken's (GPT-2's pattern is
    assumed), and `tokenizer.bin` (no splitting is).
    """
    path = Path(path)
    if path.is_dir():
        names = ("tokenizer.json", "vocab.json", "tokenizer.bin")
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise TokenizerError(f"{path}: a folder without {', '.join(names)}")
        path = found[0]
    data = _read(path)
    options = {
        key: value
        for key, value in (("pattern", pattern), ("special_tokens", special_tokens))
        if value is not None
    }
    try:
        return _reader(path, data)(**options)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error


def _reader(path: Path, data: bytes) -> Callable[..., Tokenizer]:
    """What makes a tokenizer of `data`, the content of `path`."""
    start = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n")
    if not start:
        raise TokenizerError("the file begins with nothing but white space" if data else "empty")
    if start.startswith(b"{"):
        content = parse_json(data)
        if {type(value) for value in content.values()} == {int}:  # "model" is a word of GPT-2
            merges = _read(path.with_name("merges.txt"))
            return lambda **options: from_gpt2(content, merges, **options)
        if "model" in content:
            return lambda: from_huggingface(content)
        return lambda: from_dict(content)
    if start.startswith(b"#version"):
        vocab = parse_json(_read(path.with_name("vocab.json")))
        return lambda **options: from_gpt2(vocab, data, **options)
    if re.match(rb"[A-Za-z0-9+/=]+ [0-9]+\r?(\n|$)", data):
        return lambda **options: from_tiktoken(data, **options)
    return lambda **options: from_llama2c(data, **options)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise TokenizerError(f"{path}: {error.strerror}") from error
    if len(data) > MAX_FILE:
        raise TokenizerError(f"{path}: more than {MAX_FILE >> 20} MB: no tokenizer file")
    return data


def from_dict(data: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that `Tokenizer.to_dict` described."""
    if not isinstance(data, Mapping):
        raise TokenizerError(f"an object is expected, not {name_of(data)}")
    if field(data, "format", str) != "bpe" or field(data, "version", int) != 1:
        raise TokenizerError("format: only 'bpe', version 1, is known; it may be of a newer bpe")
    kind = field(data, "kind", str)
    if kind not in _KINDS:
        raise TokenizerError(f"kind: {kind!r} is none of {', '.join(map(repr, _KINDS))}")
    make, fields = _KINDS[kind]
    for key in data:
        if key not in ("format", "version", "kind", *fields):
            raise TokenizerError(f"{key}: not a field of a tokenizer of kind {kind!r}")
    return make({key: field(data, key, *types) for key, types in fields.items()})


def _make_bpe(data: dict[str, Any]) -> BPETokenizer:
    vocab, merges = data.pop("vocab"), data.pop("merges")
    if len(vocab) > MAX_ID:
        raise TokenizerError(f"vocab: {len(vocab)} tokens; {MAX_ID} are allowed")
    for id, token in enumerate(vocab):
        if type(token) not in (str, type(None)):
            raise TokenizerError(f"vocab[{id}]: a string or null is expected, not {name_of(token)}")
    tokens = [t if t is None else token_of(t, f"vocab[{id}]") for id, t in enumerate(vocab)]
    for rank, pair in enumerate(merges):
        if type(pair) is not list or [type(id) for id in pair] != [int, int]:
            raise TokenizerError(f"merges[{rank}]: two ids are expected, not {str(pair)[:40]}")
    special_ids(data["special_tokens"])
    return BPETokenizer(tokens, map(tuple, merges), **data)


def _make_char(data: dict[str, Any]) -> CharTokenizer:
    return CharTokenizer(data.pop("characters"), **data)


def _make_reduced(data: dict[str, Any]) -> ReducedTokenizer:
    base = data["base"]
    if base.get("kind") != "bpe":
        raise TokenizerError("base: a tokenizer of kind 'bpe' is expected")
    return ReducedTokenizer(from_dict(base), data["kept"], data["coverage"])  # type: ignore[arg-type]


_Make = Callable[[dict[str, Any]], Tokenizer]
_KINDS: dict[str, tuple[_Make, dict[str, tuple[type, ...]]]] = {
    "bpe": (
        _make_bpe,
        {
            "pattern": (str,),
            "by_token": (bool,),
            "whole_chunks": (bool,),
            "characters": (bool,),
            "training": (dict,),
            "special_tokens": (dict,),
            "vocab": (list,),
            "merges": (list,),
        },
    ),
    "char": (_make_char, {"control_tokens": (bool,), "vocab_size": (int,), "characters": (str,)}),
    "reduced": (_make_reduced, {"coverage": (float, int), "kept": (list,), "base": (dict,)}),
}


_WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "huggingface": write_huggingface,
    "gpt2": write_gpt2,
    "tiktoken": write_tiktoken,
    "llama2c": write_llama2c,
}
FORMATS = ("json", *_WRITERS)


def write(tokenizer: Tokenizer, path: Path, format: str) -> None:
    """Write `tokenizer` in one of `FORMATS` other than the package's own."""
    if format not in _WRITERS:
        raise TokenizerError(f"format: {format!r} is none of {', '.join(FORMATS)}")
    if format != "llama2c":
        if not isinstance(tokenizer, BPETokenizer):
            raise TokenizerError(f"format: {format!r} holds BPE only, not {tokenizer.kind!r}")
        if tokenizer.characters:
            raise TokenizerError(f"format: {format!r} cannot hold llama2.c's encoding by character")
    _WRITERS[format](tokenizer, path)
