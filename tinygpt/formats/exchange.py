"""The formats a model can be written to and read from, and how the reader of a file is found.

`load_any` takes whatever people have on disk: a model.npz, a run folder, a safetensors file, a
folder of Hugging Face, a llama2.c ``.bin``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from tinygpt import Error
from tinygpt.formats import checkpoint
from tinygpt.formats.checkpoint import Saved
from tinygpt.formats.ggufile import save_gguf
from tinygpt.formats.huggingface import load_folder, save_folder
from tinygpt.formats.llama2c import load_bin, save_bin
from tinygpt.formats.safetensor import load_file, save_file

# name: (what writes it, what it is)
WRITERS: dict[str, tuple[Callable[[Saved, Path], str], str]] = {
    "safetensors": (save_file, "one safetensors file that `tinygpt import` reads"),
    "hf": (save_folder, "a folder for Hugging Face's transformers: GPT-2, GPT-Neo or Llama"),
    "llama2c": (save_bin, "llama2.c's .bin and tokenizer.bin, which its run.c reads"),
    "llama2c-v1": (partial(save_bin, version=1), "the same in version 1 of its format"),
    "gguf": (save_gguf, "a file for llama.cpp"),
}


def load_any(path: str | Path) -> Saved:
    """Read a model from a file or folder of any known kind. Raises Error, in one line."""
    path = Path(path)
    if path.is_dir():
        if (path / "model.npz").is_file():
            return checkpoint.load(path / "model.npz")
        if (path / "log.jsonl").is_file():
            raise Error(f"{path}: a run without a model.npz: it was stopped before its first save")
        if (path / "config.json").is_file():
            return _finite(path, load_folder(path))
        raise Error(
            f"{path}: neither a run folder (no model.npz) nor a folder of Hugging Face (no "
            "config.json)"
        )
    if not path.is_file():
        raise Error(f"{path}: no such file or folder")
    if path.suffix == ".safetensors":
        return _finite(path, load_file(path))
    if path.suffix == ".gguf":
        raise Error(f"{path}: GGUF files are written here, not read; import the model from its "
                    "folder of Hugging Face")  # fmt: skip
    if path.suffix == ".bin":
        return _finite(path, load_bin(path))
    return checkpoint.load(path)


def _finite(path: Path, saved: Saved) -> Saved:
    """`saved`, as `checkpoint.load` would give it. Raises Error for weights that are not finite."""
    for name, value in saved.params.items():
        if not np.isfinite(value).all():
            raise Error(f"{path}: {name} holds numbers that are not finite (NaN or infinity)")
    return saved
