"""A vector of LANES numbers as a numba type, for the one kernel that must stay in registers.

LLVM vectorises simple loops by itself, but it cannot keep a tile of sums in registers across an
outer loop, and that is what separates a fast small matrix product from a slow one. So attention is
written on explicit vectors: ``load`` and ``store`` move LANES neighbours of a flat array, and the
operators work lane by lane. On a machine without AVX-512 a vector has 8 lanes instead of 16.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core.typing import Signature
from numba.extending import intrinsic, models, overload, register_model

from minitensor.kernels._jit import inline

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
        super().__init__(dmm, fe_type, ir.VectorType(dmm.lookup(fe_type.dtype).get_value_type(),
                                                     LANES))


def _shuffle(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    """A vector of the `lanes` of a and b side by side."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), LANES), lanes))


def _splat(builder: Any, x: Any) -> Any:
    one = builder.insert_element(ir.Constant(ir.VectorType(x.type, LANES), ir.Undefined), x,
                                 ir.Constant(ir.IntType(32), 0))
    return _shuffle(builder, one, one, [0] * LANES)


def _number(type_: Any, value: float) -> Any:
    return ir.Constant(ir.VectorType(type_, LANES), [ir.Constant(type_, value)] * LANES)


def _pointer(context: Any, builder: Any, array: Any, value: Any, index: Any) -> Any:
    data = context.make_array(array)(context, builder, value).data
    element = context.data_model_manager.lookup(array.dtype).get_value_type()
    return builder.bitcast(builder.gep(data, [index]),
                           ir.VectorType(element, LANES).as_pointer())


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
            low, high = ([c + (c & size and LANES - size) for c in range(LANES)],
                         [c + (LANES if c & size else size) for c in range(LANES)])
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
        return _splat(builder, args[0])
    return Vector(x)(x), codegen


@intrinsic
def iota(typingctx: Any, start: Any) -> Any:
    """start, start + 1, … (uint32)."""
    def codegen(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
        i32 = ir.IntType(32)
        steps = ir.Constant(ir.VectorType(i32, LANES), [ir.Constant(i32, n) for n in range(LANES)])
        return builder.add(_splat(builder, args[0]), steps)
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


@intrinsic
def exp2_negative(typingctx: Any, x: Any) -> Any:
    """2**x for x ≤ 0, lane by lane; 0 below −125 in float32, where NaN stays NaN."""
    def codegen(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
        kind, element = args[0].type, args[0].type.element
        if x.dtype != types.float32:  # float64 is there for proofs, so libm will do
            scalar = builder.module.declare_intrinsic("llvm.exp2", [element])
            out = args[0]
            for n in range(LANES):
                lane = ir.Constant(ir.IntType(32), n)
                value = builder.call(scalar, [builder.extract_element(args[0], lane)])
                out = builder.insert_element(out, value, lane)
            return out
        low = builder.fcmp_ordered("<", args[0], _number(element, -125.0))
        v = builder.select(low, _number(element, -125.0), args[0])
        name = f"llvm.rint.v{LANES}f32"
        rint = builder.module.globals.get(name) or ir.Function(
            builder.module, ir.FunctionType(kind, [kind]), name)
        n = builder.call(rint, [v])
        r = builder.fsub(v, n)  # |r| ≤ 1/2, exactly
        p = _number(element, EXP2[-1])
        for c in reversed(EXP2[:-1]):
            p = builder.fadd(builder.fmul(p, r, flags=CONTRACT), _number(element, c),
                             flags=CONTRACT)
        # Times 2**n: n is added to the exponent's bits.
        i32 = ir.VectorType(ir.IntType(32), LANES)
        shift = builder.shl(builder.fptosi(n, i32), _number(ir.IntType(32), 23))
        y = builder.bitcast(builder.add(builder.bitcast(p, i32), shift), kind)
        return builder.select(low, _number(element, 0.0), y)
    return x(x), codegen


def _binary(python_operator: Callable[..., Any], float_op: str, int_op: str) -> None:
    """Make an operator work lane by lane; a number on the right goes to every lane."""
    @intrinsic
    def apply(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Signature, args: Any) -> Any:
            right = args[1] if isinstance(b, Vector) else _splat(builder, args[1])
            if isinstance(a.dtype, types.Float):
                return getattr(builder, float_op)(args[0], right, flags=CONTRACT)
            return getattr(builder, int_op)(args[0], right)
        return a(a, b if isinstance(b, Vector) else a.dtype), codegen

    @overload(python_operator)
    def typed(a, b):  # type: ignore[no-untyped-def]
        if isinstance(a, Vector):
            return lambda a, b: apply(a, b)
        return None


_binary(operator.add, "fadd", "add")
_binary(operator.sub, "fsub", "sub")
_binary(operator.mul, "fmul", "mul")
_binary(operator.xor, "", "xor")
_binary(operator.rshift, "", "lshr")
_binary(operator.lshift, "", "shl")


@inline
def exp_negative(x):  # type: ignore[no-untyped-def]
    """e**x for x ≤ 0, lane by lane."""
    return exp2_negative(x * LOG2E)


@inline
def larger(a, b):  # type: ignore[no-untyped-def]
    """The larger number of each lane."""
    return pick(a, b, a, b)
