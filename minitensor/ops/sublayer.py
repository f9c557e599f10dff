"""The two sublayers of a transformer block (Vaswani et al. 2017), pre-norm, each as one op.

They compute what `layer_norm` or `rms_norm`, `linear`, `self_attention`, `gelu` or `swiglu` and
`dropout_add` compute one after the other, and their backward is the chain rule through these. As
one op, norm(x) and the activation need not be kept (the backward computes them again), and a block
of rows can stay in cache from one product to the next. The same written out in single ops is
`Block.forward` of tinygpt/model/transformer.py.
"""

from __future__ import annotations

import numpy as np

from minitensor import kernels
from minitensor.kernels.bundles import Linear, Norm
from minitensor.op import op
from minitensor.ops.elementwise import Cases, Forward, Rng
from minitensor.ops.transformer import attend_of, drop_of, head_width, rope_table, rows_of
from minitensor.tape import Array


def norm_of(kind: str, weight: Array, bias: Array | None, eps: float) -> Norm:
    """A norm as the kernels take it."""
    if kind not in ("layer", "rms"):
        raise ValueError(f"norm is {kind!r}; it must be 'layer' or 'rms'")
    if kind == "rms" and bias is not None:
        raise ValueError("an RMSNorm has no bias; leave norm_bias out or take norm='layer'")
    return Norm(weight, bias, kind == "layer", eps)


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
) -> Forward:
    """x + dropout(out(self_attention(qkv(norm(x))))), x (B, T, D).

    qkv ((H + 2 K) d, D) and out (D, H d) are the weights of linear maps; `norm` is "layer" or
    "rms"; the rest is as in `self_attention`. `keys` are the dropout keys: that of the attention
    weights, and that of the branch.

    Backward: g reaches x directly, and the branch through dropout; then da = g W_out and
    dW_out = gᵀ a for the heads' output a, attention's own backward, and dh = d(qkv) W_qkv and
    dW_qkv = d(qkv)ᵀ h for h = norm(x), whose backward ends at x.
    """
    if x.ndim != 3 or qkv.ndim != 2:
        raise ValueError("expected x (B, T, D) and qkv ((H + 2 K) d, D)")
    T, K = x.shape[1], n_head if n_kv_head is None else n_kv_head
    d = head_width("attention_sublayer", len(qkv), n_head, K)
    x = np.ascontiguousarray(x)
    weights = (
        norm_of(norm, norm_weight, norm_bias, eps),
        Linear(qkv, qkv_bias),
        Linear(out, out_bias),
    )
    attend = attend_of("attention_sublayer", T, n_head, K, d, rope, window, scale, True, x.dtype)
    drops = tuple(drop_of(dropout, key, x.dtype) for key in keys)
    y, saved = kernels.attention_sublayer(x, *weights, attend, *drops)

    def backward(g: Array) -> tuple[Array | None, ...]:
        return kernels.attention_sublayer_backward(
            np.ascontiguousarray(g), x, *weights, saved, attend, *drops
        )

    return y, backward


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
) -> Forward:
    """x + dropout(down(f(up(norm(x))))), x (..., D): f is "gelu" or "gelu_tanh"; or "swiglu", with
    f(z) = silu(gate(norm(x))) z (Shazeer 2020), the only one that has a gate.

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
    weights = (
        norm_of(norm, norm_weight, norm_bias, eps),
        None if gate is None else Linear(gate, gate_bias),
        Linear(up, up_bias),
        Linear(down, down_bias),
    )
    rows, tanh, drop = rows_of(x), activation == "gelu_tanh", drop_of(dropout, key, x.dtype)
    y, saved = kernels.feed_forward_sublayer(rows, *weights, tanh, drop)

    def backward(g: Array) -> tuple[Array | None, ...]:
        dx, *others = kernels.feed_forward_sublayer_backward(
            rows_of(g), rows, *weights, saved, tanh, drop
        )
        return dx.reshape(x.shape), *others

    return y.reshape(x.shape), backward
