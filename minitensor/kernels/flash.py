"""Causal attention without a T×T array (twin: `reference.attention`).

For each head, 128 queries are handled at once, one query per vector lane: scores are stored key by
key as rows of lanes, so softmax needs no sums across lanes, the causal mask only trims the rows,
and every product is a row times a broadcast number. The backward computes the scores again, four
keys at a time, from the saved log-sum-exp (Dao et al. 2022, FlashAttention). RoPE is applied as
heads are loaded and undone as gradients are stored; dropout bits come from the counter hash.
"""

from __future__ import annotations

import math

import numpy as np

from minitensor.kernels._jit import exp, hash32, inline, jit, u32

WIDTH = 128  # queries handled at once
LANE = 32  # rows are trimmed to multiples of this, so that vector loops leave no remainder
U = np.uintp  # an unsigned index needs no wrap-around check, which would stop vectorisation


@inline
def load_rows(x, cos, sin, out):
    """Copy a head (T, hd) into the padded scratch `out`, rotating pairs by RoPE if cos has rows."""
    T, hd = x.shape
    if cos.shape[0] > 0:
        for t in range(T):
            for d in range(hd // 2):
                a, b = x[t, 2 * d], x[t, 2 * d + 1]
                out[t, 2 * d] = a * cos[t, d] - b * sin[t, d]
                out[t, 2 * d + 1] = a * sin[t, d] + b * cos[t, d]
    else:
        for t in range(T):
            for d in range(hd):
                out[t, d] = x[t, d]


@inline
def store_rows(x, cos, sin, out):
    """Store the gradient of a loaded head: the transposed rotation."""
    T, hd = out.shape
    if cos.shape[0] > 0:
        for t in range(T):
            for d in range(hd // 2):
                a, b = x[t, 2 * d], x[t, 2 * d + 1]
                out[t, 2 * d] = a * cos[t, d] + b * sin[t, d]
                out[t, 2 * d + 1] = b * cos[t, d] - a * sin[t, d]
    else:
        for t in range(T):
            for d in range(hd):
                out[t, d] = x[t, d]


@inline
def to_lanes(x, i0, n, scale, out):
    """out[d, i] = scale · x[i0 + i, d]; lanes past the end are zero."""
    for d in range(x.shape[1]):
        for i in range(n):
            out[d, i] = x[i0 + i, d] * scale
        for i in range(n, WIDTH):
            out[d, i] = 0


@inline
def dot_rows(aT, b, j, out, r, lo, hi):
    """out[r, i] = Σ_d aT[d, i] b[j, d] for two keys, j and j + 1."""
    for d in range(0, b.shape[1], 8):
        b0, b1, b2, b3 = b[j, d], b[j, d + 1], b[j, d + 2], b[j, d + 3]
        b4, b5, b6, b7 = b[j, d + 4], b[j, d + 5], b[j, d + 6], b[j, d + 7]
        c0, c1, c2, c3 = b[j + 1, d], b[j + 1, d + 1], b[j + 1, d + 2], b[j + 1, d + 3]
        c4, c5, c6, c7 = b[j + 1, d + 4], b[j + 1, d + 5], b[j + 1, d + 6], b[j + 1, d + 7]
        if d == 0:
            for i in range(U(lo), U(hi)):
                out[r, i] = (aT[0, i] * b0 + aT[1, i] * b1 + aT[2, i] * b2 + aT[3, i] * b3
                             + aT[4, i] * b4 + aT[5, i] * b5 + aT[6, i] * b6 + aT[7, i] * b7)
                out[r + 1, i] = (aT[0, i] * c0 + aT[1, i] * c1 + aT[2, i] * c2 + aT[3, i] * c3
                                 + aT[4, i] * c4 + aT[5, i] * c5 + aT[6, i] * c6 + aT[7, i] * c7)
        else:
            for i in range(U(lo), U(hi)):
                out[r, i] += (aT[d, i] * b0 + aT[d + 1, i] * b1 + aT[d + 2, i] * b2
                              + aT[d + 3, i] * b3 + aT[d + 4, i] * b4 + aT[d + 5, i] * b5
                              + aT[d + 6, i] * b6 + aT[d + 7, i] * b7)
                out[r + 1, i] += (aT[d, i] * c0 + aT[d + 1, i] * c1 + aT[d + 2, i] * c2
                                  + aT[d + 3, i] * c3 + aT[d + 4, i] * c4 + aT[d + 5, i] * c5
                                  + aT[d + 6, i] * c6 + aT[d + 7, i] * c7)


@inline
def add_rows(oT, p, r, b, j, lo, hi):
    """oT[d, i] += Σ p[r + n, i] b[j + n, d] over four keys n."""
    for d in range(0, b.shape[1], 2):
        b0, b1, b2, b3 = b[j, d], b[j + 1, d], b[j + 2, d], b[j + 3, d]
        c0, c1, c2, c3 = b[j, d + 1], b[j + 1, d + 1], b[j + 2, d + 1], b[j + 3, d + 1]
        for i in range(U(lo), U(hi)):
            oT[d, i] += p[r, i] * b0 + p[r + 1, i] * b1 + p[r + 2, i] * b2 + p[r + 3, i] * b3
            oT[d + 1, i] += p[r, i] * c0 + p[r + 1, i] * c1 + p[r + 2, i] * c2 + p[r + 3, i] * c3


@inline
def reduce_rows(p, aT, out, j, lo, hi):
    """out[j + n, d] += Σ_i p[n, i] aT[d, i] for four keys n: a sum over lanes."""
    for d in range(0, out.shape[1], 2):
        s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = p.dtype.type(0)
        for i in range(U(lo), U(hi)):
            x, y = aT[d, i], aT[d + 1, i]
            s0 += p[0, i] * x
            s1 += p[1, i] * x
            s2 += p[2, i] * x
            s3 += p[3, i] * x
            t0 += p[0, i] * y
            t1 += p[1, i] * y
            t2 += p[2, i] * y
            t3 += p[3, i] * y
        out[j, d] += s0
        out[j + 1, d] += s1
        out[j + 2, d] += s2
        out[j + 3, d] += s3
        out[j, d + 1] += t0
        out[j + 1, d + 1] += t1
        out[j + 2, d + 1] += t2
        out[j + 3, d + 1] += t3


@inline
def lanes(j, i0, window, causal):
    """The trimmed range of lanes in which the four keys from j on are seen by any query."""
    lo, hi = 0, WIDTH
    if causal:
        lo = max(0, (j - i0) // LANE * LANE)
        if window > 0:
            hi = min(WIDTH, (j + 3 + window - i0 + LANE - 1) // LANE * LANE)
    return lo, hi


@inline
def mask_row(row, j, i0, T, window, causal, lo, hi, value):
    """Overwrite the lanes of one key's row that may not see it: only at the two ragged ends."""
    if j >= T:
        for i in range(lo, hi):
            row[i] = value
    elif causal:
        for i in range(lo, min(hi, j - i0)):
            row[i] = value
        if window > 0:
            for i in range(max(lo, j + window - i0), hi):
                row[i] = value


@inline
def first_key(i0, window, causal):
    """The first key, a multiple of four, that any query from i0 on can see."""
    return max(0, i0 - window + 1) // 4 * 4 if causal and window > 0 else 0


@jit
def attention(q, k, v, cos, sin, scale, window, causal, drop, keep, k0, k1):
    """Output (B, T, H, hd) and log-sum-exp of the scores (B, H, T)."""
    B, T, H, hd = q.shape
    group = H // k.shape[2]
    P, D = (T + 3) // 4 * 4, (hd + 7) // 8 * 8  # padded with zeros
    one = q.dtype.type(1)
    out = np.empty((B, T, H, hd), q.dtype)
    lse = np.empty((B, H, T), q.dtype)
    qs, ks, vs = np.zeros((T, D), q.dtype), np.zeros((P, D), q.dtype), np.zeros((P, D), q.dtype)
    qT, oT = np.zeros((D, WIDTH), q.dtype), np.zeros((D, WIDTH), q.dtype)
    p = np.zeros((P, WIDTH), q.dtype)
    m, l = np.empty(WIDTH, q.dtype), np.empty(WIDTH, q.dtype)
    none = cos[:0]
    for b in range(B):
        for h in range(H):
            h0, h1 = hash32(u32(b * H + h), k0, k1), hash32(u32(b * H + h), k1, k0)
            load_rows(q[b, :, h], cos, sin, qs)
            if h % group == 0:
                load_rows(k[b, :, h // group], cos, sin, ks)
                load_rows(v[b, :, h // group], none, none, vs)
            for i0 in range(0, T, WIDTH):
                n = min(WIDTH, T - i0)
                start, stop = first_key(i0, window, causal), min(P, i0 + WIDTH) if causal else P
                to_lanes(qs, i0, n, scale, qT)
                m[:] = -np.inf
                l[:] = 0
                oT[:] = 0
                for j in range(start, stop, 2):
                    lo, hi = lanes(j // 4 * 4, i0, window, causal)
                    dot_rows(qT, ks, j, p, j, lo, hi)
                    for jj in range(j, j + 2):
                        mask_row(p[jj], jj, i0, T, window, causal, lo, hi, -np.inf)
                        for i in range(U(lo), U(hi)):
                            m[i] = p[jj, i] if p[jj, i] > m[i] else m[i]
                for i in range(n, WIDTH):  # lanes past the end: anything finite will do
                    m[i] = 0
                for j in range(start, stop):
                    lo, hi = lanes(j // 4 * 4, i0, window, causal)
                    if drop > 0:
                        c = u32(i0 * T + j)
                        for i in range(U(lo), U(hi)):
                            e = exp(p[j, i] - m[i])
                            l[i] += e
                            kept = hash32(u32(c + u32(u32(i) * u32(T))), h0, h1) >= drop
                            p[j, i] = e * keep if kept else e * 0
                    else:
                        for i in range(U(lo), U(hi)):
                            e = exp(p[j, i] - m[i])
                            l[i] += e
                            p[j, i] = e
                for j in range(start, stop, 4):
                    lo, hi = lanes(j, i0, window, causal)
                    add_rows(oT, p, j, vs, j, lo, hi)
                for i in range(n):
                    inverse = one / l[i]
                    lse[b, h, i0 + i] = m[i] + math.log(l[i])
                    for d in range(hd):
                        out[b, i0 + i, h, d] = oT[d, i] * inverse
    return out, lse


@jit
def attention_backward(g, q, k, v, out, lse, cos, sin, scale, window, causal, drop, keep, k0, k1,
                       dq, dk, dv):
    """Write the gradients of q, k and v into dq, dk and dv (which may be views of one array)."""
    B, T, H, hd = q.shape
    group = H // k.shape[2]
    P, D = (T + 3) // 4 * 4, (hd + 7) // 8 * 8
    zero, one = q.dtype.type(0), q.dtype.type(1)
    qs, ks, vs = np.zeros((T, D), q.dtype), np.zeros((P, D), q.dtype), np.zeros((P, D), q.dtype)
    gs, dqs = np.zeros((T, D), q.dtype), np.zeros((T, D), q.dtype)
    dks, dvs = np.zeros((P, D), q.dtype), np.zeros((P, D), q.dtype)
    qT, gT = np.zeros((D, WIDTH), q.dtype), np.zeros((D, WIDTH), q.dtype)
    dqT = np.zeros((D, WIDTH), q.dtype)
    p, ds = np.zeros((4, WIDTH), q.dtype), np.zeros((4, WIDTH), q.dtype)
    delta, logsum = np.zeros(WIDTH, q.dtype), np.zeros(WIDTH, q.dtype)
    none = cos[:0]
    for b in range(B):
        for h in range(H):
            h0, h1 = hash32(u32(b * H + h), k0, k1), hash32(u32(b * H + h), k1, k0)
            load_rows(q[b, :, h], cos, sin, qs)
            load_rows(g[b, :, h], none, none, gs)
            if h % group == 0:
                load_rows(k[b, :, h // group], cos, sin, ks)
                load_rows(v[b, :, h // group], none, none, vs)
                dks[:] = 0
                dvs[:] = 0
            for i0 in range(0, T, WIDTH):
                n = min(WIDTH, T - i0)
                start, stop = first_key(i0, window, causal), min(P, i0 + WIDTH) if causal else P
                to_lanes(qs, i0, n, scale, qT)
                to_lanes(gs, i0, n, one, gT)
                dqT[:] = 0
                for i in range(n):
                    s = zero  # delta = Σ_j P_ij dP_ij = g_i · o_i
                    for d in range(hd):
                        s += g[b, i0 + i, h, d] * out[b, i0 + i, h, d]
                    delta[i] = s
                    logsum[i] = lse[b, h, i0 + i]
                for i in range(n, WIDTH):
                    delta[i] = logsum[i] = 0
                for j in range(start, stop, 4):
                    lo, hi = lanes(j, i0, window, causal)
                    dot_rows(qT, ks, j, p, 0, lo, hi)
                    dot_rows(qT, ks, j + 2, p, 2, lo, hi)
                    dot_rows(gT, vs, j, ds, 0, lo, hi)
                    dot_rows(gT, vs, j + 2, ds, 2, lo, hi)
                    for r in range(4):
                        mask_row(p[r], j + r, i0, T, window, causal, lo, hi, -np.inf)
                        if drop > 0:
                            c = u32(i0 * T + j + r)
                            for i in range(U(lo), U(hi)):
                                e = exp(p[r, i] - logsum[i])
                                kept = hash32(u32(c + u32(u32(i) * u32(T))), h0, h1) >= drop
                                f = keep if kept else zero
                                p[r, i] = e * f
                                ds[r, i] = e * (ds[r, i] * f - delta[i])
                        else:
                            for i in range(U(lo), U(hi)):
                                e = exp(p[r, i] - logsum[i])
                                p[r, i] = e
                                ds[r, i] = e * (ds[r, i] - delta[i])
                    add_rows(dqT, ds, 0, ks, j, lo, hi)
                    reduce_rows(ds, qT, dks, j, lo, hi)
                    reduce_rows(p, gT, dvs, j, lo, hi)
                for d in range(hd):
                    for i in range(n):
                        dqs[i0 + i, d] = dqT[d, i] * scale
            store_rows(dqs, cos, sin, dq[b, :, h])
            if h % group == group - 1:
                store_rows(dks, cos, sin, dk[b, :, h // group])
                store_rows(dvs, none, none, dv[b, :, h // group])
