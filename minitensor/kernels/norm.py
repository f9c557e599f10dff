"""RMSNorm and LayerNorm, one pass over each row (twins in reference.py).

NumPy makes a dozen passes over the array and as many temporaries; here a row stays in registers
and L1. The weight's gradient is gathered in one row that stays in L1 as well.
"""

from __future__ import annotations

import math

import numpy as np

from minitensor.kernels.compiling import jit


@jit
def rms_norm(x, weight, eps):
    N, D = x.shape
    y, r, count = np.empty_like(x), np.empty(N, x.dtype), max(D, 1)
    for n in range(N):
        s = x.dtype.type(0)
        for d in range(D):
            s += x[n, d] * x[n, d]
        r[n] = 1 / math.sqrt(s / count + eps)
        rn = r[n]
        for d in range(D):
            y[n, d] = x[n, d] * rn * weight[d]
    return y, r


@jit
def rms_norm_backward(g, x, weight, r):
    N, D = x.shape
    dx, dw, count = np.empty_like(x), np.zeros(D, x.dtype), max(D, 1)
    for n in range(N):
        rn, s = r[n], x.dtype.type(0)
        for d in range(D):
            s += g[n, d] * weight[d] * x[n, d]
        c = x.dtype.type(s * rn * rn / count)
        for d in range(D):
            dx[n, d] = rn * (g[n, d] * weight[d] - x[n, d] * c)
        for d in range(D):
            dw[d] += g[n, d] * (x[n, d] * rn)
    return dx, dw


@jit
def layer_norm(x, weight, bias, eps):
    N, D = x.shape
    y, mean, r = np.empty_like(x), np.empty(N, x.dtype), np.empty(N, x.dtype)
    count = max(D, 1)
    for n in range(N):
        s = x.dtype.type(0)
        for d in range(D):
            s += x[n, d]
        mean[n] = s / count
        mn, s = mean[n], x.dtype.type(0)
        for d in range(D):
            s += (x[n, d] - mn) * (x[n, d] - mn)
        r[n] = 1 / math.sqrt(s / count + eps)
        rn = r[n]
        for d in range(D):
            y[n, d] = (x[n, d] - mn) * rn * weight[d] + bias[d]
    return y, mean, r


@jit
def layer_norm_backward(g, x, weight, mean, r):
    N, D = x.shape
    dx, dw, db = np.empty_like(x), np.zeros(D, x.dtype), np.zeros(D, x.dtype)
    count = max(D, 1)
    for n in range(N):
        mn, rn = mean[n], r[n]
        s = t = x.dtype.type(0)
        for d in range(D):
            h = g[n, d] * weight[d]
            s += h
            t += h * ((x[n, d] - mn) * rn)
        a, b = x.dtype.type(s / count), x.dtype.type(t / count)
        for d in range(D):
            dx[n, d] = rn * (g[n, d] * weight[d] - a - (x[n, d] - mn) * rn * b)
        for d in range(D):
            dw[d] += g[n, d] * ((x[n, d] - mn) * rn)
            db[d] += g[n, d]
    return dx, dw, db
