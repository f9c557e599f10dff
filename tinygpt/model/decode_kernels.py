"""The loops of the compiled decoder: the model's pass over rows of tokens, and the choice of the
next ones.

Twins: `GPT.hidden` with a cache, and `drawing.draw`; `compiled.py` makes the arguments.
One token is a walk through all weights, so they lie in one flat array in the order of their use: a
matrix as panels of PANEL outputs, within a panel input by input. A product then holds its sums in
registers and reads the weights as one stream. Every row's sums run in the same order whatever the
number of rows, so a sequence gives the same bits alone, among others, and when processed again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from minitensor.kernels.compiling import erf, exp, inline, jit, outlined, shared
from minitensor.kernels.reference import SQRT_2_PI
from minitensor.kernels.simd import (
    CONTRACT,
    LANES,
    Vector,
    exp_negative,
    load,
    pick,
    splat,
    store,
    zeros,
)
from tinygpt.model.guess import LIKELY, LIKELY_SHARE, ORDER

REGISTER = 16 if llvm.get_host_cpu_features().get("avx512f") else 8  # float32 in a register
PANEL = 2 * REGISTER  # outputs that lie together
ROWS = REGISTER // 2  # rows that share the reading of a panel: half of all registers hold sums
FEW = ROWS // 2  # rows that share the reading of two
BLOCK = 64  # rows that go through all layers together, small enough for the cache
ENTRY = 1 + 3 * LIKELY  # numbers (32 bits) of what is remembered: a cache line
ENTRIES = 1 << 15
RATE = np.float32(0.05)  # at which a rate follows what comes true
ROW_COST = 0.1  # of a pass over one row: a guess is worth trying if it adds that many tokens
U = np.uintp  # unsigned indices need no check for negative ones
ROOT_HALF = 0.7071067811865476

Array = np.ndarray
SWIGLU, GELU_TANH, GELU = range(3)


class Shape(NamedTuple):
    """A model's numbers, as the loops need them; for the heads see `compiled.Heads`."""

    group: int  # queries that share a key/value head
    blocks: int  # of key/value heads, `lanes` in each
    lanes: int
    width: int  # of a block
    d_ff: int
    vocab_size: int
    context: int
    rms: bool  # RMSNorm, or else LayerNorm
    activation: int  # SWIGLU, GELU_TANH or GELU


class Places(NamedTuple):
    """Where the flat array has what: parts of a layer from its beginning, which is at i `size`."""

    attn_norm: int
    qkv: int
    out: int
    ffn_norm: int
    up: int  # with the gate before it, if there is one
    down: int
    size: int
    norm: int  # the last norm and the head, from the beginning of the array
    head: int


class Model(NamedTuple):
    """All that stays the same from call to call."""

    shape: Shape
    places: Places
    weights: Array  # flat
    embedding: Array  # (V, D)
    positions: Array  # (context, D), or (context, 0) where nothing is added
    cos: Array  # (context, hd / 2), or (context, 0) where nothing is rotated
    sin: Array
    windows: Array  # (L,)
    eps: Any
    scale: Any


class Scratch(NamedTuple):
    """Arrays for a pass over some rows; all are flat, each row up to whole panels."""

    x: Array  # the stream
    h: Array  # norm(x)
    y: Array  # what the heads put out
    qkv: Array
    g: Array  # what goes into the activation, with its gate
    a: Array  # what comes out of it
    z: Array  # logits
    p: Array  # scores of one query, then its weights, for as many heads as lanes


class Guesses(NamedTuple):
    """What the model thought after some tokens, for when it meets the same tokens again."""

    entries: Array  # flat, ENTRY numbers (int32) in each: see `remember`
    rates: Array  # (ORDER + 1,): how often a guess from so many tokens came true lately
    counts: Array  # passes, rows in them, tokens drawn


class Rows(NamedTuple):
    """Tokens to process: what, in which sequence, at which position; (rows,) each."""

    ids: Array
    slots: Array
    positions: Array


# Types of what the largest functions take, for float32.
F, IDS = np.empty(0, np.float32), np.empty(0, np.int64)
FF, R = np.empty((0, 0), np.float32), np.float32(1)
MODEL = Model(Shape(1, 1, 1, 1, 1, 1, 1, True, 0), Places(*[0] * 9), F, FF, FF, FF, FF, IDS, R, R)
PASSING = tuple(map(numba.typeof, (MODEL, F, Rows(IDS, IDS, IDS), IDS, Scratch(*[F] * 8), FF)))
KEYS = np.empty(0, np.int32)
DRAWING = tuple(map(numba.typeof, (F, 1, (1.0, 1, 1.0), 1.0, KEYS, F, KEYS, FF)))


def _spread(builder: Any, value: Any) -> Any:
    """A number in every lane of a register."""
    undefined = ir.Constant(ir.VectorType(value.type, REGISTER), ir.Undefined)
    zero = ir.IntType(32)(0)
    mask = ir.Constant(ir.VectorType(ir.IntType(32), REGISTER), [0] * REGISTER)
    return builder.shuffle_vector(builder.insert_element(undefined, value, zero), undefined, mask)


def _product(rows: int, panels: int) -> Any:
    """y[r] += W x[r] for some rows and panels, with every sum in a register."""

    @intrinsic
    def product(
        typingctx: Any,
        w: Any,
        at: Any,
        x: Any,
        x_at: Any,
        x_step: Any,
        y: Any,
        y_at: Any,
        y_step: Any,
        inputs: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            data = [
                context.make_array(sig.args[n])(context, builder, args[n]).data for n in (0, 2, 5)
            ]
            at, x_at, x_step, y_at, y_step, inputs = (args[n] for n in (1, 3, 4, 6, 7, 8))
            element = data[0].type.pointee
            vector = ir.VectorType(element, REGISTER).as_pointer()
            align = sig.args[0].dtype.bitwidth // 8

            def index(base: Any, n: int, step: Any, more: int = 0) -> Any:
                start = builder.add(base, builder.mul(context.get_constant(types.intp, n), step))
                return builder.add(start, context.get_constant(types.intp, more))

            def pointer(n: int, where: Any) -> Any:
                return builder.bitcast(builder.gep(data[n], [where]), vector)

            panel = builder.mul(inputs, context.get_constant(types.intp, PANEL))
            outs = [
                pointer(2, index(y_at, r, y_step, c * REGISTER))
                for r in range(rows)
                for c in range(2 * panels)
            ]
            sums = [cgutils.alloca_once_value(builder, builder.load(p, align=align)) for p in outs]
            with cgutils.for_range(builder, inputs) as loop:
                begin = builder.add(
                    at, builder.mul(loop.index, context.get_constant(types.intp, PANEL))
                )
                columns = [
                    builder.load(pointer(0, index(begin, p, panel, c)), align=align)
                    for p in range(panels)
                    for c in (0, REGISTER)
                ]
                for r in range(rows):
                    where = builder.add(index(x_at, r, x_step), loop.index)
                    value = _spread(builder, builder.load(builder.gep(data[1], [where])))
                    for n, column in enumerate(columns):
                        total = sums[r * len(columns) + n]
                        builder.store(
                            builder.fadd(
                                builder.load(total),
                                builder.fmul(column, value, flags=CONTRACT),
                                flags=CONTRACT,
                            ),
                            total,
                        )
            for total, out in zip(sums, outs, strict=True):
                builder.store(builder.load(total), out, align=align)
            return context.get_dummy_value()

        i = types.intp
        return types.void(w, i, x, i, i, y, i, i, i), codegen

    return product


# As many sums as fill half of the registers; in each pair the second is for the panels left over.
one_wide, one_row = _product(1, ROWS // 2), _product(1, 1)
few_wide, few_rows = _product(FEW, 2), _product(FEW, 1)
many_rows = _product(ROWS, 1)


@intrinsic
def sum_lanes(typingctx: Any, x: Vector, period: Any) -> Any:
    """In every lane, the sum of the lanes that are a multiple of `period`, a power of 2, away."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        total = cgutils.alloca_once_value(builder, args[0])
        step = LANES // 2
        while step:
            near = builder.icmp_signed("<=", args[1], args[1].type(step))
            with builder.if_then(near):
                value = builder.load(total)
                mask = ir.Constant(
                    ir.VectorType(ir.IntType(32), LANES), [lane ^ step for lane in range(LANES)]
                )
                builder.store(
                    builder.fadd(value, builder.shuffle_vector(value, value, mask)), total
                )
            step //= 2
        return builder.load(total)

    return x(x, types.intp), codegen


@intrinsic
def reciprocal(typingctx: Any, x: Vector) -> Any:
    """1 / x, lane by lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        one = ir.Constant(args[0].type, [ir.Constant(args[0].type.element, 1.0)] * LANES)
        return builder.fdiv(one, args[0])

    return x(x), codegen


@inline
def height(rows):
    """Rows of scratch: `rows`, rounded up to those that a product takes together."""
    if rows == 1:
        return 1
    return FEW if rows <= FEW else (rows + ROWS - 1) // ROWS * ROWS


@outlined
def linear(w, at, x, inputs, x_step, y, outputs, rows, add):
    """y[r] = W x[r] + b, or added to y[r], for `height(rows)` rows; b and W begin at w[at]."""
    for r in range(rows):
        for n in range(outputs):
            i = U(r * outputs + n)
            y[i] = y[i] + w[U(at + n)] if add else w[U(at + n)]
    at += outputs
    panels = outputs // PANEL
    if rows == 1:
        wide = panels // (ROWS // 2) * (ROWS // 2) * PANEL
        for o in range(0, wide, ROWS // 2 * PANEL):
            one_wide(w, at + o * inputs, x, 0, 0, y, o, 0, inputs)
        for o in range(wide, outputs, PANEL):
            one_row(w, at + o * inputs, x, 0, 0, y, o, 0, inputs)
    elif rows <= FEW:
        wide = panels // 2 * 2 * PANEL
        for o in range(0, wide, 2 * PANEL):
            few_wide(w, at + o * inputs, x, 0, x_step, y, o, outputs, inputs)
        for o in range(wide, outputs, PANEL):
            few_rows(w, at + o * inputs, x, 0, x_step, y, o, outputs, inputs)
    else:
        for o in range(0, outputs, PANEL):
            for r in range(0, rows, ROWS):
                many_rows(
                    w, at + o * inputs, x, r * x_step, x_step, y, r * outputs + o, outputs, inputs
                )


# Helpers take an array and an offset, never a slice: making one counts references, atomically.


@inline
def norm(x, x_at, width, w, at, rms, eps, y, y_at):
    """RMS norm or layer norm of a row."""
    mean = square = x.dtype.type(0)
    if not rms:
        for n in range(width):
            mean += x[U(x_at + n)]
        mean /= x.dtype.type(width)
    for n in range(width):
        square += (x[U(x_at + n)] - mean) * (x[U(x_at + n)] - mean)
    r = x.dtype.type(1) / np.sqrt(square / x.dtype.type(width) + eps)
    for n in range(width):
        y[U(y_at + n)] = (x[U(x_at + n)] - mean) * r * w[U(at + n)] + w[U(at + width + n)]


@inline
def rotate(x, at, cos, sin, t, lanes, W, scale):
    """RoPE of as many heads as lanes, in place, and a factor."""
    for n in range(cos.shape[1]):  # none without RoPE
        c, s = cos[U(t), U(n)], sin[U(t), U(n)]
        for h in range(lanes):
            i = U(at + 2 * n * lanes + h)
            j = i + U(lanes)
            a, b = x[i], x[j]
            x[i], x[j] = a * c - b * s, a * s + b * c
    for n in range(W):
        x[U(at + n)] *= scale


@outlined
def attend(q, at, lanes, W, cache, keys, values, step, first, last, p, y, y_at):
    """A query of every lane's head over the cached keys first..last, softmax lane by lane.

    The key of position t begins at keys + t step of the cache, its value at values + t step; p is
    scratch for the weights.
    """
    zero = splat(q.dtype.type(0))
    m, l = splat(q.dtype.type(-np.inf)), zero
    for t in range(first, last + 1):
        s = zero
        for n in range(0, W, LANES):
            s = s + load(cache, keys + t * step + n) * load(q, at + n)
        s = sum_lanes(s, lanes)
        store(p, t * LANES, s)
        m = pick(m, s, m, s)
    for t in range(first, last + 1):
        e = exp_negative(load(p, t * LANES) - m)
        l = l + e
        store(p, t * LANES, e)
    inverse = reciprocal(l)
    wide = W // (8 * LANES) * (8 * LANES)
    for n in range(0, wide, 8 * LANES):
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = zero
        for t in range(first, last + 1):
            e, i = load(p, t * LANES), values + t * step + n
            s0 = s0 + load(cache, i) * e
            s1 = s1 + load(cache, i + LANES) * e
            s2 = s2 + load(cache, i + 2 * LANES) * e
            s3 = s3 + load(cache, i + 3 * LANES) * e
            s4 = s4 + load(cache, i + 4 * LANES) * e
            s5 = s5 + load(cache, i + 5 * LANES) * e
            s6 = s6 + load(cache, i + 6 * LANES) * e
            s7 = s7 + load(cache, i + 7 * LANES) * e
        i = y_at + n
        store(y, i, s0 * inverse)
        store(y, i + LANES, s1 * inverse)
        store(y, i + 2 * LANES, s2 * inverse)
        store(y, i + 3 * LANES, s3 * inverse)
        store(y, i + 4 * LANES, s4 * inverse)
        store(y, i + 5 * LANES, s5 * inverse)
        store(y, i + 6 * LANES, s6 * inverse)
        store(y, i + 7 * LANES, s7 * inverse)
    for n in range(wide, W, LANES):
        a = zero
        for t in range(first, last + 1):
            a = a + load(cache, values + t * step + n) * load(p, t * LANES)
        store(y, y_at + n, a * inverse)


@outlined
def keep(model, cache, layer, rows, begin, count, qkv, step):
    """Rotate the queries and keys of `count` rows; cache the keys and values, those of this layer
    from `layer` on."""
    group, blocks, lanes, W = (
        model.shape.group,
        model.shape.blocks,
        model.shape.lanes,
        model.shape.width,
    )
    cos, sin, T = model.cos, model.sin, model.shape.context
    one, width = qkv.dtype.type(1), blocks * W
    for r in range(count):
        t, row = rows.positions[begin + r], r * step
        at = layer + (2 * rows.slots[begin + r] * T + t) * width
        for n in range((group + 1) * blocks):
            scale = model.scale if n < group * blocks else one
            rotate(qkv, row + n * W, cos, sin, t, lanes, W, scale)
        for n in range(width):
            cache[U(at + n)] = qkv[U(row + group * width + n)]
            cache[U(at + T * width + n)] = qkv[U(row + (group + 1) * width + n)]


@outlined
def look_back(model, cache, layer, window, rows, row, qkv, q_at, p, y, y_at):
    """Let a row look at the keys and values of its sequence, up to its own; those of this layer
    are in the cache from `layer` on."""
    shape, t = model.shape, rows.positions[row]
    W, width = shape.width, shape.blocks * shape.width
    first = max(0, t - window + 1) if window > 0 else 0
    sequence = layer + 2 * rows.slots[row] * shape.context * width
    for n in range(shape.group * shape.blocks):
        keys = sequence + n % shape.blocks * W
        values, at = keys + shape.context * width, n * W
        attend(
            qkv, q_at + at, shape.lanes, W, cache, keys, values, width, first, t, p, y, y_at + at
        )


@inline
def activate(g, at, up, activation, width, y, y_at):
    """silu(g) u with u at an offset of `up`, or GELU of g by tanh or by erf."""
    one, half = g.dtype.type(1), g.dtype.type(0.5)
    if activation == SWIGLU:
        for n in range(width):
            z = g[U(at + n)]
            y[U(y_at + n)] = z / (one + exp(-z)) * g[U(at + up + n)]
    elif activation == GELU_TANH:
        c, a = g.dtype.type(2 * SQRT_2_PI), g.dtype.type(0.044715)
        for n in range(width):
            z = g[U(at + n)]
            y[U(y_at + n)] = z - z / (exp(c * (z + a * z * z * z)) + one)
    else:
        root = g.dtype.type(ROOT_HALF)
        for n in range(width):
            z = g[U(at + n)]
            y[U(y_at + n)] = half * z * (one + erf(z * root))


@inline
def padded(n):
    return (n + PANEL - 1) // PANEL * PANEL


@outlined
def scratch_for(model, rows):
    """`Scratch` for passes over at most so many rows."""
    shape, w, room = model.shape, model.weights, height(min(rows, BLOCK))
    width, D, F = shape.blocks * shape.width, padded(model.embedding.shape[1]), padded(shape.d_ff)
    heads = shape.group * width
    return Scratch(
        x=zeros(room * D, w),
        h=zeros(room * D, w),
        y=zeros(room * padded(heads), w),
        qkv=zeros(room * padded(heads + 2 * width), w),
        g=zeros(room * (2 * F if shape.activation == SWIGLU else F), w),
        a=zeros(room * F, w),
        z=zeros(room * padded(shape.vocab_size), w),
        p=zeros(shape.context * LANES, w),
    )


def pass_over(model, cache, rows, wanted, scratch, out):
    """Logits (len(wanted), V), into `out`, of the rows `wanted`; all rows' keys and values are
    cached."""
    shape, places, w, embedding = model.shape, model.places, model.weights, model.embedding
    ids, positions, windows, eps = rows.ids, rows.positions, model.windows, model.eps
    width, D, F, V = shape.blocks * shape.width, embedding.shape[1], shape.d_ff, shape.vocab_size
    heads, layer = shape.group * width, len(cache) // len(windows)
    # Numbers from row to row, which are whole panels: of x and h, y, qkv, a, z and (Gp) g.
    Dp, Ap, Cp, Fp, Vp = padded(D), padded(heads), padded(heads + 2 * width), padded(F), padded(V)
    Gp = 2 * Fp if shape.activation == SWIGLU else Fp
    x, h, y, qkv, g, a, z, p = scratch
    done = 0
    for begin in range(0, len(ids), BLOCK):
        count = min(BLOCK, len(ids) - begin)
        for r in range(count):
            token, place = ids[begin + r], positions[begin + r]
            for n in range(D):
                x[U(r * Dp + n)] = embedding[U(token), U(n)]
            for n in range(model.positions.shape[1]):
                x[U(r * Dp + n)] += model.positions[U(place), U(n)]
        asked, end = 0, begin + count
        while done + asked < len(wanted) and wanted[done + asked] < end:
            asked += 1
        for i in range(len(windows)):
            at, window = i * places.size, windows[i]
            for r in range(count):
                norm(x, r * Dp, D, w, at + places.attn_norm, shape.rms, eps, h, r * Dp)
            linear(w, at + places.qkv, h, D, Dp, qkv, Cp, count, False)
            keep(model, cache, i * layer, rows, begin, count, qkv, Cp)
            if i == len(windows) - 1:  # from here on the rows that nobody asked for do not matter
                for r in range(asked):
                    row = wanted[done + r] - begin
                    for n in range(D):
                        x[U(r * Dp + n)] = x[U(row * Dp + n)]
                    for n in range(heads):
                        qkv[U(r * Cp + n)] = qkv[U(row * Cp + n)]
                count = asked
            for r in range(count):
                row = begin + r if i < len(windows) - 1 else wanted[done + r]
                look_back(model, cache, i * layer, window, rows, row, qkv, r * Cp, p, y, r * Ap)
            linear(w, at + places.out, y, heads, Ap, x, Dp, count, True)
            for r in range(count):
                norm(x, r * Dp, D, w, at + places.ffn_norm, shape.rms, eps, h, r * Dp)
            linear(w, at + places.up, h, D, Dp, g, Gp, count, False)
            for r in range(count):
                activate(g, r * Gp, Fp, shape.activation, F, a, r * Fp)
            linear(w, at + places.down, a, F, Fp, x, Dp, count, True)
        for r in range(asked):
            norm(x, r * Dp, D, w, places.norm, shape.rms, eps, h, r * Dp)
        if asked:
            linear(w, places.head, h, D, Dp, z, Vp, asked, False)
        for r in range(asked):
            for n in range(V):
                out[U(done + r), U(n)] = z[U(r * Vp + n)]
        done += asked


of_float32, of_any = shared(*PASSING)(jit(pass_over)), outlined(pass_over)


@overload(pass_over)
def _pass_over(model, cache, rows, wanted, scratch, out):
    """The kernels share one for float32, the largest part of each; others have one of their own."""
    do = of_float32 if (model, cache, rows, wanted, scratch, out) == PASSING else of_any
    return lambda model, cache, rows, wanted, scratch, out: do(
        model, cache, rows, wanted, scratch, out
    )


@inline
def folded(key, counter):
    """One round of `minitensor.random.fold`."""
    key = np.uint64(key ^ np.uint64(counter)) + np.uint64(0x9E3779B97F4A7C15)
    key = np.uint64(key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = np.uint64(key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))


@outlined
def edge_of(keys, weights, wanted):
    """A key such that the weights of the keys from there on add up to `wanted`, and those of the
    keys above do not: the largest that does, or one that leaves out the same keys.

    The range of the keys is halved until there is at most one of them left in it.
    """
    low, high = np.int64(keys.min()), np.int64(keys.max()) + 1
    within = len(keys)  # keys from low on, and not from high on
    above = 0
    while high - low > 1 and within > 1:
        middle = np.int32(low + (high - low) // 2)
        total, count = 0.0, 0
        for n in range(len(keys)):
            total += weights[n] if keys[n] >= middle else np.float32(0)
            count += keys[n] >= middle
        if total >= wanted:
            low, within = np.int64(middle), count - above
        else:
            high, within, above = np.int64(middle), within - (count - above), count
    return low


@inline
def take(logits, r, V, z):
    """The first V logits of row r, into z."""
    for n in range(V):
        z[U(n)] = logits[U(r), U(n)]


@shared(*DRAWING)
@jit
def draw(z, V, choice, u, keys, weights, likely, edges):
    """A token from V logits z, drawn with the uniform number u; -1 for NaN.

    `choice` is temperature, top_k and top_p; keys and weights are scratch for V numbers, weights
    for whole vectors. The likeliest tokens, and which of the numbers from 0 to 1 would draw them,
    are left in likely (LIKELY,), filled up with -1, and edges (LIKELY, 2).

    The k-th largest logit and the edge of the nucleus are found by halving the range of the
    logits' bit patterns, which needs no sorting: as integers they are ordered like the floats once
    those of negative ones are turned around.
    """
    temperature, top_k, top_p = choice
    best, wrong, likely[:] = np.float32(-np.inf), 0, -1
    for n in range(V):
        value = z[U(n)]
        best = max(best, value)
        wrong += value != value
    if wrong or not np.isfinite(best):
        return -1
    factor = np.float32(1 / temperature)
    if not 0 < factor < np.inf:  # 0, or so near that its inverse is infinite
        for n in range(V):
            if z[U(n)] == best:
                likely[0], edges[0, 0], edges[0, 1] = n, 0, 1
                return n
    few = 0 < top_k < V
    if few or top_p < 1:
        bits = z.view(np.int32)
        for n in range(V):
            turned = bits[U(n)] ^ ((bits[U(n)] >> np.int32(31)) & np.int32(0x7FFFFFFF))
            keys[U(n)] = turned if z[U(n)] != 0 else np.int32(0)  # zero has two signs
    total = 0.0
    if few:
        weights[:V] = 1
        edge = edge_of(keys, weights, top_k)
        for n in range(V):
            weight = exp((z[U(n)] - best) * factor) if keys[U(n)] >= edge else np.float32(0)
            weights[U(n)] = weight
            total += weight
    else:
        for n in range(V):
            weight = exp((z[U(n)] - best) * factor)
            weights[U(n)] = weight
            total += weight
    if top_p < 1:
        edge = edge_of(keys, weights, top_p * total)
        total = 0.0
        for n in range(V):
            weights[U(n)] = weights[U(n)] if keys[U(n)] >= edge else np.float32(0)
            total += weights[U(n)]
    # The token at which the running sum passes u; whole vectors without it, or a likely one, are
    # passed over.
    target, least, before = u * total, np.float32(LIKELY_SHARE * total), 0.0
    token, found = -1, 0
    for b in range(0, V, LANES):
        some, most = 0.0, np.float32(0)
        for n in range(b, b + LANES):
            some += weights[U(n)]
            most = max(most, weights[U(n)])
        if most >= least or (token < 0 and before + some > target):
            sum_ = before
            for n in range(b, b + LANES):
                weight = weights[U(n)]
                after = sum_ + weight
                if token < 0 and weight > 0 and after > target:
                    token = n
                if weight >= least and found < LIKELY:
                    likely[found], edges[found, 0], edges[found, 1] = n, sum_ / total, after / total
                    found += 1
                sum_ = after
        before += some
    if token < 0:  # the sum does not pass a u next to 1
        token = V - 1
        while weights[token] == 0:
            token -= 1
    return token


@outlined
def room_to_draw(V):
    """Scratch for `draw`: z, keys, weights, likely, edges."""
    return (
        np.empty(V, np.float32),
        np.empty(V, np.int32),
        np.zeros(V + LANES, np.float32),
        np.empty(LIKELY, np.int32),
        np.empty((LIKELY, 2), np.float32),
    )


@inline
def hashed(past, s, end, order):
    """64 bits of the `order` tokens before `end`."""
    h = np.uint64(order)
    for n in range(order):
        h = (h ^ np.uint64(past[s, end - 1 - n])) * np.uint64(0x9E3779B97F4A7C15)
        h ^= h >> np.uint64(29)
    return h


@outlined
def remember(entries, past, s, end, likely, edges):
    """Keep what `draw` found likely after the 1, 2, … ORDER tokens before `end`.

    An entry is a line of the cache: bits of the hash, to know it again, then the tokens, then where
    each begins and ends among the numbers that it is drawn with. A newer one takes its place.
    """
    as_floats = entries.view(np.float32)
    for order in range(1, ORDER + 1):
        h = hashed(past, s, end, order)
        at = (h >> np.uint64(40)) % np.uint64(ENTRIES) * np.uint64(ENTRY)
        entries[at] = np.int32(h)
        for k in range(LIKELY):
            entries[at + U(1 + k)] = likely[k]
            as_floats[at + U(1 + LIKELY + 2 * k)] = edges[k, 0]
            as_floats[at + U(2 + LIKELY + 2 * k)] = edges[k, 1]


@outlined
def guess(entries, past, s, end, u):
    """The token that u would have drawn when the model last met the longest of the contexts that
    end here, and how long that one is; (-1, 0) if it was none of the likely ones.
    """
    as_floats = entries.view(np.float32)
    for order in range(ORDER, 0, -1):
        h = hashed(past, s, end, order)
        at = (h >> np.uint64(40)) % np.uint64(ENTRIES) * np.uint64(ENTRY)
        if entries[at] == np.int32(h):
            for k in range(LIKELY):
                low = as_floats[at + U(1 + LIKELY + 2 * k)]
                high = as_floats[at + U(2 + LIKELY + 2 * k)]
                if entries[at + U(1 + k)] >= 0 and low <= u < high:
                    return entries[at + U(1 + k)], order
            break
    return np.int32(-1), 0


@jit
def decode(model, cache, rows, wanted):
    """See `pass_over`."""
    out = np.empty((len(wanted), model.shape.vocab_size), model.weights.dtype)
    pass_over(model, cache, rows, wanted, scratch_for(model, len(rows.ids)), out)
    return out


@jit
def uniforms(key, sequences, begin, steps):
    """`drawing.uniform(seed, n, begin + i)` for each i < steps and n of `sequences` (N,), with the
    key `fold(seed)`: (steps, N)."""
    u = np.empty((steps, len(sequences)))
    for s in range(len(sequences)):
        first = folded(key, sequences[s])
        for i in range(steps):
            u[i, s] = np.float64(folded(first, begin + i) >> np.uint64(11)) * 2.0**-53
    return u


@jit
def choose(logits, choice, u):
    """A token for every row of logits (N, V), drawn with the uniform numbers u (N,): see `draw`."""
    V, out = logits.shape[1], np.empty(len(u), np.int64)
    choice = (choice.temperature, choice.top_k, choice.top_p)  # a tuple without a name
    z, keys, weights, likely, edges = room_to_draw(V)
    for r in range(len(u)):
        take(logits, r, V, z)
        out[r] = draw(z, V, choice, u[r], keys, weights, likely, edges)
    return out


@outlined
def plan(rows, most, done, u, past, guesses, into, first, ahead, orders):
    """The rows of the next pass, at most `most`, into `into`; how many, and how many tokens they
    are expected to give.

    Every sequence that is not done has its next token and, if there is room, tokens guessed ahead.
    Those of sequence s begin at first[s]; ahead and orders have what `guess` says of each row.
    """
    (steps, N), count, total, going = u.shape, 0, 0.0, 0
    for s in range(N):
        going += done[s] < steps
    for s in range(N):
        first[s] = count
        if done[s] == steps:
            continue
        quota, chance, expected = (most - count) // going, 1.0, 1.0
        going -= 1
        for n in range(min(quota, steps - done[s])):
            at, end = done[s] + n, ORDER + done[s] + n
            into.ids[count] = past[s, end - 1]
            into.slots[count] = rows.slots[s]
            into.positions[count] = rows.positions[s] + at
            ahead[count], orders[count] = guess(guesses.entries, past, s, end, u[at, s])
            chance *= guesses.rates[orders[count]]
            past[s, end] = ahead[count]
            count += 1
            if chance < ROW_COST * expected:
                break
            expected += chance
        total += expected
    first[N] = count
    return count, total


@jit
def write(model, cache, rows, vocab_size, choice, u, past, guesses, guessing):
    """Several tokens (steps, N) of sequences that go on with `rows`: `decode`, `choose`, by turns.

    u (steps, N). Of the logits the first `vocab_size` count. Between two passes over the weights
    nothing else is then fetched into the processor's cache. past (N, ORDER + steps) begins with the
    last tokens of each sequence, up to that of `rows`.

    With `guessing`, where a pass has room for rows that cost next to nothing, they are tokens
    guessed ahead: what the numbers u of the next steps would have drawn when the model last met the
    same few tokens. As long as the tokens that are drawn are those that were guessed, the rows that
    follow are rows of this text. A row is the same whatever else is computed: so is the text.
    """
    steps, N = u.shape
    choice = (choice.temperature, choice.top_k, choice.top_p)  # a tuple without a name
    room = max(ROWS, N + ROWS)
    into = Rows(np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.int64))
    ahead, orders = np.empty(room, np.int64), np.empty(room, np.int64)
    done, first, out = np.zeros(N, np.int64), np.empty(N + 1, np.int64), np.full((steps, N), -1)
    wanted = np.arange(room)
    scratch = scratch_for(model, room)
    logits = np.empty((room, model.shape.vocab_size), model.weights.dtype)
    z, keys, weights, likely, edges = room_to_draw(vocab_size)
    while True:
        going = 0
        for s in range(N):
            going += done[s] < steps
        if going == 0:
            return out
        most = going if not guessing else FEW if going <= FEW else height(going)
        count, expected = plan(rows, most, done, u, past, guesses, into, first, ahead, orders)
        if guessing and most == FEW == count and expected > 0.75 * FEW:
            # Twice as many rows cost half as much again.
            count, more = plan(rows, ROWS, done, u, past, guesses, into, first, ahead, orders)
            if more < 1.5 * expected:
                count, _ = plan(rows, FEW, done, u, past, guesses, into, first, ahead, orders)
        now = Rows(into.ids[:count], into.slots[:count], into.positions[:count])
        pass_over(model, cache, now, wanted[:count], scratch, logits)
        guesses.counts[0] += 1
        guesses.counts[1] += count
        for s in range(N):
            for r in range(first[s], first[s + 1]):
                end = ORDER + done[s]
                take(logits, r, vocab_size, z)
                token = draw(z, vocab_size, choice, u[done[s], s], keys, weights, likely, edges)
                if token < 0:
                    return out
                out[done[s], s] = past[s, end] = token
                if most > going and likely[0] >= 0:
                    remember(guesses.entries, past, s, end, likely, edges)
                hit = np.float32(ahead[r] == token)
                guesses.rates[orders[r]] += RATE * (hit - guesses.rates[orders[r]])
                guesses.counts[2] += 1
                done[s] += 1
                if not hit:
                    break
