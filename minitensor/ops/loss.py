"""Losses that are not part of the transformer.

`reduction` is "mean" over all elements, "sum", or "none" for one value per element.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitensor.ops.elementwise import Cases, draw, sigmoid_array
from minitensor.tape import Array
from minitensor.tensor import op


def _weight(reduction: str, n: int) -> float:
    """How much one element's loss counts in the reduced one."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is '{reduction}'; it is 'mean', 'sum' or 'none'")
    return (1 / n if n else math.nan) if reduction == "mean" else 1.0


def _same_shape(x: Array, target: Array) -> None:
    if x.shape != np.shape(target):
        raise ValueError(
            "prediction and target must have the same shape, or a column and a row "
            "would silently make a matrix; reshape one of them"
        )


def _cases(rng: np.random.Generator) -> Cases:
    for reduction in ("mean", "sum", "none"):
        (x,) = draw(rng, (3, 4))
        yield (x, rng.uniform(0, 1, (3, 4))), {"reduction": reduction}


@op(cases=_cases)
def mse_loss(x: Array, target: Array, reduction: str = "mean") -> Any:
    """(x - t)², reduced. d = 2 (x - t)(dx - dt): x gets g w 2 (x - t), with w = 1/n for the mean;
    t gets the opposite. Both of one shape; ValueError otherwise."""
    _same_shape(x, target)
    w = _weight(reduction, x.size)
    d = x - np.asarray(target, x.dtype)
    y = d * d if reduction == "none" else (d * d).sum() * w
    return y, (lambda g: g * (2 * w) * d, lambda g: g * (-2 * w) * d)


@op(cases=_cases)
def binary_cross_entropy_with_logits(x: Array, target: Array, reduction: str = "mean") -> Any:
    """-t ln s(x) - (1 - t) ln(1 - s(x)) with s = sigmoid, reduced; targets t in [0, 1].

    Since ln s(x) = x + ln(1 - s(x)), it is softplus(x) - t x, computed as max(x, 0) + ln(1 +
    e^-|x|) - t x, which never overflows. Its derivative is s(x) - t for x, and -x for t.
    Both of one shape; ValueError otherwise.
    """
    _same_shape(x, target)
    w = _weight(reduction, x.size)
    target = np.asarray(target, x.dtype)
    y = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))) - target * x
    return y if reduction == "none" else y.sum() * w, (
        lambda g: g * w * (sigmoid_array(x) - target),
        lambda g: g * -w * x,
    )
