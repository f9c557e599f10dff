"""Matrix products: x Wᵀ, g W and gᵀ x of a linear map (twins: reference.py).

BLAS copies both operands into an order of its own before it multiplies: a sixth of its time at the
sizes of a small model. Here one is copied, in panels of 2 LANES columns, and `tile` keeps ROWS x 2
LANES sums in registers while it walks down a panel: each step multiplies ROWS numbers of the other
operand with two vectors of the panel.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from minitensor.kernels import reference
from minitensor.kernels.compiling import inline, jit, outlined, shared
from minitensor.kernels.simd import (
    CONTRACT,
    LANES,
    aligned,
    load,
    load_part,
    splat_ir,
    store,
    transpose,
)

ROWS = 12 if LANES == 16 else 6  # with two vectors each: 24 of 32 registers, or 12 of 16
WIDTH = 2 * LANES  # columns of a panel
DEPTH = 768  # terms that are summed in one go: 36 KB of ROWS rows, for the L1 cache
STRIPS = 8  # strips of ROWS columns that are copied together
CACHED = 2**17  # numbers in the panels in use at a time, 512 KB of float32: for the L2 cache
FLAT, INT = types.float32[::1], types.intp


@intrinsic
def tile(
    typingctx: Any,
    a: Any,
    i: Any,
    down: Any,
    across: Any,
    panel: Any,
    j: Any,
    count: Any,
    bias: Any,
    n: Any,
    out: Any,
    o: Any,
    step: Any,
    add: Any,
) -> Any:
    """out[o + r step + c] = bias[n + c] + Σ_k a[i + r down + k across] panel[j + k WIDTH + c], for
    r below ROWS and c below WIDTH; with `add`, that is added to out. All arrays are flat.

    Written in LLVM's language, since nothing else keeps this many sums in registers. In order: the
    rows of `out` are prefetched; `begin` loads the bias; the block "walk" is the loop over k, whose
    phi nodes are the ROWS x 2 sums, with a multiply-add for each; "walked" stores them.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        _, i, down, across, _, j, count, _, n, _, o, step, add = args
        align = a.dtype.bitwidth // 8
        constant = i.type  # called with a number it makes one

        def start(array: int, index: Any) -> Any:
            data = context.make_array(sig.args[array])(context, b, args[array]).data
            return b.gep(data, [index])

        def vectors(p: Any) -> list[Any]:
            """Addresses of the two vectors from an element on."""
            kind = ir.VectorType(p.type.pointee, LANES).as_pointer()
            return [b.bitcast(b.gep(p, [constant(c * LANES)]), kind) for c in range(2)]

        first, numbers, top = start(9, o), start(0, i), start(4, j)
        rows = [vectors(b.gep(first, [b.mul(step, constant(r))])) for r in range(ROWS)]
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        prefetch = b.module.declare_intrinsic(
            "llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte] + 3 * [word])
        )
        outs = [p for row in rows for p in row]
        for p in outs:  # prefetched: to be written, kept in every cache, data
            b.call(prefetch, [b.bitcast(p, byte), word(1), word(3), word(1)])
        begin = [b.load(p, align=align) for p in vectors(start(7, n))]
        before, loop, after = b.block, b.append_basic_block("walk"), b.append_basic_block("walked")
        b.branch(loop)  # count is at least 1
        b.position_at_end(loop)
        k = b.phi(i.type)
        sums = [[b.phi(x.type) for x in begin] for _ in range(ROWS)]
        pair = [b.load(p, align=align) for p in vectors(b.gep(top, [b.mul(k, constant(WIDTH))]))]
        following = b.add(k, constant(1))
        k.add_incoming(constant(0), before)
        k.add_incoming(following, loop)
        here = b.gep(numbers, [b.mul(k, across)])
        for r in range(ROWS):
            x = splat_ir(b, b.load(b.gep(here, [b.mul(down, constant(r))]), align=align))
            for c in range(2):
                total = b.fadd(b.fmul(x, pair[c], flags=CONTRACT), sums[r][c], flags=CONTRACT)
                sums[r][c].add_incoming(begin[c], before)
                sums[r][c].add_incoming(total, loop)
                sums[r][c] = total
        b.cbranch(b.icmp_signed("<", following, count), loop, after)
        b.position_at_end(after)
        with b.if_else(add) as (then, otherwise):
            for branch, old in ((then, True), (otherwise, False)):
                with branch:
                    for p, x in zip(outs, (x for row in sums for x in row), strict=True):
                        b.store(b.fadd(x, b.load(p, align=align)) if old else x, p, align=align)
        return context.get_dummy_value()

    i = types.intp
    return types.void(a, i, i, i, panel, i, i, bias, i, out, i, i, types.boolean), codegen


@outlined
def edge(a, i, down, across, panel, j, count, bias, n, out, o, step, add, skip, columns):
    """A `tile` of which only rows from `skip` on and `columns` columns are stored."""
    spare = np.empty(ROWS * WIDTH, a.dtype)
    tile(a, i, down, across, panel, j, count, bias, n, spare, 0, WIDTH, False)
    for r in range(skip, ROWS):
        for c in range(columns):
            x = spare[r * WIDTH + c]
            out[o + r * step + c] = out[o + r * step + c] + x if add else x


@inline
def sweep(a, i, down, across, panels, count, bias, out, o, columns, step, add, skip):
    """ROWS rows of `out` from o on: tile by tile over the panels, which are count x WIDTH each."""
    whole = columns // WIDTH * WIDTH if skip == 0 or not add else 0
    for n in range(0, whole, WIDTH):
        tile(a, i, down, across, panels, n * count, count, bias, n, out, o + n, step, add)
    for n in range(whole, columns, WIDTH):
        some, j = min(WIDTH, columns - n), n * count
        edge(a, i, down, across, panels, j, count, bias, n, out, o + n, step, add, skip, some)


@inline
def copy_rows(b, i, step, count, columns, panel, j):
    """panel[j + k WIDTH + c] = b[i + k step + c]."""
    for _ in range(count):
        if columns == WIDTH:
            store(panel, j, load(b, i))
            store(panel, j + LANES, load(b, i + LANES))
        else:
            for c in range(WIDTH):
                panel[j + c] = b[i + c] if c < columns else 0
        i += step
        j += WIDTH


@inline
def copy_columns(b, i, step, count, columns, panel, j):
    """panel[j + k WIDTH + c] = b[i + c step + k]."""
    whole = count // LANES * LANES
    for c in range(0, WIDTH, LANES):
        full = c + LANES <= columns
        if full:
            for k in range(0, whole, LANES):
                transpose(b, i + c * step + k, step, panel, j + k * WIDTH + c, WIDTH)
        for n in range(c, c + LANES):
            for k in range(whole if full else 0, count):
                panel[j + k * WIDTH + n] = b[i + n * step + k] if n < columns else 0


@shared(FLAT, INT, INT, types.boolean, INT, INT, FLAT)
@jit
def to_panels(b, i, wide, transposed, count, columns, panels):
    """Copy count x columns numbers of b, whose rows are `wide`, or of its transpose, into panels.
    Columns missing from the last panel are 0. (Books on BLAS call this packing.)"""
    for n in range(0, columns, WIDTH):
        some = min(WIDTH, columns - n)
        if transposed:
            copy_columns(b, i + n * wide, wide, count, some, panels, n * count)
        else:
            copy_rows(b, i + n, wide, count, some, panels, n * count)


@inline
def up_to(columns):
    """`columns` rounded up to whole panels."""
    return (columns + WIDTH - 1) // WIDTH * WIDTH


@inline
def even(length, limit):
    """The length of the equal parts, none above the limit, that `length` is cut into."""
    number = (length + limit - 1) // limit
    return (length + number - 1) // number


@shared(FLAT, INT, INT, INT, FLAT, INT, FLAT, FLAT, INT, INT, INT, types.boolean)
@jit
def multiply(a, i, down, rows, panels, count, bias, out, o, columns, step, add):
    """out[o + r step + n] = bias[n] + Σ_k a[i + r down + k] panels[k, n], for r below `rows`, n
    below `columns` and k below `count`; with `add`, that is added to out."""
    for m in range(0, rows, ROWS):
        r = min(m, rows - ROWS)  # the last strip goes back, to be whole
        strip, to = i + r * down, o + r * step
        sweep(a, strip, down, 1, panels, count, bias, out, to, columns, step, add, m - r)


@shared(FLAT, INT, INT, INT, FLAT, FLAT, FLAT, INT, types.boolean)
@jit
def multiply_transposed(a, i, M, rows, panels, bias, out, N, add):
    """out[m, n] = bias[n] + Σ_k a[i + k M + m] panels[k, n], k below `rows`; or added to out.

    Columns for a few strips of ROWS rows of aᵀ are copied at a time: so lines of cache are read
    whole, and what a tile reads lies side by side.
    """
    size = rows * ROWS + LANES
    strips = aligned(STRIPS * size, a)
    for first in range(0, M, STRIPS * ROWS):
        last = min(first + STRIPS * ROWS, M)
        for k in range(rows):
            for m in range(first, last, ROWS):  # a vector; the next row covers its surplus
                row = load_part(a, i + k * M + min(m, M - ROWS), ROWS, a.dtype.type(0))
                store(strips, (m - first) // ROWS * size + k * ROWS, row)
        for m in range(first, last, ROWS):
            r = min(m, M - ROWS)
            at = (m - first) // ROWS * size
            sweep(strips, at, 1, ROWS, panels, rows, bias, out, r * N, N, N, add, m - r)


@jit
def _product(a, b, transposed, bias, out):
    """out (M, N) = a (M, K) @ b + bias; b is (K, N), or (N, K) if `transposed`.

    `out` is finished strip by strip of ROWS rows, so that memory is read and written in order; the
    panels of b, which every strip needs, stay in the L2 cache.
    """
    (M, K), N, wide = a.shape, out.shape[1], b.shape[1]
    a, b, out = a.reshape(-1), b.reshape(-1), out.reshape(-1)
    depth = even(K, DEPTH)
    width = up_to(even(N, max(WIDTH, CACHED // depth)))
    panels, begin = aligned(depth * width, a), np.zeros(width, a.dtype)
    for k in range(0, K, depth):
        count = min(depth, K - k)
        for n in range(0, N, width):
            columns = min(width, N - n)
            first = n * wide + k if transposed else k * wide + n
            to_panels(b, first, wide, transposed, count, columns, panels)
            for c in range(columns):
                begin[c] = bias[n + c] if bias.size and k == 0 else 0
            multiply(a, k, K, M, panels, count, begin, out, n, columns, N, k > 0)


@jit
def _transposed_product(a, b, out, add):
    """out (M, N) = aᵀ b, a (K, M), b (K, N), or added to it; as many rows of b at a time as the L2
    cache holds."""
    (K, M), N = a.shape, b.shape[1]
    a, b, out = a.reshape(-1), b.reshape(-1), out.reshape(-1)
    depth = even(K, max(1, min(DEPTH, CACHED // up_to(N))))
    panels, nothing = aligned(depth * up_to(N), a), np.zeros(up_to(N), a.dtype)
    for k in range(0, K, depth):
        count = min(depth, K - k)
        to_panels(b, k * N, N, False, count, N, panels)
        multiply_transposed(a, k * M, M, count, panels, nothing, out, N, add or k > 0)


MATRIX = types.float32[:, ::1]
product = shared(MATRIX, MATRIX, types.boolean, FLAT, MATRIX)(_product)
transposed_product = shared(MATRIX, MATRIX, MATRIX, types.boolean)(_transposed_product)


# ------------------------------------------------------------------------ what the ops call


def suits(x: np.ndarray, weight: np.ndarray, outputs: int) -> bool:
    """Whether a product of x (N, I) with a weight of I x O numbers is done here. The smallest would
    be all edges; the largest are left to BLAS, which takes several threads for them if it may."""
    return (
        x.dtype == weight.dtype == np.float32
        and min(*x.shape, outputs) >= LANES
        and x.size * outputs <= 2**32
    )


def empty(*shape: int) -> np.ndarray:
    """An array of float32 that begins at a line of cache: no store then takes two."""
    spare = np.empty(math.prod(shape) + LANES, np.float32)
    first = -(spare.__array_interface__["data"][0] // 4) % LANES
    return spare[first : first + math.prod(shape)].reshape(shape)


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    if not suits(x, weight, len(weight)):
        return reference.linear(x, weight, bias)
    y = empty(len(x), len(weight))
    _product(x, weight, True, np.empty(0, x.dtype) if bias is None else bias, y)
    return y


def linear_dx(g: np.ndarray, weight: np.ndarray) -> np.ndarray:
    if not suits(g, weight, weight.shape[1]):
        return reference.linear_dx(g, weight)
    dx = empty(len(g), weight.shape[1])
    _product(g, weight, False, np.empty(0, g.dtype), dx)
    return dx


def linear_dw(g: np.ndarray, x: np.ndarray, dw: np.ndarray | None) -> np.ndarray:
    if not suits(g, x, x.shape[1]):
        return reference.linear_dw(g, x, dw)
    out = empty(g.shape[1], x.shape[1]) if dw is None else dw
    _transposed_product(g, x, out, dw is not None)
    return out
