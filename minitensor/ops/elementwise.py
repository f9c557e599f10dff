"""Element by element: arithmetic with broadcasting, elementary functions, activations.

For y = f(x) taken element by element the Jacobian is diagonal, so the backward is g * f'(x).
Operands of different shapes are broadcast as in NumPy; each vjp may return a gradient of the
broadcast shape, and the walk adds it up over the axes along which an operand was repeated.

Shapes: that of the operands after broadcasting. Dtypes: kept; a Python number, and an integer or
boolean array, takes the floating dtype of the other operand, so nothing is promoted by accident.
Errors: ValueError where shapes do not broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minitensor.kernels.reference import erf as erf_array
from minitensor.kernels.reference import sigmoid as sigmoid_array
from minitensor.tape import Array
from minitensor.tensor import op

Cases = Iterator[tuple[tuple[Any, ...], dict[str, Any]]]


def draw(
    rng: np.random.Generator, *shapes: tuple[int, ...], low: float = -2.0, high: float = 2.0
) -> tuple[Array, ...]:
    """One float64 array per shape, uniform in [low, high)."""
    return tuple(np.asarray(rng.uniform(low, high, shape)) for shape in shapes)


def _unary(low: float = -2.0, high: float = 2.0) -> Callable[[np.random.Generator], Cases]:
    def cases(rng: np.random.Generator) -> Cases:
        for shape in (3, 4), (), (0, 2), (2, 1, 3):
            yield draw(rng, shape, low=low, high=high), {}

    return cases


def _off_zero(rng: np.random.Generator) -> Cases:
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
            yield draw(rng, *shapes, low=low, high=high), {}
        yield (*draw(rng, (2, 3), low=low, high=high), 1.5), {}
        yield (1.5, *draw(rng, (2, 3), low=low, high=high)), {}

    return cases


def _pair(a: Any, b: Any) -> tuple[Any, Any]:
    """An integer or boolean array takes the floating dtype of the other operand."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.dtype != b.dtype:
        if a.dtype.kind == "f" and b.dtype.kind != "f":
            b = b.astype(a.dtype)
        elif b.dtype.kind == "f" and a.dtype.kind != "f":
            a = a.astype(b.dtype)
    return a, b


# --------------------------------------------------------------------------------------- arithmetic


@op(cases=_binary())
def add(a: Array, b: Array) -> Any:
    """a + b. Both derivatives are 1, so the gradient passes to each operand unchanged."""
    a, b = _pair(a, b)
    return a + b, (lambda g: g, lambda g: g)


@op(cases=_binary())
def sub(a: Array, b: Array) -> Any:
    """a - b. The gradient passes to a unchanged and to b with its sign turned."""
    a, b = _pair(a, b)
    return a - b, (lambda g: g, lambda g: -g)


@op(cases=_binary())
def mul(a: Array, b: Array) -> Any:
    """a * b. d(ab) = b da + a db, so a gets g * b and b gets g * a."""
    a, b = _pair(a, b)
    return a * b, (lambda g: g * b, lambda g: g * a)


@op(cases=_binary(0.5, 2.0))
def div(a: Array, b: Array) -> Any:
    """a / b. d(a/b) = da / b - (a/b) db / b; with y = a / b, a gets g / b and b gets -g y / b."""
    a, b = _pair(a, b)
    y = a / b
    return y, (lambda g: g / b, lambda g: -g * y / b)


@op(cases=_unary())
def neg(x: Array) -> Any:
    """-x; its derivative is -1, so the gradient is -g."""
    return -x, (lambda g: -g,)


def _power(x: Any, n: Any) -> Any:
    """x**n by products and square roots where they do; np.power takes several times as long."""
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
        yield (*draw(rng, (2, 3), low=0.5), n), {}
    yield (*draw(rng, (3, 2)), 3), {}


@op(cases=_pow_cases)
def pow(x: Array, exponent: Array) -> Any:
    """x ** n, by products for integers up to 16 and by square roots for halves.

    d(x^n) = n x^(n-1) dx + x^n ln(x) dn. Where n = 0 the first term is 0, and where x = 0 the
    second is, whatever the other factor (the limits, as PyTorch has them).
    """
    x, n = _pair(x, exponent)
    y = _power(x, n)

    def base(g: Array) -> Array:
        if not isinstance(n, np.ndarray):
            return g * (n * _power(x, n - 1)) if n else np.zeros_like(g)
        return g * (n * np.power(x, np.where(n == 0, 1, n - 1)))

    def power(g: Array) -> Array:
        if not isinstance(x, np.ndarray):
            return g * y * (math.log(x) if x > 0 else 0.0 if x == 0 else math.nan)
        return g * y * np.log(np.where(x == 0, 1, x))

    return y, (base, power)


@op(cases=_off_zero)
def abs(x: Array) -> Any:
    """|x|; the gradient is g * sign(x), with 0 at the kink."""
    return np.abs(x), (lambda g: g * np.sign(x),)


def _choice_cases(rng: np.random.Generator) -> Cases:
    a, b = draw(rng, (3, 4), (3, 4))
    yield (rng.random((3, 4)) < 0.5, a, b), {}
    yield (rng.random((3, 1)) < 0.5, *draw(rng, (4,), (2, 1, 1))), {}
    yield (rng.random((2, 3)) < 0.5, *draw(rng, (2, 3)), -10.0), {}


@op(cases=_choice_cases)
def where(condition: Array, a: Array, b: Array) -> Any:
    """a where the condition holds, else b. Each element's gradient goes to the one it came from.

    The one not chosen gets 0, not 0 times something, so a NaN or infinity there does no harm.
    """
    condition = np.asarray(condition, dtype=bool)
    a, b = _pair(a, b)
    return np.where(condition, a, b), (
        None,
        lambda g: np.where(condition, g, 0),
        lambda g: np.where(condition, 0, g),
    )


def _distinct(rng: np.random.Generator) -> Cases:
    """Two operands that are nowhere within 0.1 of each other."""
    for sa, sb in ((3, 4), (3, 4)), ((3, 1), (4,)), ((), (2, 2)), ((0, 2), (2,)):
        a = rng.permutation(math.prod(sa)) * 0.2
        b = rng.permutation(math.prod(sb)) * 0.2 + 0.1
        yield (a.reshape(sa), b.reshape(sb)), {}
    yield (rng.permutation(6).reshape(2, 3) * 0.2, 0.5), {}


def _extreme(y: Array, a: Any, b: Any) -> Any:
    """The vjps of maximum and minimum: to the operand that was chosen, half to each in a tie."""

    def share(mine: Any, other: Any) -> Callable[[Array], Array]:
        return lambda g: g * np.where(y == mine, np.where(y == other, 0.5, 1), 0).astype(g.dtype)

    return y, (share(a, b), share(b, a))


@op(cases=_distinct)
def maximum(a: Array, b: Array) -> Any:
    """The larger of a and b. The gradient goes to the larger; in a tie each gets half of it."""
    a, b = _pair(a, b)
    return _extreme(np.maximum(a, b), a, b)


@op(cases=_distinct)
def minimum(a: Array, b: Array) -> Any:
    """The smaller of a and b. The gradient goes to the smaller; in a tie each gets half of it."""
    a, b = _pair(a, b)
    return _extreme(np.minimum(a, b), a, b)


def _clip_cases(rng: np.random.Generator) -> Cases:
    x = rng.permutation(12).reshape(3, 4) * 0.2
    for limits in ({"low": 0.5, "high": 1.5}, {"low": 0.7}, {"high": 1.1}):
        yield (x,), limits


@op(cases=_clip_cases)
def clip(x: Array, low: float | None = None, high: float | None = None) -> Any:
    """min(max(x, low), high), either limit left out if None.

    The gradient passes where low <= x <= high, limits included, and is 0 outside.
    """
    if low is None and high is None:
        raise ValueError("clip: give low, high or both")
    y = np.clip(x, low, high)
    return y, (lambda g: g * (y == x),)


# ----------------------------------------------------------------------------- elementary functions


@op(cases=_unary())
def exp(x: Array) -> Any:
    """e^x. It is its own derivative: g * y."""
    y = np.exp(x)
    return y, (lambda g: g * y,)


@op(cases=_unary(0.5))
def log(x: Array) -> Any:
    """ln x; its derivative is 1/x, so the gradient is g / x."""
    return np.log(x), (lambda g: g / x,)


@op(cases=_unary(0.5))
def sqrt(x: Array) -> Any:
    """The square root y. From y² = x: 2y dy = dx, so the gradient is g / 2y."""
    y = np.sqrt(x)
    return y, (lambda g: g * 0.5 / y,)


@op(cases=_unary(0.5))
def rsqrt(x: Array) -> Any:
    """y = 1 / sqrt(x). From y = x^(-1/2): dy = -1/2 x^(-3/2) dx, so the gradient is -g y³ / 2."""
    y = 1.0 / np.sqrt(x)
    return y, (lambda g: g * -0.5 * (y * y * y),)


@op(cases=_unary())
def sin(x: Array) -> Any:
    """sin x; the gradient is g cos x."""
    return np.sin(x), (lambda g: g * np.cos(x),)


@op(cases=_unary())
def cos(x: Array) -> Any:
    """cos x; the gradient is -g sin x."""
    return np.cos(x), (lambda g: -g * np.sin(x),)


@op(cases=_unary())
def tanh(x: Array) -> Any:
    """y = tanh x. d tanh = 1 - tanh², so the gradient is g (1 - y²)."""
    y = np.tanh(x)
    return y, (lambda g: g * (1 - y * y),)


@op(cases=_unary())
def erf(x: Array) -> Any:
    """2/sqrt(pi) times the integral of exp(-t²) from 0 to x; the derivative is the integrand."""
    return erf_array(x), (lambda g: g * (2.0 / math.sqrt(math.pi)) * np.exp(-x * x),)


# -------------------------------------------------------------------------------------- activations


@op(cases=_unary(-4, 4))
def sigmoid(x: Array) -> Any:
    """y = 1 / (1 + e^-x), stable at both ends. dy = e^-x y² = y (1 - y), so g y (1 - y)."""
    y = sigmoid_array(x)
    return y, (lambda g: g * y * (1 - y),)


@op(cases=_off_zero)
def relu(x: Array) -> Any:
    """max(x, 0). The gradient passes where x > 0; at the kink it is 0."""
    return np.maximum(x, 0), (lambda g: g * (x > 0),)


@op(cases=_unary(-4, 4))
def silu(x: Array) -> Any:
    """x s with s = sigmoid(x) (Elfwing et al., 2017, arXiv:1702.03118).

    By the product rule and s' = s (1 - s): g (s + x s (1 - s)).
    """
    s = sigmoid_array(x)
    return x * s, (lambda g: g * (s * (1 + x * (1 - s))),)


@op(cases=_unary(-4, 4))
def softplus(x: Array) -> Any:
    """ln(1 + e^x), as max(x, 0) + ln(1 + e^-|x|); its derivative is sigmoid(x)."""
    y = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
    return y, (lambda g: g * sigmoid_array(x),)
