"""The two sublayers of a transformer block (Vaswani et al. 2017), pre-norm, each as one op.

They compute what `layer_norm` or `rms_norm`, `linear`, `self_attention`, `gelu` or `swiglu` and
`dropout_add` compute one after the other, and their backward is the chain rule through these. As
one op, norm(x) and the activation need not be kept (the backward makes them again), and a block of
rows can stay in cache from one product to the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minitensor import kernels
from minitensor.ops.transformer import _attention_options, _check, _dropped, _rows, rope_table
from minitensor.tape import Array
from minitensor.tensor import op

Cases = Iterator[tuple[tuple[Any, ...], dict[str, Any]]]
Rng = np.random.Generator


def _norm(norm: str, D: int, weight: Array, bias: Array | None, eps: float) -> tuple[Any, ...]:
    """A norm as the kernels take it."""
    _check("norm_weight", weight, D)
    _check("norm_bias", bias, D)
    if norm not in ("layer", "rms"):
        raise ValueError(f"norm is {norm!r}; it must be 'layer' or 'rms'")
    if norm == "rms" and bias is not None:
        raise ValueError("an RMSNorm has no bias; leave norm_bias out or take norm='layer'")
    return weight, bias, norm == "layer", eps


def _attention_cases(rng: Rng) -> Cases:
    n, table = rng.standard_normal, rope_table(3, 2, dtype=np.float64)
    yield ((n((2, 3, 4)), n(4), n(4), n((12, 4)), n(12), n((4, 4)), n(4)), {"n_head": 2})
    yield (
        (n((1, 3, 4)), n(4), None, n((8, 4)), None, n((4, 4)), None),
        {
            "n_head": 2,
            "n_kv_head": 1,
            "norm": "rms",
            "eps": 0.1,
            "rope": table,
            "window": 2,
            "scale": 1.0,
            "dropout": 0.3,
            "keys": (5, 6),
        },
    )


@op(cases=_attention_cases)
def attention_sublayer(
    x: Array,
    norm_weight: Array,
    norm_bias: Array | None,
    qkv: Array,
    qkv_bias: Array | None,
    out: Array,
    out_bias: Array | None,
    *,
    n_head: int,
    n_kv_head: int | None = None,
    norm: str = "layer",
    eps: float = 1e-5,
    rope: tuple[np.ndarray, np.ndarray] | None = None,
    window: int = 0,
    scale: float | None = None,
    dropout: float = 0.0,
    keys: tuple[int | None, int | None] = (None, None),
) -> Any:
    """x + dropout(out(self_attention(qkv(norm(x))))), x (B, T, D).

    qkv ((H + 2 K) d, D) and out (D, H d) are the weights of linear maps; `norm` is "layer" or
    "rms"; the rest is as in `self_attention`. `keys` are those of the dropout on the attention
    weights and of that on the branch.

    Backward: g reaches x directly, and the branch through dropout; then da = g W_out and
    dW_out = gᵀ a for the heads' output a, attention's own backward, and dh = d(qkv) W_qkv and
    dW_qkv = d(qkv)ᵀ h for h = norm(x), whose backward ends at x.
    """
    B, T, D = x.shape
    K = n_kv_head or n_head
    d, left = divmod(len(qkv), n_head + 2 * K)
    if left:
        raise ValueError(
            f"qkv gives {len(qkv)} features, which {n_head} query and 2 × {K} "
            "key/value heads do not divide"
        )
    _check("qkv", qkv, len(qkv), D)
    _check("qkv_bias", qkv_bias, len(qkv))
    _check("out", out, D, n_head * d)
    _check("out_bias", out_bias, D)
    heads = B, T, n_head + 2 * K, d
    attend = _attention_options(
        "attention_sublayer", heads, n_head, rope, window, scale, True, dropout, keys[0], x.dtype
    )
    drop, normed = _dropped(dropout, keys[1], x.dtype), _norm(norm, D, norm_weight, norm_bias, eps)
    into, back = (np.ascontiguousarray(qkv), qkv_bias), (np.ascontiguousarray(out), out_bias)
    rows = _rows(x)
    y, *kept = kernels.attention_sublayer(rows, normed, into, back, heads, n_head, attend, drop)

    def backward(g: Array) -> tuple[Array | None, ...]:
        dx, *others = kernels.attention_sublayer_backward(
            _rows(g), rows, normed, into, back, kept, n_head, attend, drop
        )
        return dx.reshape(x.shape), *others

    return y.reshape(x.shape), backward


def _feed_forward_cases(rng: Rng) -> Cases:
    n = rng.standard_normal
    yield ((n((2, 2, 3)), n(3), n(3), None, None, n((5, 3)), n(5), n((3, 5)), n(3)), {})
    yield (
        (n((4, 3)), n(3), None, None, None, n((2, 3)), None, n((3, 2)), None),
        {"activation": "gelu_tanh", "dropout": 0.3, "key": 5},
    )
    yield (
        (n((2, 3)), n(3), None, n((4, 3)), n(4), n((4, 3)), None, n((3, 4)), None),
        {"activation": "swiglu", "norm": "rms", "eps": 0.1},
    )


@op(cases=_feed_forward_cases)
def feed_forward_sublayer(
    x: Array,
    norm_weight: Array,
    norm_bias: Array | None,
    gate: Array | None,
    gate_bias: Array | None,
    up: Array,
    up_bias: Array | None,
    down: Array,
    down_bias: Array | None,
    *,
    activation: str = "gelu",
    norm: str = "layer",
    eps: float = 1e-5,
    dropout: float = 0.0,
    key: int | None = None,
) -> Any:
    """x + dropout(down(f(up(norm(x))))), x (..., D): f is "gelu" or "gelu_tanh"; or "swiglu", with
    f(z) = silu(gate(norm(x))) z (Shazeer 2020), for which alone there is a gate.

    gate and up (F, D) and down (D, F) are the weights of linear maps; `norm` is "layer" or "rms".

    Backward: g reaches x directly, and the branch through dropout; then dc = g W_down and
    dW_down = gᵀ c for c = f(z), dz = dc f'(z), and dh = dz W_up and dW_up = dzᵀ h for h = norm(x),
    whose backward ends at x. A gate is a second z.
    """
    if activation not in ("gelu", "gelu_tanh", "swiglu"):
        raise ValueError(
            f"activation is {activation!r}; it must be 'gelu', 'gelu_tanh' or 'swiglu'"
        )
    if (gate is None) == (activation == "swiglu"):
        raise ValueError(
            f"activation is {activation!r}, so gate must "
            f"{'be given' if gate is None else 'be None'}"
        )
    D, F = x.shape[-1], len(up)
    _check("up", up, F, D)
    _check("up_bias", up_bias, F)
    _check("down", down, D, F)
    _check("down_bias", down_bias, D)
    _check("gate", gate, F, D)
    _check("gate_bias", gate_bias, F)
    gated = None if gate is None else (np.ascontiguousarray(gate), gate_bias)
    rows, normed = _rows(x), _norm(norm, D, norm_weight, norm_bias, eps)
    into, back = (np.ascontiguousarray(up), up_bias), (np.ascontiguousarray(down), down_bias)
    tanh, drop = activation == "gelu_tanh", _dropped(dropout, key, x.dtype)
    y, *kept = kernels.feed_forward_sublayer(rows, normed, gated, into, back, tanh, drop)

    def backward(g: Array) -> tuple[Array | None, ...]:
        dx, *others = kernels.feed_forward_sublayer_backward(
            _rows(g), rows, normed, gated, into, back, kept, tanh, drop
        )
        return dx.reshape(x.shape), *others

    return y.reshape(x.shape), backward


__all__ = ["attention_sublayer", "feed_forward_sublayer"]
