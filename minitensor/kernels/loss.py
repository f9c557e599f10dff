"""Cross-entropy with its gradient, and the embedding's gradient (twins in reference.py)."""

from __future__ import annotations

import math

import numpy as np

from minitensor.kernels.compiling import exp, inline, jit
from minitensor.kernels.simd import LANES, exp_negative, larger, load, splat, store


@inline
def as_array(v, spare):
    """The LANES numbers of a vector as an array."""
    store(spare, 0, v)
    return spare


@inline
def entropy(logits, targets, ignore_index, smoothing, factor):
    """The losses of rows of logits, which are overwritten by their gradient."""
    N, V = logits.shape
    dt = logits.dtype.type
    whole = V // LANES * LANES  # the rest of a row goes one by one
    flat, spare = logits.reshape(-1), np.empty(LANES, logits.dtype)
    loss = np.empty(N, logits.dtype)
    for n in range(N):
        row, o = logits[n], n * V
        t = targets[n]
        used = t != ignore_index
        target, mean = row[t if used else 0], dt(0)
        top = splat(row[0])
        for v in range(0, whole, LANES):
            top = larger(load(flat, o + v), top)
        m = row[0]
        for x in as_array(top, spare):
            m = x if x > m else m
        for v in range(whole, V):
            m = row[v] if row[v] > m else m
        if smoothing > 0:
            for v in range(V):
                mean += row[v] - m
            mean /= V
        sums = splat(dt(0))
        for v in range(0, whole, LANES):
            e = exp_negative(load(flat, o + v) - m)
            store(flat, o + v, e)
            sums = sums + e
        total = dt(0)
        for x in as_array(sums, spare):
            total += x
        for v in range(whole, V):
            row[v] = exp(row[v] - m)
            total += row[v]
        times = factor / total if used else factor * 0
        less = factor * smoothing / V if used else factor * 0
        for v in range(V):
            row[v] = row[v] * times - less
        if used:
            row[t] -= factor * (1 - smoothing)
            # The differences first: beside a large m the logarithm would be rounded away.
            loss[n] = math.log(total) - (1 - smoothing) * (target - m) - smoothing * mean
        else:
            loss[n] = 0
    return loss


@jit
def cross_entropy(logits, targets, ignore_index, smoothing, factor):
    return entropy(logits, targets, ignore_index, smoothing, factor)


@jit
def embedding_backward(g, ids, rows):
    out = np.zeros((rows, g.shape[1]), g.dtype)
    for n in range(ids.size):
        i = ids[n]
        for d in range(g.shape[1]):
            out[i, d] += g[n, d]
    return out
