"""Arguments that go together, by name: what a norm, a linear map, attention and dropout take."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minitensor.kernels.contract import bundle

Array = np.ndarray


@bundle(
    "D",
    weight="(D)",
    bias="(D) or None",
    centred="bool",
    eps="float >= 0",
    where="centred or bias is None",
)
class Norm(NamedTuple):
    """LayerNorm, if centred, else RMSNorm."""

    weight: Array
    bias: Array | None
    centred: bool
    eps: float


@bundle("O", "I", weight="(O, I)", bias="(O) or None")
class Linear(NamedTuple):
    """x Wᵀ + b."""

    weight: Array
    bias: Array | None


@bundle(threshold="uint32", rescale="number >= 1", k0="uint32", k1="uint32")
class Drop(NamedTuple):
    """Dropout: 0 where the hash of the place under the key (k0, k1) is below the threshold p 2³²,
    and what is left is multiplied by `rescale` = 1/(1−p)."""

    threshold: np.uint32
    rescale: Any
    k0: np.uint32
    k1: np.uint32


@bundle(cos="(T, d/2)", sin="(T, d/2)")
class Rope(NamedTuple):
    """The cosines and sines of RoPE's angles, by time and pair."""

    cos: Array
    sin: Array


@bundle(
    H="int >= 1",
    K="int >= 1",
    d="int >= 0",
    rope="Rope or None",
    scale="number",
    window="int >= 0",
    causal="bool",
    where="H % K == 0",
)
class Attend(NamedTuple):
    """H query heads and K key/value heads of d numbers each; RoPE; the factor of the scores; the
    number of keys that a query sees (0: no limit), and whether those after it are hidden."""

    H: int
    K: int
    d: int
    rope: Rope | None
    scale: Any
    window: int
    causal: bool


@bundle(
    mean="(B*T)", r="(B*T)", packed="(B, T, H + 2*K, d)", heads="(B, T, H, d)", lse="(B, H, T)",
)  # fmt: skip
class AttentionSaved(NamedTuple):
    """What the backward of an attention sublayer needs: means and factors of the norm's rows (the
    means are 0 in RMSNorm), q|k|v, the heads' output, and the log-sum-exp of the scores."""

    mean: Array
    r: Array
    packed: Array
    heads: Array
    lse: Array


@bundle(mean="(N)", r="(N)", gate="(N, F) or None", up="(N, F)")
class FeedForwardSaved(NamedTuple):
    """What the backward of a feed-forward sublayer needs: means and factors of the norm's rows,
    and what the activation was applied to."""

    mean: Array
    r: Array
    gate: Array | None
    up: Array
