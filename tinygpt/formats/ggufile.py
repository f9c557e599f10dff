"""GGUF files, which llama.cpp and what is built on it read: export alone.

The architectures are its `llama` (our RMSNorm, RoPE and SwiGLU) and `gpt2` (LayerNorm, learned
positions and GELU by tanh). llama.cpp turns neighbouring pairs in RoPE, as we do, so no rows are
moved. Weights stay float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import bpe
from bpe.alphabet import printable
from tinygpt import Error
from tinygpt.files import replacing_by_name
from tinygpt.formats.checkpoint import Saved
from tinygpt.formats.families import GPT2, LLAMA, require
from tinygpt.formats.huggingface import library, plain_head
from tinygpt.model.config import Config
from tinygpt.model.transformer import sinusoids

Array = np.ndarray
NORMAL, CONTROL, UNUSED = 1, 3, 5  # kinds of token in a GGUF file


def architecture(c: Config) -> str:
    """ "llama" or "gpt2". Raises Error with the reasons where neither can hold a model."""
    reasons = {"llama": list(LLAMA.refusals(c)), "gpt2": list(GPT2.refusals(c))}
    if c.ffn == "gelu":
        reasons["gpt2"].append("its GELU is the tanh form, this model's is the exact one")
    reasons["gpt2"] += require(c, scale_attention=True)
    for name, against in reasons.items():
        if not against:
            return name
    listed = ". ".join(f"{name}: {'; '.join(against)}" for name, against in reasons.items())
    raise Error(f"no architecture of llama.cpp written here holds this model. {listed}")


def save_gguf(saved: Saved, out: Path) -> str:
    """Write `out`. Raises Error, before writing, for what llama.cpp would run differently."""
    gguf = library("gguf")
    c, params = plain_head(saved)
    name = architecture(c)
    tokens = vocabulary(saved.tokenizer, c.vocab_size)
    with replacing_by_name(out) as temporary:
        writer = gguf.GGUFWriter(temporary, name)
        _describe(writer, c, name)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list([token for token, _ in tokens])
        writer.add_token_types([kind for _, kind in tokens])
        writer.add_token_merges(_merges(saved.tokenizer))
        writer.add_add_bos_token(False)
        separator = saved.tokenizer.separator_id
        if separator is not None:
            writer.add_bos_token_id(separator)
            writer.add_eos_token_id(separator)
        for tensor, value in _tensors(c, params, name):
            writer.add_tensor(tensor, np.ascontiguousarray(value, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return f"GGUF, architecture {name}"


def _describe(writer: Any, c: Config, name: str) -> None:
    writer.add_name(c.name)
    writer.add_context_length(c.context)
    writer.add_embedding_length(c.d_model)
    writer.add_block_count(c.n_layer)
    writer.add_feed_forward_length(c.d_ff)
    writer.add_head_count(c.n_head)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_vocab_size(c.vocab_size)
    if name == "llama":
        writer.add_layer_norm_rms_eps(c.norm_eps)
        writer.add_rope_dimension_count(c.head_dim)
        writer.add_rope_freq_base(c.rope_theta)
    else:
        writer.add_layer_norm_eps(c.norm_eps)


def _tensors(c: Config, params: Mapping[str, Array], name: str) -> Iterator[tuple[str, Array]]:
    """Our parameters under llama.cpp's names; biases that are missing in a GPT-2 are zeros."""
    zeros = name == "gpt2"

    def both(theirs: str, ours: str) -> Iterator[tuple[str, Array]]:
        weight, bias = params[f"{ours}.weight"], params.get(f"{ours}.bias")
        yield f"{theirs}.weight", weight
        if bias is not None or zeros:
            yield f"{theirs}.bias", np.zeros(len(weight)) if bias is None else bias

    yield "token_embd.weight", params["embedding.weight"]
    if name == "gpt2":
        fixed = c.positions == "sinusoidal"
        table = sinusoids(c.context, c.d_model, np.float32) if fixed else params["positions.weight"]
        yield "position_embd.weight", table
    for i in range(c.n_layer):
        here, there = f"blocks.{i}", f"blk.{i}"
        yield from both(f"{there}.attn_norm", f"{here}.attn_norm")
        if name == "gpt2":
            yield from both(f"{there}.attn_qkv", f"{here}.attn.qkv")
        else:
            for kind in ("weight", "bias"):
                packed = params.get(f"{here}.attn.qkv.{kind}")
                if packed is not None:
                    for part, value in zip("qkv", np.split(packed, c.qkv_cuts), strict=True):
                        yield f"{there}.attn_{part}.{kind}", value
        yield from both(f"{there}.attn_output", f"{here}.attn.out")
        yield from both(f"{there}.ffn_norm", f"{here}.ffn_norm")
        for part in ("gate", "up", "down") if name == "llama" else ("up", "down"):
            yield from both(f"{there}.ffn_{part}", f"{here}.ffn.{part}")
    yield from both("output_norm", "norm")
    yield "output.weight", params.get("head.weight", params["embedding.weight"])


def vocabulary(tokenizer: Any, rows: int) -> list[tuple[str, int]]:
    """Text and kind of every row, for llama.cpp's byte-level BPE with GPT-2's splitting.

    Characters are such a BPE too, one without merges, where each is a single byte.
    """
    byte_level = isinstance(tokenizer, bpe.BPETokenizer) and not tokenizer.characters
    if byte_level and tokenizer.pattern != "gpt2":
        raise Error(f"the splitting pattern {tokenizer.pattern[:40]!r} has no name in llama.cpp; "
                    "only GPT-2's is written")  # fmt: skip
    if not byte_level and not isinstance(tokenizer, bpe.CharTokenizer):
        raise Error(f"llama.cpp has no tokenizer of the kind {tokenizer.kind!r}")
    special = {id: name for name, id in tokenizer.special_tokens.items()}
    tokens = []
    for id in range(rows):
        token = tokenizer.token_bytes(id) if id < tokenizer.vocab_size else b""
        if not byte_level and len(token) > 1:
            raise Error(f"the character {token.decode()!r} takes {len(token)} bytes; llama.cpp "
                        "can have characters of one byte only")  # fmt: skip
        if id in special:
            tokens.append((special[id], CONTROL))
        else:
            tokens.append((printable(token), NORMAL) if token else (f"<unused {id}>", UNUSED))
    return tokens


def _merges(tokenizer: Any) -> list[str]:
    if isinstance(tokenizer, bpe.CharTokenizer):
        return [f"{printable(bytes(1))} {printable(bytes(1))}"]  # some are asked for; of no text
    names = [printable(tokenizer.token_bytes(id)) for id in range(tokenizer.vocab_size)]
    return [f"{names[left]} {names[right]}" for left, right in tokenizer.merges]
