"""Decoding with a key/value cache: a new token costs one pass over the weights, not over the text.

A `Decoder` holds the cache of one or more sequences. `feed` appends tokens to some of them and
gives the logits after the last; a prompt, a step of one sequence and a step of many are the same
pass over rows of (token, sequence, position), since a row attends to the cached keys of its
sequence up to its own position.

Positions end with the model's context. A sequence that would outgrow it goes on in one of two ways:

    "drop"    the older half of the window is dropped, the newer half is processed again in one
              pass, with positions from 0 on, and the cache goes on from there (the default)
    "exact"   the last `context` tokens are processed again for every new one, as samplers without
              a cache do

The pass exists twice: `forward` here, which is the formula in NumPy, and the compiled
`minitensor.kernels.decode`, which is taken unless MINITENSOR_KERNELS says "numpy".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

import minitensor as mt
from minitensor import kernels
from minitensor.kernels import reference
from tinygpt import UsageError
from tinygpt.machine import cores
from tinygpt.model.config import Config
from tinygpt.model.transformer import sinusoids

if TYPE_CHECKING:
    from tinygpt.formats.checkpoint import Saved
    from tinygpt.model.transformer import GPT

Array = np.ndarray
PAST_CONTEXT = ("drop", "exact")
MIN_SHARE = 4  # sequences that are worth a thread


class Weights:
    """A model's parameters as arrays, with what follows from them: head, positions, rotations."""

    def __init__(self, config: Config, params: Mapping[str, Array]):
        c = self.config = config
        dtype = np.dtype(c.dtype)
        self.params = {name: np.ascontiguousarray(a, dtype) for name, a in params.items()}
        self.embedding = self.params["embedding.weight"]
        if c.head == "pinv":
            with mt.no_grad():
                self.head = np.ascontiguousarray(mt.pinv(self.embedding).numpy().T)
        else:
            self.head = self.params["head.weight"] if c.head == "untied" else self.embedding
        self.positions = self.params.get("positions.weight", np.empty((0, c.d_model), dtype))
        if c.positions == "sinusoidal":
            self.positions = sinusoids(c.context, c.d_model, dtype)
        self.rope = (np.empty((0, 0), dtype),) * 2
        if c.positions == "rope":
            self.rope = mt.rope_table(c.context, c.head_dim, c.rope_theta, dtype)
        self.scale = 1 / math.sqrt(c.head_dim) if c.scale_attention else 1.0

    def linear(self, name: str, x: Array) -> Array:
        """x W^T + b of the linear map `name`."""
        y = x @ self.params[f"{name}.weight"].T
        bias = self.params.get(f"{name}.bias")
        return y if bias is None else y + bias

    def norm(self, name: str, x: Array) -> Array:
        """The norm `name` of each row."""
        c, weight = self.config, self.params[f"{name}.weight"]
        if c.norm == "rms":
            return reference.rms_norm(x, weight, c.norm_eps)[0]
        bias = self.params.get(f"{name}.bias", np.zeros_like(weight))
        return reference.layer_norm(x, weight, bias, c.norm_eps)[0]


class Layout:
    """How the kernel sees the heads: key/value heads side by side in the lanes of a vector.

    A token's key is `blocks` blocks of `width` = depth lanes numbers, one block unless there are
    more heads than lanes; in a block the heads' first numbers come first. Queries that share a
    key/value head come in `group` such rows.
    """

    def __init__(self, c: Config):
        from minitensor.kernels.simd import LANES

        self.group, self.heads, self.head_dim = c.n_head // c.kv_heads, c.kv_heads, c.head_dim
        self.lanes = 1
        while self.lanes < min(c.kv_heads, LANES):
            self.lanes *= 2
        self.blocks = -(-c.kv_heads // self.lanes)
        whole = LANES // self.lanes
        self.depth = -(-c.head_dim // whole) * whole
        self.width = self.depth * self.lanes

    def arrange(self, a: Array) -> Array:
        """Rows (KV groups hd, …), head by head, as rows (groups blocks width, …) with zeros."""
        groups = len(a) // (self.heads * self.head_dim)
        heads = a.reshape(self.heads, groups, self.head_dim, -1)
        out = np.zeros((self.blocks * self.lanes, groups, self.depth, heads.shape[-1]), a.dtype)
        out[: self.heads, :, : self.head_dim] = heads
        out = out.reshape(self.blocks, self.lanes, groups, self.depth, -1)
        return out.transpose(2, 0, 3, 1, 4).reshape(-1, *a.shape[1:])


def pack(w: Weights, layout: Layout) -> Array:
    """All weights in one flat array, in the order and the form in which the kernel reads them.

    A norm is its weight and its bias; a linear map is its bias, then its matrix (O, I) as panels:
    (O / panel, I, panel), with rows of zeros where O is no multiple of a panel.
    """
    from minitensor.kernels.decode import PANEL

    c, pieces = w.config, []

    def norm(name: str) -> None:
        weight = w.params[f"{name}.weight"]
        pieces.extend([weight, w.params.get(f"{name}.bias", np.zeros_like(weight))])

    def named(name: str) -> tuple[Array, Array]:
        matrix = w.params[f"{name}.weight"]
        return matrix, w.params.get(f"{name}.bias", np.zeros(len(matrix), matrix.dtype))

    def linear(*maps: tuple[Array, Array]) -> None:
        for _, bias in maps:
            pieces.append(np.pad(bias, (0, -len(bias) % PANEL)))
        for matrix, _ in maps:
            whole = np.pad(matrix, [(0, -len(matrix) % PANEL), (0, 0)])
            pieces.append(whole.reshape(-1, PANEL, whole.shape[1]).swapaxes(1, 2))

    def qkv(matrix: Array, bias: Array) -> tuple[Array, Array]:
        cuts = [c.d_model, c.d_model + c.kv_heads * c.head_dim]
        return tuple(
            np.concatenate([layout.arrange(part) for part in np.split(a, cuts)])
            for a in (matrix, bias)
        )  # type: ignore[return-value]

    for i in range(c.n_layer):
        norm(f"blocks.{i}.attn_norm")
        linear(qkv(*named(f"blocks.{i}.attn.qkv")))
        matrix, bias = named(f"blocks.{i}.attn.out")
        linear((layout.arrange(matrix.T).T, bias))
        norm(f"blocks.{i}.ffn_norm")
        linear(
            *(
                named(f"blocks.{i}.ffn.{name}")
                for name in (("gate", "up") if c.ffn == "swiglu" else ("up",))
            )
        )
        linear(named(f"blocks.{i}.ffn.down"))
    norm("norm")
    linear((w.head, np.zeros(len(w.head), w.head.dtype)))
    return np.concatenate([np.ravel(piece) for piece in pieces])


def compiled(w: Weights, sequences: int) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """The kernels `decode`, to be called like `forward`, and `write`, with their own cache."""
    from minitensor.kernels.decode import decode, write

    c, dtype, layout = w.config, w.embedding.dtype.type, Layout(w.config)
    table = w.positions if len(w.positions) else np.empty((c.context, 0), dtype)
    cos, sin = w.rope if w.rope[0].size else (np.empty((c.context, 0), dtype),) * 2
    windows = np.array([c.window(i) for i in range(c.n_layer)])
    kind = ("swiglu", "gelu_tanh", "gelu").index(c.ffn)
    weights, eps, scale = pack(w, layout), dtype(c.norm_eps), dtype(w.scale)
    shape = (
        layout.group,
        layout.blocks,
        layout.lanes,
        layout.width,
        c.d_ff,
        c.vocab_size,
        c.context,
        int(c.norm == "rms"),
        kind,
    )
    # np.empty asks for large pages where the system has them, np.zeros does not
    size = c.n_layer * sequences * 2 * c.context * layout.blocks * layout.width
    cache = np.empty(size, dtype)
    cache.fill(0)

    # Arrays from a file can be written, a model's cannot: to numba these are two types.
    embedding, table = w.embedding.view(), table.view()
    embedding.flags.writeable = table.flags.writeable = False
    fixed = (weights, embedding, table, cos, sin, cache, windows, shape, eps, scale)
    return partial(decode, *fixed), partial(write, *fixed)


def forward(
    w: Weights, cache: Array, ids: Array, slots: Array, positions: Array, wanted: Array
) -> Array:
    """Logits (len(wanted), V) of some of the rows (ids[n], slots[n], positions[n]).

    `cache` (L, 2, S, KV, hd, T) holds keys, rotated, and values of every layer and sequence; those
    of the rows are added before any row looks, so rows may come after one another in a sequence.
    """
    c, rows = w.config, len(ids)
    x = w.embedding[ids]
    if len(w.positions):
        x = x + w.positions[positions]
    cos, sin = (table[positions] if table.size else table for table in w.rope)
    for i in range(c.n_layer):
        qkv = w.linear(f"blocks.{i}.attn.qkv", w.norm(f"blocks.{i}.attn_norm", x))
        heads = qkv.reshape(1, rows, -1, c.head_dim)
        q, k, v = np.split(heads, [c.n_head, c.n_head + c.kv_heads], axis=2)
        keys, values = cache[i]
        keys[slots, :, :, positions] = reference.rotate(k, cos, sin)[0]
        values[slots, :, :, positions] = v[0]
        q = reference.rotate(q, cos, sin).reshape(rows, c.kv_heads, -1, c.head_dim) * w.scale
        y = np.empty_like(x)
        for n, (slot, position) in enumerate(zip(slots, positions, strict=True)):
            window = c.window(i)
            seen = slice(max(0, position - window + 1) if window else 0, position + 1)
            scores = q[n] @ keys[slot, :, :, seen]  # (KV, H / KV, keys seen)
            p = np.exp(scores - scores.max(axis=-1, keepdims=True))
            p /= p.sum(axis=-1, keepdims=True)
            y[n] = (p @ values[slot, :, :, seen].swapaxes(-1, -2)).reshape(-1)
        x = x + w.linear(f"blocks.{i}.attn.out", y)
        h = w.norm(f"blocks.{i}.ffn_norm", x)
        up = w.linear(f"blocks.{i}.ffn.up", h)
        if c.ffn == "swiglu":
            up = reference.swiglu(w.linear(f"blocks.{i}.ffn.gate", h), up)
        else:
            up = reference.gelu(up, c.ffn == "gelu_tanh")
        x = x + w.linear(f"blocks.{i}.ffn.down", up)
    return w.norm("norm", x[wanted]) @ w.head.T


class Decoder:
    """The model with the cache of `sequences` sequences, each empty at first.

    `model` is a `GPT` or what `checkpoint.load` gives; later changes of its weights are not seen.
    `threads` share the sequences of a call (0: as many as there are cores); they change no bit.
    """

    def __init__(
        self, model: GPT | Saved, sequences: int = 1, past_context: str = "drop", threads: int = 0
    ):
        if past_context not in PAST_CONTEXT:
            raise UsageError(
                f"past_context: expected {' or '.join(PAST_CONTEXT)}, got {past_context!r}"
            )
        params = getattr(model, "params", None)
        if params is None:
            params = {name: p.numpy() for name, p in model.named_parameters()}  # type: ignore
        c = self.config = model.config
        self.weights, self.past_context = Weights(c, params), past_context
        self.threads = min(threads or cores(), max(1, sequences))
        self.pool = ThreadPoolExecutor(self.threads)  # starts no thread before the first use
        self.window: list[list[int]] = [[] for _ in range(sequences)]  # the tokens in the cache
        if kernels.backend() == "numba":
            self.run, self.writer = compiled(self.weights, sequences)
        else:
            shape = (c.n_layer, 2, sequences, c.kv_heads, c.head_dim, c.context)
            self.run = partial(forward, self.weights, np.zeros(shape, np.dtype(c.dtype)))

    def feed(self, tokens: Sequence[Sequence[int]], slots: Sequence[int] | None = None) -> Array:
        """Append `tokens[n]`, one or more, to sequence `slots[n]`; the logits (N, V) after each.

        Of more tokens than the context, the last ones are taken.
        """
        slots = range(len(self.window)) if slots is None else slots
        work = [(slot, *self._extend(slot, new)) for slot, new in zip(slots, tokens, strict=True)]
        shares = [work[share] for share in self._shares(len(work))]
        return np.concatenate(list(self._map(self._process, shares)))

    def room(self, slots: Sequence[int]) -> int:
        """Tokens that fit into the windows of all these sequences; 0 where `write` is not there."""
        longest = max((len(self.window[slot]) for slot in slots), default=0)
        return self.config.context - longest if kernels.backend() == "numba" else 0

    def write(
        self, tokens: Sequence[int], slots: Sequence[int], u: Array, *options: Any
    ) -> list[list[int]]:
        """Append a token to each sequence and draw the next, len(u) times: (len(u), N) tokens.

        In place of `feed` and `sample.choose`, for at most `room` times, in one compiled call.
        """
        shares = self._shares(len(slots))
        places = np.array([len(self.window[slot]) for slot in slots])
        parts = [
            (
                np.array(tokens[n]),
                np.array(slots[n]),
                places[n],
                *options,
                np.ascontiguousarray(u[:, n]),
            )
            for n in shares
        ]
        new = np.concatenate(list(self._map(lambda part: self.writer(*part), parts)), axis=1)
        for n, slot in enumerate(slots):
            self.window[slot] += [tokens[n], *new[:-1, n].tolist()]
        return new.tolist()

    def _shares(self, count: int) -> list[slice]:
        """Parts of a list of sequences, one a thread where that is worth it."""
        size = -(-count // self.threads)
        size = max(1, count if size < MIN_SHARE else size)
        return [slice(n, n + size) for n in range(0, count, size)]

    def _map(self, work: Callable[..., Array], shares: list[Any]) -> Iterable[Array]:
        return map(work, shares) if len(shares) == 1 else self.pool.map(work, shares)

    def _process(self, work: list[tuple[int, int, list[int]]]) -> Array:
        """Logits after the last token of each (slot, position of the first token, tokens)."""
        ids: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        for slot, start, new in work:
            ids += new
            slots += [slot] * len(new)
            positions += range(start, start + len(new))
            wanted.append(len(ids) - 1)
        return self.run(np.array(ids), np.array(slots), np.array(positions), np.array(wanted))

    def _extend(self, slot: int, new: Sequence[int]) -> tuple[int, list[int]]:
        """Append to a window; the position and the tokens that have to be processed for it."""
        if not len(new):
            raise ValueError(f"feed: sequence {slot} was given no token; give at least one")
        bad = [token for token in new if not 0 <= token < self.config.vocab_size]
        if bad:
            raise IndexError(
                f"feed: token {bad[0]} is not in the vocabulary, 0 to {self.config.vocab_size - 1}"
            )
        context, old = self.config.context, self.window[slot]
        window = self.window[slot] = [*old, *new]
        if len(window) <= context:
            return len(old), list(new)
        if self.past_context == "drop" and old:
            context -= context // 2
        window[:-context] = []
        return 0, window
