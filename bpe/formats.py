"""Reading and writing tokenizer files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bpe.char import CharTokenizer
from bpe.errors import TokenizerError
from bpe.reduced import ReducedTokenizer
from bpe.tokenizer import BPETokenizer, Tokenizer, unprintable


def load(path: str | os.PathLike[str]) -> Tokenizer:
    """Read a tokenizer file."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: {error.strerror}") from error
    try:
        return from_dict(json.loads(data))
    except (TokenizerError, ValueError) as error:
        raise TokenizerError(f"{path}: {error}") from error


def from_dict(data: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that `Tokenizer.to_dict` described."""
    kind = data["kind"]
    if kind == "char":
        return CharTokenizer(
            data["characters"],
            control_tokens=data["control_tokens"],
            vocab_size=data["vocab_size"],
        )
    if kind == "reduced":
        base = from_dict(data["base"])
        assert isinstance(base, BPETokenizer)
        return ReducedTokenizer(base, data["kept"], data["coverage"])
    return BPETokenizer(
        [None if token is None else unprintable(token) for token in data["vocab"]],
        [(left, right) for left, right in data["merges"]],
        special_tokens=data["special_tokens"],
        pattern=data["pattern"],
        by_token=data["by_token"],
        whole_chunks=data["whole_chunks"],
        characters=data["characters"],
        training=data["training"],
    )
