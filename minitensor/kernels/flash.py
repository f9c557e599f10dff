"""Causal attention without a T×T array (twin: `reference.attention`).

LANES queries are handled at once, one a vector lane, so that softmax needs no sum across lanes and
the causal mask only shortens loops. Every product of the forward and the backward is one
routine, `tile`: eight vectors of sums held in registers. The backward computes the scores again
from the saved log-sum-exp (Dao et al. 2022, FlashAttention). RoPE is applied as heads are loaded
and undone as gradients are stored; dropout bits come from the counter hash of random.py.
"""

from __future__ import annotations

import math

import numpy as np

from minitensor.kernels._jit import hash32, inline, jit, u32
from minitensor.kernels.simd import (
    LANES,
    LOG2E,
    exp2_negative,
    iota,
    larger,
    load,
    pick,
    splat,
    store,
)

U = np.uintp  # unsigned indices need no check for negative ones
LN2 = math.log(2)  # scores are in bits, so that exp is 2**x
KEYS = 8  # keys, or columns of a head, that a tile covers


@inline
def tile(a, i, step, b, j, along, across, count):
    """Σ_t a[i + t step : … + LANES] b[j + t along + n across] for n = 0..7: eight vectors."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = splat(a.dtype.type(0))
    j, along, across = U(j), U(along), U(across)
    for _ in range(count):
        v = load(a, i)
        s0 = s0 + v * b[j]
        s1 = s1 + v * b[j + across]
        s2 = s2 + v * b[j + U(2) * across]
        s3 = s3 + v * b[j + U(3) * across]
        s4 = s4 + v * b[j + U(4) * across]
        s5 = s5 + v * b[j + U(5) * across]
        s6 = s6 + v * b[j + U(6) * across]
        s7 = s7 + v * b[j + U(7) * across]
        i += step
        j += along
    return s0, s1, s2, s3, s4, s5, s6, s7


@inline
def load_heads(x, b, h0, h1, cos, sin, out, width):
    """Copy heads h0..h1 of x[b] into the flat scratch (heads, T + LANES, width).

    Row by row, since memory is read in that order: a head at a time would stride over it. Pairs
    are rotated if cos has rows.
    """
    T, d, w, b = U(x.shape[1]), U(x.shape[3]), U(width), U(b)
    size = (T + U(LANES)) * w
    for t in range(T):
        for h in range(U(h0), U(h1)):
            o = (h - U(h0)) * size + t * w
            if cos.shape[0] > 0:
                for n in range(d >> U(1)):
                    y, z, c, s = x[b, t, h, n + n], x[b, t, h, n + n + U(1)], cos[t, n], sin[t, n]
                    out[o + n + n] = y * c - z * s
                    out[o + n + n + U(1)] = y * s + z * c
            else:
                for n in range(d):
                    out[o + n] = x[b, t, h, n]


@inline
def store_heads(x, width, cos, sin, out, b, h0, h1):
    """Store the gradients of loaded heads in out[b]: the transposed rotation."""
    T, d, w, b = U(out.shape[1]), U(out.shape[3]), U(width), U(b)
    size = (T + U(LANES)) * w
    for t in range(T):
        for h in range(U(h0), U(h1)):
            o = (h - U(h0)) * size + t * w
            if cos.shape[0] > 0:
                for n in range(d >> U(1)):
                    y, z, c, s = x[o + n + n], x[o + n + n + U(1)], cos[t, n], sin[t, n]
                    out[b, t, h, n + n] = y * c + z * s
                    out[b, t, h, n + n + U(1)] = z * c - y * s
            else:
                for n in range(d):
                    out[b, t, h, n] = x[o + n]


@inline
def chunk_of_heads(size, group, K):
    """How many key/value heads to load together: about 64 KB of scratch for their queries."""
    return max(1, min(K, 16384 // (size * group)))


@inline
def to_lanes(x, base, width, d, i0, scale, out):
    """out[n, lane] = scale · x[i0 + lane, n]; the scratch has LANES rows to spare."""
    w, i = U(width), U(base + i0 * width)
    for n in range(U(d)):
        for lane in range(U(LANES)):
            out[n * U(LANES) + lane] = x[i + lane * w + n] * scale


@inline
def key_range(i0, T, window, causal):
    """The keys [start, stop), in whole tiles, that any query of the block from i0 on can see."""
    if not causal:
        return 0, (T + KEYS - 1) // KEYS * KEYS
    start = max(0, i0 - window + 1) // KEYS * KEYS if window > 0 else 0
    return start, (min(T, i0 + LANES) + KEYS - 1) // KEYS * KEYS


@inline
def ragged(i0, j, T, window, causal):
    """Whether some query of the block may not see some key of the tile from j on."""
    if not causal:
        return j + KEYS > T
    return j + KEYS - 1 > i0 or (window > 0 and i0 + LANES - 1 - j >= window)


@inline
def masked(s, i0, j, T, window, causal, value):
    """The scores of key j with `value` in the lanes of queries that may not see it."""
    hidden = splat(value)
    if not causal:
        return hidden if j >= T else s
    i = iota(u32(i0))
    s = pick(i, splat(u32(j)), s, hidden)
    return pick(i, splat(u32(j + window)), hidden, s) if window > 0 else s


@inline
def bits(i0, j, T, h0, h1):
    """hash32 of the positions (i0 + lane, j / 2): 16 bits for key j and 16 for key j + 1."""
    x = iota(u32(i0)) * u32(T) + u32(u32(j // 2) + h0)
    x = (x ^ (x >> u32(16))) * u32(0x7FEB352D) + h1
    x = (x ^ (x >> u32(15))) * u32(0x846CA68B)
    return x ^ (x >> u32(16))


@jit
def attention(q, k, v, cos, sin, scale, window, causal, drop, keep, k0, k1):
    """Output (B, T, H, d) and log-sum-exp of the scores (B, H, T)."""
    B, T, H, d = q.shape
    K = k.shape[2]
    group, D = H // K, (d + KEYS - 1) // KEYS * KEYS
    dt = q.dtype.type
    out, lse = np.empty((B, T, H, d), q.dtype), np.empty((B, H, T), q.dtype)
    size = (T + LANES) * D  # one head, with room for whole blocks and tiles at its end: zeros
    chunk = chunk_of_heads(size, group, K)
    qs = np.zeros(chunk * group * size, q.dtype)
    ks, vs = np.zeros(chunk * size, q.dtype), np.zeros(chunk * size, q.dtype)
    qT, oT = np.zeros(D * LANES, q.dtype), np.zeros(D * LANES, q.dtype)
    p = np.zeros((T + KEYS) * LANES, q.dtype)
    ms, ls = np.zeros(LANES, q.dtype), np.zeros(LANES, q.dtype)
    minus, zero, kept = dt(-np.inf), splat(dt(0)), splat(keep)
    none = cos[:0]
    for b in range(B):
        for c0 in range(0, K, chunk):
            c1 = min(K, c0 + chunk)
            load_heads(q, b, c0 * group, c1 * group, cos, sin, qs, D)
            load_heads(k, b, c0, c1, cos, sin, ks, D)
            load_heads(v, b, c0, c1, none, none, vs, D)
            for h in range(c0 * group, c1 * group):
                h0, h1 = hash32(u32(b * H + h), k0, k1), hash32(u32(b * H + h), k1, k0)
                qo, ko = (h - c0 * group) * size, (h // group - c0) * size
                for i0 in range(0, T, LANES):
                    start, stop = key_range(i0, T, window, causal)
                    to_lanes(qs, qo, D, d, i0, scale * dt(LOG2E), qT)
                    m = splat(minus)
                    for j in range(start, stop, KEYS):
                        s = tile(qT, 0, LANES, ks, ko + j * D, 1, D, d)
                        edge = ragged(i0, j, T, window, causal)
                        for n in range(KEYS):
                            x = masked(s[n], i0, j + n, T, window, causal, minus) if edge else s[n]
                            m = larger(x, m)
                            store(p, (j + n) * LANES, x)
                    l = zero
                    for j in range(start, stop, 2):
                        e = exp2_negative(load(p, j * LANES) - m)
                        f = exp2_negative(load(p, (j + 1) * LANES) - m)
                        l = l + (e + f)
                        if drop > 0:
                            r = bits(i0, j, T, h0, h1)
                            e = pick(r << u32(16), splat(drop), e * kept, zero)
                            f = pick(r, splat(drop), f * kept, zero)
                        store(p, j * LANES, e)
                        store(p, (j + 1) * LANES, f)
                    for n in range(0, D, KEYS):
                        o = tile(p, start * LANES, LANES, vs, ko + start * D + n, D, 1,
                                 stop - start)
                        for c in range(KEYS):
                            store(oT, (n + c) * LANES, o[c])
                    store(ms, 0, m)
                    store(ls, 0, l)
                    for lane in range(min(LANES, T - i0)):
                        inverse = dt(1) / ls[lane]
                        lse[b, h, i0 + lane] = ms[lane] * dt(LN2) + math.log(ls[lane])
                        for n in range(U(d)):
                            out[b, i0 + lane, h, n] = oT[n * U(LANES) + U(lane)] * inverse
    return out, lse


@jit
def attention_backward(g, q, k, v, out, lse, cos, sin, scale, window, causal, drop, keep, k0, k1,
                       dq, dk, dv):
    """Write the gradients of q, k and v into dq, dk and dv (which may be views of one array)."""
    B, T, H, d = q.shape
    K = k.shape[2]
    group, D = H // K, (d + LANES - 1) // LANES * LANES  # a head's columns are lanes here as well
    dt = q.dtype.type
    size = (T + LANES) * D
    chunk = chunk_of_heads(size, group, K)
    wide, narrow = chunk * group * size, chunk * size
    qs, gs, dqs = np.zeros(wide, q.dtype), np.zeros(wide, q.dtype), np.zeros(wide, q.dtype)
    ks, vs = np.zeros(narrow, q.dtype), np.zeros(narrow, q.dtype)
    dks, dvs = np.zeros(narrow, q.dtype), np.zeros(narrow, q.dtype)
    qT, gT = np.zeros(D * LANES, q.dtype), np.zeros(D * LANES, q.dtype)
    dqT = np.zeros(D * LANES, q.dtype)
    p, ds = np.zeros((T + KEYS) * LANES, q.dtype), np.zeros((T + KEYS) * LANES, q.dtype)
    deltas, sums = np.zeros(LANES, q.dtype), np.zeros(LANES, q.dtype)
    minus, zero, kept = dt(-np.inf), splat(dt(0)), splat(keep)
    none = cos[:0]
    for b in range(B):
        for c0 in range(0, K, chunk):
            c1 = min(K, c0 + chunk)
            load_heads(q, b, c0 * group, c1 * group, cos, sin, qs, D)
            load_heads(g, b, c0 * group, c1 * group, none, none, gs, D)
            load_heads(k, b, c0, c1, cos, sin, ks, D)
            load_heads(v, b, c0, c1, none, none, vs, D)
            dks[:] = 0
            dvs[:] = 0
            for h in range(c0 * group, c1 * group):
                h0, h1 = hash32(u32(b * H + h), k0, k1), hash32(u32(b * H + h), k1, k0)
                qo, ko = (h - c0 * group) * size, (h // group - c0) * size
                for i0 in range(0, T, LANES):
                    start, stop = key_range(i0, T, window, causal)
                    count = min(LANES, T - i0)
                    to_lanes(qs, qo, D, d, i0, scale * dt(LOG2E), qT)
                    to_lanes(gs, qo, D, d, i0, dt(1), gT)
                    for lane in range(count):
                        total = dt(0)  # Σ_j P_ij dP_ij = g_i · o_i
                        for n in range(U(d)):
                            total += gT[n * U(LANES) + U(lane)] * out[b, i0 + lane, h, n]
                        deltas[lane] = total
                        sums[lane] = lse[b, h, i0 + lane] * dt(LOG2E)
                    delta, logsum = load(deltas, 0), load(sums, 0)
                    for j in range(start, stop, KEYS):
                        s = tile(qT, 0, LANES, ks, ko + j * D, 1, D, d)
                        dp = tile(gT, 0, LANES, vs, ko + j * D, 1, D, d)
                        edge = ragged(i0, j, T, window, causal)
                        r = bits(i0, j, T, h0, h1)
                        for n in range(KEYS):
                            x = masked(s[n], i0, j + n, T, window, causal, minus) if edge else s[n]
                            e = exp2_negative(x - logsum)
                            f, y = e, dp[n]
                            if drop > 0:
                                if n % 2 == 0:
                                    r = bits(i0, j + n, T, h0, h1)
                                t = r << u32(16) if n % 2 == 0 else r
                                f = pick(t, splat(drop), e * kept, zero)
                                y = pick(t, splat(drop), y * kept, zero)
                            store(p, (j + n) * LANES, f)
                            store(ds, (j + n) * LANES, e * (y - delta))
                    for n in range(0, d, KEYS):
                        o = tile(ds, start * LANES, LANES, ks, ko + start * D + n, D, 1,
                                 stop - start)
                        for c in range(KEYS):
                            store(dqT, (n + c) * LANES, o[c] * scale)
                    for lane in range(U(LANES)):
                        for n in range(U(d)):
                            dqs[U(qo + i0 * D) + lane * U(D) + n] = dqT[n * U(LANES) + lane]
                    for j in range(start, stop, KEYS):
                        for n in range(0, D, LANES):
                            o = tile(qs, qo + i0 * D + n, D, ds, j * LANES, 1, LANES, count)
                            w = tile(gs, qo + i0 * D + n, D, p, j * LANES, 1, LANES, count)
                            for c in range(KEYS):
                                at = ko + (j + c) * D + n
                                store(dks, at, load(dks, at) + o[c] * scale)
                                store(dvs, at, load(dvs, at) + w[c])
            store_heads(dqs, D, cos, sin, dq, b, c0 * group, c1 * group)
            store_heads(dks, D, cos, sin, dk, b, c0, c1)
            store_heads(dvs, D, none, none, dv, b, c0, c1)
