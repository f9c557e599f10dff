"""Element by element: arithmetic with broadcasting, choices, elementary functions.

For y = f(x) taken element by element the Jacobian is diagonal, so the backward is g * f'(x).
Operands of different shapes are broadcast as in NumPy; each vjp may return a gradient of the
broadcast shape, and the walk adds it up over the axes along which an operand was repeated.

Shapes: that of the operands after broadcasting. Dtypes: one for all operands, by the rule in
dtypes.py; arithmetic and choices keep integers. Errors: ValueError where shapes do not broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minitensor.dtypes import IndexArray
from minitensor.kernels.reference import erf as erf_array
from minitensor.op import op
from minitensor.tape import Array, Backward
from minitensor.tensor import Tensor

Rng = np.random.Generator
Cases = Iterator[tuple[tuple[Any, ...], dict[str, Any]]]  # inputs and options to check an op on
Forward = tuple[Array, Backward]  # what an op's function returns: a result, and its vjps


def drawn(
    rng: np.random.Generator, *shapes: tuple[int, ...], low: float = -2.0, high: float = 2.0
) -> tuple[Array, ...]:
    """One float64 array per shape, uniform in [low, high)."""
    return tuple(np.asarray(rng.uniform(low, high, shape)) for shape in shapes)


def unary_cases(low: float = -2.0, high: float = 2.0) -> Callable[[np.random.Generator], Cases]:
    def cases(rng: np.random.Generator) -> Cases:
        for shape in (3, 4), (), (0, 2), (2, 1, 3):
            yield drawn(rng, shape, low=low, high=high), {}

    return cases


def off_zero_cases(rng: np.random.Generator) -> Cases:
    """For functions with a kink at zero."""
    for shape in (3, 4), (0,), ():
        yield (np.asarray(rng.choice([-1.0, 1.0], shape) * rng.uniform(0.1, 2.0, shape)),), {}


def _binary(low: float = -2.0, high: float = 2.0) -> Callable[[np.random.Generator], Cases]:
    def cases(rng: np.random.Generator) -> Cases:
        for shapes in (
            ((3, 4), (3, 4)),
            ((3, 4), (4,)),
            ((), (2, 3)),
            ((2, 1, 3), (4, 1)),
            ((0, 3), (1, 3)),
        ):
            yield drawn(rng, *shapes, low=low, high=high), {}
        yield (*drawn(rng, (2, 3), low=low, high=high), 1.5), {}
        yield (1.5, *drawn(rng, (2, 3), low=low, high=high)), {}

    return cases


# --------------------------------------------------------------------------------------- arithmetic


@op(cases=_binary(), integers=True)
def add(a: Array, b: Array) -> Forward:
    """a + b. Both derivatives are 1, so the gradient passes to each operand unchanged."""
    return a + b, (lambda g: g, lambda g: g)


@op(cases=_binary(), integers=True)
def sub(a: Array, b: Array) -> Forward:
    """a - b. The gradient passes to a unchanged and to b with its sign flipped."""
    return a - b, (lambda g: g, lambda g: -g)


@op(cases=_binary(), integers=True)
def mul(a: Array, b: Array) -> Forward:
    """a * b. d(ab) = b da + a db, so a gets g * b and b gets g * a."""
    return a * b, (lambda g: g * b, lambda g: g * a)


@op(cases=_binary(0.5, 2.0))
def div(a: Array, b: Array) -> Forward:
    """a / b. d(a/b) = da / b - (a/b) db / b; with y = a / b, a gets g / b and b gets -g y / b."""
    y = a / b
    return y, (lambda g: g / b, lambda g: -g * y / b)


@op(cases=unary_cases(), integers=True)
def neg(x: Array) -> Forward:
    """-x; its derivative is -1, so the gradient is -g."""
    return -x, (lambda g: -g,)


def _power(x: Any, n: Any) -> Any:
    """x**n by products and square roots where possible; np.power takes several times as long."""
    if isinstance(n, np.ndarray) or not isinstance(x, np.ndarray):
        return np.power(x, n)
    if 2 * n != int(2 * n) or not -16 <= n <= 16 or (n < 0 and x.dtype.kind != "f"):
        return np.power(x, n)
    if n < 0:
        return 1.0 / _power(x, -n)
    square, left, factors = x, int(n), []
    while left:  # n in binary: x**6 = x**2 * x**4
        if left & 1:
            factors.append(square)
        left >>= 1
        if left:
            square = square * square
    if n != int(n):
        factors.append(np.sqrt(x))
    if not factors:
        return np.ones_like(x)
    y = factors.pop()  # x itself only if it is the one factor
    for factor in factors:
        y *= factor
    return y.copy() if y is x else y


def _pow_cases(rng: np.random.Generator) -> Cases:
    yield from _binary(0.5, 2.0)(rng)
    for n in (2, 3, 0.5, -0.5, -1, -2, 1, 0, 5, 2.5, 2.7, 20):
        yield (*drawn(rng, (2, 3), low=0.5), n), {}
    yield (*drawn(rng, (3, 2)), 3), {}


@op(cases=_pow_cases, integers=True)
def pow(x: Array, exponent: Array) -> Forward:
    """x ** n, by products for integers up to 16 and by square roots for halves.

    d(x^n) = n x^(n-1) dx + x^n ln(x) dn. Where n = 0 the first term is 0, and where x = 0 the
    second is if n >= 0, whatever the other factor (the limits, as PyTorch has them).
    """
    n = exponent
    y = _power(x, n)

    def base(g: Array) -> Array:
        if not isinstance(n, np.ndarray):
            return g * (n * _power(x, n - 1)) if n else np.zeros_like(g)
        slope = n * np.power(x, np.where(n == 0, 1, n - 1))
        return g * np.where(n == 0, 0, slope)

    def power(g: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = y * np.log(np.asarray(x, y.dtype))
        return g * np.where((x == 0) & (n >= 0), 0, slope)

    return y, (base, power)


@op(cases=off_zero_cases, integers=True)
def abs(x: Array) -> Forward:
    """|x|; the gradient is g * sign(x), with 0 at the kink."""
    return np.abs(x), (lambda g: g * np.sign(x),)


def _choice_cases(rng: np.random.Generator) -> Cases:
    a, b = drawn(rng, (3, 4), (3, 4))
    yield (rng.random((3, 4)) < 0.5, a, b), {}
    yield (rng.random((3, 1)) < 0.5, *drawn(rng, (4,), (2, 1, 1))), {}
    yield (rng.random((2, 3)) < 0.5, *drawn(rng, (2, 3)), -10.0), {}


@op(cases=_choice_cases, integers=True)
def where(condition: IndexArray, a: Array, b: Array) -> Forward:
    """a where the condition (booleans) holds, else b. Each gradient goes to the one it came from.

    The one not chosen gets 0, not 0 times something, so a NaN or infinity there does no harm.
    """
    condition = np.asarray(condition, dtype=bool)
    if not isinstance(a, np.ndarray) and not isinstance(b, np.ndarray):
        # Two Python numbers: float32 if either is a float, as of any number that stands alone.
        a = np.float32(a) if isinstance(a, float) or isinstance(b, float) else a
    return np.where(condition, a, b), (
        None,
        lambda g: np.where(condition, g, 0),
        lambda g: np.where(condition, 0, g),
    )


def _distinct(rng: np.random.Generator) -> Cases:
    """Two operands that differ by at least 0.1 everywhere."""
    for sa, sb in ((3, 4), (3, 4)), ((3, 1), (4,)), ((), (2, 2)), ((0, 2), (2,)):
        a = rng.permutation(math.prod(sa)) * 0.2
        b = rng.permutation(math.prod(sb)) * 0.2 + 0.1
        yield (a.reshape(sa), b.reshape(sb)), {}
    yield (rng.permutation(6).reshape(2, 3) * 0.2, 0.5), {}


def _chosen(y: Array, a: Any, b: Any, loses: Callable[[Any, Any], Any]) -> Forward:
    """The vjps of maximum and minimum: nothing to the operand that loses, half to each in a tie."""

    def share(mine: Any, other: Any) -> Callable[[Array], Array]:
        return lambda g: (
            g * np.where(loses(mine, other), 0, np.where(mine == other, 0.5, 1)).astype(g.dtype)
        )

    return y, (share(a, b), share(b, a))


@op(cases=_distinct, integers=True)
def maximum(a: Array, b: Array) -> Forward:
    """The larger of a and b. The gradient goes to the larger; in a tie each gets half of it.

    Beside a NaN neither is smaller: the result is NaN and both get the gradient, as in PyTorch.
    """
    return _chosen(np.maximum(a, b), a, b, np.less)


@op(cases=_distinct, integers=True)
def minimum(a: Array, b: Array) -> Forward:
    """The smaller of a and b; ties and NaN as in `maximum`."""
    return _chosen(np.minimum(a, b), a, b, np.greater)


def masked_fill(x: Any, mask: Any, value: Any) -> Tensor:
    """x with `value` where the mask (booleans) is true: ``where(mask, value, x)``."""
    return where(mask, value, x)


def _clip_cases(rng: np.random.Generator) -> Cases:
    x = rng.permutation(12).reshape(3, 4) * 0.2
    for limits in ({"low": 0.5, "high": 1.5}, {"low": 0.7}, {"high": 1.1}):
        yield (x,), limits


@op(cases=_clip_cases, integers=True)
def clip(x: Array, low: float | None = None, high: float | None = None) -> Forward:
    """min(max(x, low), high); a limit of None is left out.

    The gradient passes where low <= x <= high, limits included, and is 0 outside. With low > high
    every element becomes high, and none has a gradient.
    """
    if low is None and high is None:
        raise ValueError("clip: give low, high or both")
    if x.dtype.kind != "f" and (isinstance(low, float) or isinstance(high, float)):
        x = x.astype(np.float32)  # as where a float stands beside integers
    inside: Any = True
    if low is not None:
        inside = x >= low
    if high is not None:
        inside = inside & (x <= high)
    return np.clip(x, low, high), (lambda g: g * inside,)


def _remainder_cases(rng: np.random.Generator) -> Cases:
    """Quotients at least 0.2 away from every jump."""
    for shape in (3, 4), (2, 1):
        b = rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 2, shape)
        yield (b * (rng.integers(-3, 3, shape) + rng.uniform(0.2, 0.8, shape)), b), {}
    yield (rng.uniform(0.3, 1.2, 4), 1.5), {}


def _no_zero(a: Any, b: Any) -> None:
    if np.asarray(a).dtype.kind != "f" and not np.all(b):
        raise ValueError("integers cannot be divided by 0")


@op(cases=_remainder_cases, integers=True)
def remainder(a: Array, b: Array) -> Forward:
    """a % b = a - b floor(a / b), with the sign of b as in Python.

    Between the jumps floor is constant: a gets g, and b gets -g floor(a / b).
    """
    _no_zero(a, b)
    return np.remainder(a, b), (lambda g: g, lambda g: -g * np.floor_divide(a, b))


@op(cases=_remainder_cases, integers=True)
def floor_divide(a: Array, b: Array) -> Forward:
    """a // b = floor(a / b); constant between its jumps, so the gradients are 0."""
    _no_zero(a, b)
    return np.floor_divide(a, b), (np.zeros_like, np.zeros_like)


# ----------------------------------------------------------------------------- elementary functions


@op(cases=unary_cases())
def exp(x: Array) -> Forward:
    """e^x. It is its own derivative: g * y."""
    y = np.exp(x)
    return y, (lambda g: g * y,)


@op(cases=unary_cases(0.5))
def log(x: Array) -> Forward:
    """ln x; its derivative is 1/x, so the gradient is g / x."""
    return np.log(x), (lambda g: g / x,)


@op(cases=unary_cases())
def expm1(x: Array) -> Forward:
    """e^x - 1, exact near 0 too; its derivative is e^x = y + 1."""
    y = np.expm1(x)
    return y, (lambda g: g * (y + 1),)


@op(cases=unary_cases(-0.5))
def log1p(x: Array) -> Forward:
    """ln(1 + x), exact near 0 too; its derivative is 1 / (1 + x)."""
    return np.log1p(x), (lambda g: g / (1 + x),)


@op(cases=unary_cases(0.5))
def sqrt(x: Array) -> Forward:
    """The square root y. From y² = x: 2y dy = dx, so the gradient is g / 2y."""
    y = np.sqrt(x)
    return y, (lambda g: g * 0.5 / y,)


@op(cases=unary_cases(0.5))
def rsqrt(x: Array) -> Forward:
    """y = 1 / sqrt(x). From y = x^(-1/2): dy = -1/2 x^(-3/2) dx, so the gradient is -g y³ / 2."""
    y = 1.0 / np.sqrt(x)
    return y, (lambda g: g * -0.5 * (y * y * y),)


@op(cases=unary_cases())
def sin(x: Array) -> Forward:
    """sin x; the gradient is g cos x."""
    return np.sin(x), (lambda g: g * np.cos(x),)


@op(cases=unary_cases())
def cos(x: Array) -> Forward:
    """cos x; the gradient is -g sin x."""
    return np.cos(x), (lambda g: -g * np.sin(x),)


@op(cases=unary_cases())
def tanh(x: Array) -> Forward:
    """y = tanh x. d tanh = 1 - tanh², so the gradient is g (1 - y²)."""
    y = np.tanh(x)
    return y, (lambda g: g * (1 - y * y),)


@op(cases=unary_cases())
def erf(x: Array) -> Forward:
    """2/sqrt(pi) times the integral of exp(-t²) from 0 to x; the derivative is the integrand."""
    return erf_array(x), (lambda g: g * (2.0 / math.sqrt(math.pi)) * np.exp(-x * x),)
