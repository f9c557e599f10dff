"""Folders of Hugging Face's transformers: ``config.json``, safetensors, and a tokenizer.

What is written loads there without this project. Beside the foreign configuration the folder's
``config.json`` holds ours, under "tinygpt", so that reading it again gives back the very model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import bpe
import minitensor as mt
from bpe.untrusted import MAX_JSON, parse_json, shown
from tinygpt import Error, UsageError
from tinygpt.files import replacing_by_name
from tinygpt.formats import families
from tinygpt.formats.checkpoint import Saved
from tinygpt.formats.families import FAMILIES, Family
from tinygpt.model import config
from tinygpt.model.config import Config
from tinygpt.model.transformer import GPT

Array = np.ndarray
INDEX = "model.safetensors.index.json"


def library(name: str) -> Any:
    """A library of the extra `formats`, or the one line that says how to get it."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.split(".")[0]
        raise Error(
            f"this format needs {package}: 'pip install {package}', where tinygpt is installed"
        ) from None


# ---------------------------------------------------------------------------------------- writing


def head_matrix(c: Config, params: Mapping[str, Array]) -> Array:
    """The unembedding (V, D) that a model computes from its other parameters."""
    model = GPT(c)
    model.load_state_dict(params)
    with mt.no_grad():
        return np.ascontiguousarray(model.head_weight().numpy())


def plain_head(saved: Saved) -> tuple[Config, dict[str, Array]]:
    """The configuration and parameters with a pseudo-inverse head written out as a matrix."""
    c = saved.config
    if c.head != "pinv":
        return c, dict(saved.params)
    head = head_matrix(c, saved.params)
    return c.replace(head="untied"), {**saved.params, "head.weight": head}


def save_folder(saved: Saved, out: Path) -> str:
    """Write the folder `out`, which must not exist or be empty; the name of the architecture.

    Raises Error, before anything is written, where no architecture can hold the model.
    """
    numpy_files = library("safetensors.numpy")
    c, params = plain_head(saved)
    family = families.family_of(c)
    tokenizer, eos = saved.tokenizer, saved.tokenizer.separator_id
    foreign = {
        **family.describe(c),
        "vocab_size": c.vocab_size,
        "tie_word_embeddings": c.head == "tied",
        "bos_token_id": eos,
        "eos_token_id": eos,
        "dtype": c.dtype,
        "tinygpt": saved.config.to_dict(),
    }
    tensors = families.to_foreign(family, c, params)
    special = {id: name for name, id in tokenizer.special_tokens.items()}
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Error(f"{out}: is there already; give a folder that does not exist")
    with replacing_by_name(out) as folder:
        folder.mkdir(parents=True)
        _write_json(folder / "config.json", foreign)
        try:
            numpy_files.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        except library("safetensors").SafetensorError as error:  # also where the disk is full
            raise Error(f"{out}: cannot be written: {_line(error)}") from error
        try:
            tokenizer.save(folder / "tokenizer.json", format="huggingface")
        except bpe.TokenizerError as error:
            raise Error(f"the tokenizer cannot go into a tokenizer.json: {error}") from error
        _write_json(
            folder / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": c.context,
                "clean_up_tokenization_spaces": False,
                **({} if eos is None else {"bos_token": special[eos], "eos_token": special[eos]}),
            },
        )
    return family.title


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------- reading


def load_folder(folder: Path) -> Saved:
    """Read a folder of the GPT-2, GPT-Neo or Llama type, with its tokenizer."""
    values = read_json(folder / "config.json")
    family = FAMILIES.get(str(values.get("model_type")))
    if family is None:
        raise Error(
            f"{folder}: model_type {shown(values.get('model_type'))} is not known here; known: "
            f"{', '.join(FAMILIES)}"
        )
    try:
        c = _config(family, values)
    except (Error, AttributeError, TypeError, ValueError) as error:
        raise Error(f"{folder / 'config.json'}: {error}") from error
    with tensors(_shards(folder)) as (names, read):
        try:
            params = own_params(family, c, names, read)
        except Error as error:
            raise Error(f"{folder}: {error}") from error
    return Saved(c, tokenizer_of(folder, c), params, {"imported": family.title})


def _config(family: Family, values: Mapping[str, Any]) -> Config:
    """Our configuration: the one that was written along, or what the foreign one amounts to."""
    ours = values.get("tinygpt")
    if isinstance(ours, dict):
        return config.from_dict(ours)
    tied = bool(values.get("tie_word_embeddings", family is not families.LLAMA))
    if "vocab_size" not in values:
        raise Error("expected a vocab_size, got none")
    changes = family.understand(values)
    try:
        return Config(
            name=family.name.replace("_", "-"),
            vocab_size=values["vocab_size"],
            head="tied" if tied else "untied",
            **changes,
        )
    except UsageError as error:
        raise Error(str(error)) from error


def own_params(
    family: Family, c: Config, names: list[str], read: Callable[[str], Array]
) -> dict[str, Array]:
    """Our parameters from a family's tensors; a pseudo-inverse head is made again and compared."""
    if c.head != "pinv":
        return families.from_foreign(family, c, names, read)
    params = families.from_foreign(family, c.replace(head="untied"), names, read)
    written = params.pop("head.weight")
    if not np.allclose(written, head_matrix(c, params), rtol=1e-3, atol=1e-4):
        raise Error(f"{family.head}: not the pseudo-inverse of the embedding that the "
                    "configuration says it is")  # fmt: skip
    return params


def _shards(folder: Path) -> list[Path]:
    """The safetensors files of a folder: one, or those that its index names."""
    whole, index = folder / "model.safetensors", folder / INDEX
    if whole.is_file() or not index.is_file():
        if not whole.is_file():
            pickled = folder / "pytorch_model.bin"
            hint = ("; pytorch_model.bin is a pickle, which can run code: save it as safetensors "
                    "with transformers first") if pickled.is_file() else ""  # fmt: skip
            raise Error(f"{folder}: no model.safetensors and no {INDEX}{hint}")
        return [whole]
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise Error(f"{index}: expected a weight_map from names to files")
    files = sorted(set(places.values()))
    here = {path.name for path in folder.iterdir() if path.is_file()}
    for file in files:
        if file not in here:
            raise Error(f"{index}: {file[:80]!r} is not a file of this folder")
    return [folder / file for file in files]


@contextmanager
def tensors(files: list[Path]) -> Iterator[tuple[list[str], Callable[[str], Array]]]:
    """The names in safetensors files, mapped into memory, and how to read one as floating point."""
    safetensors = library("safetensors")
    with ExitStack() as stack:
        where: dict[str, Any] = {}
        for path in files:
            try:
                handle = stack.enter_context(safetensors.safe_open(path, framework="numpy"))
            except (OSError, safetensors.SafetensorError) as error:
                raise Error(f"{path}: not a safetensors file: {_line(error)}") from error
            where.update(dict.fromkeys(handle.keys(), handle))

        def read(name: str) -> Array:
            if where[name].get_slice(name).get_dtype() == "BF16":
                library("ml_dtypes")  # teaches NumPy the name bfloat16
            try:
                value = where[name].get_tensor(name)
            except (TypeError, ValueError, safetensors.SafetensorError) as error:
                raise Error(f"{name}: cannot be read: {_line(error)}") from error
            if value.dtype.kind != "f" and value.dtype.name != "bfloat16":
                raise Error(f"{name}: expected floating point, got {value.dtype}")
            return np.asarray(value)

        yield list(where), read


def tokenizer_of(folder: Path, c: Config) -> Any:
    """The tokenizer of a folder. Raises Error where it has ids that the model has no row for."""
    try:
        tokenizer = bpe.load(folder)
    except (OSError, bpe.TokenizerError) as error:
        raise Error(f"{folder}: the tokenizer cannot be read: {_line(error)}") from error
    check_tokenizer(folder, tokenizer, c)
    return tokenizer


def check_tokenizer(path: Path, tokenizer: Any, c: Config) -> None:
    """Raise Error where a tokenizer does not belong to the weights."""
    if tokenizer.vocab_size > c.vocab_size:
        raise Error(
            f"{path}: the tokenizer has {tokenizer.vocab_size:,} ids, the model has rows for "
            f"{c.vocab_size:,}; they do not belong together"
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of bounded size. Raises Error, in one line."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise Error(f"{path}: {path.stat().st_size:,} bytes, expected at most {MAX_JSON:,}")
        values = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Error(f"{path}: cannot be read: {_line(error)}") from error
    if not isinstance(values, dict):
        raise Error(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values


def _line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return "".join(ch if ch.isprintable() else " " for ch in " ".join(text.split()))[:160]
