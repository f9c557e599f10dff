"""Activations and dropout in one pass each (twins in reference.py).

libm's exp, tanh and erf cannot be vectorised; here they go through the polynomials of compiling.py.
"""

from __future__ import annotations

import math

import numpy as np

from minitensor.kernels.compiling import bell, erf, exp, hash32, inline, jit, typed, u32
from minitensor.kernels.reference import SQRT_2_PI


@inline
def sigmoid(z):
    one = typed(z, 1)
    return one / (one + exp(-z))


@inline
def gelu_of(z, tanh):
    """x Φ(x) of a number."""
    one = typed(z, 1)
    if tanh:
        u = typed(z, SQRT_2_PI) * (z + typed(z, 0.044715) * z * z * z)
        bounded = z if z < typed(z, 3e38) else typed(z, 3e38)  # inf / inf would be NaN
        return z - bounded / (exp(u + u) + one)  # 0.5 z (1 + tanh u)
    return typed(z, 0.5) * z * (one + erf(z * typed(z, math.sqrt(0.5))))


@inline
def gelu_slope(z, tanh):
    """The derivative of `gelu_of`."""
    half, one, c = typed(z, 0.5), typed(z, 1), typed(z, SQRT_2_PI)
    if tanh:
        u = c * (z + typed(z, 0.044715) * z * z * z)
        s = one - one / (exp(u + u) + one)  # σ(2u) = (1 + tanh u) / 2
        return s + (z + z) * s * (one - s) * c * (one + typed(z, 3 * 0.044715) * z * z)
    return half * (one + erf(z * typed(z, math.sqrt(0.5)))) + z * typed(
        z, 1 / math.sqrt(2 * math.pi)
    ) * bell(z)


@inline
def gelu_into(x, tanh, y):
    if tanh:  # decided outside of the loops, which are then simple enough for vectors
        for i in range(x.size):
            y[i] = gelu_of(x[i], True)
    else:
        for i in range(x.size):
            y[i] = gelu_of(x[i], False)


@jit
def gelu(x, tanh):
    y = np.empty_like(x)
    gelu_into(x, tanh, y)
    return y


@jit
def gelu_backward(g, x, tanh):
    dx = np.empty_like(x)
    if tanh:
        for i in range(x.size):
            dx[i] = g[i] * gelu_slope(x[i], True)
    else:
        for i in range(x.size):
            dx[i] = g[i] * gelu_slope(x[i], False)
    return dx


@inline
def swiglu_into(a, b, y):
    for i in range(a.size):
        y[i] = a[i] * sigmoid(a[i]) * b[i]


@jit
def swiglu(a, b):
    y = np.empty_like(a)
    swiglu_into(a, b, y)
    return y


@jit
def swiglu_backward(g, a, b):
    da, db = np.empty_like(a), np.empty_like(b)
    one = a.dtype.type(1)
    for i in range(a.size):
        s = sigmoid(a[i])
        gs = g[i] * s
        da[i] = gs * b[i] * (one + a[i] * (one - s))
        db[i] = gs * a[i]
    return da, db


@inline
def dropped(x, n, drop, y):
    """y = dropout(x), for an x that begins at element n of the whole array."""
    zero, (threshold, rescale, k0, k1) = x.dtype.type(0), drop
    for i in range(x.size):
        survives = hash32(u32(n + i), k0, k1) >= threshold
        y[i] = x[i] * rescale if survives else x[i] * zero


@jit
def dropout(x, drop):
    y = np.empty_like(x)
    dropped(x, 0, drop, y)
    return y


@jit
def dropout_add(x, branch, drop):
    y, (threshold, rescale, k0, k1) = np.empty_like(x), drop
    zero = x.dtype.type(0)
    for i in range(x.size):
        survives = hash32(u32(i), k0, k1) >= threshold
        y[i] = x[i] + (branch[i] * rescale if survives else branch[i] * zero)
    return y
