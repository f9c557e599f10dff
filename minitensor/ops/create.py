"""New tensors: constants, ranges and random numbers. They are leaves without a gradient.

The dtype is float32 unless given; `arange` and `full` take that of their numbers, as in PyTorch.
Random numbers come from a generator that the caller passes, never from a hidden one, so a run is a
function of its seeds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitensor.tensor import Tensor


def _shape(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """The sizes of ``zeros(2, 3)``, or the one sequence of ``zeros((2, 3))``."""
    return sizes if len(sizes) != 1 or isinstance(sizes[0], (int, np.integer)) else tuple(sizes[0])


def zeros(*sizes: Any, dtype: Any = np.float32, requires_grad: bool = False) -> Tensor:
    """Zeros: ``zeros(2, 3)`` or ``zeros((2, 3))``."""
    return Tensor(np.zeros(_shape(sizes), dtype), requires_grad)


def ones(*sizes: Any, dtype: Any = np.float32, requires_grad: bool = False) -> Tensor:
    """Ones; the sizes as in `zeros`."""
    return Tensor(np.ones(_shape(sizes), dtype), requires_grad)


def full(shape: Any, value: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """`value` in every place; a Python float gives float32, an integer int64, a bool booleans."""
    return Tensor(np.full(shape, Tensor(value, dtype=dtype).data), requires_grad)


def zeros_like(x: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros of the shape and dtype of `x`."""
    return Tensor(np.zeros_like(Tensor(x).data, dtype), requires_grad)


def ones_like(x: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones of the shape and dtype of `x`."""
    return Tensor(np.ones_like(Tensor(x).data, dtype), requires_grad)


def arange(start: float, end: float | None = None, step: float = 1, dtype: Any = None) -> Tensor:
    """start, start + step, ... below `end`, or 0, 1, ... below `start` if it is the only number.

    int64, or float32 where one of the numbers is a float.
    """
    if end is None:
        start, end = 0, start
    if step == 0:
        raise ValueError("arange: step is 0")
    if dtype is None:
        whole = all(isinstance(n, (int, np.integer)) for n in (start, end, step))
        dtype = np.int64 if whole else np.float32
    return Tensor(np.arange(start, end, step).astype(dtype))


def randn(
    *sizes: Any, rng: Any = None, dtype: Any = np.float32, requires_grad: bool = False
) -> Tensor:
    """Normal numbers of mean 0 and variance 1, drawn from `rng` (``np.random.default_rng(0)``)."""
    return Tensor(_generator(rng, "randn").normal(size=_shape(sizes)), requires_grad, dtype)


def rand(
    *sizes: Any, rng: Any = None, dtype: Any = np.float32, requires_grad: bool = False
) -> Tensor:
    """Uniform numbers in [0, 1), drawn from `rng` in the precision of `dtype`."""
    return Tensor(_generator(rng, "rand").random(_shape(sizes), dtype), requires_grad)


def _generator(rng: Any, name: str) -> np.random.Generator:
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"{name}: expected rng=np.random.default_rng(seed), got {rng!r}")
    return rng


__all__ = ["arange", "full", "ones", "ones_like", "rand", "randn", "zeros", "zeros_like"]
