"""The one model: a pre-norm transformer whose every part is picked by the configuration.

    x = dropout(embedding[ids] + positions)
    x = x + dropout(attention(norm(x)))      for each block
    x = x + dropout(feed_forward(norm(x)))
    logits = norm(x) @ head.T

Shapes: B sequences, T tokens, D = d_model, H heads of width hd, KV key/value heads, V tokens.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import minitensor as mt
from minitensor import Tensor, nn
from tinygpt.model.config import Config

Array = np.ndarray

# ----------------------------------------------------------------------- what it is made of


def layout(c: Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, in the model's order, without making any."""
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (c.vocab_size, c.d_model)}

    def linear(name: str, inputs: int, outputs: int, bias: bool) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = (c.d_model,)
        if c.norm == "layer" and c.norm_bias:
            shapes[f"{name}.bias"] = (c.d_model,)

    if c.positions == "learned":
        shapes["positions.weight"] = (c.context, c.d_model)
    for i in range(c.n_layer):
        norm(f"blocks.{i}.attn_norm")
        heads = c.n_head + 2 * c.kv_heads
        linear(f"blocks.{i}.attn.qkv", c.d_model, heads * c.head_dim, c.qkv_bias)
        linear(f"blocks.{i}.attn.out", c.d_model, c.d_model, c.out_bias)
        norm(f"blocks.{i}.ffn_norm")
        if c.ffn == "swiglu":
            linear(f"blocks.{i}.ffn.gate", c.d_model, c.d_ff, c.gate_bias or c.ffn_bias)
        linear(f"blocks.{i}.ffn.up", c.d_model, c.d_ff, c.ffn_bias)
        linear(f"blocks.{i}.ffn.down", c.d_ff, c.d_model, c.ffn_bias)
    norm("norm")
    if c.head == "untied":
        shapes["head.weight"] = (c.vocab_size, c.d_model)
    return shapes


def count(c: Config) -> tuple[int, int]:
    """Parameters in tensors of two dimensions, and in vectors."""
    sizes = [(len(shape), math.prod(shape)) for shape in layout(c).values()]
    return sum(n for d, n in sizes if d > 1), sum(n for d, n in sizes if d == 1)


def components(c: Config) -> list[tuple[str, int]]:
    """Parameters of each component, in the order of the model."""
    groups = {
        "token embedding": "embedding.",
        "positions": "positions.",
        "attention norms": ".attn_norm.",
        "attention": ".attn.",
        "feed-forward norms": ".ffn_norm.",
        "feed-forward": ".ffn.",
        "final norm": "norm.",
        "head": "head.",
    }
    sums = dict.fromkeys(groups, 0)
    for name, shape in layout(c).items():
        inside = name.startswith("blocks.")
        group = next(
            g for g, mark in groups.items() if (mark in name if inside else name.startswith(mark))
        )
        sums[group] += math.prod(shape)
    return [(group, n) for group, n in sums.items() if n]


def init_std(c: Config, name: str) -> float:
    """Standard deviation with which a matrix starts: 0.02, less where a branch ends.

    Both published inits divide the projections that write to the residual stream by
    sqrt(2 n_layer); llama2.c takes ``w3`` (the up projection of SwiGLU) for the second of them.
    "unit" starts the embedding at 1: what tells tokens of a class apart, such as names, is then
    never small beside what they come to share.
    """
    if c.init == "unit" and name == "embedding.weight":
        return 1.0
    second = "ffn.up.weight" if c.init == "llama2c" and c.ffn == "swiglu" else "ffn.down.weight"
    residual = name.endswith("attn.out.weight") or name.endswith(second)
    return 0.02 / math.sqrt(2 * c.n_layer) if residual else 0.02


def sinusoids(length: int, width: int, dtype: Any) -> Array:
    """Fixed positions (length, width): sin at even columns, cos at odd (Vaswani et al., 2017).

    Times 0.02, the deviation with which embedding rows start: Vaswani et al. scale the rows up to
    the size of the positions instead. Without either, a norm sees positions only, and a model
    stays for thousands of steps at the frequencies of single tokens.
    """
    cos, sin = mt.rope_table(length, width, dtype=np.float64)
    return (0.02 * np.stack([sin, cos], axis=-1).reshape(length, width)).astype(dtype)


# ----------------------------------------------------------------------------------- modules


def _norm(c: Config) -> nn.RMSNorm | nn.LayerNorm:
    if c.norm == "rms":
        return nn.RMSNorm(c.d_model, eps=c.norm_eps)
    return nn.LayerNorm(c.d_model, eps=c.norm_eps, bias=c.norm_bias)


class Attention(nn.Module):
    """The linear maps around attention; keys and values may be fewer heads than queries."""

    def __init__(self, c: Config, rng: np.random.Generator):
        super().__init__()
        width = (c.n_head + 2 * c.kv_heads) * c.head_dim
        self.qkv = nn.Linear(c.d_model, width, bias=c.qkv_bias, rng=rng)
        self.out = nn.Linear(c.d_model, c.d_model, bias=c.out_bias, rng=rng)


class FeedForward(nn.Module):
    """The linear maps of the feed-forward network; SwiGLU has a gate (Shazeer, 2020)."""

    def __init__(self, c: Config, rng: np.random.Generator):
        super().__init__()
        if c.ffn == "swiglu":
            self.gate = nn.Linear(c.d_model, c.d_ff, bias=c.gate_bias or c.ffn_bias, rng=rng)
        self.up = nn.Linear(c.d_model, c.d_ff, bias=c.ffn_bias, rng=rng)
        self.down = nn.Linear(c.d_ff, c.d_model, bias=c.ffn_bias, rng=rng)


class Block(nn.Module):
    """One layer: attention and feed-forward, each on a normed copy, each added to the stream."""

    def __init__(self, c: Config, layer: int, rng: np.random.Generator):
        super().__init__()
        self.c, self.layer = c, layer
        self.attn_norm = _norm(c)
        self.attn = Attention(c, rng)
        self.ffn_norm = _norm(c)
        self.ffn = FeedForward(c, rng)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Array, Array] | None,
        p: float,
        key: int,
        maps: list[Array] | None,
    ) -> Tensor:
        c, layer, norm, attn, ffn = self.c, self.layer, self.attn_norm, self.attn, self.ffn
        if maps is not None:
            maps.append(attention_weights(c, layer, attn.qkv(norm(x)).numpy(), rope))
        weights_key, attn_key, ffn_key = (mt.fold(key, layer, n) if p else 0 for n in range(3))
        x = mt.attention_sublayer(
            x,
            norm.weight,
            _bias(norm),
            attn.qkv.weight,
            attn.qkv.bias,
            attn.out.weight,
            attn.out.bias,
            n_head=c.n_head,
            n_kv_head=c.kv_heads,
            norm=c.norm,
            eps=c.norm_eps,
            rope=rope,
            window=c.window(layer),
            scale=None if c.scale_attention else 1.0,
            dropout=p,
            keys=(weights_key, attn_key),
        )
        norm, gate = self.ffn_norm, getattr(ffn, "gate", None)
        return mt.feed_forward_sublayer(
            x,
            norm.weight,
            _bias(norm),
            gate and gate.weight,
            gate and gate.bias,
            ffn.up.weight,
            ffn.up.bias,
            ffn.down.weight,
            ffn.down.bias,
            activation=c.ffn,
            norm=c.norm,
            eps=c.norm_eps,
            dropout=p,
            key=ffn_key,
        )


def _bias(norm: nn.RMSNorm | nn.LayerNorm) -> Tensor | None:
    return getattr(norm, "bias", None)


class GPT(nn.Module):
    """The language model of a configuration, with fresh weights drawn from `config.seed`."""

    def __init__(self, config: Config):
        super().__init__()
        c = self.config = config
        rng = np.random.Generator(np.random.Philox(c.seed))
        dtype = np.dtype(c.dtype)
        self.embedding = nn.Embedding(c.vocab_size, c.d_model, rng=rng)
        if c.positions == "learned":
            self.positions = nn.Embedding(c.context, c.d_model, rng=rng)
        self.blocks = nn.ModuleList([Block(c, i, rng) for i in range(c.n_layer)])
        self.norm = _norm(c)
        if c.head == "untied":
            self.head = nn.Linear(c.d_model, c.vocab_size, bias=False, rng=rng)
        self.rope = (
            mt.rope_table(c.context, c.head_dim, c.rope_theta, dtype)
            if c.positions == "rope"
            else None
        )
        self.fixed = sinusoids(c.context, c.d_model, dtype) if c.positions == "sinusoidal" else None
        self.astype(dtype)
        self._draw(rng)

    def _draw(self, rng: np.random.Generator) -> None:
        """The published initialisation: normal matrices, norm weights 1, biases 0."""
        with mt.no_grad():
            for name, p in self.named_parameters():
                if p.ndim > 1:
                    draw = rng.standard_normal(p.shape, p.dtype.type)
                    p[...] = draw * init_std(self.config, name)
                else:
                    p[...] = 1.0 if name.endswith("norm.weight") else 0.0

    def head_weight(self) -> Tensor:
        """(V, D): the rows that the final hidden states are compared with.

        For the pseudo-inverse head it depends on the embedding alone, and costs a factorisation:
        compute it once a step and hand it to every call.
        """
        if self.config.head == "pinv":
            return mt.pinv(self.embedding.weight).T
        return self.head.weight if self.config.head == "untied" else self.embedding.weight

    def hidden(self, ids: Array, key: int = 0, maps: list[Array] | None = None) -> Tensor:
        """Final normed states (B, T, D) of `ids` (B, T).

        In training mode dropout masks are drawn from `key` (see `minitensor.fold`). A list given
        as `maps` receives each layer's attention weights (B, H, T, T).
        """
        c = self.config
        length = ids.shape[1]
        if length > c.context:
            raise ValueError(f"GPT: {length} tokens exceed the context of {c.context}")
        p = c.dropout if self.training else 0.0
        x = self.embedding(ids)
        if c.positions == "learned":
            x = x + self.positions.weight[:length]
        elif self.fixed is not None:
            x = x + self.fixed[:length]
        if p:
            x = mt.dropout(x, p, mt.fold(key, c.n_layer, 0))
        rope = (self.rope[0][:length], self.rope[1][:length]) if self.rope else None
        for block in self.blocks:
            x = block(x, rope, p, key, maps)
        return self.norm(x)

    def forward(self, ids: Array, key: int = 0, head: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of `ids` (B, T)."""
        return mt.linear(self.hidden(ids, key), self.head_weight() if head is None else head)

    def loss(self, ids: Array, targets: Array, key: int = 0, head: Tensor | None = None) -> Tensor:
        """Cross-entropy of `targets` (B, T) in nats, added up over all tokens."""
        head = self.head_weight() if head is None else head
        return mt.linear_cross_entropy(self.hidden(ids, key), head, targets, reduction="sum")

    def attention_maps(self, ids: Array) -> Array:
        """Attention weights (L, B, H, T, T) on `ids` (B, T), without dropout: for looking at."""
        maps: list[Array] = []
        training, _ = self.training, self.eval()
        with mt.no_grad():
            self.hidden(ids, maps=maps)
        self.train(training)
        return np.stack(maps)


def attention_weights(c: Config, layer: int, qkv: Array, rope: tuple[Array, Array] | None) -> Array:
    """Softmax weights (B, H, T, T) from packed q|k|v, by the formula: nothing fused."""
    batch, length, _ = qkv.shape
    q, k = np.split(qkv[..., : (c.n_head + c.kv_heads) * c.head_dim], [c.d_model], axis=-1)
    q = q.reshape(batch, length, c.n_head, c.head_dim).swapaxes(1, 2)  # (B, H, T, hd)
    k = k.reshape(batch, length, c.kv_heads, c.head_dim).swapaxes(1, 2)
    if rope is not None:
        q, k = (_rotate(x, *rope) for x in (q, k))
    k = np.repeat(k, c.n_head // c.kv_heads, axis=1)
    scores = q @ k.swapaxes(-1, -2)
    if c.scale_attention:
        scores = scores / math.sqrt(c.head_dim)
    distance = np.arange(length)[:, None] - np.arange(length)
    seen = distance >= 0
    if c.window(layer):
        seen &= distance < c.window(layer)
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    a, b = x[..., 0::2], x[..., 1::2]
    return np.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)
