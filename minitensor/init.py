"""Initialisers: fill a tensor in place from an explicit generator; each returns the tensor.

A weight of two axes has shape (out, in), as in PyTorch, whose rules and names these are.
"""

from __future__ import annotations

import math

import numpy as np

from minitensor.tape import no_grad
from minitensor.tensor import Tensor


def _fill(tensor: Tensor, values: object) -> Tensor:
    with no_grad():
        return tensor.copy_(values)


def zeros_(tensor: Tensor) -> Tensor:
    """All 0."""
    return _fill(tensor, 0)


def ones_(tensor: Tensor) -> Tensor:
    """All 1."""
    return _fill(tensor, 1)


def constant_(tensor: Tensor, value: float) -> Tensor:
    """All `value`."""
    return _fill(tensor, value)


def normal_(
    tensor: Tensor, std: float = 1.0, rng: np.random.Generator | None = None, *, mean: float = 0.0
) -> Tensor:
    """Normal with a standard deviation and a mean."""
    return _fill(tensor, _given(rng, "normal_").normal(mean, std, tensor.shape))


def uniform_(
    tensor: Tensor, low: float = 0.0, high: float = 1.0, rng: np.random.Generator | None = None
) -> Tensor:
    """Uniform in [low, high)."""
    return _fill(tensor, _given(rng, "uniform_").uniform(low, high, tensor.shape))


def xavier_uniform_(
    tensor: Tensor, gain: float = 1.0, rng: np.random.Generator | None = None
) -> Tensor:
    """Uniform within gain sqrt(6 / (in + out)): keeps the variance of activations and of gradients
    about equal (Glorot and Bengio, 2010)."""
    out, into = _fans(tensor, "xavier_uniform_")
    bound = gain * math.sqrt(6 / (into + out))
    return uniform_(tensor, -bound, bound, rng)


def kaiming_uniform_(
    tensor: Tensor, gain: float = math.sqrt(2), rng: np.random.Generator | None = None
) -> Tensor:
    """Uniform within gain sqrt(3 / in): keeps the variance of activations through ReLUs, whose gain
    is sqrt(2) (He et al., 2015, arXiv:1502.01852)."""
    bound = gain * math.sqrt(3 / _fans(tensor, "kaiming_uniform_")[1])
    return uniform_(tensor, -bound, bound, rng)


def _fans(tensor: Tensor, name: str) -> tuple[int, int]:
    """Numbers of outputs and inputs of a weight (out, in, ...)."""
    if tensor.ndim < 2:
        raise ValueError(f"{name}: needs a weight of at least 2 axes, got shape {tensor.shape}")
    field = math.prod(tensor.shape[2:])
    return tensor.shape[0] * field, tensor.shape[1] * field


def _given(rng: np.random.Generator | None, name: str) -> np.random.Generator:
    if rng is None:
        raise ValueError(
            f"{name}: give rng=np.random.default_rng(seed); there is no global generator"
        )
    return rng
