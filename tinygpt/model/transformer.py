"""The one model: a pre-norm transformer whose every part is picked by the configuration.

    x = embedding[ids] + positions
    x = x + attention(norm(x))         for each block
    x = x + feed_forward(norm(x))
    logits = norm(x) @ head.T

`Attention`, `FeedForward` and `Block` are written out in plain ops. So is decoding: attention that
finds earlier keys and values in a `Cache` runs the same lines. To look inside, pass a function
`look`: it is shown every named array and may return another in its place.

`Block.forward` takes the fast branch when nothing looks inside: each sublayer is then one op.
KERNELS_KNOW lists what the kernels can do; a variant that is not there runs on the plain ops.

Shapes: B sequences, T tokens, S tokens with those in the cache, D = d_model, H heads of width hd,
KV key/value heads, V tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import minitensor as mt
from minitensor import Tensor, nn
from minitensor.random import keep_attention
from tinygpt.model.config import Config

Array = np.ndarray
Look = Callable[[str, Tensor], Tensor | None]

KERNELS_KNOW = {
    "norm": ("layer", "rms"),
    "positions": ("learned", "sinusoidal", "rope"),
    "ffn": ("gelu", "gelu_tanh", "swiglu"),
}


def kernels_know(c: Config) -> bool:
    """Whether the fused sublayers and the compiled decoder can run `c`; if not, plain ops do."""
    return all(getattr(c, key) in values for key, values in KERNELS_KNOW.items())


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


# --------------------------------------------------------------------------------- positions


def sinusoids(length: int, width: int, dtype: Any) -> Array:
    """Fixed positions (length, width): sin at even columns, cos at odd (Vaswani et al., 2017).

    Times 0.02, the deviation with which embedding rows start: Vaswani et al. scale the rows up to
    the size of the positions instead. Without either, a norm sees positions only, and a model
    stays for thousands of steps at the frequencies of single tokens.
    """
    cos, sin = mt.rope_table(length, width, dtype=np.float64)
    return (0.02 * np.stack([sin, cos], axis=-1).reshape(length, width)).astype(dtype)


def fixed_positions(c: Config) -> Array | None:
    """What is added to the embedding without being learned, (context, D), if anything is."""
    return sinusoids(c.context, c.d_model, c.dtype) if c.positions == "sinusoidal" else None


def rotations(c: Config) -> tuple[Array, Array] | None:
    """cos and sin of RoPE's angles, (context, hd / 2) each, where queries and keys are rotated."""
    if c.positions != "rope":
        return None
    return mt.rope_table(c.context, c.head_dim, c.rope_theta, np.dtype(c.dtype))


def alibi_slopes(heads: int) -> Array:
    """How much a head's scores fall for each token of distance, (H,) (Press et al., 2022).

    For a power of two the slopes are 2^(-8/H), 2^(-16/H), ..., 2^-8. For another number they are
    those of the power of two below, and every second one of the power of two above.
    """

    def geometric(n: int) -> Array:
        return np.asarray(2.0 ** (-8 / n * np.arange(1, n + 1)))

    below = 2 ** int(math.log2(heads))
    return np.concatenate([geometric(below), geometric(2 * below)[::2][: heads - below]])


# ----------------------------------------------------------------------------------- modules


def _norm(c: Config) -> nn.RMSNorm | nn.LayerNorm:
    if c.norm == "rms":
        return nn.RMSNorm(c.d_model, eps=c.norm_eps)
    return nn.LayerNorm(c.d_model, eps=c.norm_eps, bias=c.norm_bias)


class Cache:
    """The (rotated) keys and the values of the tokens so far, for later tokens to look back at.

    A model given a cache takes its input as what follows the `length` tokens in it, and appends it.
    Setting `length` back forgets what came after.
    """

    def __init__(self, c: Config, batch: int = 1):
        self.length = 0
        shape = (c.n_layer, 2, batch, c.kv_heads, c.context, c.head_dim)
        self.arrays = np.zeros(shape, c.dtype)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Array, Array]:
        """Append k and v (B, KV, T, hd); returns all keys and values so far, (B, KV, S, hd)
        each."""
        keys, values = self.arrays[layer]  # (B, KV, context, hd) each
        end = self.length + k.shape[2]
        keys[:, :, self.length : end], values[:, :, self.length : end] = k.numpy(), v.numpy()
        return keys[:, :, :end], values[:, :, :end]


class Pass(NamedTuple):
    """What all blocks share in one pass through the model."""

    rope: tuple[Array, Array] | None = None  # cos and sin of these positions, (T, hd / 2) each
    p: float = 0.0  # probability of dropout
    key: int = 0  # of dropout's masks
    cache: Cache | None = None
    look: Look | None = None

    def dropout(self, x: Tensor, layer: int, site: int) -> Tensor:
        """Dropout with the mask of this layer and site; `x` itself where there is none.

        The sites of a layer are 0, its attention weights, 1 and 2, what attention and feed-forward
        add. The embedding has those of a layer behind the last.
        """
        return mt.dropout(x, self.p, mt.fold(self.key, layer, site)) if self.p else x

    def show(self, name: str, x: Tensor) -> Tensor:
        """`x`, or what `look` returns in its place."""
        other = None if self.look is None else self.look(name, x)
        return x if other is None else other


class Attention(nn.Module):
    """Each token asks (q), those before it answer (k) and hand over (v) (Vaswani et al., 2017).

    Keys and values may have fewer heads than queries: a group of H / KV queries shares one
    (Ainslie et al., 2023).
    """

    def __init__(self, c: Config, layer: int, rng: np.random.Generator):
        super().__init__()
        self.c, self.layer = c, layer
        width = (c.n_head + 2 * c.kv_heads) * c.head_dim
        self.qkv = nn.Linear(c.d_model, width, bias=c.qkv_bias, rng=rng)
        self.out = nn.Linear(c.d_model, c.d_model, bias=c.out_bias, rng=rng)
        self.scale = 1 / math.sqrt(c.head_dim) if c.scale_attention else 1.0
        self.slopes = alibi_slopes(c.n_head) if c.positions == "alibi" else None

    def forward(self, x: Tensor, now: Pass) -> Tensor:
        """x (B, T, D), normed -> what attention adds to the stream, (B, T, D)."""
        c, name, (B, T, D) = self.c, f"blocks.{self.layer}.attn", x.shape
        H, KV, hd = c.n_head, c.kv_heads, c.head_dim
        heads = self.qkv(x).reshape(B, T, H + 2 * KV, hd).swapaxes(1, 2)  # (B, H + 2 KV, T, hd)
        q, k, v = heads[:, :H], heads[:, H : H + KV], heads[:, H + KV :]
        if now.rope is not None:
            cos, sin = now.rope
            q, k = mt.rope(q, cos=cos, sin=sin), mt.rope(k, cos=cos, sin=sin)
        if now.cache is not None:
            k, v = now.cache.extend(self.layer, k, v)  # (B, KV, S, hd): those before come first
        S = k.shape[2]

        q = q.reshape(B, KV, H // KV * T, hd)  # queries that share a key are rows of one product
        scores = (q @ k.swapaxes(-1, -2)).reshape(B, H, T, S) * self.scale
        distance = np.arange(S - T, S)[:, None] - np.arange(S)  # (T, S): from a query back to a key
        if self.slopes is not None:
            scores = scores - (self.slopes[:, None, None] * distance).astype(x.dtype)
        window = c.window(self.layer) or S
        seen = (distance >= 0) & (distance < window)  # nobody sees the future
        weights = mt.softmax(mt.where(seen, scores, -np.inf))  # (B, H, T, S): rows add up to 1
        weights = now.show(f"{name}.weights", weights)
        if now.p:
            kept = keep_attention(mt.fold(now.key, self.layer, 0), weights.shape, now.p)
            weights = mt.where(kept, weights, 0.0) * (1 / (1 - now.p))

        y = weights.reshape(B, KV, H // KV * T, S) @ v  # (B, KV, H / KV T, hd)
        y = now.show(f"{name}.heads", y.reshape(B, H, T, hd))
        return self.out(y.swapaxes(1, 2).reshape(B, T, D))


class FeedForward(nn.Module):
    """Each token on its own: wider, through an activation, and back.

    SwiGLU has a gate instead of an activation (Shazeer, 2020).
    """

    def __init__(self, c: Config, rng: np.random.Generator):
        super().__init__()
        self.c = c
        if c.ffn == "swiglu":
            self.gate = nn.Linear(c.d_model, c.d_ff, bias=c.gate_bias or c.ffn_bias, rng=rng)
        self.up = nn.Linear(c.d_model, c.d_ff, bias=c.ffn_bias, rng=rng)
        self.down = nn.Linear(c.d_ff, c.d_model, bias=c.ffn_bias, rng=rng)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D), normed -> what the network adds to the stream, (B, T, D)."""
        h = self.up(x)  # (B, T, d_ff)
        if self.c.ffn == "swiglu":
            h = mt.swiglu(self.gate(x), h)
        else:
            h = mt.gelu(h, "tanh" if self.c.ffn == "gelu_tanh" else "none")
        return self.down(h)


class Block(nn.Module):
    """One layer: attention and feed-forward, each on a normed copy, each added to the stream."""

    def __init__(self, c: Config, layer: int, rng: np.random.Generator):
        super().__init__()
        self.c, self.layer = c, layer
        self.attn_norm = _norm(c)
        self.attn = Attention(c, layer, rng)
        self.ffn_norm = _norm(c)
        self.ffn = FeedForward(c, rng)
        self.known = kernels_know(c)

    def forward(self, x: Tensor, now: Pass) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        if self.known and now.cache is None and now.look is None:
            return self._fused(x, now)
        layer, name = self.layer, f"blocks.{self.layer}"
        branch = now.show(f"{name}.attn", self.attn(self.attn_norm(x), now))
        x = x + now.dropout(branch, layer, 1)
        branch = now.show(f"{name}.ffn", self.ffn(self.ffn_norm(x)))
        x = x + now.dropout(branch, layer, 2)
        return now.show(name, x)

    def _fused(self, x: Tensor, now: Pass) -> Tensor:
        """The same in two ops, which keep a block of rows in cache from the norm to the sum."""
        c, layer, norm, attn, ffn = self.c, self.layer, self.attn_norm, self.attn, self.ffn
        weights_key, attn_key, ffn_key = (
            [mt.fold(now.key, layer, site) for site in range(3)] if now.p else (0, 0, 0)
        )
        x = mt.attention_sublayer(
            x,
            norm.weight,
            getattr(norm, "bias", None),
            attn.qkv.weight,
            attn.qkv.bias,
            attn.out.weight,
            attn.out.bias,
            n_head=c.n_head,
            n_kv_head=c.kv_heads,
            norm=c.norm,
            eps=c.norm_eps,
            rope=now.rope,
            window=c.window(layer),
            scale=attn.scale,
            dropout=now.p,
            keys=(weights_key, attn_key),
        )
        norm, gate = self.ffn_norm, getattr(ffn, "gate", None)
        return mt.feed_forward_sublayer(
            x,
            norm.weight,
            getattr(norm, "bias", None),
            gate and gate.weight,
            gate and gate.bias,
            ffn.up.weight,
            ffn.up.bias,
            ffn.down.weight,
            ffn.down.bias,
            activation=c.ffn,
            norm=c.norm,
            eps=c.norm_eps,
            dropout=now.p,
            key=ffn_key,
        )


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
        self.rope, self.fixed = rotations(c), fixed_positions(c)
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

    def hidden(
        self, ids: Array, key: int = 0, *, cache: Cache | None = None, look: Look | None = None
    ) -> Tensor:
        """Final normed states (B, T, D) of `ids` (B, T).

        In training mode dropout masks are drawn from `key` (see `minitensor.fold`). With a `cache`,
        only outside the tape, `ids` continue what is in it. `look` is called as
        ``look(name, tensor)`` and may return what takes the tensor's place; in the order of the
        model the names are

            embedding               (B, T, D)     the stream before the first block
            blocks.i.attn.weights   (B, H, T, S)  attention, before dropout
            blocks.i.attn.heads     (B, H, T, hd) the values it weights
            blocks.i.attn           (B, T, D)     what attention adds to the stream
            blocks.i.ffn            (B, T, D)     what the feed-forward network adds
            blocks.i                (B, T, D)     the stream after the block

        Raises ValueError for more tokens than the context.
        """
        c = self.config
        start = 0 if cache is None else cache.length
        end = start + ids.shape[1]
        if end > c.context:
            raise ValueError(f"GPT: {end} tokens exceed the context of {c.context}")
        if cache is not None and mt.is_grad_enabled():
            raise ValueError(
                "GPT: expected no tape, got a cache on it; a cache keeps numbers and not how they "
                "were made: call the model inside minitensor.no_grad()"
            )
        rope = None if self.rope is None else (self.rope[0][start:end], self.rope[1][start:end])
        now = Pass(rope, c.dropout if self.training else 0.0, key, cache, look)
        x = self.embedding(ids)
        if c.positions == "learned":
            x = x + self.positions.weight[start:end]
        elif self.fixed is not None:
            x = x + self.fixed[start:end]
        x = now.show("embedding", now.dropout(x, c.n_layer, 0))
        for block in self.blocks:
            x = block(x, now)
        if cache is not None:
            cache.length = end
        return self.norm(x)

    def forward(self, ids: Array, key: int = 0, head: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of `ids` (B, T). `key` is that of `hidden`, `head` what `head_weight`
        gives, if the caller has it already."""
        return mt.linear(self.hidden(ids, key), self.head_weight() if head is None else head)

    def loss(self, ids: Array, targets: Array, key: int = 0, head: Tensor | None = None) -> Tensor:
        """Cross-entropy of `targets` (B, T) in nats, added up over all tokens; `key` and `head` as
        in `forward`."""
        head = self.head_weight() if head is None else head
        return mt.linear_cross_entropy(self.hidden(ids, key), head, targets, reduction="sum")

    def attention_maps(self, ids: Array) -> Array:
        """Attention weights (L, B, H, T, T) on `ids` (B, T), without dropout: for looking at."""
        maps: list[Array] = []

        def look(name: str, x: Tensor) -> None:
            if name.endswith(".attn.weights"):
                maps.append(x.numpy())

        training, _ = self.training, self.eval()
        with mt.no_grad():
            self.hidden(ids, look=look)
        self.train(training)
        return np.stack(maps)
