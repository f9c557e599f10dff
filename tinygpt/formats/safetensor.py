"""One safetensors file with our own names: the weights, the configuration and the tokenizer.

The layout is that of the library `safetensors`: a JSON header, then the arrays. Configuration,
tokenizer and provenance are strings in its metadata, so the file is whole, as a model.npz is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bpe
from bpe.untrusted import parse_json, shown
from tinygpt import Error, UsageError
from tinygpt.files import replacing
from tinygpt.formats.checkpoint import Saved, checked_provenance
from tinygpt.formats.huggingface import library, tensors
from tinygpt.model import config
from tinygpt.model.transformer import layout

FORMAT = "tinygpt-model"


def save_file(saved: Saved, out: Path) -> str:
    """Write `out`, which is replaced whole or not at all. What reads it knows it by its name."""
    if out.suffix != ".safetensors":
        raise UsageError(f"{out}: expected a name that ends in .safetensors")
    numpy_files = library("safetensors.numpy")
    metadata = {
        "format": FORMAT,
        "config": json.dumps(saved.config.to_dict()),
        "tokenizer": json.dumps(saved.tokenizer.to_dict()),
        "provenance": json.dumps(saved.provenance),
    }
    with replacing(out) as handle:
        handle.write(numpy_files.save(dict(saved.params), metadata=metadata))
    return "safetensors"


def load_file(path: Path) -> Saved:
    """Read a file that `save_file` wrote. Raises Error, in one line, for anything else."""
    safetensors = library("safetensors")
    with tensors([path]) as (names, read):
        with safetensors.safe_open(path, framework="numpy") as handle:
            metadata = handle.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise Error(
                f"{path}: safetensors without a configuration; give the folder that holds its "
                "config.json and tokenizer"
            )
        try:
            c = config.from_dict(_object(metadata["config"]))
            tokenizer = bpe.from_dict(_object(metadata["tokenizer"]))
            provenance = checked_provenance(_object(metadata["provenance"]))
        except (KeyError, ValueError, UsageError) as error:
            raise Error(
                f"{path}: its configuration or tokenizer cannot be read: {error}"
            ) from error
        wanted = layout(c)
        if set(wanted) != set(names):
            odd = sorted(set(wanted) ^ set(names))[:5]
            raise Error(f"{path}: missing or unexpected tensors: {', '.join(odd)}")
        params = {name: read(name) for name in wanted}
        for name, shape in wanted.items():
            if params[name].shape != shape or params[name].dtype != c.dtype:
                raise Error(
                    f"{path}: {name}: expected {c.dtype} {shape}, got {params[name].dtype} "
                    f"{params[name].shape}"
                )
    return Saved(c, tokenizer, params, provenance)


def _object(text: str) -> dict[str, Any]:
    value = parse_json(text.encode("utf-8", "surrogatepass"))
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {shown(value)}")
    return value
