"""AdamW, and the sum of squares that a gradient's norm is made of, over flat arrays in one pass
each (twins in reference.py)."""

from __future__ import annotations

import math

import numpy as np

from minitensor.kernels.compiling import jit


@jit
def adamw(p, g, m, v, lr, beta1, beta2, eps, decay, step, factor):
    dt = p.dtype.type
    shrink, b1, b2 = dt(1 - lr * decay), dt(1 - beta1), dt(beta2)
    c2, e, s = dt(1 - beta2), dt(eps), dt(factor)
    rate = dt(lr / (1 - beta1**step))
    root = dt(1 / math.sqrt(1 - beta2**step))
    for i in range(p.size):
        x = g[i] * s
        mi = m[i] + (x - m[i]) * b1
        vi = v[i] * b2 + x * x * c2
        m[i] = mi
        v[i] = vi
        p[i] = p[i] * shrink - rate * mi / (dt(math.sqrt(vi)) * root + e)


@jit
def sum_of_squares(x):
    total = 0.0
    for i in range(x.size):
        y = np.float64(x[i])
        total += y * y
    return total
