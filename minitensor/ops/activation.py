"""Activations: the nonlinear functions between the linear maps of a network.

All but softmax and its logarithm act element by element, with the backward g * f'(x).
`gelu` and `swiglu`, which have kernels, are in transformer.py.
"""

from __future__ import annotations

import math

import numpy as np

from minitensor.kernels.reference import sigmoid as sigmoid_array
from minitensor.op import op
from minitensor.ops.elementwise import Cases, Forward, off_zero_cases, unary_cases
from minitensor.tape import Array


@op(cases=unary_cases(-4, 4))
def sigmoid(x: Array) -> Forward:
    """y = 1 / (1 + e^-x), stable at both ends. dy = e^-x y² = y (1 - y), so g y (1 - y)."""
    y = sigmoid_array(x)
    return y, (lambda g: g * y * (1 - y),)


@op(cases=off_zero_cases, integers=True)
def relu(x: Array) -> Forward:
    """max(x, 0). The gradient passes where x > 0; at the kink it is 0."""
    return np.maximum(x, 0), (lambda g: g * (x > 0),)


@op(cases=off_zero_cases)
def leaky_relu(x: Array, negative_slope: float = 0.01) -> Forward:
    """x where x > 0, else `negative_slope` x; the gradient is g, or (at 0 too) g times that."""
    slope = np.where(x > 0, 1, negative_slope).astype(x.dtype)
    return x * slope, (lambda g: g * slope,)


@op(cases=off_zero_cases)
def elu(x: Array, alpha: float = 1.0) -> Forward:
    """x where x > 0, else alpha (e^x - 1) (Clevert et al., 2015, arXiv:1511.07289).

    The derivative is 1, or alpha e^x (at 0 too).
    """
    low = alpha * np.expm1(np.minimum(x, 0))
    return np.where(x > 0, x, low), (lambda g: g * np.where(x > 0, 1, low + alpha),)


@op(cases=unary_cases(-4, 4))
def silu(x: Array) -> Forward:
    """x s with s = sigmoid(x) (Elfwing et al., 2017, arXiv:1702.03118).

    By the product rule and s' = s (1 - s): g (s + x s (1 - s)).
    """
    s = sigmoid_array(x)
    return x * s, (lambda g: g * (s * (1 + x * (1 - s))),)


@op(cases=unary_cases(-4, 4))
def softplus(x: Array) -> Forward:
    """ln(1 + e^x), as max(x, 0) + ln(1 + e^-|x|); its derivative is sigmoid(x)."""
    y = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
    return y, (lambda g: g * sigmoid_array(x),)


def _softmax_cases(rng: np.random.Generator) -> Cases:
    yield (rng.standard_normal((3, 4)),), {}
    yield (rng.standard_normal((2, 3, 4)),), {"axis": 1}
    yield (rng.standard_normal((2, 0)),), {"axis": 1}


@op(cases=_softmax_cases)
def softmax(x: Array, axis: int = -1) -> Forward:
    """e^x / Σ e^x along `axis`, shifted by the maximum so that nothing overflows.

    Backward: ∂yᵢ/∂xⱼ = yᵢ (δᵢⱼ − yⱼ), so dx = y (g − Σ g y).
    """
    e = np.exp(x - x.max(axis=axis, keepdims=True, initial=-math.inf))
    y = e / e.sum(axis=axis, keepdims=True)
    return y, (lambda g: y * (g - (g * y).sum(axis=axis, keepdims=True)),)


@op(cases=_softmax_cases)
def log_softmax(x: Array, axis: int = -1) -> Forward:
    """x − log Σ e^x along `axis`.

    Backward: ∂yᵢ/∂xⱼ = δᵢⱼ − e^yⱼ, so dx = g − e^y Σ g.
    """
    shifted = x - x.max(axis=axis, keepdims=True, initial=-math.inf)
    with np.errstate(divide="ignore"):  # along an axis of length 0
        y = shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
    return y, (lambda g: g - np.exp(y) * g.sum(axis=axis, keepdims=True),)
