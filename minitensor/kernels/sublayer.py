"""A transformer block's two sublayers and a model's loss, in blocks of rows (twins: composed.py).

One op after the other, every array of a block is written to memory and read again, and each call
waits for Python's lock. Here a block of rows goes from the norm to the residual sum while
it lies in the L2 cache, beside the weights; only what the backward needs is written out whole. That
pays as long as the weights fit in L2; larger ones go through the separate kernels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitensor.kernels import composed
from minitensor.kernels.bundles import AttentionSaved, Drop, FeedForwardSaved, Linear, Norm
from minitensor.kernels.compiling import hash32, inline, jit, u32
from minitensor.kernels.elementwise import (
    dropped,
    gelu_into,
    gelu_of,
    gelu_slope,
    sigmoid,
    swiglu_into,
)
from minitensor.kernels.flash import backward, forward, plain_attend
from minitensor.kernels.gemm import (
    CACHED,
    DEPTH,
    LANES,
    ROWS,
    multiply,
    multiply_transposed,
    to_panels,
    up_to,
)
from minitensor.kernels.loss import entropy
from minitensor.kernels.simd import aligned, zeros

BLOCK = 96  # rows at a time: 200 KB of 512 columns
SCRATCH = BLOCK + ROWS  # the most rows that a block can have

# ---------------------------------------------------------------------- parts: weights and blocks


@inline
def panels_of(weight, transposed):
    """The panels of a matrix, or of its transpose."""
    rows, columns = weight.shape
    K, N = (columns, rows) if transposed else (rows, columns)
    panels = aligned(K * up_to(N), weight)
    to_panels(weight.reshape(-1), 0, columns, transposed, K, N, panels)
    return panels


@inline
def padded(bias, size, like):
    """The bias, or zeros if there is none, up to whole panels, in the dtype of `like`."""
    out = zeros(up_to(size), like)
    for n in range(bias.size):
        out[n] = bias[n]
    return out


@inline
def height(n, N):
    """Rows of the block that begins at n; the last block takes in a rest too short for a tile."""
    return BLOCK if N - n >= BLOCK + ROWS else N - n


# Rows are taken as x[n + m, d], and runs of numbers as slices, because a sum in the inner index
# might be negative for all the compiler knows, and then nothing is vectorised.


@inline
def normalise(x, n, rows, norm, mean, r, h):
    """h = norm(x) of the rows from n on; mean and r are kept."""
    D = x.shape[1]
    for m in range(n, n + rows):
        total = x.dtype.type(0)
        if norm.centred:
            for d in range(D):
                total += x[m, d]
        mean[m] = mu = x.dtype.type(total / D)
        total = x.dtype.type(0)
        for d in range(D):
            total += (x[m, d] - mu) * (x[m, d] - mu)
        r[m] = 1 / math.sqrt(total / D + norm.eps)
    normalise_again(x, n, rows, norm, mean, r, h)


@inline
def normalise_again(x, n, rows, norm, mean, r, h):
    """h = norm(x) of the rows from n on, from the mean and r that were kept."""
    weight, bias = norm.weight, norm.bias
    for m in range(rows):
        mu, rm = mean[n + m], r[n + m]
        for d in range(x.shape[1]):
            h[m, d] = (x[n + m, d] - mu) * rm * weight[d] + bias[d]


@inline
def norm_backward(dh, g, x, n, rows, norm, mean, r, dx, dweight, dbias):
    """dx = g + the norm's gradient, for the rows from n on."""
    D, weight = x.shape[1], norm.weight
    for m in range(rows):
        mu, rm = mean[n + m], r[n + m]
        s = t = x.dtype.type(0)
        for d in range(D):
            w = dh[m, d] * weight[d]
            s += w
            t += w * ((x[n + m, d] - mu) * rm)
        a = x.dtype.type(s / D) if norm.centred else x.dtype.type(0)
        b = x.dtype.type(t / D)
        for d in range(D):
            dx[n + m, d] = g[n + m, d] + rm * (
                dh[m, d] * weight[d] - a - (x[n + m, d] - mu) * rm * b
            )
        for d in range(D):
            dweight[d] += dh[m, d] * ((x[n + m, d] - mu) * rm)
            dbias[d] += dh[m, d]


@inline
def whole_norm(norm, x):
    """A norm with zeros for a bias that is not there, its fields named again."""
    weight, bias, centred, eps = norm
    return Norm(weight, padded(bias, x.shape[1], x), centred, eps)


@inline
def join(x, y, n, drop):
    """y = x + dropout(y), for x that begins at number n of its array.

    Written out here: with y as the branch and the result of one function, LLVM does not vectorise.
    """
    zero, (threshold, rescale, k0, k1) = x.dtype.type(0), drop
    if threshold == 0:
        for i in range(x.size):
            y[i] += x[i]
    else:
        for i in range(x.size):
            survives = hash32(u32(n + i), k0, k1) >= threshold
            y[i] = x[i] + (y[i] * rescale if survives else y[i] * zero)


@inline
def add_rows(g, n, rows, width, total):
    """total += the sum of the rows of g from n on, where there is a bias to have a gradient."""
    if total.size:
        for m in range(n, n + rows):
            row = g[m * width : (m + 1) * width]
            for d in range(width):
                total[d] += row[d]


# -------------------------------------------------------------------------------- attention


@jit
def _attention(x, norm, qkv, out, batch, attend, drop_weights, drop):
    qkv, out = Linear(*qkv), Linear(*out)
    (N, D), W = x.shape, len(qkv.weight)
    y, mean, r = aligned(N * W, x), np.empty(N, x.dtype), np.empty(N, x.dtype)
    panels, begin, norm = panels_of(qkv.weight, True), padded(qkv.bias, W, x), whole_norm(norm, x)
    h = aligned(SCRATCH * D, x)
    n = 0
    while n < N:
        rows = height(n, N)
        normalise(x, n, rows, norm, mean, r, h.reshape(-1, D))
        multiply(h, 0, D, rows, panels, D, begin, y, n * W, W, W, False)
        n += rows
    H, K, d = attend[:3]
    y = y.reshape(batch, N // batch, H + 2 * K, d)
    a, lse = forward(y, attend, drop_weights)
    F = out.weight.shape[1]
    z, panels, begin = aligned(N * D, x), panels_of(out.weight, True), padded(out.bias, D, x)
    flat, x = a.reshape(-1), x.reshape(-1)
    n = 0
    while n < N:
        rows = height(n, N)
        i, j = n * D, (n + rows) * D
        multiply(flat, n * F, F, rows, panels, F, begin, z, i, D, D, False)
        join(x[i:j], z[i:j], i, drop)
        n += rows
    return z.reshape(N, D), mean, r, y, a, lse


@jit
def _attention_backward(g, x, norm, qkv, out, saved, attend, drop_weights, drop):
    qkv, out, drop = Linear(*qkv), Linear(*out), Drop(*drop)
    (N, D), W, F = x.shape, len(qkv.weight), out.weight.shape[1]
    mean, r, y, a, lse = saved
    dx, dweight, dbias = aligned(N * D, x).reshape(N, D), np.zeros(D, x.dtype), np.zeros(D, x.dtype)
    dqkv, dqkv_bias = aligned(W * D, x), np.zeros(qkv.bias.size, x.dtype)
    dout, dout_bias = aligned(D * F, x), np.zeros(out.bias.size, x.dtype)
    qkvs, outs = panels_of(qkv.weight, False), panels_of(out.weight, False)
    nothing, da = zeros(up_to(max(D, F)), x), aligned(N * F, x)
    panels, h = aligned(SCRATCH * up_to(max(D, F)), x), aligned(SCRATCH * D, x)
    norm = whole_norm(norm, x)
    flat, flat_a = g.reshape(-1), a.reshape(-1)
    dbranch = aligned(N * D, x) if drop.threshold else flat  # the gradient of the branch
    n = 0
    while n < N:
        rows = height(n, N)
        i, j = n * D, (n + rows) * D
        if drop.threshold:
            dropped(flat[i:j], i, drop, dbranch[i:j])
        multiply(dbranch, i, D, rows, outs, D, nothing, da, n * F, F, F, False)
        to_panels(flat_a, n * F, F, False, rows, F, panels)
        multiply_transposed(dbranch, i, D, rows, panels, nothing, dout, F, n > 0)
        add_rows(dbranch, n, rows, D, dout_bias)
        n += rows
    dy = backward(da.reshape(a.shape), y, a, lse, attend, drop_weights).reshape(-1)
    n = 0
    while n < N:
        rows = height(n, N)
        normalise_again(x, n, rows, norm, mean, r, h.reshape(-1, D))
        to_panels(h, 0, D, False, rows, D, panels)
        multiply_transposed(dy, n * W, W, rows, panels, nothing, dqkv, D, n > 0)
        multiply(dy, n * W, W, rows, qkvs, W, nothing, h, 0, D, D, False)
        norm_backward(h.reshape(-1, D), g, x, n, rows, norm, mean, r, dx, dweight, dbias)
        add_rows(dy, n, rows, W, dqkv_bias)
        n += rows
    return dx, dweight, dbias, dqkv.reshape(W, D), dqkv_bias, dout.reshape(D, F), dout_bias


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
    """`activate` again, and the gradients of a and b; db holds that of c on entry."""
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
def _feed_forward(x, norm, gate, up, down, tanh, drop):
    gate, up, down = Linear(*gate), Linear(*up), Linear(*down)
    (N, D), F, gated = x.shape, len(up.weight), gate.weight.size > 0
    norm = whole_norm(norm, x)
    y, mean, r = aligned(N * D, x), np.empty(N, x.dtype), np.empty(N, x.dtype)
    a, b = aligned(N * F if gated else 0, x), aligned(N * F, x)
    gates, ups = panels_of(gate.weight, True), panels_of(up.weight, True)
    downs = panels_of(down.weight, True)
    gate_begin, up_begin = padded(gate.bias, F, x), padded(up.bias, F, x)
    down_begin = padded(down.bias, D, x)
    h, c, flat = aligned(SCRATCH * D, x), aligned(SCRATCH * F, x), x.reshape(-1)
    n = 0
    while n < N:
        rows = height(n, N)
        i, j, first, end = n * D, (n + rows) * D, n * F, (n + rows) * F
        normalise(x, n, rows, norm, mean, r, h.reshape(-1, D))
        multiply(h, 0, D, rows, ups, D, up_begin, b, first, F, F, False)
        if gated:
            multiply(h, 0, D, rows, gates, D, gate_begin, a, first, F, F, False)
        activate(a[first:end], b[first:end], tanh, c)
        multiply(c, 0, F, rows, downs, F, down_begin, y, i, D, D, False)
        join(flat[i:j], y[i:j], i, drop)
        n += rows
    return y.reshape(N, D), mean, r, a.reshape(-1, F), b.reshape(N, F)


@jit
def _feed_forward_backward(g, x, norm, gate, up, down, saved, tanh, drop):
    gate, up, down, drop = Linear(*gate), Linear(*up), Linear(*down), Drop(*drop)
    (N, D), F, gated = x.shape, len(up.weight), gate.weight.size > 0
    norm, (mean, r, a, b) = whole_norm(norm, x), saved
    a, b = a.reshape(-1), b.reshape(-1)
    dx, dweight, dbias = aligned(N * D, x).reshape(N, D), np.zeros(D, x.dtype), np.zeros(D, x.dtype)
    dgate, dgate_bias = aligned(gate.weight.size, x), np.zeros(gate.bias.size, x.dtype)
    dup, dup_bias = aligned(F * D, x), np.zeros(up.bias.size, x.dtype)
    ddown, ddown_bias = aligned(F * D, x), np.zeros(down.bias.size, x.dtype)
    gates, ups = panels_of(gate.weight, False), panels_of(up.weight, False)
    downs = panels_of(down.weight, False)
    nothing = zeros(up_to(max(D, F)), x)
    h, c = aligned(SCRATCH * D, x), aligned(SCRATCH * F, x)
    da, db = aligned(SCRATCH * F if gated else 0, x), aligned(SCRATCH * F, x)
    panels, flat = aligned(SCRATCH * up_to(max(D, F)), x), g.reshape(-1)
    dbranch = aligned(N * D, x) if drop.threshold else flat  # the gradient of the branch
    n = 0
    while n < N:
        rows = height(n, N)
        i, j, first, end = n * D, (n + rows) * D, n * F, (n + rows) * F
        if drop.threshold:
            dropped(flat[i:j], i, drop, dbranch[i:j])
        multiply(dbranch, i, D, rows, downs, D, nothing, db, 0, F, F, False)
        activate_backward(a[first:end], b[first:end], tanh, c, da, db)
        to_panels(c, 0, F, False, rows, F, panels)
        multiply_transposed(dbranch, i, D, rows, panels, nothing, ddown, F, n > 0)
        normalise_again(x, n, rows, norm, mean, r, h.reshape(-1, D))
        to_panels(h, 0, D, False, rows, D, panels)
        multiply_transposed(db, 0, F, rows, panels, nothing, dup, D, n > 0)
        multiply(db, 0, F, rows, ups, F, nothing, h, 0, D, D, False)
        if gated:
            multiply_transposed(da, 0, F, rows, panels, nothing, dgate, D, n > 0)
            multiply(da, 0, F, rows, gates, F, nothing, h, 0, D, D, True)
            add_rows(da, 0, rows, F, dgate_bias)
        norm_backward(h.reshape(-1, D), g, x, n, rows, norm, mean, r, dx, dweight, dbias)
        add_rows(db, 0, rows, F, dup_bias)
        add_rows(dbranch, n, rows, D, ddown_bias)
        n += rows
    dgate, dup, ddown = dgate.reshape(gate.weight.shape), dup.reshape(F, D), ddown.reshape(D, F)
    return dx, dweight, dbias, dgate, dgate_bias, dup, dup_bias, ddown, ddown_bias


# -------------------------------------------------------------------------------------- the loss


@jit
def _linear_cross_entropy(x, weight, targets, ignore_index, factor, wanted):
    (N, D), V = x.shape, len(weight)
    dx, dw = aligned(N * D if wanted else 0, x), aligned(V * D if wanted else 0, x)
    to_logits, back = panels_of(weight, True), panels_of(weight, False)
    nothing, z = zeros(up_to(max(D, V)), x), aligned(SCRATCH * V, x)
    x, total, n, panels = x.reshape(-1), 0.0, 0, aligned(SCRATCH * up_to(D), x)
    while n < N:
        rows = height(n, N)
        multiply(x, n * D, D, rows, to_logits, D, nothing, z, 0, V, V, False)
        logits = z[: rows * V].reshape(rows, V)
        for loss in entropy(logits, targets[n : n + rows], ignore_index, 0.0, factor):
            total += loss
        if wanted:
            multiply(z, 0, V, rows, back, V, nothing, dx, n * D, D, D, False)
            to_panels(x, n * D, D, False, rows, D, panels)
            multiply_transposed(z, 0, V, rows, panels, nothing, dw, D, n > 0)
        n += rows
    return total, dx, dw


# ------------------------------------------------------------------------ what the ops call

Array = np.ndarray
Grads = tuple[Array | None, ...]
NONE = np.empty(0, np.float32)  # a bias that is not there, as the compiled code takes it
NO_MAP = np.empty((0, 0), np.float32), NONE


def suits(x: Array, *weights: Array) -> bool:
    """Whether it is done here: the weights fit in the L2 cache, nothing is too small for a tile."""
    size = 0
    for w in weights:
        outputs, inputs = w.shape
        if not (LANES <= outputs <= DEPTH and LANES <= inputs <= DEPTH):
            return False
        size += w.size
    return len(x) >= LANES and x.dtype == np.float32 and size <= 2 * CACHED


def plain(bundle: Norm | Linear | None) -> tuple[Any, ...]:
    """A bundle as the compiled code takes it: a tuple without names, which numba passes five times
    as fast, with empty arrays in place of None."""
    if bundle is None:
        return NO_MAP
    return (bundle[0], NONE, *bundle[2:]) if bundle[1] is None else tuple(bundle)


def attention_sublayer(x, norm, qkv, out, attend, drop_weights, drop):
    B, T, D = x.shape
    rows = x.reshape(B * T, D)
    if not suits(rows, qkv.weight, out.weight):
        return composed.attention_sublayer(x, norm, qkv, out, attend, drop_weights, drop)
    maps, drops = (plain(qkv), plain(out)), (tuple(drop_weights), tuple(drop))
    y, *saved = _attention(rows, plain(norm), *maps, B, plain_attend(attend, x), *drops)
    return y.reshape(x.shape), AttentionSaved(*saved)


def attention_sublayer_backward(g, x, norm, qkv, out, saved, attend, drop_weights, drop):
    B, T, D = x.shape
    rows = x.reshape(B * T, D)
    if not suits(rows, qkv.weight, out.weight):
        return composed.attention_sublayer_backward(
            g, x, norm, qkv, out, saved, attend, drop_weights, drop
        )
    maps, drops = (plain(qkv), plain(out)), (tuple(drop_weights), tuple(drop))
    args = plain(norm), *maps, tuple(saved), plain_attend(attend, x), *drops
    dx, *others = _attention_backward(g.reshape(B * T, D), rows, *args)
    return dx.reshape(x.shape), *there(norm, *others)


def there(norm: Norm, dweight: Array, dbias: Array, *others: Array) -> Grads:
    """The gradients of a norm and of maps; None for a map or a bias that is not there."""
    return dweight, None if norm.bias is None else dbias, *[d if d.size else None for d in others]


def feed_forward_sublayer(x, norm, gate, up, down, tanh, drop):
    if not suits(x, up.weight, down.weight, *(gate or ())[:1]):
        return composed.feed_forward_sublayer(x, norm, gate, up, down, tanh, drop)
    maps = plain(gate), plain(up), plain(down)
    y, mean, r, a, b = _feed_forward(x, plain(norm), *maps, tanh, tuple(drop))
    return y, FeedForwardSaved(mean, r, None if gate is None else a, b)


def feed_forward_sublayer_backward(g, x, norm, gate, up, down, saved, tanh, drop):
    if not suits(x, up.weight, down.weight, *(gate or ())[:1]):
        return composed.feed_forward_sublayer_backward(
            g, x, norm, gate, up, down, saved, tanh, drop
        )
    mean, r, a, b = saved
    arrays = mean, r, NO_MAP[0] if a is None else a, b
    args = plain(norm), plain(gate), plain(up), plain(down), arrays, tanh, tuple(drop)
    dx, *others = _feed_forward_backward(g, x, *args)
    return dx, *there(norm, *others)


def linear_cross_entropy(x, weight, targets, ignore_index, factor, wanted):
    if not suits(x, weight):
        return composed.linear_cross_entropy(x, weight, targets, ignore_index, factor, wanted)
    total, dx, dw = _linear_cross_entropy(x, weight, targets, ignore_index, factor, wanted)
    return (total, dx.reshape(x.shape), dw.reshape(weight.shape)) if wanted else (total, None, None)
