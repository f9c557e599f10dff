"""Reductions over one, several or all axes.

`axis` is None (all), a number or a tuple, negative ones counting from the end; `keepdims` keeps
the reduced axes with length 1. A reduction repeats no element, so its backward puts the reduced
axes back into the gradient and spreads it over them with a weight per element: 1 for a sum, 1/n
for a mean, the softmax for logsumexp. Dtypes are kept. Errors: ValueError for an axis that does
not exist, or an extreme of nothing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitensor.ops.elementwise import Cases, draw
from minitensor.tape import Array
from minitensor.tensor import Axis, Tensor, op


def _axes(x: Array, axis: Any) -> tuple[int, ...]:
    """`axis` as a tuple of numbers from 0 to ndim - 1."""
    if axis is None:
        return tuple(range(x.ndim))
    axes = (axis,) if isinstance(axis, (int, np.integer)) else tuple(axis)
    for a in axes:
        if not -x.ndim <= a < x.ndim:
            raise ValueError(f"axis {a} does not exist in {x.ndim} axes")
    if len({a % x.ndim for a in axes}) < len(axes):
        raise ValueError(f"axis {axes} names one axis twice")
    return tuple(a % x.ndim for a in axes)


def _kept(g: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """The gradient with the reduced axes back, of length 1."""
    return g if keepdims else np.expand_dims(g, axes)


def _count(x: Array, axes: tuple[int, ...]) -> int:
    return math.prod(x.shape[a] for a in axes)


def _cases(rng: np.random.Generator) -> Cases:
    for axis in (None, 0, -1, (0, 2)):
        yield draw(rng, (2, 3, 4)), {"axis": axis}
    yield draw(rng, (2, 3)), {"axis": 1, "keepdims": True}
    yield draw(rng, ()), {}


def _with_empty(rng: np.random.Generator) -> Cases:
    yield from _cases(rng)
    yield draw(rng, (3, 0)), {"axis": 0}
    yield draw(rng, (2, 0)), {"axis": 1}


@op(cases=_with_empty)
def sum(x: Array, axis: Axis = None, keepdims: bool = False) -> Any:
    """The sum. Each element has weight 1, so each gets the gradient of its sum."""
    axes = _axes(x, axis)

    def vjp(g: Array) -> Array:
        return np.broadcast_to(_kept(g, axes, keepdims), x.shape)

    return x.sum(axis=axes, keepdims=keepdims), (vjp,)


@op(cases=_cases)
def mean(x: Array, axis: Axis = None, keepdims: bool = False) -> Any:
    """The mean of n elements (NaN of none). Each has weight 1/n."""
    axes = _axes(x, axis)
    n = _count(x, axes)
    scale = 1.0 / n if n else math.nan

    def vjp(g: Array) -> Array:
        return np.broadcast_to(_kept(g * scale, axes, keepdims), x.shape)

    total = x.sum(axis=axes, keepdims=keepdims)
    return total / n if n else total * scale, (vjp,)


def _spread_cases(rng: np.random.Generator) -> Cases:
    yield from ((i, {**o, "ddof": d}) for d, (i, o) in enumerate(_cases(rng)) if d < 2)
    yield from ((i, o) for i, o in _cases(rng) if i[0].ndim)


def _variance(x: Array, axes: tuple[int, ...], ddof: int) -> tuple[Array, Array, float]:
    """Variance with its axes kept, the centred x, and 1 / (n - ddof)."""
    n = _count(x, axes)
    scale = 1.0 / (n - ddof) if n > ddof else math.nan
    centred = x - (x.sum(axis=axes, keepdims=True) / n if n else math.nan)
    return (centred * centred).sum(axis=axes, keepdims=True) * scale, centred, scale


@op(cases=_spread_cases)
def var(x: Array, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Any:
    """The variance v = sum (x - m)² / (n - ddof); ddof is 0 as in NumPy (PyTorch's default is 1).

    dv = 2 sum (x - m)(dx - dm) / (n - ddof), and the dm term is nothing since sum (x - m) = 0: so
    g * 2 (x - m) / (n - ddof). NaN where n <= ddof.
    """
    axes = _axes(x, axis)
    v, centred, scale = _variance(x, axes, ddof)
    return (v if keepdims else v.squeeze(axes)), (
        lambda g: _kept(g, axes, keepdims) * (2 * scale) * centred,
    )


@op(cases=_spread_cases)
def std(x: Array, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Any:
    """The standard deviation s = sqrt(var(x)). From s² = v: ds = dv / 2s: g (x - m) / (n - ddof) s.

    Where s is 0 the gradient is 0, as in PyTorch.
    """
    axes = _axes(x, axis)
    v, centred, scale = _variance(x, axes, ddof)
    s = np.sqrt(v)
    return (s if keepdims else s.squeeze(axes)), (
        lambda g: _kept(g, axes, keepdims) * scale * centred / np.where(s == 0, 1, s),
    )


def _distinct(rng: np.random.Generator) -> Cases:
    for inputs, options in _cases(rng):
        shape = inputs[0].shape
        yield ((rng.permutation(math.prod(shape)) * 0.1).reshape(shape),), options


def _extreme(x: Array, y: Array, axes: tuple[int, ...], keepdims: bool) -> Any:
    """Backward of max and min; `y` has its axes kept."""

    def vjp(g: Array) -> Array:
        chosen = x == y
        ties = np.maximum(chosen.sum(axis=axes, keepdims=True), 1).astype(x.dtype)
        return _kept(g, axes, keepdims) / ties * chosen

    return (y if keepdims else y.squeeze(axes)), (vjp,)


@op(cases=_distinct)
def max(x: Array, axis: Axis = None, keepdims: bool = False) -> Any:
    """The largest element. The gradient goes to it; elements that tie share it equally."""
    axes = _axes(x, axis)
    return _extreme(x, x.max(axis=axes, keepdims=True), axes, keepdims)


@op(cases=_distinct)
def min(x: Array, axis: Axis = None, keepdims: bool = False) -> Any:
    """The smallest element. The gradient goes to it; elements that tie share it equally."""
    axes = _axes(x, axis)
    return _extreme(x, x.min(axis=axes, keepdims=True), axes, keepdims)


@op(cases=_cases)
def logsumexp(x: Array, axis: Axis = None, keepdims: bool = False) -> Any:
    """y = ln sum e^x, as m + ln sum e^(x - m) with the largest element m, so nothing overflows.

    dy = sum e^x dx / sum e^x: the weights are the softmax, g e^(x - y). Of nothing but -inf it is
    -inf, with gradient 0.
    """
    axes = _axes(x, axis)
    m = x.max(axis=axes, keepdims=True)
    m = np.where(np.isfinite(m), m, 0)
    with np.errstate(divide="ignore"):
        y = m + np.log(np.exp(x - m).sum(axis=axes, keepdims=True))
    return (y if keepdims else y.squeeze(axes)), (
        lambda g: _kept(g, axes, keepdims) * np.exp(x - np.where(np.isfinite(y), y, 0)),
    )


def argmax(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Position of the largest element along one axis, or in the flattened tensor: integers, so
    without a gradient. The first of several that tie."""
    array = x._array if isinstance(x, Tensor) else np.asarray(x)
    return Tensor._wrap(np.asarray(array.argmax(axis=axis, keepdims=keepdims)))
