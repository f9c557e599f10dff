"""The compiled decoder: a model's weights and caches in the form of the loops in decode_kernels.py.

The fast twin of `decode.Plain`, for what `transformer.kernels_know`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import minitensor as mt
from minitensor.kernels.compiling import WAIT
from minitensor.kernels.simd import LANES
from tinygpt.model import decode_kernels
from tinygpt.model.config import Config
from tinygpt.model.decode_kernels import (
    GELU,
    GELU_TANH,
    PANEL,
    SWIGLU,
    Guesses,
    Model,
    Places,
    Rows,
    Shape,
)
from tinygpt.model.guess import ORDER
from tinygpt.model.transformer import fixed_positions, rotations

if TYPE_CHECKING:
    from tinygpt.model.decode import Work
    from tinygpt.model.drawing import Choice

Array = np.ndarray
LINE = 64  # bytes of a cache line
KERNELS, SECONDS = "decode_kernels.*", 20.0  # what compiles here, and how long that takes
ACTIVATIONS = {"swiglu": SWIGLU, "gelu_tanh": GELU_TANH, "gelu": GELU}


class Heads(NamedTuple):
    """How the loops see the heads: key/value heads side by side in the lanes of a vector.

    A token's key is `blocks` blocks of `width` numbers, one block unless there are more heads than
    lanes; in a block the heads' first numbers come first, then their second ones. Queries that
    share a key/value head come in `group` such rows.
    """

    group: int
    kv: int
    head_dim: int
    blocks: int
    lanes: int  # heads in a block, a power of 2
    depth: int  # numbers of a head, head_dim with zeros up to whole vectors of a block

    @classmethod
    def of(cls, c: Config) -> Heads:
        """Those of a configuration."""
        lanes = 1
        while lanes < min(c.kv_heads, LANES):
            lanes *= 2
        whole = LANES // lanes
        depth = -(-c.head_dim // whole) * whole
        blocks = -(-c.kv_heads // lanes)
        return cls(c.n_head // c.kv_heads, c.kv_heads, c.head_dim, blocks, lanes, depth)

    @property
    def width(self) -> int:
        """Numbers in a block."""
        return self.depth * self.lanes

    def arrange(self, a: Array) -> Array:
        """Rows (KV groups hd, …), head by head, as rows (groups blocks width, …) with zeros."""
        groups = len(a) // (self.kv * self.head_dim)
        heads = a.reshape(self.kv, groups, self.head_dim, -1)
        out = np.zeros((self.blocks * self.lanes, groups, self.depth, heads.shape[-1]), a.dtype)
        out[: self.kv, :, : self.head_dim] = heads
        out = out.reshape(self.blocks, self.lanes, groups, self.depth, -1)
        return out.transpose(2, 0, 3, 1, 4).reshape(-1, *a.shape[1:])


def aligned(size: int, dtype: Any) -> Array:
    """Flat zeros that begin at a cache line, so that no vector lies in two of them."""
    # np.empty asks for large pages where the system has them, np.zeros does not
    whole = np.empty(size * np.dtype(dtype).itemsize + LINE, np.uint8)
    whole.fill(0)
    begin = -whole.ctypes.data % LINE
    return whole[begin : begin + size * np.dtype(dtype).itemsize].view(dtype)


class Flat:
    """Arrays one after the other, and where each begins."""

    def __init__(self) -> None:
        self.pieces: list[Array] = []
        self.size = 0

    def _add(self, piece: Array) -> None:
        size = piece.size + -piece.size % LANES  # every piece begins at a whole vector
        self.pieces.append(np.pad(np.ravel(piece), (0, size - piece.size)))
        self.size += size

    def norm(self, weight: Array, bias: Array | None) -> int:
        """Add a norm, its weight and then its bias; returns where it begins."""
        begin = self.size
        self._add(np.concatenate([weight, np.zeros_like(weight) if bias is None else bias]))
        return begin

    def linear(self, *maps: tuple[Array, Array | None]) -> int:
        """Add linear maps of one input, biases and then matrices; returns where they begin.

        A matrix (O, I) lies as panels (O / PANEL, I, PANEL), with rows of zeros where O is no
        multiple of PANEL.
        """
        begin = self.size
        for matrix, bias in maps:
            bias = np.zeros(len(matrix), matrix.dtype) if bias is None else bias
            self._add(np.pad(bias, (0, -len(bias) % PANEL)))
        for matrix, _ in maps:
            whole = np.pad(matrix, [(0, -len(matrix) % PANEL), (0, 0)])
            self._add(whole.reshape(-1, PANEL, whole.shape[1]).swapaxes(1, 2))
        return begin


def pack(c: Config, heads: Heads, params: Mapping[str, Array], head: Array) -> tuple[Array, Places]:
    """All weights in one flat array, in the order in which a token meets them; where each is."""
    flat = Flat()

    def named(name: str) -> tuple[Array, Array | None]:
        return params[f"{name}.weight"], params.get(f"{name}.bias")

    def by_head(a: Array) -> Array:
        """The rows of q, k and v, each arranged."""
        return np.concatenate([heads.arrange(part) for part in np.split(a, c.qkv_cuts)])

    size = 0
    for i in range(c.n_layer):
        attn, ffn, begin = f"blocks.{i}.attn", f"blocks.{i}.ffn", flat.size
        qkv, qkv_bias = named(f"{attn}.qkv")
        out, out_bias = named(f"{attn}.out")
        gate = [named(f"{ffn}.gate")] if c.ffn == "swiglu" else []
        layer = {
            "attn_norm": flat.norm(*named(f"{attn}_norm")),
            "qkv": flat.linear((by_head(qkv), None if qkv_bias is None else by_head(qkv_bias))),
            "out": flat.linear((heads.arrange(out.T).T, out_bias)),
            "ffn_norm": flat.norm(*named(f"{ffn}_norm")),
            "up": flat.linear(*gate, named(f"{ffn}.up")),
            "down": flat.linear(named(f"{ffn}.down")),
        }
        size = flat.size - begin
    places = {name: place - begin for name, place in layer.items()}  # the same in every layer
    norm, last = flat.norm(*named("norm")), flat.linear((head, None))
    weights = aligned(flat.size, c.dtype)
    np.concatenate(flat.pieces, out=weights)
    return weights, Places(**places, size=size, norm=norm, head=last)


def as_model(c: Config, params: Mapping[str, Array]) -> Model:
    """What the loops take for a model of these parameters."""
    dtype = np.dtype(c.dtype)
    params = {name: np.ascontiguousarray(a, dtype) for name, a in params.items()}
    embedding = params["embedding.weight"]
    head = params.get("head.weight", embedding)
    if c.head == "pinv":
        with mt.no_grad():
            head = np.ascontiguousarray(mt.pinv(embedding).numpy().T)
    nothing = np.empty((c.context, 0), dtype)
    positions = params.get("positions.weight", fixed_positions(c))
    positions = nothing if positions is None else positions
    cos, sin = rotations(c) or (nothing, nothing)
    heads = Heads.of(c)
    weights, places = pack(c, heads, params, head)
    shape = Shape(
        group=heads.group,
        blocks=heads.blocks,
        lanes=heads.lanes,
        width=heads.width,
        d_ff=c.d_ff,
        vocab_size=c.vocab_size,
        context=c.context,
        rms=c.norm == "rms",
        activation=ACTIVATIONS[c.ffn],
    )
    return Model(
        shape=shape,
        places=places,
        weights=weights,
        embedding=embedding.copy(),  # a model's own may change; read-only, it would be another type
        positions=positions.copy(),
        cos=cos,
        sin=sin,
        windows=np.array([c.window(i) for i in range(c.n_layer)]),
        eps=dtype.type(c.norm_eps),
        scale=dtype.type(1 / math.sqrt(c.head_dim) if c.scale_attention else 1.0),
    )


class Compiled:
    """A model and the cache of some sequences."""

    def __init__(self, c: Config, params: Mapping[str, Array], sequences: int, guessing: bool):
        WAIT.expect({KERNELS: SECONDS})
        self.guessing = guessing
        self.model = as_model(c, params)
        token = self.model.shape.blocks * self.model.shape.width
        self.cache = aligned(c.n_layer * sequences * 2 * c.context * token, c.dtype)

    def logits(self, work: Work) -> Array:
        """Logits (N, V) after the last token of each slot's new ones.

        All tokens are rows of one pass, in which a row sees those before it.
        """
        ids = np.concatenate([new for _, _, new in work])
        slots = np.concatenate([np.full(len(new), slot) for slot, _, new in work])
        positions = np.concatenate([np.arange(at, at + len(new)) for _, at, new in work])
        wanted = np.cumsum([len(new) for _, _, new in work]) - 1
        return decode_kernels.decode(self.model, self.cache, Rows(ids, slots, positions), wanted)

    def write(
        self, work: Work, vocab_size: int, choice: Choice, u: Array, guesses: Guesses
    ) -> Array:
        """See `decode_kernels.write`; `work` has the last few tokens of each slot."""
        rows = Rows(
            *np.array([(last[-1], slot, position) for slot, position, last in work]).T.copy()
        )
        past = np.full((len(work), ORDER + len(u)), -1)
        for n, (_, _, last) in enumerate(work):
            past[n, ORDER - len(last) : ORDER] = last
        return decode_kernels.write(
            self.model, self.cache, rows, vocab_size, choice, u, past, guesses, self.guessing
        )


def no_guesses() -> Guesses:
    """The guesses of a model that has not written anything yet: none."""
    rates = np.full(ORDER + 1, 0.5, np.float32)
    entries = aligned(decode_kernels.ENTRIES * decode_kernels.ENTRY, np.int32)
    return Guesses(entries, rates, np.zeros(3, np.int64))
