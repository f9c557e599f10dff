"""Shape and place: ops that move elements and compute nothing.

Each is a linear map that copies every element of the input to one, several or no places of the
output, so its backward gathers: an element gets the sum of the gradients of its copies.

Where NumPy returns a view, so do these. Dtypes are kept (but by `astype`). Errors: ValueError or
IndexError that names the op and the shapes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from minitensor.ops.elementwise import Cases, draw
from minitensor.tape import Array, Part
from minitensor.tensor import Tensor, op


def _reshape_cases(rng: np.random.Generator) -> Cases:
    for shape in (2, 12), (4, -1), (1, 24, 1), 24:
        yield draw(rng, (2, 3, 4)), {"shape": shape}
    yield draw(rng, ()), {"shape": (1, 1)}
    yield (draw(rng, (3, 4))[0].T,), {"shape": (2, 6)}


@op(cases=_reshape_cases)
def reshape(x: Array, shape: int | Sequence[int]) -> Any:
    """The same elements in row-major order under another shape; one length may be -1 ("the rest").

    The order does not change, so the gradient is reshaped back.
    """
    return x.reshape(shape), (lambda g: g.reshape(x.shape),)


@op(
    cases=lambda rng: (
        (draw(rng, (2, 3, 4)), {"axes": axes}) for axes in (None, (1, 0, 2), (2, 0, 1), (-1, 0, 1))
    )
)
def transpose(x: Array, axes: Sequence[int] | None = None) -> Any:
    """Axes in another order: axis i of the result is axis ``axes[i]`` (all reversed if None).

    The gradient is transposed by the inverse permutation.
    """
    if axes is None:
        return x.T, (lambda g: g.T,)
    inverse = np.argsort([a % x.ndim for a in axes]) if x.ndim else ()
    return x.transpose(axes), (lambda g: g.transpose(inverse),)


@op(
    cases=lambda rng: (
        (draw(rng, (2, 3, 4)), {"axis1": a, "axis2": b}) for a, b in ((0, 1), (-1, 0), (1, 1))
    )
)
def swapaxes(x: Array, axis1: int, axis2: int) -> Any:
    """Exchange two axes; the gradient has them exchanged again."""
    return x.swapaxes(axis1, axis2), (lambda g: g.swapaxes(axis1, axis2),)


@op(cases=lambda rng: ((draw(rng, (1, 3, 1)), {"axis": axis}) for axis in (None, 0, -1, (0, 2))))
def squeeze(x: Array, axis: int | tuple[int, ...] | None = None) -> Any:
    """Drop axes of length 1 (all of them if None; ValueError if one is longer). The gradient gets
    them back."""
    return x.squeeze(axis), (lambda g: g.reshape(x.shape),)


@op(cases=lambda rng: ((draw(rng, (2, 3)), {"axis": axis}) for axis in (0, 1, -1, (0, 3))))
def unsqueeze(x: Array, axis: int | tuple[int, ...]) -> Any:
    """Insert axes of length 1 at the places `axis` of the result; the gradient loses them."""
    return np.expand_dims(x, axis), (lambda g: g.reshape(x.shape),)


@op(
    cases=lambda rng: iter(
        [
            (draw(rng, (1, 3)), {"shape": (2, 4, 3)}),
            (draw(rng, (2, 1)), {"shape": (-1, 3)}),
            (draw(rng, ()), {"shape": (2, 0)}),
        ]
    )
)
def expand(x: Array, shape: Sequence[int]) -> Any:
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
            (draw(rng, (2, 3), (1, 3), (0, 3)), {}),
            (draw(rng, (2, 3), (2, 1)), {"axis": -1}),
            (draw(rng, (2,)), {}),
        ]
    )
)
def concat(*xs: Array, axis: int = 0) -> Any:
    """Tensors (separate arguments or one list) one after the other along an existing axis.

    Each gets its own slice of the gradient.
    """
    y = np.concatenate(xs, axis)
    cuts = np.cumsum([x.shape[axis] for x in xs[:-1]])
    return y, lambda g: tuple(np.split(g, cuts, axis))


@op(cases=lambda rng: ((draw(rng, (2, 3), (2, 3), (2, 3)), {"axis": axis}) for axis in (0, 1, -1)))
def stack(*xs: Array, axis: int = 0) -> Any:
    """Tensors of one shape (separate arguments or one list) side by side along a new axis.

    Each gets its own slice of the gradient.
    """
    return np.stack(xs, axis), lambda g: tuple(np.moveaxis(g, axis, 0))


def split(x: Tensor, sections: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """Cut along `axis` into `sections` equal parts, or before each index in `sections`, as NumPy.

    Every part is an indexing `x[..., i:j]`, and its gradient is added into that place of x's.
    """
    x = x if isinstance(x, Tensor) else Tensor(x)
    n = x.shape[axis]
    if isinstance(sections, int):
        if sections < 1 or n % sections:
            raise ValueError(
                f"split: an axis of length {n} has no {sections} equal parts; give "
                "the indices at which to cut"
            )
        sections = range(n // sections, n, n // sections) if n else [0] * (sections - 1)
    cuts = [0, *sections, n]
    lead = (slice(None),) * (axis % x.ndim)
    return [getitem(x, (*lead, slice(i, j))) for i, j in itertools.pairwise(cuts)]


@op(
    cases=lambda rng: iter(
        [
            (draw(rng, (2, 3)), {"width": [(1, 0), (2, 1)]}),
            (draw(rng, (2, 3)), {"width": 1, "value": 3.0}),
            (draw(rng, (3,)), {"width": (0, 2)}),
        ]
    )
)
def pad(x: Array, width: Any, value: float = 0.0) -> Any:
    """`value` around the elements: `width` is a number, a pair (before, after) for every axis, or
    one pair per axis. The gradient of the inside passes; that of the padding is dropped.
    """
    pairs = np.broadcast_to(width, (x.ndim, 2)).tolist()
    inside = tuple(slice(before, before + n) for (before, _), n in zip(pairs, x.shape, strict=True))
    return np.pad(x, pairs, constant_values=value), (lambda g: g[inside],)


@op(
    cases=lambda rng: (
        (draw(rng, shape), {"k": k}) for shape, k in (((3, 4), 0), ((2, 4, 3), -1), ((3, 3), 1))
    )
)
def tril(x: Array, k: int = 0) -> Any:
    """The lower triangle of the last two axes (on and under diagonal k), 0 above; so is the
    gradient's."""
    if x.ndim < 2:
        raise ValueError("needs at least 2 axes")
    return np.tril(x, k), (lambda g: np.tril(g, k),)


@op(cases=lambda rng: iter([(draw(rng, (2, 3)), {"dtype": np.float64})]))
def astype(x: Array, dtype: Any) -> Any:
    """The values in another dtype (a copy). The gradient is cast back by the walk."""
    y = x.astype(dtype)
    return y, (lambda g: g,) if y.dtype.kind == "f" else None


def _index_cases(rng: np.random.Generator) -> Cases:
    (x,) = draw(rng, (4, 3, 5))
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


@op(cases=_index_cases)
def getitem(x: Array, index: Any) -> Any:
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
        return y, (lambda g: Part(index, g),)  # every place at most once

    def scatter(g: Array) -> Array:
        places = np.arange(x.size).reshape(x.shape)[index]
        return np.bincount(places.ravel(), g.ravel(), x.size).astype(x.dtype).reshape(x.shape)

    return y, (scatter,)


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
