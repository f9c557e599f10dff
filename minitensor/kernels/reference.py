"""Every kernel as plain NumPy: the formulas to read, and what the numba twins are checked against.

Shapes: N rows, D width, B batch, T time, H query heads, K key/value heads, d = D / H, V classes.
All arrays of a call share one dtype, float32 or float64. The declaration above a formula is checked
at every call, of the twin too (see contract.py), and names the file where the twin is.
"""

from __future__ import annotations

import math

import numpy as np

from minitensor.kernels.bundles import Attend, Drop, Rope
from minitensor.kernels.contract import kernel
from minitensor.random import attention_bits, hash32

Array = np.ndarray


# ------------------------------------------------------------------------------------- linear


@kernel("gemm", x="(N, I)", weight="(O, I)", bias="(O) or None")
def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """y = x Wᵀ + b. x (N, I), W (O, I), b (O,) or None -> y (N, O)."""
    y = x @ weight.T
    if bias is not None:
        y += bias
    return y


@kernel("gemm", g="(N, O)", weight="(O, I)")
def linear_dx(g: Array, weight: Array) -> Array:
    """dx = g W. g (N, O) -> (N, I)."""
    return g @ weight


@kernel("gemm", g="(N, O)", x="(N, I)", dw="(O, I) written or None")
def linear_dw(g: Array, x: Array, dw: Array | None) -> Array:
    """dW = gᵀ x, a sum over rows. g (N, O), x (N, I) -> (O, I); added to `dw` in place if given,
    where the rows come a block at a time."""
    if dw is None:
        return g.T @ x
    dw += g.T @ x
    return dw


# ------------------------------------------------------------------------------- normalisation


def mean_of(x: Array) -> Array:
    """The mean of each row, (N, 1); 0 where there are no columns."""
    return x.sum(axis=1, keepdims=True) / max(x.shape[1], 1)


@kernel("norm", x="(N, D)", weight="(D)", eps="float >= 0")
def rms_norm(x: Array, weight: Array, eps: float) -> tuple[Array, Array]:
    """y = x r w with r = 1 / sqrt(mean(x²) + eps). x (N, D), w (D,) -> y (N, D), r (N,)."""
    r = 1 / np.sqrt(mean_of(x * x) + x.dtype.type(eps))
    return x * r * weight, r[:, 0]


@kernel("norm", g="(N, D)", x="(N, D)", weight="(D)", r="(N)")
def rms_norm_backward(g: Array, x: Array, weight: Array, r: Array) -> tuple[Array, Array]:
    """With x̂ = x r and h = g w: dx = r (h − x̂ mean(h x̂)), dw = Σ_rows g x̂."""
    xhat = x * r[:, None]
    h = g * weight
    dx = r[:, None] * (h - xhat * mean_of(h * xhat))
    return dx, np.sum(g * xhat, axis=0)


@kernel("norm", x="(N, D)", weight="(D)", bias="(D)", eps="float >= 0")
def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, Array, Array]:
    """y = (x − μ) r w + b with r = 1 / sqrt(var(x) + eps). Returns y (N, D), μ (N,), r (N,)."""
    mean = mean_of(x)
    centred = x - mean
    r = 1 / np.sqrt(mean_of(centred * centred) + x.dtype.type(eps))
    return centred * r * weight + bias, mean[:, 0], r[:, 0]


@kernel("norm", g="(N, D)", x="(N, D)", weight="(D)", mean="(N)", r="(N)")
def layer_norm_backward(
    g: Array, x: Array, weight: Array, mean: Array, r: Array
) -> tuple[Array, Array, Array]:
    """With x̂ = (x − μ) r and h = g w: dx = r (h − mean(h) − x̂ mean(h x̂)), dw = Σ g x̂, db = Σ g."""
    xhat = (x - mean[:, None]) * r[:, None]
    h = g * weight
    dx = r[:, None] * (h - mean_of(h) - xhat * mean_of(h * xhat))
    return dx, np.sum(g * xhat, axis=0), np.sum(g, axis=0)


# -------------------------------------------------------------------------------- activations

SQRT_2_PI = math.sqrt(2 / math.pi)  # a Python float: np.sqrt would give a float64 that promotes


def erf(x: Array) -> Array:
    """The error function, from libm element by element (NumPy has none)."""
    flat = np.fromiter(map(math.erf, x.ravel().tolist()), x.dtype, x.size)
    return flat.reshape(x.shape)


@kernel("elementwise", x="(N)", tanh="bool")
def gelu(x: Array, tanh: bool) -> Array:
    """x Φ(x), with Φ by erf, or by the tanh of Hendrycks & Gimpel 2016."""
    if tanh:
        return 0.5 * x * (1 + np.tanh(SQRT_2_PI * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


@kernel("elementwise", g="(N)", x="(N)", tanh="bool")
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


@kernel("elementwise", a="(N)", b="(N)")
def swiglu(a: Array, b: Array) -> Array:
    """silu(a) b = a σ(a) b (Shazeer 2020)."""
    return a * sigmoid(a) * b


@kernel("elementwise", g="(N)", a="(N)", b="(N)")
def swiglu_backward(g: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """da = g b σ(a) (1 + a (1 − σ(a))), db = g a σ(a)."""
    s = sigmoid(a)
    return g * b * s * (1 + a * (1 - s)), g * a * s


# ------------------------------------------------------------------------------------ dropout


@kernel("elementwise", x="(N)", drop="Drop")
def dropout(x: Array, drop: Drop) -> Array:
    """x times 1/(1−p) where the element's hash is at least p 2³², else 0."""
    bits = hash32(np.arange(x.size, dtype=np.uint32), drop.k0, drop.k1)
    return x * ((bits >= drop.threshold) * x.dtype.type(drop.rescale))


@kernel("elementwise", x="(N)", branch="(N)", drop="Drop")
def dropout_add(x: Array, branch: Array, drop: Drop) -> Array:
    """x + dropout(branch)."""
    return x + dropout(branch, drop)


# ---------------------------------------------------------------------------------- attention


def rotate(x: Array, rope: Rope | None, inverse: bool = False) -> Array:
    """RoPE (Su et al. 2021) on x (B, T, H, d): pair (x₂ₙ, x₂ₙ₊₁) at time t turns by angle t θₙ.

    The inverse, which is the transpose and so the backward, turns the other way.
    """
    if rope is None:
        return x
    c, s = rope.cos[:, None, :], (-rope.sin if inverse else rope.sin)[:, None, :]
    a, b = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2], out[..., 1::2] = a * c - b * s, a * s + b * c
    return out


def attention_weights(q: Array, k: Array, attend: Attend) -> tuple[Array, Array]:
    """softmax(scale q kᵀ + mask) (B, H, T, T) and its log-sum-exp (B, H, T); heads are matched.

    Query i sees key j if j ≤ i and, where there is a window, i − j < window.
    """
    scores = np.einsum("bihd,bjhd->bhij", q, k) * attend.scale
    i, j = np.ogrid[: q.shape[1], : k.shape[1]]
    if attend.causal:
        seen = (j <= i) & (i - j < attend.window) if attend.window else j <= i
        scores = np.where(seen, scores, -np.inf)
    top = scores.max(axis=-1, keepdims=True, initial=-np.inf)  # T may be 0
    e = np.exp(scores - top)
    total = e.sum(axis=-1, keepdims=True)
    return e / total, (top + np.log(total))[..., 0]


def attention_dropout(shape: tuple[int, ...], drop: Drop, dtype: np.dtype) -> Array | float:
    """Dropout factors (B, H, T, T)."""
    if not drop.threshold:
        return dtype.type(drop.rescale)  # type: ignore[no-any-return]
    return (attention_bits(shape, drop.k0, drop.k1) >= drop.threshold) * dtype.type(drop.rescale)


def split_heads(packed: Array, attend: Attend) -> list[Array]:
    """Views of q (B, T, H, d), k and v (B, T, K, d) in packed heads (B, T, H + 2 K, d)."""
    return np.split(packed, [attend.H, attend.H + attend.K], axis=2)


@kernel("flash", packed="(B, T, H + 2*K, d)", attend="Attend", drop="Drop")
def attention(packed: Array, attend: Attend, drop: Drop) -> tuple[Array, Array]:
    """dropout(softmax(scale q kᵀ)) v (B, T, H, d) and the log-sum-exp of the scores (B, H, T).

    q and k are rotated by RoPE first; a group of H/K query heads shares a key/value head.
    """
    q, k, v = split_heads(packed, attend)
    group = attend.H // attend.K
    k, v = np.repeat(rotate(k, attend.rope), group, axis=2), np.repeat(v, group, axis=2)
    p, lse = attention_weights(rotate(q, attend.rope), k, attend)
    p = p * attention_dropout(p.shape, drop, q.dtype)
    return np.einsum("bhij,bjhd->bihd", p, v), lse


@kernel(
    "flash",
    g="(B, T, H, d)",
    packed="(B, T, H + 2*K, d)",
    out="(B, T, H, d)",
    lse="(B, H, T)",
    attend="Attend",
    drop="Drop",
)
def attention_backward(
    g: Array, packed: Array, out: Array, lse: Array, attend: Attend, drop: Drop
) -> Array:
    """dq, dk, dv, packed. With P the weights, M the dropout factors, S the scaled scores:

    dV = (P∘M)ᵀ g;  dP = M ∘ (g Vᵀ);  dS = P ∘ (dP − rowsum(P ∘ dP));  dQ = scale dS K,
    dK = scale dSᵀ Q. rowsum(P ∘ dP) = g · o, so the output is enough to get it.
    """
    q, k, v = split_heads(packed, attend)
    B, T, K, d = k.shape
    group = attend.H // K
    qr, kr = rotate(q, attend.rope), np.repeat(rotate(k, attend.rope), group, axis=2)
    p, _ = attention_weights(qr, kr, attend)
    m = attention_dropout(p.shape, drop, q.dtype)
    dp = m * np.einsum("bihd,bjhd->bhij", g, np.repeat(v, group, axis=2))
    # Not einsum, which reads a number even of an empty array.
    rows = (g * out).sum(axis=-1).swapaxes(1, 2)  # (B, H, T)
    ds = p * (dp - rows[..., None]) * attend.scale
    grads = np.empty_like(packed)
    dq, dk, dv = split_heads(grads, attend)
    dq[...] = rotate(np.einsum("bhij,bjhd->bihd", ds, kr), attend.rope, inverse=True)
    dk_heads = rotate(np.einsum("bhij,bihd->bjhd", ds, qr), attend.rope, inverse=True)
    dk[...] = dk_heads.reshape(B, T, K, group, d).sum(axis=3)
    dv[...] = np.einsum("bhij,bihd->bjhd", p * m, g).reshape(B, T, K, group, d).sum(axis=3)
    return grads


# --------------------------------------------------------------------------- loss, embedding


@kernel(
    "loss",
    logits="(N, V) written",
    targets="(N) in [0, V) or ignore_index",
    ignore_index="int",
    smoothing="float >= 0",
    factor="number",
    where="V >= 1",
)
def cross_entropy(
    logits: Array, targets: Array, ignore_index: int, smoothing: float, factor: float
) -> Array:
    """Turn logits (N, V) into their gradient in place and return the losses (N,).

    With p = softmax(z) and the target distribution t = (1−s) onehot + s/V: loss = −Σ t log p and
    dz = factor (p − t). Rows whose target is `ignore_index` have a loss and a gradient of 0.
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    e = np.exp(shifted)
    total = e.sum(axis=1, keepdims=True)
    rows, used = np.arange(len(targets)), targets != ignore_index
    index = np.where(used, targets, 0)
    loss = np.log(total[:, 0]) - (1 - smoothing) * shifted[rows, index]
    if smoothing:
        loss -= smoothing * shifted.mean(axis=1)
    logits[...] = e / total - smoothing / logits.shape[1]
    logits[rows, index] -= 1 - smoothing
    logits *= np.where(used, factor, 0).astype(logits.dtype)[:, None]
    return np.where(used, loss, 0).astype(logits.dtype)


@kernel("loss", g="(N, D)", ids="(N) in [0, rows)", rows="int >= 0")
def embedding_backward(g: Array, ids: Array, rows: int) -> Array:
    """dW[v] = Σ of the rows of g (N, D) whose id is v, in order: repeated ids add up."""
    out = np.zeros((rows, g.shape[1]), g.dtype)
    np.add.at(out, ids, g)
    return out


# ---------------------------------------------------------------------------------- optimiser


@kernel(
    "optimizer",
    p="(N) written",
    g="(N)",
    m="(N) written",
    v="(N) written",
    lr="float",
    beta1="float in [0, 1)",
    beta2="float in [0, 1)",
    eps="float >= 0",
    decay="float",
    step="int >= 1",
    factor="float",
)
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
    factor: float,
) -> None:
    """AdamW (Loshchilov & Hutter 2019) in place on flat arrays; `factor` clips g."""
    dt = p.dtype.type
    g = g * dt(factor)
    p *= dt(1 - lr * decay)
    m += (g - m) * dt(1 - beta1)
    v *= dt(beta2)
    v += g * g * dt(1 - beta2)
    p -= dt(lr / (1 - beta1**step)) * m / (np.sqrt(v) / dt(math.sqrt(1 - beta2**step)) + dt(eps))


@kernel("optimizer", x="(N)")
def sum_of_squares(x: Array) -> float:
    """Σ x² in float64."""
    return float(np.dot(x.astype(np.float64), x))


@kernel("optimizer", "steps <= 100", u="(M, N)", steps="int >= 1")
def orthogonal(u: Array, steps: int) -> Array:
    """u with its singular values brought near 1, keeping its singular vectors.

    Newton-Schulz: x <- q x with q = a + b xxᵀ + c (xxᵀ)² turns each singular value s into a s +
    b s³ + c s⁵; these coefficients push (0, 1] to about (0.7, 1.2) within five steps.

    Products of small symmetric matrices take the place of products with a long x: the next xxᵀ is
    (q qᵀ) xxᵀ, as all of these commute, and the qs of some steps are multiplied before x is. Of
    three at most: what rounding leaves in a small eigenvalue of xxᵀ grows twelvefold a step.
    """
    tall = u.shape[0] > u.shape[1]
    together = 3 if max(u.shape) >= 2 * min(u.shape) else 1  # a square x is no longer than q
    x = u / u.dtype.type(max(float(np.linalg.norm(u)), 1e-7))
    for start in range(0, steps, together):
        first = x.T @ x if tall else x @ x.T
        q = quintic(first)
        for _ in range(start + 1, min(start + together, steps)):
            q = quintic((q @ q.T) @ first) @ q
        x = x @ q if tall else q @ x
    return x


def quintic(gram: Array) -> Array:
    """3.4445 - 4.775 gram + 2.0315 gram² of a symmetric matrix."""
    q = np.asarray(gram @ gram.T)  # of a matrix by its own transpose, BLAS does half the work
    q *= 2.0315
    q -= 4.775 * gram
    q.reshape(-1)[:: len(q) + 1] += 3.4445
    return q
