"""Every kernel as plain NumPy: the formulas to read, and what the numba twins are checked against.

Shapes: N rows, D width, B batch, T time, H query heads, K key/value heads, d = D / H, V classes.
All arrays of a call share one dtype, float32 or float64.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from minitensor.random import hash32

Array = np.ndarray
HERE: Any = sys.modules[__name__]  # the kernels that are made of others take those from here


# ------------------------------------------------------------------------------------- linear


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """y = x Wᵀ + b. x (N, I), W (O, I), b (O,) or None -> y (N, O)."""
    y = x @ weight.T
    if bias is not None:
        y += bias
    return y


def linear_dx(g: Array, weight: Array) -> Array:
    """dx = g W. g (N, O) -> (N, I)."""
    return g @ weight


# ------------------------------------------------------------------------------- normalisation


def rms_norm(x: Array, weight: Array, eps: float) -> tuple[Array, Array]:
    """y = x r w with r = 1 / sqrt(mean(x²) + eps). x (N, D), w (D,) -> y (N, D), r (N,)."""
    r = 1 / np.sqrt(np.mean(x * x, axis=1) + x.dtype.type(eps))
    return x * r[:, None] * weight, r


def rms_norm_backward(g: Array, x: Array, weight: Array, r: Array) -> tuple[Array, Array]:
    """With x̂ = x r and h = g w: dx = r (h − x̂ mean(h x̂)), dw = Σ_rows g x̂."""
    xhat = x * r[:, None]
    h = g * weight
    dx = r[:, None] * (h - xhat * np.mean(h * xhat, axis=1, keepdims=True))
    return dx, np.sum(g * xhat, axis=0)


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, Array, Array]:
    """y = (x − μ) r w + b with r = 1 / sqrt(var(x) + eps). Returns y (N, D), μ (N,), r (N,)."""
    mean = np.mean(x, axis=1)
    centred = x - mean[:, None]
    r = 1 / np.sqrt(np.mean(centred * centred, axis=1) + x.dtype.type(eps))
    return centred * r[:, None] * weight + bias, mean, r


def layer_norm_backward(
    g: Array, x: Array, weight: Array, mean: Array, r: Array
) -> tuple[Array, Array, Array]:
    """With x̂ = (x − μ) r and h = g w: dx = r (h − mean(h) − x̂ mean(h x̂)), dw = Σ g x̂, db = Σ g."""
    xhat = (x - mean[:, None]) * r[:, None]
    h = g * weight
    dx = r[:, None] * (
        h - np.mean(h, axis=1, keepdims=True) - xhat * np.mean(h * xhat, axis=1, keepdims=True)
    )
    return dx, np.sum(g * xhat, axis=0), np.sum(g, axis=0)


# -------------------------------------------------------------------------------- activations

SQRT_2_PI = math.sqrt(2 / math.pi)  # a Python float: np.sqrt would give a float64 that promotes


def erf(x: Array) -> Array:
    """The error function, from libm element by element (NumPy has none)."""
    flat = np.fromiter(map(math.erf, x.ravel().tolist()), x.dtype, x.size)
    return flat.reshape(x.shape)


def gelu(x: Array, tanh: bool) -> Array:
    """x Φ(x), with Φ by erf, or by the tanh of Hendrycks & Gimpel 2016."""
    if tanh:
        return 0.5 * x * (1 + np.tanh(SQRT_2_PI * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


def gelu_backward(g: Array, x: Array, tanh: bool) -> Array:
    """g (Φ(x) + x Φ'(x)), each with its own form of Φ."""
    if tanh:
        t = np.tanh(SQRT_2_PI * (x + 0.044715 * x * x * x))
        slope = SQRT_2_PI * (1 + 3 * 0.044715 * x * x)
        return g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope)
    phi = np.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    return g * (0.5 * (1 + erf(x * math.sqrt(0.5))) + x * phi)


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^−x), written so that no exponential overflows."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def swiglu(a: Array, b: Array) -> Array:
    """silu(a) b = a σ(a) b (Shazeer 2020)."""
    return a * sigmoid(a) * b


def swiglu_backward(g: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """da = g b σ(a) (1 + a (1 − σ(a))), db = g a σ(a)."""
    s = sigmoid(a)
    return g * b * s * (1 + a * (1 - s)), g * a * s


# ------------------------------------------------------------------------------------ dropout


def _kept(size: int, drop: np.uint32, k0: np.uint32, k1: np.uint32) -> Array:
    return hash32(np.arange(size, dtype=np.uint32), k0, k1) >= drop


def dropout(x: Array, drop: np.uint32, keep: float, k0: np.uint32, k1: np.uint32) -> Array:
    """x scaled by `keep` = 1/(1−p) where the element's hash is at least `drop` = p 2³², else 0."""
    return x * (_kept(x.size, drop, k0, k1).reshape(x.shape) * x.dtype.type(keep))


def dropout_add(
    x: Array, branch: Array, drop: np.uint32, keep: float, k0: np.uint32, k1: np.uint32
) -> Array:
    """x + dropout(branch)."""
    return x + dropout(branch, drop, keep, k0, k1)


# ---------------------------------------------------------------------------------- attention


def rotate(x: Array, cos: Array, sin: Array, inverse: bool = False) -> Array:
    """RoPE (Su et al. 2021) on x (B, T, H, d): pair (x₂ₙ, x₂ₙ₊₁) at time t turns by angle t θₙ.

    cos and sin are (T, d/2); empty ones mean no rotation. The inverse, which is the transpose and
    so the backward, turns the other way.
    """
    if not cos.size:
        return x
    c, s = cos[:, None, :], (-sin if inverse else sin)[:, None, :]
    a, b = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2], out[..., 1::2] = a * c - b * s, a * s + b * c
    return out


def attention_weights(
    q: Array, k: Array, scale: float, window: int, causal: bool
) -> tuple[Array, Array]:
    """softmax(scale q kᵀ + mask) (B, H, T, T) and its log-sum-exp (B, H, T); heads are matched.

    Query i sees key j if j ≤ i and, where there is a window, i − j < window.
    """
    scores = np.einsum("bihd,bjhd->bhij", q, k) * scale
    i, j = np.ogrid[: q.shape[1], : k.shape[1]]
    if causal:
        seen = (j <= i) & (i - j < window) if window else j <= i
        scores = np.where(seen, scores, -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    e = np.exp(scores - top)
    total = e.sum(axis=-1, keepdims=True)
    return e / total, (top + np.log(total))[..., 0]


def _attention_mask(
    shape: tuple[int, ...],
    drop: np.uint32,
    keep: float,
    k0: np.uint32,
    k1: np.uint32,
    dtype: np.dtype,
) -> Array | float:
    """Dropout factors (B, H, T, T). Each head has a key of its own; one hash serves two keys.

    The hash of (i, j // 2) gives its lower 16 bits to an even j and its upper 16 to an odd one.
    """
    if not drop:
        return 1.0
    B, H, T, _ = shape
    heads = np.arange(B * H, dtype=np.uint32)
    h0, h1 = hash32(heads, k0, k1), hash32(heads, k1, k0)
    i, j = np.arange(T, dtype=np.uint32)[:, None], np.arange(T, dtype=np.uint32)
    bits = hash32(i * np.uint32(T) + j // np.uint32(2), h0[:, None, None], h1[:, None, None])
    bits = np.where(j % 2 == 0, bits << np.uint32(16), bits)
    return ((bits >= drop) * dtype.type(keep)).reshape(shape)


def _split(packed: Array, H: int) -> list[Array]:
    """Views of q (B, T, H, d), k and v (B, T, K, d) in packed heads (B, T, H + 2 K, d)."""
    return np.split(packed, [H, (packed.shape[2] + H) // 2], axis=2)


def attention(
    packed: Array,
    H: int,
    cos: Array,
    sin: Array,
    scale: float,
    window: int,
    causal: bool,
    drop: np.uint32,
    keep: float,
    k0: np.uint32,
    k1: np.uint32,
) -> tuple[Array, Array]:
    """dropout(softmax(scale q kᵀ)) v (B, T, H, d) and the log-sum-exp of the scores (B, H, T).

    q and k are rotated by RoPE first; a group of H/K query heads shares a key/value head.
    """
    q, k, v = _split(packed, H)
    group = H // k.shape[2]
    k, v = np.repeat(rotate(k, cos, sin), group, axis=2), np.repeat(v, group, axis=2)
    p, lse = attention_weights(rotate(q, cos, sin), k, scale, window, causal)
    p = p * _attention_mask(p.shape, drop, keep, k0, k1, q.dtype)
    return np.einsum("bhij,bjhd->bihd", p, v), lse


def attention_backward(
    g: Array,
    packed: Array,
    H: int,
    out: Array,
    lse: Array,
    cos: Array,
    sin: Array,
    scale: float,
    window: int,
    causal: bool,
    drop: np.uint32,
    keep: float,
    k0: np.uint32,
    k1: np.uint32,
) -> Array:
    """dq, dk, dv, packed. With P the weights, M the dropout factors, S the scaled scores:

    dV = (P∘M)ᵀ g;  dP = M ∘ (g Vᵀ);  dS = P ∘ (dP − rowsum(P ∘ dP));  dQ = scale dS K,
    dK = scale dSᵀ Q. rowsum(P ∘ dP) = g · o, so the output is enough to get it.
    """
    q, k, v = _split(packed, H)
    B, T, K, d = k.shape
    group = H // K
    qr, kr = rotate(q, cos, sin), np.repeat(rotate(k, cos, sin), group, axis=2)
    p, _ = attention_weights(qr, kr, scale, window, causal)
    m = _attention_mask(p.shape, drop, keep, k0, k1, q.dtype)
    dp = m * np.einsum("bihd,bjhd->bhij", g, np.repeat(v, group, axis=2))
    ds = p * (dp - np.einsum("bihd,bihd->bhi", g, out)[..., None]) * scale
    grads = np.empty_like(packed)
    dq, dk, dv = _split(grads, H)
    dq[...] = rotate(np.einsum("bhij,bjhd->bihd", ds, kr), cos, sin, inverse=True)
    dk_heads = rotate(np.einsum("bhij,bihd->bjhd", ds, qr), cos, sin, inverse=True)
    dk[...] = dk_heads.reshape(B, T, K, group, d).sum(axis=3)
    dv[...] = np.einsum("bhij,bihd->bjhd", p * m, g).reshape(B, T, K, group, d).sum(axis=3)
    return grads


# --------------------------------------------------------------------------- loss, embedding


def cross_entropy(
    logits: Array, targets: Array, ignore_index: int, smoothing: float, weight: float
) -> Array:
    """Turn logits (N, V) into their gradient in place and return the losses (N,).

    With p = softmax(z) and the target distribution t = (1−s) onehot + s/V: loss = −Σ t log p and
    dz = weight (p − t). Rows whose target is `ignore_index` have a loss and a gradient of 0.
    """
    top = logits.max(axis=1, keepdims=True)
    e = np.exp(logits - top)
    total = e.sum(axis=1, keepdims=True)
    lse = np.log(total) + top
    rows, used = np.arange(len(targets)), targets != ignore_index
    index = np.where(used, targets, 0)
    loss = lse[:, 0] - (1 - smoothing) * logits[rows, index]
    if smoothing:
        loss -= smoothing * logits.mean(axis=1)
    logits[...] = e / total - smoothing / logits.shape[1]
    logits[rows, index] -= 1 - smoothing
    logits *= np.where(used, weight, 0).astype(logits.dtype)[:, None]
    return np.where(used, loss, 0).astype(logits.dtype)


def linear_cross_entropy(
    x: Array,
    weight: Array,
    targets: Array,
    ignore_index: int,
    scale: float,
    wanted: bool,
    k: Any = HERE,
) -> tuple[float, Array, Array]:
    """Σ of the losses of the logits z = x Wᵀ, and with `wanted` their gradients times `scale`:
    dx = dz W and dW = dzᵀ x. x (N, D), W (V, D). The logits are made a block of rows at a time."""
    (N, _), V = x.shape, len(weight)
    dx, dw, total = np.empty_like(x), np.zeros_like(weight), 0.0
    # About 1 MB of logits, which stay in cache; yet enough rows for the sums of dw to be worth
    # reading and writing all of it.
    block = max(256, min(N, 2**20 // (V * x.itemsize) // 64 * 64))
    for n in range(0, N, block):
        part = x[n : n + block]
        logits = k.linear(part, weight, None)  # (block, V)
        total += float(
            k.cross_entropy(
                logits, targets[n : n + block], ignore_index, 0.0, x.dtype.type(scale)
            ).sum(dtype=np.float64)
        )
        if wanted:
            dx[n : n + block] = k.linear_dx(logits, weight)
            dw += logits.T @ part
    return total, dx, dw


def embedding_backward(g: Array, ids: Array, rows: int) -> Array:
    """dW[v] = Σ of the rows of g (N, D) whose id is v, in order: repeated ids add up."""
    out = np.zeros((rows, g.shape[1]), g.dtype)
    np.add.at(out, ids, g)
    return out


# ---------------------------------------------------------------------------------- sublayers
#
# y = x + dropout(linear(f(linear(norm(x))))), f being attention or an activation. `norm` is
# (weight, bias or None, centred: LayerNorm or RMSNorm, eps), a linear map is (W, bias or None),
# `drop` what `dropout` takes after x. `k` holds the kernels to use: those here, or the numba twins
# where the weights are too large for theirs.

Norm = tuple[Array, Array | None, bool, float]
Map = tuple[Array, Array | None]


def _norm(x: Array, norm: Norm, k: Any) -> tuple[Array, Array, Array]:
    """norm(x), and the mean (0 for RMSNorm) and the factor r of each row."""
    weight, bias, centred, eps = norm
    if centred:
        return k.layer_norm(x, weight, np.zeros_like(weight) if bias is None else bias, eps)
    y, r = k.rms_norm(x, weight, eps)
    return y, np.zeros_like(r), r


def _enter_backward(
    maps: list[tuple[Array, Map]], g: Array, x: Array, norm: Norm, mean: Array, r: Array, k: Any
) -> tuple[Array, ...]:
    """Backward of linear(norm(x)), for every map with the gradient dy of its result: dx = g + what
    comes through norm and maps, d of the norm's weight and bias, and dW and db of each map."""
    h, dh = _norm(x, norm, k)[0], sum(k.linear_dx(dy, weight) for dy, (weight, _) in maps)
    if norm[2]:
        dx, dscale, dshift = k.layer_norm_backward(dh, x, norm[0], mean, r)
    else:
        (dx, dscale), dshift = k.rms_norm_backward(dh, x, norm[0], r), dh[0]
    return g + dx, dscale, dshift, *(d for dy, _ in maps for d in (dy.T @ h, dy.sum(axis=0)))


def _leave(a: Array, linear: Map, x: Array, drop: tuple[Any, ...], k: Any) -> Array:
    """x + dropout(linear(a))."""
    y = k.linear(a, *linear)
    if not drop[0]:
        return np.asarray(x + y)
    return np.asarray(k.dropout_add(x.reshape(-1), y.reshape(-1), *drop)).reshape(x.shape)


def _leave_backward(
    g: Array, a: Array, linear: Map, drop: tuple[Any, ...], k: Any
) -> tuple[Array, Array, Array]:
    """da, dW and db; x gets g as it is."""
    if drop[0]:
        g = k.dropout(g.reshape(-1), *drop).reshape(g.shape)
    return k.linear_dx(g, linear[0]), g.T @ a, g.sum(axis=0)


def attention_sublayer(
    x: Array,
    norm: Norm,
    qkv: Map,
    out: Map,
    heads: tuple[int, ...],
    H: int,
    attend: tuple[Any, ...],
    drop: tuple[Any, ...],
    k: Any = HERE,
) -> tuple[Array, ...]:
    """x + dropout(out(attention(qkv(norm(x))))), x (N, D), with N = B T; then what the backward
    keeps. `heads` is the shape (B, T, H + 2 K, d) of q|k|v, `attend` what attention takes after H.
    """
    h, mean, r = _norm(x, norm, k)
    packed = k.linear(h, *qkv).reshape(heads)
    a, lse = k.attention(packed, H, *attend)
    return _leave(a.reshape(len(x), -1), out, x, drop, k), mean, r, packed, a, lse


def attention_sublayer_backward(
    g: Array,
    x: Array,
    norm: Norm,
    qkv: Map,
    out: Map,
    kept: Sequence[Array],
    H: int,
    attend: tuple[Any, ...],
    drop: tuple[Any, ...],
    k: Any = HERE,
) -> tuple[Array, ...]:
    """dx, then d of the norm's weight and bias, and of weight and bias of qkv and out."""
    mean, r, packed, a, lse = kept
    da, *dout = _leave_backward(g, a.reshape(len(x), -1), out, drop, k)
    dpacked = k.attention_backward(da.reshape(a.shape), packed, H, a, lse, *attend)
    maps = [(dpacked.reshape(len(x), -1), qkv)]
    return *_enter_backward(maps, g, x, norm, mean, r, k), *dout


def feed_forward_sublayer(
    x: Array,
    norm: Norm,
    gate: Map | None,
    up: Map,
    down: Map,
    tanh: bool,
    drop: tuple[Any, ...],
    k: Any = HERE,
) -> tuple[Any, ...]:
    """x + dropout(down(f(up(norm(x))))), x (N, D), f = gelu; or with a gate f(z) = silu(gate(…)) z.

    Then what the backward keeps: means, factors, and what went into f: the gate's part, and up's.
    """
    h, mean, r = _norm(x, norm, k)
    a, b = None if gate is None else k.linear(h, *gate), k.linear(h, *up)
    return _leave(_activate(a, b, tanh, k), down, x, drop, k), mean, r, a, b


def _activate(a: Array | None, b: Array, tanh: bool, k: Any) -> Array:
    c = k.gelu(b.reshape(-1), tanh) if a is None else k.swiglu(a.reshape(-1), b.reshape(-1))
    return np.asarray(c).reshape(b.shape)


def feed_forward_sublayer_backward(
    g: Array,
    x: Array,
    norm: Norm,
    gate: Map | None,
    up: Map,
    down: Map,
    kept: Sequence[Any],
    tanh: bool,
    drop: tuple[Any, ...],
    k: Any = HERE,
) -> tuple[Array | None, ...]:
    """dx, then d of the norm's weight and bias, and of weight and bias of gate, up and down."""
    mean, r, a, b = kept
    dc, *ddown = _leave_backward(g, _activate(a, b, tanh, k), down, drop, k)
    dc = dc.reshape(-1)
    if gate is None:
        db = k.gelu_backward(dc, b.reshape(-1), tanh).reshape(b.shape)
        dx, dscale, dshift, *dup = _enter_backward([(db, up)], g, x, norm, mean, r, k)
        return dx, dscale, dshift, None, None, *dup, *ddown
    da, db = (d.reshape(b.shape) for d in k.swiglu_backward(dc, a.reshape(-1), b.reshape(-1)))
    return *_enter_backward([(da, gate), (db, up)], g, x, norm, mean, r, k), *ddown


# ---------------------------------------------------------------------------------- optimiser


def adamw(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    step: int,
    scale: float,
) -> None:
    """AdamW (Loshchilov & Hutter 2019) in place on flat arrays; `scale` multiplies g (clipping)."""
    dt = p.dtype.type
    g = g * dt(scale)
    p *= dt(1 - lr * decay)
    m += (g - m) * dt(1 - beta1)
    v *= dt(beta2)
    v += g * g * dt(1 - beta2)
    p -= dt(lr / (1 - beta1**step)) * m / (np.sqrt(v) / dt(math.sqrt(1 - beta2**step)) + dt(eps))


def sum_of_squares(x: Array) -> float:
    """Σ x² in float64."""
    flat = x.ravel()
    return float(np.dot(flat.astype(np.float64), flat))
