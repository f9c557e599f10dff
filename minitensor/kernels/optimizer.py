"""AdamW, and the sum of squares that a gradient's norm is made of, over flat arrays in one pass
each; and Muon's orthogonal matrices (twins in reference.py)."""

from __future__ import annotations

import math

import numpy as np

from minitensor.kernels import gemm, reference
from minitensor.kernels.compiling import inline, jit
from minitensor.kernels.gemm import product, transposed_product
from minitensor.kernels.simd import aligned


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


@inline
def quintic(gram, nothing, q):
    """q = 3.4445 - 4.775 gram + 2.0315 gram², of a symmetric matrix."""
    product(gram, gram, True, nothing, q)
    n, dt = len(q), q.dtype.type
    p, g = q.reshape(-1), gram.reshape(-1)
    for i in range(n * n):
        p[i] = p[i] * dt(2.0315) - dt(4.775) * g[i]
    for i in range(0, n * n, n + 1):
        p[i] += dt(3.4445)


@jit
def _orthogonal(u, steps):
    (M, N), total = u.shape, 0.0
    small, tall, flat = min(M, N), M > N, u.reshape(-1)
    for i in range(flat.size):
        total += np.float64(flat[i]) * np.float64(flat[i])
    to, factor = aligned(M * N, u), u.dtype.type(1 / max(math.sqrt(total), 1e-7))
    for i in range(flat.size):
        to[i] = flat[i] * factor
    x, y = to.reshape(M, N), aligned(M * N, u).reshape(M, N)
    square = aligned(4 * small * small, u).reshape(4, small, small)
    first, q, a, b = square[0], square[1], square[2], square[3]
    nothing = np.empty(0, u.dtype)
    together = 3 if max(M, N) >= 2 * small else 1
    for start in range(0, steps, together):
        if tall:
            transposed_product(x, x, first, False)
        else:
            product(x, x, True, nothing, first)
        quintic(first, nothing, q)
        for _ in range(start + 1, min(start + together, steps)):
            product(q, q, True, nothing, a)
            product(a, first, False, nothing, b)
            quintic(b, nothing, a)
            product(a, q, False, nothing, b)
            q, b = b, q
        if tall:
            product(x, q, False, nothing, y)
        else:
            product(q, x, False, nothing, y)
        x, y = y, x
    return x


# ------------------------------------------------------------------------ what the ops call


def orthogonal(u: np.ndarray, steps: int) -> np.ndarray:
    if not gemm.suits(u, u, max(u.shape)):
        return reference.orthogonal(u, steps)
    return _orthogonal(u, steps)  # type: ignore[no-any-return]
