"""Attention, causal or not, without a T×T array (twin: `reference.attention`).

LANES queries are handled at once, one a vector lane, so that softmax needs no sum across lanes and
the causal mask only shortens loops. Every product of the forward and the backward is one
routine, `tile`: eight vectors of sums held in registers. The backward computes the scores again
from the saved log-sum-exp (Dao et al. 2022, FlashAttention). RoPE is applied as heads are loaded
and undone as gradients are stored; dropout bits come from the counter hash of random.py.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba import types

from minitensor.kernels.bundles import Attend, Drop
from minitensor.kernels.compiling import hash32, inline, jit, shared, u32
from minitensor.kernels.simd import (
    LANES,
    LOG2E,
    exp2_negative,
    interleave,
    iota,
    larger,
    load,
    load_part,
    log2,
    pick,
    splat,
    splat_pair,
    store,
    store_part,
    sum_pairs,
    swap_pairs,
    transpose,
    whole,
    zeros,
)

U = np.uintp  # unsigned indices need no check for negative ones
LN2 = math.log(2)  # scores are in bits, so that exp is 2**x
KEYS = 8  # keys, or columns of a head, that a tile covers


@inline
def splat_at(b, j):
    return splat(b[j])


@inline
def tile(a, i, step, b, j, along, across, count, number=splat_at):
    """Σ_t a[i + t step : … + LANES] b[j + t along + n across] for n = 0..7: eight vectors.

    With `splat_pair` for `number`, even lanes are multiplied by that b and odd ones by the next.
    """
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = splat(a.dtype.type(0))
    j, along, across = U(j), U(along), U(across)
    for _ in range(count):
        v = load(a, i)
        s0 = s0 + v * number(b, j)
        s1 = s1 + v * number(b, j + across)
        s2 = s2 + v * number(b, j + U(2) * across)
        s3 = s3 + v * number(b, j + U(3) * across)
        s4 = s4 + v * number(b, j + U(4) * across)
        s5 = s5 + v * number(b, j + U(5) * across)
        s6 = s6 + v * number(b, j + U(6) * across)
        s7 = s7 + v * number(b, j + U(7) * across)
        i += step
        j += along
    return s0, s1, s2, s3, s4, s5, s6, s7


@inline
def rotary(cos, sin, sign):
    """A table for RoPE on vectors: rows c₀ c₀ c₁ c₁ … and −s₀ s₀ −s₁ s₁ … for each time."""
    T, pairs = cos.shape
    D = whole(2 * pairs)
    table = zeros(2 * T * D, cos)
    for t in range(T):
        for n in range(pairs):
            c, s = U(2 * t * D + 2 * n), U(2 * t * D + D + 2 * n)
            table[c] = table[c + U(1)] = cos[t, n]
            table[s], table[s + U(1)] = -sin[t, n] * sign, sin[t, n] * sign
    return table


@inline
def copy_heads(x, b, first, end, table, scale, scratch, D, back):
    """Copy heads [first, end) of x[b] to flat scratch (heads, T + LANES, D), scaled; or `back`.

    Token by token, since memory is read in that order: a head at a time would stride over it. If
    the table has rows, pairs are rotated: (y, z) becomes (y c − z s, z c + y s).
    """
    T, H, d = x.shape[1:]
    flat, zero = x.reshape(-1), x.dtype.type(0)
    for t in range(T):
        for h in range(first, end):
            for n in range(0, d, LANES):
                i, o = ((b * T + t) * H + h) * d + n, ((h - first) * (T + LANES) + t) * D + n
                v = load(scratch, o) if back else load_part(flat, i, d - n, zero)
                if table.size > 0:
                    c = 2 * t * whole(d) + n
                    v = v * load(table, c) + swap_pairs(v) * load(table, c + whole(d))
                if back:
                    store_part(flat, i, v * scale, d - n)
                else:
                    store_part(scratch, o, v * scale, D - n)


@inline
def chunk_of_heads(size, group, K):
    """How many key/value heads to load together: up to 128 KB of scratch for their queries."""
    rounds = (K * group * size + 32767) // 32768
    return (K + rounds - 1) // rounds


@inline
def to_lanes(x, i, D, out):
    """out[n, lane] = x[i + lane D + n]: rows of the scratch become lanes."""
    for n in range(0, D, LANES):
        transpose(x, i + n, D, out, n * LANES, LANES)


@inline
def to_rows(x, out, i, D):
    """The way back. Where D < LANES a row spills into the next one, which is written after it."""
    for n in range(0, D, LANES):
        transpose(x, n * LANES, LANES, out, i + n, D)


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


@inline
def keys_of(head, drop):
    """The two halves of the dropout key that a head has of its own."""
    return hash32(u32(head), drop.k0, drop.k1), hash32(u32(head), drop.k1, drop.k0)


@jit
def _attention(packed, attend, drop):
    """Output (B, T, H, d) and log-sum-exp of the scores (B, H, T).

    docs/attention.md takes it line by line: for each block of LANES queries the scores of eight
    keys at a time (`m` is their maximum), the weights in the strip `p` and their sum `l`, the
    outputs of eight columns at a time, and the division by `l`.
    """
    attend, drop = Attend(*attend), Drop(*drop)
    (B, T, _, d), (cos, sin) = packed.shape, attend.rope
    H, K, scale, window, causal = attend.H, attend.K, attend.scale, attend.window, attend.causal
    group, D = H // K, KEYS if d <= KEYS else whole(d)  # D: a head's row in the scratch
    dt = packed.dtype.type
    out, lse = np.empty((B, T, H, d), packed.dtype), np.empty(B * H * T, packed.dtype)
    size = (T + LANES) * D  # one head, with room for whole blocks and tiles at its end: zeros
    chunk = chunk_of_heads(size, group, K)
    qs, os = zeros(chunk * group * size, packed), zeros(chunk * group * size, packed)
    ks, vs = zeros(chunk * size, packed), zeros(chunk * size, packed)
    qT, oT = zeros((D + LANES) * LANES, packed), zeros((D + LANES) * LANES, packed)
    p = zeros((T + KEYS) * LANES, packed)
    minus, zero = dt(-np.inf), splat(dt(0))
    table, none = rotary(cos, sin, dt(1)), p[:0]
    for b in range(B):
        for c0 in range(0, K, chunk):
            c1 = min(K, c0 + chunk)
            copy_heads(packed, b, c0 * group, c1 * group, table, scale * dt(LOG2E), qs, D, False)
            copy_heads(packed, b, H + c0, H + c1, table, dt(1), ks, D, False)
            copy_heads(packed, b, H + K + c0, H + K + c1, none, dt(1), vs, D, False)
            for h in range(c0 * group, c1 * group):
                h0, h1 = keys_of(b * H + h, drop)
                qo, ko = (h - c0 * group) * size, (h // group - c0) * size
                for i0 in range(0, T, LANES):
                    start, stop = key_range(i0, T, window, causal)
                    to_lanes(qs, qo + i0 * D, D, qT)
                    m = splat(minus)
                    for j in range(start, stop, KEYS):
                        s = tile(qT, 0, LANES, ks, ko + j * D, 1, D, d)
                        hides = ragged(i0, j, T, window, causal)
                        for n in range(KEYS):
                            x = masked(s[n], i0, j + n, T, window, causal, minus) if hides else s[n]
                            m = larger(x, m)
                            store(p, (j + n) * LANES, x)
                    l = zero
                    for j in range(start, stop, 2):
                        e = exp2_negative(load(p, j * LANES) - m)
                        f = exp2_negative(load(p, (j + 1) * LANES) - m)
                        l = l + (e + f)
                        if drop.threshold > 0:
                            r = bits(i0, j, T, h0, h1)
                            e = pick(r << u32(16), splat(drop.threshold), e, zero)
                            f = pick(r, splat(drop.threshold), f, zero)
                        store(p, j * LANES, e)
                        store(p, (j + 1) * LANES, f)
                    inverse = splat(drop.rescale) / l  # dropout's factor, once for all keys
                    for n in range(0, d, KEYS):
                        at, count = ko + start * D + n, stop - start
                        o = tile(p, start * LANES, LANES, vs, at, D, 1, count)
                        for c in range(KEYS):
                            store(oT, (n + c) * LANES, o[c] * inverse)
                    to_rows(oT, os, qo + i0 * D, D)
                    store_part(lse, (b * H + h) * T + i0, (m + log2(l)) * dt(LN2), T - i0)
            copy_heads(out, b, c0 * group, c1 * group, none, dt(1), os, D, True)
    return out, lse.reshape(B, H, T)


@inline
def add_paired(ds, p, q2, g2, ko, start, stop, D, dks, dvs):
    """dK += dSᵀ Q and dV += Pᵀ G of a block of queries, two in a vector: q2 and g2."""
    for j in range(start, stop, KEYS):
        o = tile(q2, 0, LANES, ds, j * LANES, 2, LANES, D, splat_pair)
        w = tile(g2, 0, LANES, p, j * LANES, 2, LANES, D, splat_pair)
        for c in range(0, KEYS, 2):
            to = ko + (j + c) * D
            store(dks, to, load(dks, to) + sum_pairs(o[c], o[c + 1]))
            store(dvs, to, load(dvs, to) + sum_pairs(w[c], w[c + 1]))


@inline
def add_single(ds, p, qs, gs, at, ko, start, stop, D, dks, dvs):
    """The same for heads that fill vectors: queries and gradients lie in qs and gs from `at` on."""
    for j in range(start, stop, KEYS):
        for n in range(0, D, LANES):
            o = tile(qs, at + n, D, ds, j * LANES, 1, LANES, LANES)
            w = tile(gs, at + n, D, p, j * LANES, 1, LANES, LANES)
            for c in range(KEYS):
                to = ko + (j + c) * D + n
                store(dks, to, load(dks, to) + o[c])
                store(dvs, to, load(dvs, to) + w[c])


@jit
def _attention_backward(g, packed, out, lse, attend, drop):
    """The gradient of `packed`; dropout's factor comes in with g, and so with dP and dV.

    docs/attention.md takes it line by line: for each block of LANES queries Δ = g · o and the kept
    log-sum-exp; for eight keys at a time the scores again, the weights in the strip `p` and dS in
    `ds`; then dQ from `ds`, and the block's part of dK and dV. It stays in one function because its
    stages share a dozen scratch arrays, which are made once.
    """
    attend, drop = Attend(*attend), Drop(*drop)
    (B, T, _, d), (cos, sin) = packed.shape, attend.rope
    H, K, scale, window, causal = attend.H, attend.K, attend.scale, attend.window, attend.causal
    group, D = H // K, KEYS if d <= KEYS else whole(d)  # D: a head's row in the scratch
    dt = packed.dtype.type
    grads, flat = np.empty(packed.shape, packed.dtype), lse.reshape(-1)
    size = (T + LANES) * D
    # A short head's columns fill half a vector. The other half is the next query: even and odd
    # queries have sums of their own for dK and dV, which costs nothing until they are added up.
    paired = 2 * D == LANES
    chunk = chunk_of_heads(size, group, K)
    wide, narrow, block = chunk * group * size, chunk * size, (D + LANES) * LANES
    qs, gs = zeros(wide, packed), zeros(wide, packed)
    os, dqs = zeros(wide, packed), zeros(wide, packed)
    ks, vs = zeros(narrow, packed), zeros(narrow, packed)
    dks, dvs = zeros(narrow, packed), zeros(narrow, packed)
    qT, gT, oT = zeros(block, packed), zeros(block, packed), zeros(block, packed)
    q2, g2 = zeros(block, packed), zeros(block, packed)
    p, ds = zeros((T + KEYS) * LANES, packed), zeros((T + KEYS) * LANES, packed)
    minus, zero = dt(-np.inf), splat(dt(0))
    table, back, none = rotary(cos, sin, dt(1)), rotary(cos, sin, dt(-1)), p[:0]
    for b in range(B):
        for c0 in range(0, K, chunk):
            c1 = min(K, c0 + chunk)
            copy_heads(packed, b, c0 * group, c1 * group, table, scale * dt(LOG2E), qs, D, False)
            copy_heads(packed, b, H + c0, H + c1, table, dt(1), ks, D, False)
            copy_heads(packed, b, H + K + c0, H + K + c1, none, dt(1), vs, D, False)
            copy_heads(g, b, c0 * group, c1 * group, none, drop.rescale, gs, D, False)
            copy_heads(out, b, c0 * group, c1 * group, none, dt(1) / drop.rescale, os, D, False)
            dks[:] = dvs[:] = 0
            for h in range(c0 * group, c1 * group):
                h0, h1 = keys_of(b * H + h, drop)
                qo, ko = (h - c0 * group) * size, (h // group - c0) * size
                for i0 in range(0, T, LANES):
                    start, stop = key_range(i0, T, window, causal)
                    at = qo + i0 * D
                    to_lanes(qs, at, D, qT)
                    to_lanes(gs, at, D, gT)
                    to_lanes(os, at, D, oT)
                    if paired:  # lanes: column 0 of query i, of query i + 1, column 1 of query i, …
                        for i in range(0, LANES, 2):
                            store(q2, i * D, interleave(load(qs, at + i * D)))
                            store(g2, i * D, interleave(load(gs, at + i * D)))
                    delta = zero  # Σ_j P_ij dP_ij = g_i · o_i
                    for n in range(0, d):
                        delta = delta + load(gT, n * LANES) * load(oT, n * LANES)
                    # Queries past the end get a log-sum-exp of infinity, and so no weights.
                    logsum = load_part(flat, (b * H + h) * T + i0, T - i0, dt(np.inf)) * dt(LOG2E)
                    for j in range(start, stop, KEYS):
                        s = tile(qT, 0, LANES, ks, ko + j * D, 1, D, d)
                        dp = tile(gT, 0, LANES, vs, ko + j * D, 1, D, d)
                        hides = ragged(i0, j, T, window, causal)
                        r = iota(u32(0))  # a name for the loop: bits are drawn for two keys
                        for n in range(KEYS):
                            x = masked(s[n], i0, j + n, T, window, causal, minus) if hides else s[n]
                            e = exp2_negative(x - logsum)
                            f, y = e, dp[n]
                            if drop.threshold > 0:
                                if n % 2 == 0:
                                    r = bits(i0, j + n, T, h0, h1)
                                t = r << u32(16) if n % 2 == 0 else r
                                f = pick(t, splat(drop.threshold), e, zero)
                                y = pick(t, splat(drop.threshold), y, zero)
                            store(p, (j + n) * LANES, f)
                            store(ds, (j + n) * LANES, e * (y - delta))
                    for n in range(0, d, KEYS):
                        from_, count = ko + start * D + n, stop - start
                        o = tile(ds, start * LANES, LANES, ks, from_, D, 1, count)
                        for c in range(KEYS):
                            store(oT, (n + c) * LANES, o[c])
                    to_rows(oT, dqs, at, D)
                    if paired:
                        add_paired(ds, p, q2, g2, ko, start, stop, D, dks, dvs)
                    else:
                        add_single(ds, p, qs, gs, at, ko, start, stop, D, dks, dvs)
            copy_heads(grads, b, c0 * group, c1 * group, back, scale, dqs, D, True)
            copy_heads(grads, b, H + c0, H + c1, back, dt(LN2), dks, D, True)
            copy_heads(grads, b, H + K + c0, H + K + c1, none, dt(1), dvs, D, True)
    return grads


# Both for sublayer.py, for float32 and what `plain_attend` returns; first the one that takes longer
# to compile.
NO_TABLE = np.empty((0, 0), np.float32)
ATTEND = numba.typeof((1, 1, 1, (NO_TABLE, NO_TABLE), np.float32(1), 0, True))
DROP = numba.typeof((np.uint32(0), np.float32(1), np.uint32(0), np.uint32(0)))
HEADS, SUMS = types.float32[:, :, :, ::1], types.float32[:, :, ::1]
backward = shared(HEADS, HEADS, HEADS, SUMS, ATTEND, DROP)(_attention_backward)
forward = shared(HEADS, ATTEND, DROP)(_attention)


# ------------------------------------------------------------------------ what the ops call


def plain_attend(attend: Attend, x: np.ndarray) -> tuple[Any, ...]:
    """As the compiled code takes it: without names (see sublayer.py), with empty tables for no
    RoPE, and 0 for a window that hides nothing (in 32 bits a larger number would become another
    one). x is (B, T, ...)."""
    H, K, d, rope, scale, window, causal = attend
    tables = (np.empty((0, 0), x.dtype),) * 2 if rope is None else tuple(rope)
    return H, K, d, tables, scale, window if window < x.shape[1] else 0, causal


def attention(packed: np.ndarray, attend: Attend, drop: Drop) -> tuple[np.ndarray, np.ndarray]:
    return _attention(packed, plain_attend(attend, packed), tuple(drop))  # type: ignore[no-any-return]


def attention_backward(
    g: np.ndarray, packed: np.ndarray, out: np.ndarray, lse: np.ndarray, attend: Attend, drop: Drop
) -> np.ndarray:
    args = plain_attend(attend, packed), tuple(drop)
    return _attention_backward(g, packed, out, lse, *args)  # type: ignore[no-any-return]
