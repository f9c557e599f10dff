"""The model in the box: a small trained one that comes with the package.

With it ``tinygpt generate`` writes a story before anything is trained. Its weights are stored as
float16, in half the room, and computed with as float32. It is the default recipe, trained with its
own seed; `benchmarks/make_box.py` makes it of that run, and its provenance (`tinygpt.load()
.provenance`) says with which steps, seed, data and versions.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

from bpe.terminal import counted
from tinygpt import Error, UsageError
from tinygpt.formats import checkpoint
from tinygpt.formats.checkpoint import Saved

NAME = "box.npz"
MOST = 2_000_000  # bytes that the package may carry


def place() -> Any:
    """Where the model is, or would be: the package may lie in a zip."""
    return importlib.resources.files("tinygpt").joinpath(NAME)


def load() -> Saved:
    """The model in the box. Raises UsageError where this installation has none."""
    if not place().is_file():
        raise UsageError(
            "no model given, and this installation carries none: train one with 'tinygpt train' "
            "and give its folder, as in 'tinygpt generate runs/quick'"
        )
    with importlib.resources.as_file(place()) as path:
        return checkpoint.load(path)


def told(saved: Saved) -> str:
    """What the model is and where it comes from, in a few words."""
    steps = saved.provenance.get("step")
    return f"{saved.config.name} after {counted(steps, 'step')}" if steps else saved.config.name


def make(saved: Saved, path: Path) -> int:
    """Write a model for the box; its bytes. Raises Error, leaving nothing, if it is too large."""
    checkpoint.save(path, Saved(saved.config, saved.tokenizer, saved.params, saved.provenance),
                    dtype="float16")  # fmt: skip
    size = path.stat().st_size
    if size > MOST:
        path.unlink()
        raise Error(f"{path}: expected at most {MOST:,} bytes for the package, got {size:,}")
    return size
