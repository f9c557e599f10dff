"""What a transformer is made of: linear maps, norms, attention, gates and dropout.

Each op is a forward and its backward; the loops behind them are in `minitensor.kernels`, whose
`reference.py` has every formula in NumPy. Leading axes are free: (..., D) means any number of rows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitensor import kernels
from minitensor.dtypes import IndexArray
from minitensor.kernels.bundles import Attend, Drop, Rope
from minitensor.kernels.reference import rotate
from minitensor.op import op
from minitensor.ops.activation import softmax
from minitensor.ops.elementwise import Cases, Forward, Rng, where
from minitensor.random import halves, threshold
from minitensor.tape import Array, Vjp
from minitensor.tensor import Tensor


def rows_of(x: Array) -> Array:
    """x (..., D) as a contiguous (N, D); no copy where it already is."""
    if x.ndim == 0:
        raise ValueError("expected an array (..., D), got one without axes")
    return np.ascontiguousarray(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])


# ------------------------------------------------------------------------------------ linear


def _linear_cases(rng: Rng) -> Cases:
    n = rng.standard_normal
    yield (n((2, 3, 4)), n((5, 4)), n(5)), {}
    yield (n((3, 4)), n((1, 4)), None), {}
    yield (n(4), n((2, 4)), n(2)), {}


@op(cases=_linear_cases)
def linear(x: Array, weight: Array, bias: Array | None = None) -> Forward:
    """y = x Wᵀ + b. x (..., I), weight (O, I), bias (O,) -> (..., O).

    Backward: y is linear in each argument, so dx = g W, dW = gᵀ x summed over the rows, db = Σ g.
    """
    rows, weight = rows_of(x), np.ascontiguousarray(weight)
    y = kernels.linear(rows, weight, bias)
    return y.reshape(*x.shape[:-1], len(weight)), (
        lambda g: kernels.linear_dx(rows_of(g), weight).reshape(x.shape),
        lambda g: kernels.linear_dw(rows_of(g), rows, None),
        # A product with ones is the sum over rows, several times as fast as np.sum along axis 0.
        lambda g: np.ones(len(rows), g.dtype) @ rows_of(g),
    )


def _embedding_cases(rng: Rng) -> Cases:
    yield (rng.standard_normal((5, 3)), np.array([[0, 2, 2], [4, 0, 2]])), {}


@op(cases=_embedding_cases, integers=True)
def embedding(weight: Array, ids: IndexArray) -> Forward:
    """Row `ids[...]` of `weight` (V, D) for each id: (..., D).

    Backward: a row used several times collects the sum of its gradients. IndexError for an id
    outside 0..V-1. (PyTorch's function takes the ids first.)
    """
    ids = np.asarray(ids)
    if ids.size and (ids.min() < 0 or ids.max() >= len(weight)):
        raise IndexError(
            f"embedding: ids run from {ids.min()} to {ids.max()}, but the table has "
            f"rows 0 to {len(weight) - 1}"
        )
    flat = ids.ravel()
    return weight[ids], (lambda g: kernels.embedding_backward(rows_of(g), flat, len(weight)), None)


# ------------------------------------------------------------------------------------- norms


def _norm_cases(rng: Rng) -> Cases:
    n = rng.standard_normal
    yield (n((2, 3, 4)), n(4)), {}
    yield (n((3, 1)), n(1)), {"eps": 0.1}
    yield (n(5), n(5)), {"eps": 1e-3}


@op(cases=_norm_cases)
def rms_norm(x: Array, weight: Array, eps: float = 1e-5) -> Forward:
    """y = x r w over the last axis, r = 1 / sqrt(mean(x²) + eps) (Zhang & Sennrich 2019).

    Backward: ∂r/∂x = −r³ x / D, so with x̂ = x r and h = g w: dx = r (h − x̂ mean(h x̂)); dw = Σ g
    x̂. x (..., D), weight (D,).
    """
    rows = rows_of(x)
    y, r = kernels.rms_norm(rows, weight, eps)

    def backward(g: Array) -> tuple[Array, Array]:
        dx, dw = kernels.rms_norm_backward(rows_of(g), rows, weight, r)
        return dx.reshape(x.shape), dw

    return y.reshape(x.shape), backward


def _layer_norm_cases(rng: Rng) -> Cases:
    n = rng.standard_normal
    yield (n((2, 3, 4)), n(4), n(4)), {}
    yield (n((3, 5)), n(5), None), {"eps": 0.1}
    yield (n((2, 5)), None, None), {}


@op(cases=_layer_norm_cases)
def layer_norm(
    x: Array, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5
) -> Forward:
    """y = (x − μ) r w + b over the last axis, r = 1 / sqrt(var(x) + eps) (Ba et al. 2016).

    Backward: with x̂ = (x − μ) r and h = g w, the terms through μ and r take out the parts of h
    along 1 and along x̂: dx = r (h − mean(h) − x̂ mean(h x̂)); dw = Σ g x̂; db = Σ g.
    x (..., D), weight and bias (D,) or None.
    """
    rows = rows_of(x)
    w = np.ones(x.shape[-1], x.dtype) if weight is None else weight
    b = np.zeros(x.shape[-1], x.dtype) if bias is None else bias
    y, mean, r = kernels.layer_norm(rows, w, b, eps)

    def backward(g: Array) -> tuple[Array, Array, Array]:
        dx, dw, db = kernels.layer_norm_backward(rows_of(g), rows, w, mean, r)
        return dx.reshape(x.shape), dw, db

    return y.reshape(x.shape), backward


# ------------------------------------------------------------------------------- activations


def _gelu_cases(rng: Rng) -> Cases:
    yield (rng.standard_normal((3, 4)) * 2,), {}
    yield (rng.standard_normal((3, 4)) * 2,), {"approximate": "tanh"}


@op(cases=_gelu_cases)
def gelu(x: Array, approximate: str = "none") -> Forward:
    """x Φ(x) (Hendrycks & Gimpel 2016); Φ by erf, or by tanh with approximate="tanh".

    Backward: g (Φ(x) + x φ(x)) by the product rule, φ the normal density (or the tanh form's).
    gelu(inf) is inf and gelu(-inf) is NaN, as in PyTorch; neither has a finite gradient.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate is {approximate!r}; it must be 'none' or 'tanh'")
    tanh = approximate == "tanh"
    flat = np.ascontiguousarray(x).reshape(-1)

    def backward(g: Array) -> Array:
        return kernels.gelu_backward(np.ascontiguousarray(g).reshape(-1), flat, tanh).reshape(
            x.shape
        )

    return kernels.gelu(flat, tanh).reshape(x.shape), (backward,)


def _swiglu_cases(rng: Rng) -> Cases:
    yield (rng.standard_normal((3, 4)) * 2, rng.standard_normal((3, 4))), {}


@op(cases=_swiglu_cases)
def swiglu(gate: Array, up: Array) -> Forward:
    """silu(gate) · up, both of one shape (Shazeer 2020, GLU variants).

    Backward: silu'(a) = σ(a) (1 + a (1 − σ(a))), so da = g b silu'(a) and db = g silu(a).
    """
    if gate.shape != up.shape:
        raise ValueError(f"swiglu: gate is {gate.shape} but up is {up.shape}")
    a, b = np.ascontiguousarray(gate).reshape(-1), np.ascontiguousarray(up).reshape(-1)

    def backward(g: Array) -> tuple[Array, Array]:
        da, db = kernels.swiglu_backward(np.ascontiguousarray(g).reshape(-1), a, b)
        return da.reshape(gate.shape), db.reshape(gate.shape)

    return kernels.swiglu(a, b).reshape(gate.shape), backward


# ----------------------------------------------------------------------------------- dropout


def _dropout_cases(rng: Rng) -> Cases:
    yield (rng.standard_normal((3, 4)),), {"p": 0.3, "key": 7}


NO_DROP = {
    dtype: Drop(np.uint32(0), dtype(1), np.uint32(0), np.uint32(0))
    for dtype in (np.float32, np.float64)
}


def drop_of(p: float, key: int | None, dtype: np.dtype) -> Drop:
    """Dropout as the kernels take it, for arrays of `dtype`."""
    if p == 0:
        return NO_DROP[dtype.type]
    if key is None:
        raise ValueError(
            f"dropout of {p} needs a key, or it would draw the same mask at every call; give "
            "key=fold(seed, step, layer), or use nn.Dropout, which counts its calls"
        )
    return Drop(threshold(p), dtype.type(1 / (1 - p)), *halves(key))


@op(cases=_dropout_cases)
def dropout(x: Array, p: float, key: int | None = None) -> Forward:
    """x with each element zeroed with probability `p` and the rest scaled by 1/(1−p).

    The mask is a function of `key` (see `fold`; ValueError without one) and the position, so the
    backward draws it again: dx = mask g / (1−p), which is dropout of g under the same key.
    """
    drop = drop_of(p, key, x.dtype)

    def apply(a: Array) -> Array:
        return kernels.dropout(np.ascontiguousarray(a).reshape(-1), drop).reshape(x.shape)

    return apply(x), (apply,)


def _dropout_add_cases(rng: Rng) -> Cases:
    n = rng.standard_normal
    yield (n((3, 4)), n((3, 4))), {"p": 0.3, "key": 7}
    yield (n((3, 4)), n((3, 4))), {"p": 0.0, "key": 7}


@op(cases=_dropout_add_cases)
def dropout_add(x: Array, branch: Array, p: float, key: int | None = None) -> Forward:
    """x + dropout(branch, p, key): a branch joining the residual stream, in one pass.

    Backward: dx = g, and d branch = dropout(g) under the same key.
    """
    if x.shape != branch.shape:
        raise ValueError(f"dropout_add: x is {x.shape} but branch is {branch.shape}")
    if p == 0:
        return x + branch, (lambda g: g, lambda g: g)
    drop = drop_of(p, key, x.dtype)
    a, b = np.ascontiguousarray(x).reshape(-1), np.ascontiguousarray(branch).reshape(-1)
    return kernels.dropout_add(a, b, drop).reshape(x.shape), (
        lambda g: g,
        lambda g: kernels.dropout(np.ascontiguousarray(g).reshape(-1), drop).reshape(x.shape),
    )


# --------------------------------------------------------------------------------- attention


def rope_table(
    length: int, head_dim: int, theta: float = 10000.0, dtype: Any = np.float32
) -> tuple[Array, Array]:
    """cos and sin of the angles t θ^(−2n/d), each (length, head_dim / 2)."""
    if head_dim % 2:
        raise ValueError(f"rope: head_dim is {head_dim}; it must be even, since pairs are turned")
    frequency = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    angle = np.outer(np.arange(length), frequency)
    return np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)


def _rope_cases(rng: Rng) -> Cases:
    cos, sin = rope_table(3, 4, dtype=np.float64)
    yield (rng.standard_normal((2, 2, 3, 4)),), {"cos": cos, "sin": sin}


@op(cases=_rope_cases)
def rope(x: Array, *, cos: np.ndarray, sin: np.ndarray) -> Forward:
    """Rotary positions (Su et al. 2021) on x (B, H, T, d): pair (2n, 2n+1) at time t rotates by t
    θₙ.

    Backward: a rotation's transpose is the rotation back, so dx = rope(g) with −sin.
    """
    T, d = x.shape[-2:]
    if cos.shape[0] < T or cos.shape[1] * 2 != d:
        raise ValueError(
            f"rope: the table {cos.shape} does not fit x {x.shape}: it needs at "
            f"least {T} rows and {d // 2} columns"
        )
    table = Rope(cos[:T].astype(x.dtype), sin[:T].astype(x.dtype))

    def turn(a: Array, back: bool = False) -> Array:
        return rotate(a[..., None, :], table, back)[..., 0, :]  # as one head: (..., T, 1, d)

    return turn(x), (lambda g: turn(g, back=True),)


def attend_of(
    name: str,
    T: int,
    H: int,
    K: int,
    d: int,
    rope: Any,
    window: int,
    scale: float | None,
    causal: bool,
    dtype: np.dtype,
) -> Attend:
    """Attention's options as the kernels take them, for T positions and heads of d numbers; `name`
    is the op's, for errors."""
    if window and not causal:
        raise ValueError(f"{name}: window is {window}; a window needs causal=True")
    table = None
    if rope is not None:
        if len(rope) != 2:
            raise ValueError(f"{name}: expected rope as a pair (cos, sin), got {len(rope)} things")
        table = Rope(*(np.asarray(t)[:T].astype(dtype, copy=False) for t in rope))
    scale = 1 / math.sqrt(max(d, 1)) if scale is None else scale
    return Attend(H, K, d, table, dtype.type(scale), window, causal)


def head_width(name: str, features: int, H: int, K: int) -> int:
    """The width d of each head, given that `features` is (H + 2 K) d."""
    if H < 1 or K < 1 or H % K:
        raise ValueError(f"{name}: {K} key/value heads do not divide {H} query heads")
    d, left = divmod(features, H + 2 * K)
    if left:
        raise ValueError(
            f"{name}: qkv gives {features} features, which {H} query and 2 × {K} key/value heads "
            "do not divide"
        )
    return d


def _packed_attention(packed: Array, attend: Attend, drop: Drop) -> tuple[Array, Vjp]:
    """Output (B, T, H, d), and the function from its gradient to that of `packed`."""
    out, lse = kernels.attention(packed, attend, drop)

    def backward(g: Array) -> Array:
        g = np.ascontiguousarray(g).reshape(out.shape)
        return kernels.attention_backward(g, packed, out, lse, attend, drop)

    return out, backward


def _attention_cases(rng: Rng) -> Cases:
    n = rng.standard_normal
    yield (n((2, 4, 5, 3)), n((2, 2, 5, 3)), n((2, 2, 5, 3))), {"causal": True}
    yield (
        (n((1, 2, 6, 4)), n((1, 2, 6, 4)), n((1, 2, 6, 4))),
        {"causal": True, "window": 3, "scale": 1.0},
    )
    yield (n((1, 2, 5, 2)), n((1, 1, 5, 2)), n((1, 1, 5, 2))), {"dropout": 0.4, "key": 3}
    yield (n((1, 1, 5, 2)), n((1, 1, 5, 2)), n((1, 1, 5, 2))), {}


@op(name="attention", cases=_attention_cases)
def _attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = False,
    window: int = 0,
    scale: float | None = None,
    dropout: float = 0.0,
    key: int | None = None,
) -> Forward:
    if q.ndim != 4 or k.ndim != 4:
        raise ValueError(f"expected q, k, v of 4 axes, got {q.ndim} and {k.ndim}")
    (_, H, T, d), K = q.shape, k.shape[1]
    if k.shape != v.shape or (k.shape[0], *k.shape[2:]) != (q.shape[0], *q.shape[2:]):
        raise ValueError("batch, time and head size must agree, and k and v have one shape")
    # One layout for all, the kernel's: (B, T, H + 2 K, d).
    packed = np.concatenate([q, k, v], axis=1).swapaxes(1, 2).copy()
    head_width("attention", (H + 2 * K) * d, H, K)
    attend = attend_of("attention", T, H, K, d, None, window, scale, causal, q.dtype)
    out, kernel = _packed_attention(packed, attend, drop_of(dropout, key, packed.dtype))

    def backward(g: Array) -> tuple[Array, ...]:
        grads = kernel(g.swapaxes(1, 2)).swapaxes(1, 2)
        return grads[:, :H], grads[:, H : H + K], grads[:, H + K :]

    return out.swapaxes(1, 2), backward


def attention(
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    *,
    causal: bool = False,
    window: int = 0,
    scale: float | None = None,
    dropout: float = 0.0,
    key: int | None = None,
) -> Tensor:
    """dropout(softmax(scale q kᵀ + mask)) v (Vaswani et al. 2017): PyTorch's
    scaled_dot_product_attention.

    q (B, H, T, d); k and v (B, K, S, d) with K dividing H (a group of H/K query heads shares one).
    `scale` is 1/sqrt(d) unless given. Every query sees every key; or with `causal` query i sees key
    j if j ≤ i and, where there is a `window`, i − j < window. Dropout on the weights is keyed as in
    `dropout`. Without a mask and with S = T no T×T array is stored.

    `mask` is booleans (True: seen) or numbers that are added to the scores, of a shape that
    broadcasts to (B, H, T, S). A query that sees no key gets 0.

    Backward, with P the weights, M the dropout factors: dv = (P∘M)ᵀ g, dP = M ∘ (g vᵀ), and through
    the softmax dS = P ∘ (dP − rowsum(P∘dP)), where rowsum(P∘dP) = g·o; then dq = scale dS k and
    dk = scale dSᵀ q. P is computed again from the saved log-sum-exp (Dao et al. 2022).
    Errors: ValueError for shapes that do not fit.
    """
    q, k, v = (x if isinstance(x, Tensor) else Tensor(x) for x in (q, k, v))
    alike = q.ndim == k.ndim == 4 and (q.shape[0], q.shape[3]) == (k.shape[0], k.shape[3])
    if not alike or k.shape != v.shape or not k.shape[1] or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"attention: q {q.shape} does not fit k {k.shape} and v {v.shape}; expected q "
            "(B, H, T, d), and k and v (B, K, S, d) with K dividing H"
        )
    if mask is None and q.shape[2] == k.shape[2]:
        return _attention(
            q, k, v, causal=causal, window=window, scale=scale, dropout=dropout, key=key
        )
    if window:
        raise ValueError("attention: expected the window as part of the mask")
    return _masked_attention(q, k, v, mask, causal, scale, dropout, key)


_attention.__doc__ = attention.__doc__


def _masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Any,
    causal: bool,
    scale: float | None,
    p: float,
    key: int | None,
) -> Tensor:
    """`attention` written out in other ops: for any mask and any number of keys."""
    (B, H, T, d), (_, K, S, _) = q.shape, k.shape
    group = (B, K, H // K, T, d)
    scores = q.reshape(group) @ k.reshape(B, K, 1, S, d).transpose(-1, -2)  # (B, K, H/K, T, S)
    scores = scores.reshape(B, H, T, S) * (1 / math.sqrt(d) if scale is None else scale)
    seen = np.tril(np.ones((T, S), bool)) if causal else np.ones((T, S), bool)
    if mask is not None:
        mask = mask if isinstance(mask, Tensor) else Tensor(mask)
        if mask.dtype.kind == "b":
            seen = seen & mask.data
        elif mask.dtype.kind == "f":
            scores, seen = scores + mask, seen & (mask.data > -np.inf)
        else:
            raise TypeError(f"attention: expected a mask of booleans or floats, got {mask.dtype}")
    # Where nothing is seen: some finite weights, which then become 0.
    nothing = ~seen.any(axis=-1, keepdims=True) if S else np.ones((T, 1), bool)
    weights = softmax(where(seen, scores, where(nothing, 0.0, -np.inf)))
    weights = where(nothing, 0.0, weights)
    if p:
        weights = dropout(weights, p, key)
    if weights.shape != (B, H, T, S):
        raise ValueError(f"attention: the mask does not broadcast to {(B, H, T, S)}")
    return (weights.reshape(B, K, H // K, T, S) @ v.reshape(B, K, 1, S, d)).reshape(B, H, T, d)


def _self_attention_cases(rng: Rng) -> Cases:
    n = rng.standard_normal
    table = rope_table(5, 4, dtype=np.float64)
    yield (n((2, 5, 24)),), {"n_head": 2, "rope": table}
    yield (n((1, 5, 16)),), {"n_head": 2, "n_kv_head": 1, "window": 2, "scale": 1.0}
    yield (n((1, 5, 12)),), {"n_head": 2, "dropout": 0.3, "key": 5}


@op(cases=_self_attention_cases)
def self_attention(
    qkv: Array,
    n_head: int,
    n_kv_head: int | None = None,
    *,
    rope: tuple[np.ndarray, np.ndarray] | None = None,
    window: int = 0,
    scale: float | None = None,
    dropout: float = 0.0,
    key: int | None = None,
) -> Forward:
    """Causal `attention` on packed projections, with RoPE inside: what a block calls.

    qkv (B, T, (H + 2K) d) holds q, k and v side by side along its last axis -> (B, T, H d). `rope`
    is `rope_table`'s cos and sin. Forward and backward are those of `attention` after `rope`; the
    gradients of q, k and v are written into one array of qkv's shape.
    """
    if qkv.ndim != 3:
        raise ValueError(f"self_attention: expected qkv (B, T, (H + 2K) d), got {qkv.shape}")
    (B, T, features), H = qkv.shape, n_head
    K = H if n_kv_head is None else n_kv_head
    d = head_width("self_attention", features, H, K)
    packed = np.ascontiguousarray(qkv).reshape(B, T, H + 2 * K, d)
    attend = attend_of("self_attention", T, H, K, d, rope, window, scale, True, qkv.dtype)
    out, kernel = _packed_attention(packed, attend, drop_of(dropout, key, packed.dtype))
    return out.reshape(B, T, H * d), (lambda g: kernel(g).reshape(qkv.shape),)
