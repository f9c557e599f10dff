"""Reductions over one, several or all axes.

`axis` is None (all), a number or a tuple, negative ones counting from the end; `keepdims` keeps
the reduced axes with length 1. A reduction repeats no element, so its backward puts the reduced
axes back into the gradient and spreads it over them with a weight per element: 1 for a sum, 1/n
for a mean, the softmax for logsumexp. Floating dtypes are kept; integers and booleans are added
and multiplied in int64; their mean, and what is built on it, is float32. Errors: ValueError for an
axis that does not exist, or for the largest or smallest of no elements.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minitensor.op import op
from minitensor.ops.elementwise import Cases, Forward, drawn
from minitensor.ops.shape import gather
from minitensor.tape import Array
from minitensor.tensor import Axis, Tensor


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


def _wide(x: Array) -> Any:
    """The dtype in which to add and multiply: int64 for integers and booleans, as in PyTorch."""
    return None if x.dtype.kind == "f" else np.int64


def _cases(rng: np.random.Generator) -> Cases:
    for axis in (None, 0, -1, (0, 2)):
        yield drawn(rng, (2, 3, 4)), {"axis": axis}
    yield drawn(rng, (2, 3)), {"axis": 1, "keepdims": True}
    yield drawn(rng, ()), {}


def _with_empty(rng: np.random.Generator) -> Cases:
    yield from _cases(rng)
    yield drawn(rng, (3, 0)), {"axis": 0}
    yield drawn(rng, (2, 0)), {"axis": 1}


@op(cases=_with_empty, integers=True)
def sum(x: Array, axis: Axis = None, keepdims: bool = False) -> Forward:
    """The sum. Each element has weight 1, so each gets the gradient of its sum."""
    axes = _axes(x, axis)

    def vjp(g: Array) -> Array:
        return np.broadcast_to(_kept(g, axes, keepdims), x.shape)

    return x.sum(axis=axes, keepdims=keepdims, dtype=_wide(x)), (vjp,)


def _prod_cases(rng: np.random.Generator) -> Cases:
    yield from _cases(rng)
    x = rng.uniform(0.5, 2, (3, 3))
    x[0, 1] = x[1, 0] = x[1, 2] = 0
    yield (x,), {"axis": 1}
    yield drawn(rng, (2, 0)), {"axis": 1}


@op(cases=_prod_cases, integers=True)
def prod(x: Array, axis: Axis = None, keepdims: bool = False) -> Forward:
    """The product (1 of nothing). The weight of each element is the product of all others.

    That is the product of those before it times that of those after it, which needs no division
    and so holds for zeros too.
    """
    axes = _axes(x, axis)

    def vjp(g: Array) -> Array:
        rest = [a for a in range(x.ndim) if a not in axes]
        lead = math.prod(x.shape[a] for a in rest)
        row = x.transpose(*rest, *axes).reshape(lead, _count(x, axes))
        one = np.ones((len(row), 1), x.dtype)
        before = np.cumprod(np.hstack([one, row]), axis=1)[:, :-1]
        after = np.cumprod(np.hstack([one, row[:, ::-1]]), axis=1)[:, -2::-1]
        others = (before * after).reshape([x.shape[a] for a in (*rest, *axes)])
        return _kept(g, axes, keepdims) * others.transpose(np.argsort([*rest, *axes]))

    return x.prod(axis=axes, keepdims=keepdims, dtype=_wide(x)), (vjp,)


@op(
    cases=lambda rng: (
        (drawn(rng, shape), {"axis": axis})
        for shape, axis in (((3, 4), 1), ((2, 3), -2), ((0,), 0))
    ),
    integers=True,
)
def cumsum(x: Array, axis: int) -> Forward:
    """Running sums: y[i] = x[0] + ... + x[i] along one axis.

    x[i] is part of y[i] and of all that follow, so its gradient is the running sum from the end.
    """
    if axis is None:
        raise ValueError("expected one axis, got None; flatten() makes one of all")
    (a,) = _axes(x, axis)
    return np.cumsum(x, a, dtype=_wide(x)), (lambda g: np.flip(np.cumsum(np.flip(g, a), a), a),)


@op(cases=_cases)
def mean(x: Array, axis: Axis = None, keepdims: bool = False) -> Forward:
    """The mean of n elements (NaN of none). Each has weight 1/n."""
    axes = _axes(x, axis)
    n = _count(x, axes)
    scale = 1.0 / n if n else math.nan

    def vjp(g: Array) -> Array:
        return np.broadcast_to(_kept(g * scale, axes, keepdims), x.shape)

    total = x.sum(axis=axes, keepdims=keepdims)
    return total / n if n else total * scale, (vjp,)


def _spread_cases(rng: np.random.Generator) -> Cases:
    yield from ((i, {**o, "correction": d}) for d, (i, o) in enumerate(_cases(rng)) if d < 2)
    yield from ((i, o) for i, o in _cases(rng) if i[0].ndim)


def _variance(x: Array, axes: tuple[int, ...], correction: int) -> tuple[Array, Array, float]:
    """Variance with its axes kept, the centred x, and 1 / (n - correction)."""
    n = _count(x, axes)
    scale = 1.0 / (n - correction) if n > correction else math.nan
    centred = x - (x.sum(axis=axes, keepdims=True) / n if n else math.nan)
    return (centred * centred).sum(axis=axes, keepdims=True) * scale, centred, scale


@op(cases=_spread_cases)
def var(x: Array, axis: Axis = None, *, correction: int = 1, keepdims: bool = False) -> Forward:
    """The variance v = sum (x - m)² / (n - correction); as in PyTorch the default, 1, makes its
    expectation that of the distribution from which x was drawn, and 0 gives NumPy's.

    dv = 2 sum (x - m)(dx - dm) / (n - correction), and the dm term vanishes since sum (x - m) is 0:
    so g * 2 (x - m) / (n - correction). NaN where n <= correction.
    """
    axes = _axes(x, axis)
    v, centred, scale = _variance(x, axes, correction)
    return (v if keepdims else v.squeeze(axes)), (
        lambda g: _kept(g, axes, keepdims) * (2 * scale) * centred,
    )


@op(cases=_spread_cases)
def std(x: Array, axis: Axis = None, *, correction: int = 1, keepdims: bool = False) -> Forward:
    """The standard deviation s = sqrt(var(x)). From s² = v: ds = dv / 2s, so with N = n -
    correction the gradient is g (x - m) / (N s).

    Where s is 0 the gradient is 0, as in PyTorch.
    """
    axes = _axes(x, axis)
    v, centred, scale = _variance(x, axes, correction)
    s = np.sqrt(v)
    return (s if keepdims else s.squeeze(axes)), (
        lambda g: _kept(g, axes, keepdims) * scale * centred / np.where(s == 0, 1, s),
    )


def _distinct(rng: np.random.Generator) -> Cases:
    for inputs, options in _cases(rng):
        shape = inputs[0].shape
        yield ((rng.permutation(math.prod(shape)) * 0.1).reshape(shape),), options


def _extreme(x: Array, axis: Axis, keepdims: bool, reduce: Any) -> Forward:
    """amax and amin."""
    axes = _axes(x, axis)
    if not _count(x, axes):
        raise ValueError("there is no extreme of nothing: a reduced axis has length 0")
    y = reduce(x, axis=axes, keepdims=True)

    def vjp(g: Array) -> Array:
        chosen = (x == y) | np.isnan(x)
        ties = np.maximum(chosen.sum(axis=axes, keepdims=True), 1).astype(x.dtype)
        return _kept(g, axes, keepdims) / ties * chosen

    return (y if keepdims else y.squeeze(axes)), (vjp,)


@op(cases=_distinct, integers=True)
def amax(x: Array, axis: Axis = None, keepdims: bool = False) -> Forward:
    """The largest element. The gradient goes to it; elements that tie share it equally.

    A NaN counts as the largest: the result is NaN, and the gradient goes to the NaNs (PyTorch's
    amax gives NaN to every element; its max does the same as ours).
    """
    return _extreme(x, axis, keepdims, np.max)


@op(cases=_distinct, integers=True)
def amin(x: Array, axis: Axis = None, keepdims: bool = False) -> Forward:
    """The smallest element. The gradient goes to it; ties and NaN as in `amax`."""
    return _extreme(x, axis, keepdims, np.min)


@op(cases=_with_empty)
def logsumexp(x: Array, axis: Axis = None, keepdims: bool = False) -> Forward:
    """y = ln sum e^x, as m + ln sum e^(x - m) with the largest element m, so nothing overflows.

    dy = sum e^x dx / sum e^x: the weights are the softmax, g e^(x - y). Of nothing, or nothing but
    -inf, it is -inf, with gradient 0 (PyTorch: NaN). With an inf among the elements it is inf, and
    the gradient is NaN for that element and 0 for the others, as in PyTorch.
    """
    axes = _axes(x, axis)
    m = x.max(axis=axes, keepdims=True, initial=-math.inf)
    m = np.where(np.isfinite(m), m, 0)
    with np.errstate(divide="ignore", over="ignore"):
        y = m + np.log(np.exp(x - m).sum(axis=axes, keepdims=True))

    def vjp(g: Array) -> Array:
        with np.errstate(invalid="ignore"):
            return _kept(g, axes, keepdims) * np.exp(x - np.where(np.isneginf(y), 0, y))

    return (y if keepdims else y.squeeze(axes)), (vjp,)


# ------------------------------------------------------------------ positions, and truth values


def _array(x: Any) -> Array:
    return x._array if isinstance(x, Tensor) else np.asarray(x)


def _position(x: Any, axis: int | None, keepdims: bool, name: str) -> Tensor:
    array = _array(x)
    axes = _axes(array, axis)
    if axis is not None and len(axes) != 1:
        raise ValueError(f"{name}: expected one axis or None, got {axis}")
    if not _count(array, axes):
        raise ValueError(f"{name}: there is no extreme of nothing; got shape {array.shape}")
    return Tensor._wrap(np.asarray(getattr(array, name)(axis=axis, keepdims=keepdims)))


def argmax(x: Any, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """Position of the largest element along one axis, or in the flattened tensor: integers, so
    without a gradient. The first of several that tie."""
    return _position(x, axis, keepdims, "argmax")


def argmin(x: Any, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """Position of the smallest element; otherwise as `argmax`."""
    return _position(x, axis, keepdims, "argmin")


class Extreme(NamedTuple):
    """What `max` and `min` return along an axis."""

    values: Tensor
    indices: Tensor


def max(x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
    """The largest element (`amax`); along one axis its values and their positions, as in PyTorch.

    The gradient of the values goes to the element at the position, also where several tie. Values
    alone, over any axes, are `amax`; the larger of two tensors is `maximum`.
    """
    if axis is None:
        return amax(x, None, keepdims)
    return _with_indices(x, axis, keepdims, argmax, "max")


def min(x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
    """The smallest element (`amin`), or values and positions along one axis; as `max`."""
    if axis is None:
        return amin(x, None, keepdims)
    return _with_indices(x, axis, keepdims, argmin, "min")


def _with_indices(x: Any, axis: Any, keepdims: bool, position: Any, name: str) -> Extreme:
    if not isinstance(axis, (int, np.integer)):
        got = "a tensor" if isinstance(axis, (Tensor, np.ndarray)) else repr(axis)
        raise TypeError(
            f"{name}: expected one axis, got {got}; a{name} takes several axes, and {name}imum "
            "compares two tensors"
        )
    index = position(x, int(axis), keepdims=True)
    values = gather(x, int(axis), index)
    if keepdims:
        return Extreme(values, index)
    return Extreme(values.squeeze(int(axis)), index.squeeze(int(axis)))


def any(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether an element is true, or not 0; without a gradient."""
    array = _array(x)
    return Tensor._wrap(np.asarray(array.any(axis=_axes(array, axis), keepdims=keepdims)))


def all(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether all elements are true, or not 0; without a gradient."""
    array = _array(x)
    return Tensor._wrap(np.asarray(array.all(axis=_axes(array, axis), keepdims=keepdims)))
