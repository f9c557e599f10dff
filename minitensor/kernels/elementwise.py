"""Activations and dropout in one pass each (twins in reference.py).

libm's exp, tanh and erf cannot be vectorised; here they go through the polynomials of _jit.py.
"""

from __future__ import annotations

import math

import numpy as np

from minitensor.kernels._jit import erf, exp, hash32, jit, u32
from minitensor.kernels.reference import SQRT_2_PI


@jit
def gelu(x, tanh):
    y = np.empty_like(x)
    c, a, half, one = (x.dtype.type(SQRT_2_PI), x.dtype.type(0.044715), x.dtype.type(0.5),
                       x.dtype.type(1))
    root = x.dtype.type(math.sqrt(0.5))
    if tanh:
        for i in range(x.size):
            z = x[i]
            u = c * (z + a * z * z * z)
            y[i] = z - z / (exp(u + u) + one)  # 0.5 z (1 + tanh u)
    else:
        for i in range(x.size):
            y[i] = half * x[i] * (one + erf(x[i] * root))
    return y


@jit
def gelu_backward(g, x, tanh):
    dx = np.empty_like(x)
    c, a, half, one = (x.dtype.type(SQRT_2_PI), x.dtype.type(0.044715), x.dtype.type(0.5),
                       x.dtype.type(1))
    root, norm = x.dtype.type(math.sqrt(0.5)), x.dtype.type(1 / math.sqrt(2 * math.pi))
    three = x.dtype.type(3 * 0.044715)
    if tanh:
        for i in range(x.size):
            z = x[i]
            u = c * (z + a * z * z * z)
            s = one - one / (exp(u + u) + one)  # σ(2u) = (1 + tanh u) / 2
            dx[i] = g[i] * (s + (z + z) * s * (one - s) * c * (one + three * z * z))
    else:
        for i in range(x.size):
            z = x[i]
            dx[i] = g[i] * (half * (one + erf(z * root)) + z * norm * exp(-half * z * z))
    return dx


@jit
def swiglu(a, b):
    y = np.empty_like(a)
    one = a.dtype.type(1)
    for i in range(a.size):
        y[i] = a[i] / (one + exp(-a[i])) * b[i]
    return y


@jit
def swiglu_backward(g, a, b):
    da, db = np.empty_like(a), np.empty_like(b)
    one = a.dtype.type(1)
    for i in range(a.size):
        s = one / (one + exp(-a[i]))
        gs = g[i] * s
        da[i] = gs * b[i] * (one + a[i] * (one - s))
        db[i] = gs * a[i]
    return da, db


@jit
def dropout(x, drop, keep, k0, k1):
    y = np.empty_like(x)
    zero = x.dtype.type(0)
    for i in range(x.size):
        y[i] = x[i] * keep if hash32(u32(i), k0, k1) >= drop else x[i] * zero
    return y


@jit
def dropout_add(x, branch, drop, keep, k0, k1):
    y = np.empty_like(x)
    zero = x.dtype.type(0)
    for i in range(x.size):
        y[i] = x[i] + (branch[i] * keep if hash32(u32(i), k0, k1) >= drop else branch[i] * zero)
    return y
