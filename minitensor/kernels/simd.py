"""A vector of LANES numbers as a numba type, for kernels whose sums must stay in registers.

LLVM vectorises simple loops by itself, but it cannot keep a tile of sums in registers across an
outer loop, and that is what separates a fast small matrix product from a slow one. So attention and
the matrix products are written on explicit vectors: ``load`` and ``store`` move LANES neighbours of
a flat array, and the operators work lane by lane. On a machine without AVX-512 a vector has 8 lanes
instead of 16.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.typing import Signature, signature
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import intrinsic, lower_builtin, models, register_model

from minitensor.kernels.compiling import inline

LANES = 16 if llvm.get_host_cpu_features().get("avx512f") else 8
# 2**r on |r| ≤ 1/2, fitted to minimise the largest relative error (1e-7).
EXP2 = (1.0, 0.693147206, 0.240226469, 0.0555032878, 0.00961848897, 0.00133999312, 0.000153458075)
LOG2E = 1 / math.log(2)
CONTRACT = ("contract",)  # multiply-adds may fuse; nothing else is rearranged


class Vector(types.Type):
    """LANES numbers of one dtype."""

    def __init__(self, dtype: types.Type):
        self.dtype = dtype
        super().__init__(f"Vector({dtype} x {LANES})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vector):
        super().__init__(
            dmm, fe_type, ir.VectorType(dmm.lookup(fe_type.dtype).get_value_type(), LANES)
        )


def _shuffle(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    """A vector of the `lanes` of a and b side by side."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), LANES), lanes))


def splat_ir(builder: Any, x: Any) -> Any:
    one = builder.insert_element(
        ir.Constant(ir.VectorType(x.type, LANES), ir.Undefined), x, ir.Constant(ir.IntType(32), 0)
    )
    return _shuffle(builder, one, one, [0] * LANES)


def _number(type_: Any, value: float) -> Any:
    return ir.Constant(ir.VectorType(type_, LANES), [ir.Constant(type_, value)] * LANES)


def _pointer(context: Any, builder: Any, array: Any, value: Any, index: Any) -> Any:
    data = context.make_array(array)(context, builder, value).data
    element = context.data_model_manager.lookup(array.dtype).get_value_type()
    return builder.bitcast(builder.gep(data, [index]), ir.VectorType(element, LANES).as_pointer())


@intrinsic
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """The LANES elements of a flat array from `index` on."""

    def codegen(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1])
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return Vector(array.dtype)(array, types.intp), codegen


@intrinsic
def store(typingctx: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write a vector to the LANES elements of a flat array from `index` on."""

    def codegen(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1])
        builder.store(args[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), codegen


def _first(builder: Any, count: Any) -> Any:
    """A mask of the first `count` lanes."""
    i32 = ir.IntType(32)
    steps = ir.Constant(ir.VectorType(i32, LANES), [ir.Constant(i32, n) for n in range(LANES)])
    return builder.icmp_signed("<", steps, splat_ir(builder, builder.trunc(count, i32)))


def _masked(builder: Any, what: str, returns: Any, arguments: list[Any]) -> Any:
    """Call llvm.masked.load or .store: lanes outside of the mask do not touch the memory."""
    vector = next(
        a.type
        for a in arguments
        if isinstance(a.type, ir.VectorType) and not isinstance(a.type.element, ir.IntType)
    )
    kind = {"float": "f32", "double": "f64"}[str(vector.element)]
    name = f"llvm.masked.{what}.v{LANES}{kind}.p0v{LANES}{kind}"
    function = builder.module.globals.get(name) or ir.Function(
        builder.module, ir.FunctionType(returns, [a.type for a in arguments]), name
    )
    return builder.call(function, arguments)


@intrinsic
def load_part(typingctx: Any, array: Any, index: Any, count: Any, rest: Any) -> Any:
    """`load` of the first `count` lanes; the others are `rest`, whatever is in memory there."""

    def codegen(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1])
        vector, align = pointer.type.pointee, ir.Constant(ir.IntType(32), array.dtype.bitwidth // 8)
        return _masked(
            builder,
            "load",
            vector,
            [pointer, align, _first(builder, args[2]), splat_ir(builder, args[3])],
        )

    return Vector(array.dtype)(array, types.intp, types.intp, array.dtype), codegen


@intrinsic
def store_part(typingctx: Any, array: Any, index: Any, vector: Any, count: Any) -> Any:
    """`store` of the first `count` lanes only."""

    def codegen(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1])
        align = ir.Constant(ir.IntType(32), array.dtype.bitwidth // 8)
        _masked(
            builder, "store", ir.VoidType(), [args[2], pointer, align, _first(builder, args[3])]
        )
        return context.get_dummy_value()

    return types.void(array, types.intp, vector, types.intp), codegen


@intrinsic
def swap_pairs(typingctx: Any, x: Any) -> Any:
    """Lanes 1, 0, 3, 2, …"""

    def codegen(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
        return _shuffle(builder, args[0], args[0], [n ^ 1 for n in range(LANES)])

    return x(x), codegen


@intrinsic
def interleave(typingctx: Any, x: Any) -> Any:
    """Lanes 0, h, 1, h + 1, …, where h = LANES / 2: the halves of x in turns."""

    def codegen(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
        lanes = [n // 2 + n % 2 * (LANES // 2) for n in range(LANES)]
        return _shuffle(builder, args[0], args[0], lanes)

    return x(x), codegen


@intrinsic
def sum_pairs(typingctx: Any, a: Any, b: Any) -> Any:
    """Lanes 0 + 1, 2 + 3, … of a, and then of b."""

    def codegen(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
        even, odd = (
            _shuffle(builder, args[0], args[1], [2 * n + m for n in range(LANES)]) for m in (0, 1)
        )
        return builder.fadd(even, odd)

    return a(a, b), codegen


@intrinsic
def splat_pair(typingctx: Any, array: Any, index: Any) -> Any:
    """array[index], array[index + 1] in turns in all lanes."""

    def codegen(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
        vector = _pointer(context, builder, sig.args[0], *args)
        two = ir.VectorType(vector.type.pointee.element, 2)
        pointer = builder.bitcast(vector, two.as_pointer())
        pair = builder.load(pointer, align=array.dtype.bitwidth // 8)
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [n % 2 for n in range(LANES)])
        return builder.shuffle_vector(pair, pair, lanes)

    return Vector(array.dtype)(array, index), codegen


@intrinsic
def transpose(typingctx: Any, a: Any, i: Any, step: Any, b: Any, j: Any, across: Any) -> Any:
    """b[j + k across + n] = a[i + n step + k] for k and n below LANES, both arrays flat.

    In log2(LANES) rounds the off-diagonal halves of 2 x 2 blocks change places, blocks of 1, 2, 4,
    … at a time: all in registers, where element by element would cost a store for each.
    """

    def codegen(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
        def pointer(array: int, start: Any, stride: Any, n: int) -> Any:
            offset = builder.add(start, builder.mul(stride, ir.Constant(stride.type, n)))
            return _pointer(context, builder, sig.args[array], args[array], offset)

        align = a.dtype.bitwidth // 8
        rows = [builder.load(pointer(0, args[1], args[2], n), align=align) for n in range(LANES)]
        size = 1
        while size < LANES:
            low, high = (
                [c + (c & size and LANES - size) for c in range(LANES)],
                [c + (LANES if c & size else size) for c in range(LANES)],
            )
            for n in (n for n in range(LANES) if not n & size):
                pair = rows[n], rows[n + size]
                rows[n], rows[n + size] = (_shuffle(builder, *pair, m) for m in (low, high))
            size *= 2
        for k in range(LANES):
            builder.store(rows[k], pointer(3, args[4], args[5], k), align=align)
        return context.get_dummy_value()

    index = types.intp
    return types.void(a, index, index, b, index, index), codegen


@intrinsic
def splat(typingctx: Any, x: Any) -> Any:
    """The number `x` in every lane."""

    def codegen(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
        return splat_ir(builder, args[0])

    return Vector(x)(x), codegen


@intrinsic
def iota(typingctx: Any, start: Any) -> Any:
    """start, start + 1, … (uint32)."""

    def codegen(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
        i32 = ir.IntType(32)
        steps = ir.Constant(ir.VectorType(i32, LANES), [ir.Constant(i32, n) for n in range(LANES)])
        return builder.add(splat_ir(builder, args[0]), steps)

    return Vector(types.uint32)(types.uint32), codegen


@intrinsic
def pick(typingctx: Any, a: Any, b: Any, x: Any, y: Any) -> Any:
    """Lane by lane: x where a >= b, else y."""

    def codegen(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
        if isinstance(a.dtype, types.Float):
            test = builder.fcmp_ordered(">=", args[0], args[1])
        else:
            test = builder.icmp_unsigned(">=", args[0], args[1])
        return builder.select(test, args[2], args[3])

    return x(a, b, x, y), codegen


def _by_lane(builder: Any, name: str, x: Any) -> Any:
    """An LLVM intrinsic of numbers, for each lane."""
    scalar = builder.module.declare_intrinsic(name, [x.type.element])
    out = x
    for n in range(LANES):
        lane = ir.Constant(ir.IntType(32), n)
        value = builder.call(scalar, [builder.extract_element(x, lane)])
        out = builder.insert_element(out, value, lane)
    return out


@intrinsic
def exp2_negative(typingctx: Any, x: Any) -> Any:
    """2**x for x ≤ 0, lane by lane; 0 from −127 down in float32, where NaN stays NaN."""

    def codegen(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
        kind, element = args[0].type, args[0].type.element
        if x.dtype != types.float32:  # float64 is there for proofs, so libm will do
            return _by_lane(builder, "llvm.exp2", args[0])
        low = _number(element, -127.0)
        v = builder.select(builder.fcmp_ordered("<", args[0], low), low, args[0])
        # Next to 1.5 · 2**23 the last bit of a float32 counts ones, so adding it rounds x to the
        # nearest integer n and leaves n in the last bits of the sum. The fence keeps fastmath from
        # cancelling what is added and taken off.
        magic, name = _number(element, 1.5 * 2**23), f"llvm.arithmetic.fence.v{LANES}f32"
        fence = builder.module.globals.get(name) or ir.Function(
            builder.module, ir.FunctionType(kind, [kind]), name
        )
        shifted = builder.call(fence, [builder.fadd(v, magic)])
        n = builder.call(fence, [builder.fsub(shifted, magic)])
        r = builder.fsub(v, n)  # |r| ≤ 1/2, exactly
        p = _number(element, EXP2[-1])
        for c in reversed(EXP2[:-1]):
            p = builder.fadd(
                builder.fmul(p, r, flags=CONTRACT), _number(element, c), flags=CONTRACT
            )
        # Times 2**n: n is added to the exponent's bits. At −127 that makes 1.0 a plain 0.
        i32 = ir.VectorType(ir.IntType(32), LANES)
        shift = builder.shl(builder.bitcast(shifted, i32), _number(ir.IntType(32), 23))
        return builder.bitcast(builder.add(builder.bitcast(p, i32), shift), kind)

    return x(x), codegen


@intrinsic
def log2(typingctx: Any, x: Any) -> Any:
    """The binary logarithm, lane by lane, of positive numbers that are not denormal."""

    def codegen(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
        kind, element = args[0].type, args[0].type.element
        if x.dtype != types.float32:
            return _by_lane(builder, "llvm.log2", args[0])
        # x = 2**n f with f from √½ to √2; log₂ f = 2/ln 2 · artanh((f − 1) / (f + 1)), a series.
        i32 = ir.VectorType(ir.IntType(32), LANES)
        bits, one = builder.bitcast(args[0], i32), _number(element, 1.0)
        n = builder.ashr(
            builder.sub(bits, _number(ir.IntType(32), 0x3F3504F3)), _number(ir.IntType(32), 23)
        )
        f = builder.bitcast(builder.sub(bits, builder.shl(n, _number(ir.IntType(32), 23))), kind)
        s = builder.fdiv(builder.fsub(f, one), builder.fadd(f, one))
        z, p = builder.fmul(s, s), _number(element, 2 * LOG2E / 7)
        for k in (5, 3, 1):
            p = builder.fadd(
                builder.fmul(p, z, flags=CONTRACT), _number(element, 2 * LOG2E / k), flags=CONTRACT
            )
        y = builder.fadd(builder.sitofp(n, kind), builder.fmul(p, s))
        return builder.select(builder.fcmp_unordered("uno", args[0], args[0]), args[0], y)

    return x(x), codegen


def _binary(python_operator: Callable[..., Any], float_op: str, int_op: str) -> None:
    """Make an operator work lane by lane; a number on the right goes to every lane.

    Told to numba directly: by `overload` each would be a function, to be compiled for itself.
    """

    @infer_global(python_operator)
    class Typing(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: Any, kws: Any) -> Any:
            a, b = args
            if not isinstance(a, Vector):
                return None
            return signature(a, a, b if isinstance(b, Vector) else a.dtype)

    @lower_builtin(python_operator, Vector, types.Any)
    def lower(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
        a, b = sig.args
        right = args[1] if isinstance(b, Vector) else splat_ir(builder, args[1])
        if isinstance(a.dtype, types.Float):
            return getattr(builder, float_op)(args[0], right, flags=CONTRACT)
        return getattr(builder, int_op)(args[0], right)


_binary(operator.add, "fadd", "add")
_binary(operator.sub, "fsub", "sub")
_binary(operator.mul, "fmul", "mul")
_binary(operator.truediv, "fdiv", "")
_binary(operator.xor, "", "xor")
_binary(operator.rshift, "", "lshr")
_binary(operator.lshift, "", "shl")


@inline
def exp_negative(x):  # type: ignore[no-untyped-def]
    """e**x for x ≤ 0, lane by lane."""
    return exp2_negative(x * LOG2E)


@inline
def larger(a, b):  # type: ignore[no-untyped-def]
    """The larger of two vectors, lane by lane; b where a is NaN."""
    return pick(a, b, a, b)


@inline
def aligned(size, like):  # type: ignore[no-untyped-def]
    """Flat scratch that begins at a cache line, so that no vector of it lies in two of them."""
    x = np.empty(size + 64, like.dtype)
    skip = -x.ctypes.data % 64 // x.itemsize
    return x[skip : skip + size]


@inline
def zeros(size, like):  # type: ignore[no-untyped-def]
    """`aligned` scratch, filled with zeros."""
    x = aligned(size, like)
    x[:] = 0
    return x


@inline
def whole(d):  # type: ignore[no-untyped-def]
    """A length rounded up to whole vectors."""
    return (d + LANES - 1) // LANES * LANES
