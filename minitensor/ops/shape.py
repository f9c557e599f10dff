"""Shape and place: ops that move elements and compute nothing.

Each is a linear map that copies every element of the input to one, several or no places of the
output, so its backward gathers: an element gets the sum of the gradients of its copies.

Where NumPy returns a view, so do these (but `clone`). Dtypes are kept, integers too (but by
`astype`). Errors: ValueError or IndexError that names the op and the shapes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minitensor.dtypes import IndexArray, accept
from minitensor.op import op
from minitensor.ops.elementwise import Cases, Forward, drawn
from minitensor.tape import Array, Part
from minitensor.tensor import Tensor


def _reshape_cases(rng: np.random.Generator) -> Cases:
    for shape in (2, 12), (4, -1), (1, 24, 1), 24:
        yield drawn(rng, (2, 3, 4)), {"shape": shape}
    yield drawn(rng, ()), {"shape": (1, 1)}
    yield (drawn(rng, (3, 4))[0].T,), {"shape": (2, 6)}


@op(cases=_reshape_cases, integers=True)
def reshape(x: Array, shape: int | Sequence[int]) -> Forward:
    """The same elements in row-major order under another shape; one length may be -1 ("the rest").

    The order does not change, so the gradient is reshaped back.
    """
    return x.reshape(shape), (lambda g: g.reshape(x.shape),)


def flatten(x: Any, start: int = 0, end: int = -1) -> Tensor:
    """The axes from `start` to `end`, both included, as one: a `reshape`."""
    x = x if isinstance(x, Tensor) else Tensor(x)
    if not x.ndim:
        return reshape(x, 1)
    first, last = start % x.ndim, end % x.ndim
    if not (-x.ndim <= start < x.ndim and -x.ndim <= end < x.ndim and first <= last):
        raise ValueError(f"flatten: no axes from {start} to {end} in shape {x.shape}")
    shape = x.shape
    return reshape(x, (*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :]))


@op(cases=lambda rng: ((drawn(rng, shape), {}) for shape in ((2, 3), ())), integers=True)
def clone(x: Array) -> Forward:
    """A copy; the gradient passes through. ``x.detach().clone()`` has no history."""
    return x.copy(), (lambda g: g,)


@op(
    cases=lambda rng: (
        (drawn(rng, (2, 3, 4)), {"axes": axes}) for axes in ((1, 0, 2), (2, 0, 1), (-1, 0, 1))
    ),
    integers=True,
)
def permute(x: Array, axes: Sequence[int]) -> Forward:
    """Axes in another order: axis i of the result is axis ``axes[i]``.

    The gradient is permuted by the inverse permutation.
    """
    y = x.transpose(tuple(axes))
    inverse = np.argsort([a % x.ndim for a in axes]) if x.ndim else ()
    return y, (lambda g: g.transpose(inverse),)


@op(
    cases=lambda rng: (
        (drawn(rng, (2, 3, 4)), {"axis1": a, "axis2": b}) for a, b in ((0, 1), (-1, 0), (1, 1))
    ),
    integers=True,
)
def transpose(x: Array, axis1: Any = None, axis2: Any = None, *more: Any) -> Forward:
    """Exchange two axes, as in PyTorch (NumPy's transpose, of all axes, is `permute`); the gradient
    has them exchanged again."""
    if more or not (isinstance(axis1, int) and isinstance(axis2, int)):
        raise TypeError("expected two axes to exchange; permute takes all in their new order")
    return x.swapaxes(axis1, axis2), (lambda g: g.swapaxes(axis1, axis2),)


swapaxes = transpose  # both names mean this in PyTorch, and this one in NumPy too


@op(
    cases=lambda rng: ((drawn(rng, (1, 3, 1)), {"axis": axis}) for axis in (None, 0, -1, (0, 2))),
    integers=True,
)
def squeeze(x: Array, axis: int | tuple[int, ...] | None = None) -> Forward:
    """Drop axes of length 1 (all of them if None; ValueError if one is longer). The gradient gets
    them back."""
    return x.squeeze(axis), (lambda g: g.reshape(x.shape),)


@op(
    cases=lambda rng: ((drawn(rng, (2, 3)), {"axis": axis}) for axis in (0, 1, -1, (0, 3))),
    integers=True,
)
def unsqueeze(x: Array, axis: int | tuple[int, ...]) -> Forward:
    """Insert axes of length 1 at the places `axis` of the result; the gradient loses them."""
    return np.expand_dims(x, axis), (lambda g: g.reshape(x.shape),)


@op(
    cases=lambda rng: iter(
        [
            (drawn(rng, (1, 3)), {"shape": (2, 4, 3)}),
            (drawn(rng, (2, 1)), {"shape": (-1, 3)}),
            (drawn(rng, ()), {"shape": (2, 0)}),
        ]
    ),
    integers=True,
)
def expand(x: Array, shape: Sequence[int]) -> Forward:
    """Repeat along axes of length 1, or new leading ones, up to `shape` (-1 keeps a length).

    No memory is copied. An element gets the sum of the gradients of its copies, which the walk
    adds up as for every broadcast.
    """
    lead = len(shape) - x.ndim
    full = [x.shape[i - lead] if n == -1 and i >= lead else n for i, n in enumerate(shape)]
    return np.broadcast_to(x, full), (lambda g: g,)


@op(
    cases=lambda rng: iter(
        [
            (drawn(rng, (2, 3), (1, 3), (0, 3)), {}),
            (drawn(rng, (2, 3), (2, 1)), {"axis": -1}),
            (drawn(rng, (2,)), {}),
        ]
    ),
    integers=True,
)
def concat(*xs: Array, axis: int = 0) -> Forward:
    """Tensors (separate arguments or one list) one after the other along an existing axis.

    Each gets its own slice of the gradient.
    """
    y = np.concatenate(xs, axis)
    cuts = np.cumsum([x.shape[axis] for x in xs[:-1]])
    return y, lambda g: tuple(np.split(g, cuts, axis))


cat = concat  # PyTorch has both names too


@op(
    cases=lambda rng: ((drawn(rng, (2, 3), (2, 3), (2, 3)), {"axis": axis}) for axis in (0, 1, -1)),
    integers=True,
)
def stack(*xs: Array, axis: int = 0) -> Forward:
    """Tensors of one shape (separate arguments or one list) side by side along a new axis.

    Each gets its own slice of the gradient.
    """
    return np.stack(xs, axis), lambda g: tuple(np.moveaxis(g, axis, 0))


def split(x: Any, size: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """Cut along `axis` into parts of `size`, the last one perhaps shorter, or of the sizes in a
    list, as in PyTorch (NumPy's split takes a number of parts: that is `chunk`).

    Every part is an indexing `x[..., i:j]`, and its gradient is added into that place of x's.
    """
    x = x if isinstance(x, Tensor) else Tensor(x)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"split: axis {axis} does not exist in {x.ndim} axes")
    n = x.shape[axis]
    if isinstance(size, (int, np.integer)):
        if size < 1:
            raise ValueError(f"split: the size of a part is {size}; it must be positive")
        sizes = [min(int(size), n - i) for i in range(0, n, int(size))] or [0]
    else:
        sizes = [int(part) for part in size]
        if sum(sizes) != n or min(sizes, default=0) < 0:
            raise ValueError(
                f"split: the sizes {sizes} must add up to {n}, the length of axis {axis}; they are "
                "lengths of the parts, not places to cut"
            )
    lead = (slice(None),) * (axis % x.ndim)
    ends = list(itertools.accumulate(sizes))
    return [getitem(x, (*lead, slice(j - n, j))) for j, n in zip(ends, sizes, strict=True)]


def chunk(x: Any, chunks: int, axis: int = 0) -> list[Tensor]:
    """Cut along `axis` into `chunks` parts of one length; ValueError if that is not possible."""
    x = x if isinstance(x, Tensor) else Tensor(x)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"chunk: axis {axis} does not exist in {x.ndim} axes")
    n = x.shape[axis]
    if chunks < 1 or n % chunks:
        raise ValueError(
            f"chunk: an axis of length {n} has no {chunks} equal parts; split takes their sizes"
        )
    return split(x, [n // chunks] * chunks, axis)


@op(
    cases=lambda rng: iter(
        [
            (drawn(rng, (2, 3)), {"width": (2, 1, 1, 0)}),
            (drawn(rng, (2, 3)), {"width": (1, 1), "value": 3.0}),
            (drawn(rng, ()), {"width": ()}),
        ]
    ),
    integers=True,
)
def pad(x: Array, width: Sequence[int], value: float = 0.0) -> Forward:
    """Surround the elements with `value`. `width` gives the counts as in PyTorch, last axis first:
    (before, after) of the last axis, then of the one before it, and so on; axes that are not
    named stay. The gradient of the inside passes through; that of the rim is dropped.
    """
    if (
        np.ndim(width) != 1
        or len(width) % 2
        or len(width) > 2 * x.ndim
        or np.any(np.less(width, 0))
    ):
        raise ValueError(
            f"width is {width}; expected one flat sequence (before, after, before, after, ...) of "
            f"numbers from 0 that begins with the last axis, for at most {x.ndim} axes"
        )
    if x.dtype.kind != "f" and value != int(value):
        raise ValueError(f"{x.dtype} has no value {value}; convert the tensor with astype first")
    given = [(int(a), int(b)) for a, b in zip(width[::2], width[1::2], strict=True)]
    pairs = [(0, 0)] * (x.ndim - len(given)) + given[::-1]
    inside = tuple(slice(before, before + n) for (before, _), n in zip(pairs, x.shape, strict=True))
    y = np.pad(x, pairs, constant_values=value) if x.ndim else x.copy()
    return y, (lambda g: g[inside],)


@op(
    cases=lambda rng: (
        (drawn(rng, shape), {"times": times})
        for shape, times in (((2, 3), (2, 1)), ((3,), (2, 2)), ((), (3,)), ((2,), (0,)))
    ),
    integers=True,
)
def repeat(x: Array, times: Sequence[int]) -> Forward:
    """The whole tensor `times[i]` times along axis i, in memory, as in PyTorch (NumPy: tile); more
    numbers than axes make new leading ones. An element gets the sum of its copies' gradients."""
    if len(times) < x.ndim:
        raise ValueError(f"expected at least {x.ndim} numbers, one an axis, got {tuple(times)}")
    shape = (1,) * (len(times) - x.ndim) + x.shape
    pairs = [n for pair in zip(times, shape, strict=True) for n in pair]
    every_other = tuple(range(0, len(pairs), 2))
    return np.tile(x, times), (lambda g: g.reshape(pairs).sum(axis=every_other).reshape(x.shape),)


@op(
    cases=lambda rng: ((drawn(rng, (2, 3)), {"axes": axes}) for axes in (0, (0, 1), -1, ())),
    integers=True,
)
def flip(x: Array, axes: int | Sequence[int]) -> Forward:
    """The elements in the opposite order along these axes; so is the gradient."""
    axes = axes if isinstance(axes, int) else tuple(axes)
    return np.flip(x, axes), (lambda g: np.flip(g, axes),)


def _triangle_cases(rng: np.random.Generator) -> Cases:
    for shape, k in ((3, 4), 0), ((2, 4, 3), -1), ((3, 3), 1):
        yield drawn(rng, shape), {"k": k}


@op(cases=_triangle_cases, integers=True)
def tril(x: Array, k: int = 0) -> Forward:
    """The lower triangle of the last two axes (on and under diagonal k), 0 above; so is the
    gradient's."""
    if x.ndim < 2:
        raise ValueError("needs at least 2 axes")
    return np.tril(x, k), (lambda g: np.tril(g, k),)


@op(cases=_triangle_cases, integers=True)
def triu(x: Array, k: int = 0) -> Forward:
    """The upper triangle of the last two axes (on and over diagonal k), 0 below; so is the
    gradient's."""
    if x.ndim < 2:
        raise ValueError("needs at least 2 axes")
    return np.triu(x, k), (lambda g: np.triu(g, k),)


@op(cases=lambda rng: iter([(drawn(rng, (2, 3)), {"dtype": np.float64})]), integers=True)
def astype(x: Array, dtype: Any) -> Any:
    """The values in another dtype that tensors have (a copy). The gradient is cast back by the
    walk; a cast to integers has none."""
    accept(np.dtype(dtype), "astype")
    y = x.astype(dtype)
    return y, (lambda g: g,) if y.dtype.kind == "f" else None


def _index_cases(rng: np.random.Generator) -> Cases:
    (x,) = drawn(rng, (4, 3, 5))
    for index in (
        2,
        -1,
        slice(None, None, -2),
        (slice(1, 3), ..., 0),
        (None, 1),
        (..., None),
        [0, 2, 2, 0],
        (slice(None), [1, 1]),
        ([0, 0, 1], [2, 2, 0]),
        (np.array([[1], [1]]), slice(None), [0, 4]),
        x[:, 0, 0] > 0,
        x > 0,
        (x[..., 0] > 0, 1),
        np.array([], dtype=np.int64),
    ):
        yield (x,), {"index": index}


@op(cases=_index_cases, integers=True)
def getitem(x: Array, index: Any) -> Forward:
    """x[index], with every index NumPy knows: numbers, slices, None, ..., masks, integer arrays.

    The gradient goes back to the places the elements came from; a place that was taken several
    times (a repeated index) gets the sum. A slice's gradient is added into that part of x's, so
    cutting a tensor into n parts costs n parts, not n whole tensors.
    """
    index = tuple(map(_plain, index)) if isinstance(index, tuple) else _plain(index)
    y = x[index]
    kinds = [
        np.asarray(i).dtype.kind
        for i in (index if isinstance(index, tuple) else (index,))
        if isinstance(i, (list, np.ndarray))
    ]
    if "i" not in kinds and "u" not in kinds:

        def part(g: Array) -> Any:
            return Part(index, g)  # every place at most once

        return y, (part,)
    return y, (lambda g: _scatter(g, x, np.arange(x.size).reshape(x.shape)[index]),)


def _scatter(g: Array, x: Array, places: Array) -> Array:
    """An array like x with each g added at its place, counted in the flattened x."""
    return np.bincount(places.ravel(), g.ravel(), x.size).astype(x.dtype).reshape(x.shape)


def _gather_cases(rng: np.random.Generator) -> Cases:
    yield (*drawn(rng, (3, 4)), rng.integers(0, 4, (3, 2))), {"axis": 1}
    yield (*drawn(rng, (3, 4)), rng.integers(0, 3, (5, 2))), {"axis": -2}


@op(name="gather", cases=_gather_cases, integers=True)
def _gather(x: Array, index: IndexArray, axis: int) -> Forward:
    if x.ndim != index.ndim or not -x.ndim <= axis < x.ndim:
        raise ValueError(f"expected an index with the axes of x, and one of them, not {axis}")
    axis %= x.ndim
    if any(m > n for a, (m, n) in enumerate(zip(index.shape, x.shape, strict=True)) if a != axis):
        raise ValueError(f"the index is longer than x along an axis other than {axis}")
    if index.size and (index.min() < 0 or index.max() >= x.shape[axis]):
        raise IndexError(f"the index must be from 0 to {x.shape[axis] - 1}")
    part = tuple(slice(None) if a == axis else slice(n) for a, n in enumerate(index.shape))

    def places() -> Array:
        return np.take_along_axis(np.arange(x.size).reshape(x.shape)[part], index, axis)

    return np.take_along_axis(x[part], index, axis), (lambda g: _scatter(g, x, places()), None)


def gather(x: Any, axis: int, index: Any) -> Tensor:
    """One element for each place of `index`, with the place's own position along every other axis:
    y[i, j] = x[index[i, j], j] along axis 0, x[i, index[i, j]] along axis 1. Shape: the index's.

    A place of x that was taken several times gets the sum of the gradients.
    """
    return _gather(x, index, axis)


_gather.__doc__ = gather.__doc__


def _plain(index: Any) -> Any:
    """An index as NumPy wants it: tensors, lists and arrays as arrays of our own, which nobody
    changes before the backward; an empty list as integers."""
    if isinstance(index, Tensor):
        index = index._array
    if isinstance(index, list | np.ndarray):
        index = (
            np.array(index) if len(np.shape(index)) == 0 or len(index) else np.zeros(0, np.int64)
        )
    return index
