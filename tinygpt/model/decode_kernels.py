"""The loops of the compiled decoder: the model's pass over rows of tokens, and the choice of the
next ones.

Twins: `GPT.hidden` with a cache, and `sample.draw`; `compiled.py` makes the arguments.
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
from numba.extending import intrinsic

from minitensor.kernels.compiling import FASTMATH, erf, exp, inline, jit
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

REGISTER = 16 if llvm.get_host_cpu_features().get("avx512f") else 8  # float32 in a register
PANEL = 2 * REGISTER  # outputs that lie together
ROWS = REGISTER // 2  # rows that share the reading of a panel: half of all registers hold sums
FEW = ROWS // 2  # rows that share the reading of two
BLOCK = 64  # rows that go through all layers together, small enough for the cache
U = np.uintp  # unsigned indices need no check for negative ones
ROOT_HALF = 0.7071067811865476
part = numba.njit(fastmath=FASTMATH, nogil=True, error_model="numpy")  # a function of its own

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


class Rows(NamedTuple):
    """Tokens to process: what, in which sequence, at which position; (rows,) each."""

    ids: Array
    slots: Array
    positions: Array


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
def fold(typingctx: Any, x: Vector, period: Any) -> Any:
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


@part
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


@part
def attend(q, at, lanes, W, cache, keys, values, step, first, last, p, y, y_at):
    """A query of every lane's head over the cached keys first..last, softmax lane by lane."""
    zero = splat(q.dtype.type(0))
    m, l = splat(q.dtype.type(-np.inf)), zero
    for t in range(first, last + 1):
        s = zero
        for n in range(0, W, LANES):
            s = s + load(cache, keys + t * step + n) * load(q, at + n)
        s = fold(s, lanes)
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


@part
def attention(model, cache, layer, window, rows, begin, count, qkv, step, p, y, y_step):
    """Cache the keys and values of `count` rows, then let each look at those of its sequence."""
    group, blocks, lanes, W = (
        model.shape.group,
        model.shape.blocks,
        model.shape.lanes,
        model.shape.width,
    )
    cos, sin, T = model.cos, model.sin, model.shape.context
    slots, positions = rows.slots, rows.positions
    one, width = qkv.dtype.type(1), blocks * W
    for r in range(count):
        t, row = positions[begin + r], r * step
        at = layer + (2 * slots[begin + r] * T + t) * width
        for n in range((group + 1) * blocks):
            scale = model.scale if n < group * blocks else one
            rotate(qkv, row + n * W, cos, sin, t, lanes, W, scale)
        for n in range(width):
            cache[U(at + n)] = qkv[U(row + group * width + n)]
            cache[U(at + T * width + n)] = qkv[U(row + (group + 1) * width + n)]
    for r in range(count):
        t = positions[begin + r]
        first = max(0, t - window + 1) if window > 0 else 0
        for n in range(group * blocks):
            keys = layer + 2 * slots[begin + r] * T * width + n % blocks * W
            values, q_at, y_at = keys + T * width, r * step + n * W, r * y_step + n * W
            attend(qkv, q_at, lanes, W, cache, keys, values, width, first, t, p, y, y_at)


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


@part
def logits_of(model, cache, rows, wanted):
    """Logits (len(wanted), V) of the rows `wanted`; keys and values of all rows are cached."""
    shape, places, w, embedding = model.shape, model.places, model.weights, model.embedding
    ids, positions, windows, eps = rows.ids, rows.positions, model.windows, model.eps
    width, D, F, V = shape.blocks * shape.width, embedding.shape[1], shape.d_ff, shape.vocab_size
    heads, layer = shape.group * width, len(cache) // len(windows)
    Dp, Ap, Cp, Fp, Vp = padded(D), padded(heads), padded(heads + 2 * width), padded(F), padded(V)
    Gp = 2 * Fp if shape.activation == SWIGLU else Fp
    most = min(len(ids), BLOCK)
    room = height(most)
    x, h, y = zeros(room * Dp, w), zeros(room * Dp, w), zeros(room * Ap, w)
    qkv, g = zeros(room * Cp, w), zeros(room * Gp, w)
    a, z = zeros(room * Fp, w), zeros(room * Vp, w)
    p = zeros(shape.context * LANES, w)
    out, done = np.empty((len(wanted), V), w.dtype), 0
    for begin in range(0, len(ids), BLOCK):
        count = min(BLOCK, len(ids) - begin)
        for r in range(count):
            token, place = ids[begin + r], positions[begin + r]
            for n in range(D):
                x[U(r * Dp + n)] = embedding[U(token), U(n)]
            for n in range(model.positions.shape[1]):
                x[U(r * Dp + n)] += model.positions[U(place), U(n)]
        for i in range(len(windows)):
            at, window = i * places.size, windows[i]
            for r in range(count):
                norm(x, r * Dp, D, w, at + places.attn_norm, shape.rms, eps, h, r * Dp)
            linear(w, at + places.qkv, h, D, Dp, qkv, Cp, count, False)
            attention(model, cache, i * layer, window, rows, begin, count, qkv, Cp, p, y, Ap)
            linear(w, at + places.out, y, heads, Ap, x, Dp, count, True)
            for r in range(count):
                norm(x, r * Dp, D, w, at + places.ffn_norm, shape.rms, eps, h, r * Dp)
            linear(w, at + places.up, h, D, Dp, g, Gp, count, False)
            for r in range(count):
                activate(g, r * Gp, Fp, shape.activation, F, a, r * Fp)
            linear(w, at + places.down, a, F, Fp, x, Dp, count, True)
        asked = 0
        while done + asked < len(wanted) and wanted[done + asked] < begin + count:
            row = (wanted[done + asked] - begin) * Dp
            norm(x, row, D, w, places.norm, shape.rms, eps, h, asked * Dp)
            asked += 1
        if asked:
            linear(w, places.head, h, D, Dp, z, Vp, asked, False)
        for r in range(asked):
            for n in range(V):
                out[done + r, n] = z[U(r * Vp + n)]
        done += asked
    return out


@part
def edge_of(keys, weights, wanted):
    """The largest key such that the weights of the keys from there on add up to `wanted`."""
    low, high = np.int64(keys.min()), np.int64(keys.max()) + 1
    while high - low > 1:
        middle = np.int32(low + (high - low) // 2)
        total = 0.0
        for n in range(len(keys)):
            total += weights[n] if keys[n] >= middle else np.float32(0)
        if total >= wanted:
            low = np.int64(middle)
        else:
            high = np.int64(middle)
    return low


@part
def drawn(logits, choice, u):
    """A token for every row of logits (N, V), drawn with the uniform numbers u (N,); -1 for NaN.

    `choice` is a `sample.Choice`.

    The k-th largest logit and the edge of the nucleus are found by halving the range of the
    logits' bit patterns, which needs no sorting: as integers they are ordered like the floats once
    those of negative ones are turned around.
    """
    (N, V), (temperature, top_k, top_p) = logits.shape, choice
    out, z, weights = np.empty(N, np.int64), np.empty(V, np.float32), np.ones(V, np.float32)
    bits, keys = z.view(np.int32), np.empty(V, np.int32)
    for r in range(N):
        best, wrong = np.float32(-np.inf), 0
        for n in range(V):
            z[n] = logits[r, n]
            best = max(best, z[n])
            wrong += z[n] != z[n]
        if wrong or not np.isfinite(best):
            out[r] = -1
            continue
        for n in range(V):
            turned = bits[n] ^ ((bits[n] >> np.int32(31)) & np.int32(0x7FFFFFFF))
            keys[n] = turned if z[n] != 0 else np.int32(0)  # zero has two signs
        factor, total = np.float32(1 / temperature), 0.0
        cold = not 0 < factor < np.inf  # 0, or so near that its inverse is infinite
        edge = np.int64(keys.max() if cold else keys.min())
        if not cold and 0 < top_k < V:
            weights[:] = 1
            edge = edge_of(keys, weights, top_k)
        factor = np.float32(1) if cold else factor
        for n in range(V):
            weights[n] = exp((z[n] - best) * factor) if keys[n] >= edge else np.float32(0)
            total += weights[n]
        if top_p < 1:
            edge = max(edge, edge_of(keys, weights, top_p * total))
            total = 0.0
            for n in range(V):
                total += weights[n] if keys[n] >= edge else np.float32(0)
        left = 0.0 if cold else u[r] * total
        out[r] = -1
        for n in range(V):
            if keys[n] >= edge and weights[n] > 0:
                out[r] = n
                left -= weights[n]
                if left < 0:
                    break
    return out


@jit
def decode(model, cache, rows, wanted):
    """See `logits_of`."""
    return logits_of(model, cache, rows, wanted)


@jit
def choose(logits, choice, u):
    """See `drawn`."""
    return drawn(logits, choice, u)


@jit
def write(model, cache, rows, vocab_size, choice, u):
    """Several tokens (steps, N) of sequences that go on with `rows`: `decode`, `choose`, by turns.

    u (steps, N). Of the logits the first `vocab_size` count. Between two passes over the weights
    nothing else is then fetched into the processor's cache.
    """
    ids, slots, positions = rows
    out, wanted = np.full(u.shape, -1), np.arange(len(ids))
    for n in range(len(u)):
        logits = logits_of(model, cache, Rows(ids, slots, positions + n), wanted)
        if vocab_size < logits.shape[1]:
            logits = logits[:, :vocab_size].copy()
        ids = drawn(logits, choice, u[n])
        out[n] = ids
        if ids.min() < 0:
            break
    return out
