"""Kernels made of kernels: the two sublayers and the loss of a model, one step after the other.

They are the NumPy twins of sublayer.py, which does the same in blocks of rows that stay in cache,
and they replace it where the weights are too large for that. A backward computes norm(x) and
the activation again, which is cheaper than keeping them.

A sublayer is y = x + dropout(linear(f(linear(norm(x))))), f being attention or an activation. Its
backward follows that chain from the end: through `leave`, f, and `enter`. Attention has
two dropouts: `drop_weights` on the attention weights, and `drop` on the branch before it joins the
stream. The arguments of norms, maps, attention and dropout are bundled in bundles.py.
"""

from __future__ import annotations

import numpy as np

from minitensor import kernels
from minitensor.kernels.bundles import Attend, AttentionSaved, Drop, FeedForwardSaved, Linear, Norm
from minitensor.kernels.contract import kernel

Array = np.ndarray
Grads = tuple[Array | None, ...]


def normalise(x: Array, norm: Norm) -> tuple[Array, Array, Array]:
    """norm(x), and the mean (0 for RMSNorm) and the factor r of each row."""
    weight, bias, centred, eps = norm
    if centred:
        bias = np.zeros_like(weight) if bias is None else bias
        return kernels.layer_norm(x, weight, bias, eps)  # type: ignore[no-any-return]
    h, r = kernels.rms_norm(x, weight, eps)
    return h, np.zeros_like(r), r


def enter_backward(
    maps: list[tuple[Array, Linear]], g: Array, x: Array, norm: Norm, mean: Array, r: Array
) -> Grads:
    """Backward of linear(norm(x)), for every map with the gradient dy of its result: dx = g + what
    comes through norm and maps, d of the norm's weight and bias, and dW and db of each map."""
    h, _, _ = normalise(x, norm)
    dh = sum(kernels.linear_dx(dy, linear.weight) for dy, linear in maps)
    dbias = None
    if norm.centred:
        dx, dweight, dbias = kernels.layer_norm_backward(dh, x, norm.weight, mean, r)
    else:
        dx, dweight = kernels.rms_norm_backward(dh, x, norm.weight, r)
    grads = (d for dy, linear in maps for d in map_backward(dy, h, linear))
    return g + dx, dweight, None if norm.bias is None else dbias, *grads


def map_backward(dy: Array, x: Array, linear: Linear) -> tuple[Array, Array | None]:
    """dW = dyᵀ x and db = Σ dy of y = x Wᵀ + b."""
    return kernels.linear_dw(dy, x, None), None if linear.bias is None else dy.sum(axis=0)


def leave(a: Array, linear: Linear, x: Array, drop: Drop) -> Array:
    """x + dropout(linear(a))."""
    y = kernels.linear(a, *linear)
    if drop.threshold == 0:
        return np.asarray(x + y)
    return np.asarray(kernels.dropout_add(x.reshape(-1), y.reshape(-1), drop)).reshape(x.shape)


def leave_backward(g: Array, a: Array, linear: Linear, drop: Drop) -> tuple[Array, Grads]:
    """da, and dW and db; x gets g as it is."""
    if drop.threshold:
        g = kernels.dropout(g.reshape(-1), drop).reshape(g.shape)
    return kernels.linear_dx(g, linear.weight), map_backward(g, a, linear)


# ------------------------------------------------------------------------------------ attention


@kernel(
    "sublayer",
    x="(B, T, D)",
    norm="Norm(D)",
    qkv="Linear((H + 2*K)*d, D)",
    out="Linear(D, H*d)",
    attend="Attend",
    drop_weights="Drop",
    drop="Drop",
)
def attention_sublayer(
    x: Array, norm: Norm, qkv: Linear, out: Linear, attend: Attend, drop_weights: Drop, drop: Drop
) -> tuple[Array, AttentionSaved]:
    """x + dropout(out(attention(qkv(norm(x))))), and what the backward needs."""
    B, T, D = x.shape
    rows = x.reshape(B * T, D)
    h, mean, r = normalise(rows, norm)
    packed = kernels.linear(h, *qkv).reshape(B, T, attend.H + 2 * attend.K, attend.d)
    heads, lse = kernels.attention(packed, attend, drop_weights)
    y = leave(heads.reshape(B * T, attend.H * attend.d), out, rows, drop)
    return y.reshape(x.shape), AttentionSaved(mean, r, packed, heads, lse)


@kernel(
    "sublayer",
    g="(B, T, D)",
    x="(B, T, D)",
    norm="Norm(D)",
    qkv="Linear((H + 2*K)*d, D)",
    out="Linear(D, H*d)",
    saved="AttentionSaved",
    attend="Attend",
    drop_weights="Drop",
    drop="Drop",
)
def attention_sublayer_backward(
    g: Array,
    x: Array,
    norm: Norm,
    qkv: Linear,
    out: Linear,
    saved: AttentionSaved,
    attend: Attend,
    drop_weights: Drop,
    drop: Drop,
) -> Grads:
    """dx, then d of weight and bias of the norm, of qkv and of out; None where there is no bias."""
    mean, r, packed, heads, lse = saved
    B, T, D = x.shape
    rows, g = x.reshape(B * T, D), g.reshape(B * T, D)
    da, dout = leave_backward(g, heads.reshape(B * T, attend.H * attend.d), out, drop)
    dpacked = kernels.attention_backward(
        da.reshape(heads.shape), packed, heads, lse, attend, drop_weights
    )
    maps = [(dpacked.reshape(B * T, len(qkv.weight)), qkv)]
    dx, *others = enter_backward(maps, g, rows, norm, mean, r)
    return dx.reshape(x.shape), *others, *dout  # type: ignore[union-attr]


# --------------------------------------------------------------------------------- feed-forward


def activate(gate: Array | None, up: Array, tanh: bool) -> Array:
    """silu(gate) up, or gelu(up) where there is no gate."""
    if gate is None:
        return np.asarray(kernels.gelu(up.reshape(-1), tanh)).reshape(up.shape)
    return np.asarray(kernels.swiglu(gate.reshape(-1), up.reshape(-1))).reshape(up.shape)


@kernel(
    "sublayer",
    x="(N, D)",
    norm="Norm(D)",
    gate="Linear(F, D) or None",
    up="Linear(F, D)",
    down="Linear(D, F)",
    tanh="bool",
    drop="Drop",
)
def feed_forward_sublayer(
    x: Array, norm: Norm, gate: Linear | None, up: Linear, down: Linear, tanh: bool, drop: Drop
) -> tuple[Array, FeedForwardSaved]:
    """x + dropout(down(f(up(norm(x))))), f = gelu; or with a gate f(z) = silu(gate(norm(x))) z.

    Then what the backward needs.
    """
    h, mean, r = normalise(x, norm)
    a, b = None if gate is None else kernels.linear(h, *gate), kernels.linear(h, *up)
    return leave(activate(a, b, tanh), down, x, drop), FeedForwardSaved(mean, r, a, b)


@kernel(
    "sublayer",
    g="(N, D)",
    x="(N, D)",
    norm="Norm(D)",
    gate="Linear(F, D) or None",
    up="Linear(F, D)",
    down="Linear(D, F)",
    saved="FeedForwardSaved",
    tanh="bool",
    drop="Drop",
    where="(gate is None) == (saved.gate is None)",
)
def feed_forward_sublayer_backward(
    g: Array,
    x: Array,
    norm: Norm,
    gate: Linear | None,
    up: Linear,
    down: Linear,
    saved: FeedForwardSaved,
    tanh: bool,
    drop: Drop,
) -> Grads:
    """dx, then d of weight and bias of the norm, of gate, up and down; None for what is missing."""
    mean, r, a, b = saved
    dc, ddown = leave_backward(g, activate(a, b, tanh), down, drop)
    dc = dc.reshape(-1)
    if gate is None or a is None:
        db = kernels.gelu_backward(dc, b.reshape(-1), tanh).reshape(b.shape)
        dx, dweight, dbias, *dup = enter_backward([(db, up)], g, x, norm, mean, r)
        return dx, dweight, dbias, None, None, *dup, *ddown
    da, db = (d.reshape(b.shape) for d in kernels.swiglu_backward(dc, a.reshape(-1), b.reshape(-1)))
    return *enter_backward([(da, gate), (db, up)], g, x, norm, mean, r), *ddown


# ------------------------------------------------------------------------------------- the loss


@kernel(
    "sublayer",
    x="(N, D)",
    weight="(V, D)",
    targets="(N) in [0, V) or ignore_index",
    ignore_index="int",
    factor="number",
    wanted="bool",
    where="V >= 1",
)
def linear_cross_entropy(
    x: Array, weight: Array, targets: Array, ignore_index: int, factor: float, wanted: bool
) -> tuple[float, Array | None, Array | None]:
    """Σ of the losses of the logits z = x Wᵀ, and if `wanted` their gradients times `factor`:
    dx = dz W and dW = dzᵀ x. The logits are made a block of rows at a time."""
    N, V, total = len(x), len(weight), 0.0
    dx, dw = (np.empty_like(x), np.zeros_like(weight)) if wanted else (None, None)
    # About 1 MB of logits, which stay in cache; yet enough rows for the sums of dw to be worth
    # reading and writing all of it.
    block = max(256, min(N, 2**20 // (V * x.itemsize) // 64 * 64))
    for n in range(0, N, block):
        rows = x[n : n + block]
        logits = kernels.linear(rows, weight, None)  # (block, V)
        losses = kernels.cross_entropy(logits, targets[n : n + block], ignore_index, 0.0, factor)
        total += float(losses.sum(dtype=np.float64))
        if dx is not None and dw is not None:
            dx[n : n + block] = kernels.linear_dx(logits, weight)
            kernels.linear_dw(logits, rows, dw)
    return total, dx, dw
