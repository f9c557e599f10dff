"""The two sublayers of a transformer block, and its loss, in blocks of rows (twins: reference.py).

One op after the other, every array of a block is written to memory and read again, and each call
takes its turns at Python's lock. Here a block of rows goes from the norm to the residual sum while
it lies in the L2 cache, beside the weights; only what the backward needs is written out whole. That
pays while the weights fit in there; larger ones go through the separate kernels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minitensor import kernels
from minitensor.kernels import reference
from minitensor.kernels._jit import hash32, inline, jit, u32
from minitensor.kernels.elementwise import (
    dropped,
    gelu_into,
    gelu_of,
    gelu_slope,
    sigmoid,
    swiglu_into,
)
from minitensor.kernels.flash import backward, forward
from minitensor.kernels.gemm import (
    DEPTH,
    LANES,
    PANELS,
    ROWS,
    multiply,
    multiply_turned,
    pack,
    up_to,
)
from minitensor.kernels.loss import entropy
from minitensor.kernels.simd import aligned, zeros

BLOCK = 96  # rows at a time: 200 KB of 512 columns

# ---------------------------------------------------------------------- parts: weights and blocks


@inline
def packed(weight, turned):
    """The panels of a matrix, or of its transpose."""
    rows, columns = weight.shape
    K, N = (columns, rows) if turned else (rows, columns)
    panels = aligned(K * up_to(N), weight)
    pack(weight.reshape(-1), 0, columns, turned, K, N, panels)
    return panels


@inline
def padded(bias, size, like):
    """The bias, or zeros if there is none, up to whole panels, in the dtype of `like`."""
    full = zeros(up_to(size), like)
    for n in range(bias.size):
        full[n] = bias[n]
    return full


@inline
def height(n, N):
    """Rows of the block that begins at n: the last one takes in what is too few for a tile."""
    return BLOCK if N - n >= BLOCK + ROWS else N - n


# Rows are taken as x[n + m, d], and runs of numbers as slices, because a sum in the inner index
# might be negative for all the compiler knows, and then nothing is vectorised.


@inline
def normalise(x, n, rows, scale, shift, centred, eps, mean, r, h):
    """h = norm(x) of the rows from n on; mean and r are kept."""
    D = x.shape[1]
    for m in range(n, n + rows):
        total = x.dtype.type(0)
        if centred:
            for d in range(D):
                total += x[m, d]
        mean[m] = mu = x.dtype.type(total / D)
        total = x.dtype.type(0)
        for d in range(D):
            total += (x[m, d] - mu) * (x[m, d] - mu)
        r[m] = 1 / math.sqrt(total / D + eps)
    normalise_again(x, n, rows, scale, shift, mean, r, h)


@inline
def normalise_again(x, n, rows, scale, shift, mean, r, h):
    for m in range(rows):
        mu, rm = mean[n + m], r[n + m]
        for d in range(x.shape[1]):
            h[m, d] = (x[n + m, d] - mu) * rm * scale[d] + shift[d]


@inline
def norm_backward(dh, g, x, n, rows, scale, centred, mean, r, dx, dscale, dshift):
    """dx = g + the norm's gradient, for the rows from n on."""
    D = x.shape[1]
    for m in range(rows):
        mu, rm = mean[n + m], r[n + m]
        s = t = x.dtype.type(0)
        for d in range(D):
            w = dh[m, d] * scale[d]
            s += w
            t += w * ((x[n + m, d] - mu) * rm)
        a = x.dtype.type(s / D) if centred else x.dtype.type(0)
        b = x.dtype.type(t / D)
        for d in range(D):
            dx[n + m, d] = g[n + m, d] + rm * (
                dh[m, d] * scale[d] - a - (x[n + m, d] - mu) * rm * b
            )
        for d in range(D):
            dscale[d] += dh[m, d] * ((x[n + m, d] - mu) * rm)
            dshift[d] += dh[m, d]


@inline
def join(x, y, n, drop, keep, k0, k1):
    """y = x + dropout(y), numbers of which n come before."""
    zero = x.dtype.type(0)
    if drop == 0:
        for i in range(x.size):
            y[i] += x[i]
    else:
        for i in range(x.size):
            y[i] = x[i] + (y[i] * keep if hash32(u32(n + i), k0, k1) >= drop else y[i] * zero)


@inline
def add_rows(g, n, rows, width, total):
    """total += the sum of the rows of g from n on, where it is wanted: a bias's gradient."""
    if total.size:
        for m in range(n, n + rows):
            row = g[m * width : (m + 1) * width]
            for d in range(width):
                total[d] += row[d]


# -------------------------------------------------------------------------------- attention


@jit
def _attention(
    x,
    scale,
    shift,
    centred,
    eps,
    qkv,
    qkv_bias,
    out,
    out_bias,
    heads,
    H,
    cos,
    sin,
    factor,
    window,
    causal,
    p,
    kept,
    k0,
    k1,
    drop,
    keep,
    o0,
    o1,
):
    (N, D), W = x.shape, len(qkv)
    y, mean, r = aligned(N * W, x), np.empty(N, x.dtype), np.empty(N, x.dtype)
    panels, begin, shift = packed(qkv, True), padded(qkv_bias, W, x), padded(shift, D, x)
    h = aligned((BLOCK + ROWS) * D, x)
    n = 0
    while n < N:
        rows = height(n, N)
        normalise(x, n, rows, scale, shift, centred, eps, mean, r, h.reshape(-1, D))
        multiply(h, 0, D, rows, panels, D, begin, y, n * W, W, W, False)
        n += rows
    y = y.reshape(heads)
    a, lse = forward(y, H, cos, sin, factor, window, causal, p, kept, k0, k1)
    F = out.shape[1]
    z, panels, begin = aligned(N * D, x), packed(out, True), padded(out_bias, D, x)
    flat, x = a.reshape(-1), x.reshape(-1)
    n = 0
    while n < N:
        rows = height(n, N)
        i, j = n * D, (n + rows) * D
        multiply(flat, n * F, F, rows, panels, F, begin, z, i, D, D, False)
        join(x[i:j], z[i:j], i, drop, keep, o0, o1)
        n += rows
    return z.reshape(N, D), mean, r, y, a, lse


@jit
def _attention_backward(
    g,
    x,
    scale,
    shift,
    centred,
    qkv,
    out,
    mean,
    r,
    y,
    a,
    lse,
    H,
    cos,
    sin,
    factor,
    window,
    causal,
    p,
    kept,
    k0,
    k1,
    drop,
    keep,
    o0,
    o1,
    qkv_biased,
    out_biased,
):
    (N, D), W, F = x.shape, len(qkv), out.shape[1]
    dx, dscale, dshift = aligned(N * D, x).reshape(N, D), np.zeros(D, x.dtype), np.zeros(D, x.dtype)
    dqkv, dqkv_bias = aligned(W * D, x), np.zeros(W if qkv_biased else 0, x.dtype)
    dout, dout_bias = aligned(D * F, x), np.zeros(D if out_biased else 0, x.dtype)
    qkvs, outs, size = packed(qkv, False), packed(out, False), BLOCK + ROWS
    nothing, da = zeros(up_to(max(D, F)), x), aligned(N * F, x)
    panels, h = aligned(size * up_to(max(D, F)), x), aligned(size * D, x)
    shift = padded(shift, D, x)
    flat, flat_a = g.reshape(-1), a.reshape(-1)
    back = aligned(N * D, x) if drop else flat  # the gradient of the branch
    n = 0
    while n < N:
        rows = height(n, N)
        i, j = n * D, (n + rows) * D
        if drop:
            dropped(flat[i:j], i, drop, keep, o0, o1, back[i:j])
        multiply(back, i, D, rows, outs, D, nothing, da, n * F, F, F, False)
        pack(flat_a, n * F, F, False, rows, F, panels)
        multiply_turned(back, i, D, rows, panels, nothing, dout, F, n > 0)
        add_rows(back, n, rows, D, dout_bias)
        n += rows
    dy = backward(
        da.reshape(a.shape), y, H, a, lse, cos, sin, factor, window, causal, p, kept, k0, k1
    ).reshape(-1)
    n = 0
    while n < N:
        rows = height(n, N)
        normalise_again(x, n, rows, scale, shift, mean, r, h.reshape(-1, D))
        pack(h, 0, D, False, rows, D, panels)
        multiply_turned(dy, n * W, W, rows, panels, nothing, dqkv, D, n > 0)
        multiply(dy, n * W, W, rows, qkvs, W, nothing, h, 0, D, D, False)
        norm_backward(h.reshape(-1, D), g, x, n, rows, scale, centred, mean, r, dx, dscale, dshift)
        add_rows(dy, n, rows, W, dqkv_bias)
        n += rows
    return (dx, dscale, dshift, dqkv.reshape(W, D), dqkv_bias, dout.reshape(D, F), dout_bias)


# ----------------------------------------------------------------------------- the feed-forward


@inline
def activate(a, b, tanh, c):
    """c = silu(a) b, or gelu(b) where there is no a."""
    if a.size:
        swiglu_into(a, b, c)
    else:
        gelu_into(b, tanh, c)


@inline
def activate_backward(a, b, tanh, c, da, db):
    """`activate` again, and the gradients of a and b; that of c comes in db."""
    one = db.dtype.type(1)
    if a.size:
        for i in range(b.size):
            s = sigmoid(a[i])
            silu = a[i] * s
            c[i] = silu * b[i]
            da[i] = db[i] * b[i] * s * (one + a[i] * (one - s))
            db[i] *= silu
    elif tanh:
        for i in range(b.size):
            c[i] = gelu_of(b[i], True)
            db[i] *= gelu_slope(b[i], True)
    else:
        for i in range(b.size):
            c[i] = gelu_of(b[i], False)
            db[i] *= gelu_slope(b[i], False)


@jit
def _feed_forward(
    x,
    scale,
    shift,
    centred,
    eps,
    gate,
    gate_bias,
    up,
    up_bias,
    down,
    down_bias,
    tanh,
    drop,
    keep,
    k0,
    k1,
):
    (N, D), F = x.shape, len(up)
    shift = padded(shift, D, x)
    y, mean, r = aligned(N * D, x), np.empty(N, x.dtype), np.empty(N, x.dtype)
    a, b = aligned(N * F if gate.size else 0, x), aligned(N * F, x)
    gates, ups, downs = packed(gate, True), packed(up, True), packed(down, True)
    gate_begin, up_begin = padded(gate_bias, F, x), padded(up_bias, F, x)
    down_begin, size = padded(down_bias, D, x), BLOCK + ROWS
    h, c, flat = aligned(size * D, x), aligned(size * F, x), x.reshape(-1)
    n = 0
    while n < N:
        rows = height(n, N)
        i, j, begun, end = n * D, (n + rows) * D, n * F, (n + rows) * F
        normalise(x, n, rows, scale, shift, centred, eps, mean, r, h.reshape(-1, D))
        multiply(h, 0, D, rows, ups, D, up_begin, b, begun, F, F, False)
        if gate.size:
            multiply(h, 0, D, rows, gates, D, gate_begin, a, begun, F, F, False)
        activate(a[begun:end], b[begun:end], tanh, c)
        multiply(c, 0, F, rows, downs, F, down_begin, y, i, D, D, False)
        join(flat[i:j], y[i:j], i, drop, keep, k0, k1)
        n += rows
    return y.reshape(N, D), mean, r, a, b


@jit
def _feed_forward_backward(
    g,
    x,
    scale,
    shift,
    centred,
    gate,
    up,
    down,
    mean,
    r,
    a,
    b,
    tanh,
    drop,
    keep,
    k0,
    k1,
    gate_biased,
    up_biased,
    down_biased,
):
    (N, D), F = x.shape, len(up)
    shift = padded(shift, D, x)
    dx, dscale, dshift = aligned(N * D, x).reshape(N, D), np.zeros(D, x.dtype), np.zeros(D, x.dtype)
    dgate, dup, ddown = aligned(gate.size, x), aligned(F * D, x), aligned(F * D, x)
    dgate_bias = np.zeros(F if gate_biased else 0, x.dtype)
    dup_bias = np.zeros(F if up_biased else 0, x.dtype)
    ddown_bias = np.zeros(D if down_biased else 0, x.dtype)
    gates, ups, downs = packed(gate, False), packed(up, False), packed(down, False)
    size, nothing = BLOCK + ROWS, zeros(up_to(max(D, F)), x)
    h, c = aligned(size * D, x), aligned(size * F, x)
    da, db = aligned(size * F if gate.size else 0, x), aligned(size * F, x)
    panels, flat = aligned(size * up_to(max(D, F)), x), g.reshape(-1)
    back = aligned(N * D, x) if drop else flat  # the gradient of the branch
    n = 0
    while n < N:
        rows = height(n, N)
        i, j, begun, end = n * D, (n + rows) * D, n * F, (n + rows) * F
        if drop:
            dropped(flat[i:j], i, drop, keep, k0, k1, back[i:j])
        multiply(back, i, D, rows, downs, D, nothing, db, 0, F, F, False)
        activate_backward(a[begun:end], b[begun:end], tanh, c, da, db)
        pack(c, 0, F, False, rows, F, panels)
        multiply_turned(back, i, D, rows, panels, nothing, ddown, F, n > 0)
        normalise_again(x, n, rows, scale, shift, mean, r, h.reshape(-1, D))
        pack(h, 0, D, False, rows, D, panels)
        multiply_turned(db, 0, F, rows, panels, nothing, dup, D, n > 0)
        multiply(db, 0, F, rows, ups, F, nothing, h, 0, D, D, False)
        if gate.size:
            multiply_turned(da, 0, F, rows, panels, nothing, dgate, D, n > 0)
            multiply(da, 0, F, rows, gates, F, nothing, h, 0, D, D, True)
            add_rows(da, 0, rows, F, dgate_bias)
        norm_backward(h.reshape(-1, D), g, x, n, rows, scale, centred, mean, r, dx, dscale, dshift)
        add_rows(db, 0, rows, F, dup_bias)
        add_rows(back, n, rows, D, ddown_bias)
        n += rows
    return (
        dx,
        dscale,
        dshift,
        dgate.reshape(gate.shape),
        dgate_bias,
        dup.reshape(F, D),
        dup_bias,
        ddown.reshape(D, F),
        ddown_bias,
    )


# -------------------------------------------------------------------------------------- the loss


@jit
def _linear_cross_entropy(x, weight, targets, ignore_index, scale, wanted):
    (N, D), V = x.shape, len(weight)
    dx, dw = aligned(N * D if wanted else 0, x), aligned(V * D if wanted else 0, x)
    turned, panels, size = packed(weight, True), packed(weight, False), BLOCK + ROWS
    nothing, z, part = zeros(up_to(max(D, V)), x), aligned(size * V, x), aligned(size * up_to(D), x)
    x, total, n = x.reshape(-1), 0.0, 0
    while n < N:
        rows = height(n, N)
        multiply(x, n * D, D, rows, turned, D, nothing, z, 0, V, V, False)
        logits = z[: rows * V].reshape(rows, V)
        for loss in entropy(logits, targets[n : n + rows], ignore_index, 0.0, scale):
            total += loss
        if wanted:
            multiply(z, 0, V, rows, panels, V, nothing, dx, n * D, D, D, False)
            pack(x, n * D, D, False, rows, D, part)
            multiply_turned(z, 0, V, rows, part, nothing, dw, D, n > 0)
        n += rows
    return total, dx, dw


# ------------------------------------------------------------------------ what the ops call

Array = np.ndarray


NONE = np.empty(0, np.float32)  # a bias that is not there
NO_WEIGHT = np.empty((0, 0), np.float32)


def suits(x: Array, *weights: Array) -> bool:
    """Whether the weights fit in the L2 cache, and nothing is too small for a tile."""
    size = 0
    for w in weights:
        outputs, inputs = w.shape
        if not (LANES <= outputs <= DEPTH and LANES <= inputs <= DEPTH and w.dtype == np.float32):
            return False
        size += w.size
    return len(x) >= LANES and x.dtype == np.float32 and size <= 2 * PANELS


def vector(bias: Array | None) -> Array:
    return NONE if bias is None else bias


def attention_sublayer(
    x: Array,
    norm: reference.Norm,
    qkv: reference.Map,
    out: reference.Map,
    heads: tuple[int, ...],
    H: int,
    attend: tuple[Any, ...],
    drop: tuple[Any, ...],
) -> tuple[Array, ...]:
    if not suits(x, qkv[0], out[0]):
        return reference.attention_sublayer(x, norm, qkv, out, heads, H, attend, drop, kernels)
    scale, shift, centred, eps = norm
    return _attention(  # type: ignore[no-any-return]
        x,
        scale,
        vector(shift),
        centred,
        eps,
        qkv[0],
        vector(qkv[1]),
        out[0],
        vector(out[1]),
        heads,
        H,
        *attend,
        *drop,
    )


def attention_sublayer_backward(
    g: Array,
    x: Array,
    norm: reference.Norm,
    qkv: reference.Map,
    out: reference.Map,
    kept: Sequence[Array],
    H: int,
    attend: tuple[Any, ...],
    drop: tuple[Any, ...],
) -> tuple[Array, ...]:
    if not suits(x, qkv[0], out[0]):
        return reference.attention_sublayer_backward(
            g, x, norm, qkv, out, kept, H, attend, drop, kernels
        )
    scale, shift, centred, _ = norm
    return _attention_backward(  # type: ignore[no-any-return]
        g,
        x,
        scale,
        vector(shift),
        centred,
        qkv[0],
        out[0],
        *kept,
        H,
        *attend,
        *drop,
        qkv[1] is not None,
        out[1] is not None,
    )


def feed_forward_sublayer(
    x: Array,
    norm: reference.Norm,
    gate: reference.Map | None,
    up: reference.Map,
    down: reference.Map,
    tanh: bool,
    drop: tuple[Any, ...],
) -> tuple[Any, ...]:
    if not suits(x, up[0], down[0], *(gate or ())[:1]):
        return reference.feed_forward_sublayer(x, norm, gate, up, down, tanh, drop, kernels)
    scale, shift, centred, eps = norm
    gate_weight, gate_bias = gate or (NO_WEIGHT, None)
    return _feed_forward(  # type: ignore[no-any-return]
        x,
        scale,
        vector(shift),
        centred,
        eps,
        gate_weight,
        vector(gate_bias),
        up[0],
        vector(up[1]),
        down[0],
        vector(down[1]),
        tanh,
        *drop,
    )


def feed_forward_sublayer_backward(
    g: Array,
    x: Array,
    norm: reference.Norm,
    gate: reference.Map | None,
    up: reference.Map,
    down: reference.Map,
    kept: Sequence[Any],
    tanh: bool,
    drop: tuple[Any, ...],
) -> tuple[Array | None, ...]:
    if not suits(x, up[0], down[0], *(gate or ())[:1]):
        return reference.feed_forward_sublayer_backward(
            g, x, norm, gate, up, down, kept, tanh, drop, kernels
        )
    scale, shift, centred, _ = norm
    gate_weight, gate_bias = gate or (NO_WEIGHT, None)
    return _feed_forward_backward(  # type: ignore[no-any-return]
        g,
        x,
        scale,
        vector(shift),
        centred,
        gate_weight,
        up[0],
        down[0],
        *kept,
        tanh,
        *drop,
        gate_bias is not None,
        up[1] is not None,
        down[1] is not None,
    )


def linear_cross_entropy(
    x: Array, weight: Array, targets: Array, ignore_index: int, scale: float, wanted: bool
) -> tuple[float, Array, Array]:
    if not suits(x, weight):
        return reference.linear_cross_entropy(
            x, weight, targets, ignore_index, scale, wanted, kernels
        )
    total, dx, dw = _linear_cross_entropy(
        x, weight, targets, ignore_index, x.dtype.type(scale), wanted
    )
    return total, dx.reshape(x.shape) if wanted else dx, dw.reshape(weight.shape) if wanted else dw
