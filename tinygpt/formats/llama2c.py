"""llama2.c's ``.bin`` files, versions 0 and 1, with their ``tokenizer.bin``.

Version 0 is seven int32 (width, hidden, layers, heads, key/value heads, vocabulary, context; the
vocabulary is negative where the classifier has a matrix of its own), then float32 arrays without
names; it is the one that ``run.c`` reads. Version 1 has a header of 256 bytes and another order.
Neither has a place for a bias, a norm's epsilon or RoPE's base: run.c has 1e-5 and 10000 built in.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import bpe
from bpe.ranks import llama2c_rows
from tinygpt import Error
from tinygpt.files import replacing
from tinygpt.formats.checkpoint import Saved
from tinygpt.formats.families import LLAMA, require
from tinygpt.formats.huggingface import check_tokenizer, plain_head
from tinygpt.model.config import Config

Array = np.ndarray
MAGIC = 0x616B3432  # "ak42", the first word of version 1 and later
HEADER = 256  # bytes of the header of version 1
LIMIT = 1 << 24  # of any count in a header
EPS, THETA = 1e-5, 10000.0  # built into run.c

# Arrays in the order of the file: name, the layers it is repeated over, and its shape.
BLOCKS = {
    "attn_norm": ("attn_norm.weight", ("D",)),
    "wq": ("q", ("D", "D")),
    "wk": ("k", ("K", "D")),
    "wv": ("v", ("K", "D")),
    "wo": ("attn.out.weight", ("D", "D")),
    "ffn_norm": ("ffn_norm.weight", ("D",)),
    "w1": ("ffn.gate.weight", ("F", "D")),
    "w2": ("ffn.down.weight", ("D", "F")),
    "w3": ("ffn.up.weight", ("F", "D")),
}
ORDER = {
    0: ["embedding", "attn_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3", "norm",
        "rope", "head"],
    1: ["attn_norm", "ffn_norm", "norm", "embedding", "wq", "wk", "wv", "wo", "w1", "w2", "w3",
        "head"],
}  # fmt: skip


def refusals(c: Config, params: Mapping[str, Array]) -> Iterator[str]:
    """Why a model cannot be a llama2.c file."""
    yield from LLAMA.refusals(c)
    yield from require(c, norm_eps=EPS, rope_theta=THETA)
    biases = [name for name, a in params.items() if name.endswith(".bias") and np.any(a)]
    if biases:
        yield f"it has no place for biases, and {biases[0]} is not zero"


def _layers(c: Config, params: Mapping[str, Array], name: str) -> Iterator[Array]:
    """One kind of array, layer by layer."""
    for i in range(c.n_layer):
        if name in ("q", "k", "v"):
            yield np.split(params[f"blocks.{i}.attn.qkv.weight"], c.qkv_cuts)["qkv".index(name)]
        else:
            yield params[f"blocks.{i}.{name}"]


def save_bin(saved: Saved, out: Path, version: int = 0) -> str:
    """Write `out` and, beside it, ``tokenizer.bin``.

    Rows of embedding and classifier are put in the order of the tokenizer.bin. A row that has no
    token here (it has three control tokens, whatever the tokenizer) becomes the mean of the others,
    which is never the likeliest. Raises Error, before writing, for a model that it cannot hold.
    """
    reasons = list(refusals(saved.config, saved.params))
    if reasons:
        raise Error(f"llama2.c cannot hold this model: {'; '.join(reasons)}")
    c, params = plain_head(saved)
    try:
        ids = llama2c_rows(saved.tokenizer)
    except bpe.TokenizerError as error:
        raise Error(f"llama2.c cannot hold this model's tokenizer: {error}") from error
    rows = [*ids, *range(saved.tokenizer.vocab_size, c.vocab_size)]

    def arranged(matrix: Array) -> Array:
        mean = matrix.mean(axis=0, dtype=np.float64)
        return np.stack([mean if id is None else matrix[id] for id in rows])

    shared = c.head == "tied"
    fixed = {"embedding": arranged(params["embedding.weight"]), "norm": params["norm.weight"]}
    if not shared:
        fixed["head"] = arranged(params["head.weight"])
    counts = [c.d_model, c.d_ff, c.n_layer, c.n_head, c.kv_heads, len(rows), c.context]
    with replacing(out) as handle:
        if version:
            header = struct.pack("<Ii7iB", MAGIC, 1, *counts, shared)
            handle.write(header.ljust(HEADER, b"\0"))
        else:
            counts[5] *= 1 if shared else -1
            handle.write(struct.pack("<7i", *counts))
        for name in ORDER[version]:
            if name in BLOCKS:
                arrays: Any = _layers(c, params, BLOCKS[name][0])
            elif name == "rope":
                arrays = _rope(c)
            else:
                arrays = [fixed[name]] if name in fixed else []
            for array in arrays:
                handle.write(np.ascontiguousarray(array, "<f4").tobytes())
    saved.tokenizer.save(out.with_name("tokenizer.bin"), format="llama2c")
    return f"llama2.c, version {version}"


def _rope(c: Config) -> list[Array]:
    """The tables that version 0 has room for, and that run.c skips."""
    import minitensor as mt

    return list(mt.rope_table(c.context, c.head_dim, c.rope_theta))


# ---------------------------------------------------------------------------------------- reading


def load_bin(path: Path) -> Saved:
    """Read a ``.bin`` of version 0 or 1 and the ``tokenizer.bin`` beside it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            start = handle.read(HEADER)
    except OSError as error:
        raise Error(f"{path}: cannot be read: {error.strerror or error}") from error
    version = int(len(start) >= 8 and struct.unpack_from("<I", start)[0] == MAGIC)
    if len(start) < (HEADER if version else 28):
        raise Error(f"{path}: not a llama2.c model: it ends within its header")
    if version and struct.unpack_from("<i", start, 4)[0] != 1:
        found = struct.unpack_from("<i", start, 4)[0]
        raise Error(f"{path}: version {found} of llama2.c's format; known here: 0 and 1")
    counts = list(struct.unpack_from("<7i", start, 8 if version else 0))
    shared = bool(start[36]) if version else counts[5] > 0
    counts[5] = abs(counts[5])
    c = _config(path, counts, shared)
    sizes = {"D": c.d_model, "F": c.d_ff, "K": c.kv_heads * c.head_dim}
    shapes = {name: (c.n_layer, *(sizes[s] for s in shape)) for name, (_, shape) in BLOCKS.items()}
    shapes |= {"embedding": (c.vocab_size, c.d_model), "norm": (c.d_model,)}
    shapes["rope"] = (2, c.context, c.head_dim // 2)
    if not shared:
        shapes["head"] = (c.vocab_size, c.d_model)
    order = [name for name in ORDER[version] if name in shapes]
    begin = HEADER if version else 28
    wanted = begin + 4 * sum(int(np.prod(shapes[name], dtype=object)) for name in order)
    if size != wanted:
        raise Error(f"{path}: {size:,} bytes, expected {wanted:,} by its header")
    data = np.memmap(path, "<f4", "r", begin)
    arrays: dict[str, Array] = {}
    at = 0
    for name in order:
        n = int(np.prod(shapes[name]))
        arrays[name] = data[at : at + n].reshape(shapes[name])
        at += n
    params = {"embedding.weight": arrays["embedding"], "norm.weight": arrays["norm"]}
    for i in range(c.n_layer):
        qkv = [arrays[name][i] for name in ("wq", "wk", "wv")]
        params[f"blocks.{i}.attn.qkv.weight"] = np.concatenate(qkv)
        for name, (own, _) in BLOCKS.items():
            if "." in own:
                params[f"blocks.{i}.{own}"] = arrays[name][i]
    if not shared:
        params["head.weight"] = arrays["head"]
    tokenizer_file = path.with_name("tokenizer.bin")
    if not tokenizer_file.is_file():
        raise Error(f"{tokenizer_file}: no such file; expected the tokenizer there")
    try:
        tokenizer = bpe.load(tokenizer_file)
    except (OSError, bpe.TokenizerError) as error:
        raise Error(f"{tokenizer_file}: the tokenizer cannot be read: {error}") from error
    check_tokenizer(tokenizer_file, tokenizer, c)
    return Saved(c, tokenizer, params, {"imported": f"llama2.c, version {version}"})


def _config(path: Path, counts: list[int], shared: bool) -> Config:
    names = ("dim", "hidden", "layers", "heads", "kv_heads", "vocabulary", "context")
    for name, n in zip(names, counts, strict=True):
        if not 1 <= n <= LIMIT:
            raise Error(f"{path}: not a llama2.c model: {name} is {n}, expected 1 to {LIMIT:,}")
    width, hidden, layers, heads, kv_heads, vocabulary, context = counts
    try:
        return Config(
            name="llama2c",
            vocab_size=vocabulary,
            context=context,
            n_layer=layers,
            n_head=heads,
            n_kv_head=kv_heads,
            d_model=width,
            d_ff=hidden,
            norm="rms",
            norm_eps=EPS,
            norm_bias=False,
            positions="rope",
            rope_theta=THETA,
            ffn="swiglu",
            qkv_bias=False,
            out_bias=False,
            ffn_bias=False,
            head="tied" if shared else "untied",
            tokenizer="bpe",
        )
    except Error as error:
        raise Error(f"{path}: not a llama2.c model: {error}") from error
