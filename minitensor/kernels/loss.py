"""Cross-entropy with its gradient, and the embedding's gradient (twins in reference.py)."""

from __future__ import annotations

import math

import numpy as np

from minitensor.kernels._jit import exp, jit


@jit
def cross_entropy(logits, targets, ignore_index, smoothing, weight):
    N, V = logits.shape
    loss = np.empty(N, logits.dtype)
    for n in range(N):
        row = logits[n]
        m = row[0]
        for v in range(V):
            m = row[v] if row[v] > m else m
        t = targets[n]
        used = t != ignore_index
        target, mean = row[t if used else 0], logits.dtype.type(0)
        if smoothing > 0:
            for v in range(V):
                mean += row[v]
            mean /= V
        total = logits.dtype.type(0)
        for v in range(V):
            e = exp(row[v] - m)
            row[v] = e
            total += e
        scale = weight / total if used else weight * 0
        shift = weight * smoothing / V if used else weight * 0
        for v in range(V):
            row[v] = row[v] * scale - shift
        if used:
            row[t] -= weight * (1 - smoothing)
            loss[n] = m + math.log(total) - (1 - smoothing) * target - smoothing * mean
        else:
            loss[n] = 0
    return loss


@jit
def embedding_backward(g, ids, rows):
    out = np.zeros((rows, g.shape[1]), g.dtype)
    for n in range(ids.size):
        i = ids[n]
        for d in range(g.shape[1]):
            out[i, d] += g[n, d]
    return out
