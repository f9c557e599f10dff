"""How a token is drawn from a model's logits.

Logits are divided by the temperature, then all but the `top_k` likeliest tokens are left out, then
all but the fewest likeliest tokens that together have a probability of `top_p` (the nucleus); from
what remains a token is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minitensor import kernels
from minitensor.random import fold
from tinygpt import Error

Array = np.ndarray
COLDEST = 3e-39  # a lower temperature is 0: its inverse is more than a float32 holds


class Choice(NamedTuple):
    """How a token is drawn, as the compiled twin takes it; see `probabilities`."""

    temperature: float
    top_k: int
    top_p: float


def probabilities(logits: Array, temperature: float, top_k: int, top_p: float) -> Array:
    """Probabilities (V,) with which tokens are drawn; a temperature of 0 is the likeliest alone.

    Equal logits are kept or left out together, so that more than `top_k` can remain.
    """
    z = logits.astype(np.float64)
    if temperature < COLDEST:
        return (np.arange(len(z)) == np.argmax(z)).astype(np.float64)
    z = (z - z.max()) / temperature
    if 0 < top_k < len(z):
        z[z < np.sort(z)[-top_k]] = -np.inf
    p = np.exp(z)
    p /= p.sum()
    if top_p < 1:
        order = np.sort(p)[::-1]
        last = int(np.searchsorted(np.cumsum(order), top_p))
        p[p < order[min(last, len(p) - 1)]] = 0
        p /= p.sum()
    return p


def draw(p: Array, u: float) -> int:
    """The token at which the running sum of `p` passes the uniform number `u`."""
    sums = np.cumsum(p)
    token = int(np.searchsorted(sums, u * sums[-1], side="right"))
    return min(token, int(np.flatnonzero(p)[-1]))


def choose(logits: Array, temperature: float, top_k: int, top_p: float, u: Array) -> list[int]:
    """A token for every row of logits (N, V), with the uniform numbers `u` (N,).

    Raises Error where logits are not finite. Twin of the compiled `decode_kernels.choose`, which is
    taken unless MINITENSOR_KERNELS says "numpy".
    """
    if kernels.backend() == "numba":
        from tinygpt.model import decode_kernels  # imports numba

        choice = Choice(float(temperature), int(top_k), float(top_p))
        tokens = decode_kernels.choose(logits, choice, u).tolist()
    else:
        tokens = [
            draw(probabilities(row, temperature, top_k, top_p), x) if np.isfinite(row.max()) else -1
            for row, x in zip(logits, u, strict=True)
        ]
    return checked(tokens)


def checked(tokens: list[int]) -> list[int]:
    """`tokens`, unless one is -1, which stands for logits that are not finite."""
    if -1 in tokens:
        raise Error(
            "the model's logits are not finite: its weights are damaged, or its training diverged"
        )
    return tokens


def uniform(seed: int, *counters: int) -> float:
    """A number from 0 to 1 that is a function of a seed and counters."""
    return (fold(seed, *counters) >> 11) * 2.0**-53


def uniforms(seed: int, sequences: Sequence[int], begin: int, steps: int) -> Array:
    """`uniform(seed, n, begin + i)` for each i < steps and n of `sequences` (N,): (steps, N)."""
    if kernels.backend() == "numba":
        from tinygpt.model import decode_kernels  # imports numba

        key, where = np.uint64(fold(seed)), np.array(sequences)
        return decode_kernels.uniforms(key, where, begin, steps)
    return np.array([[uniform(seed, n, begin + i) for n in sequences] for i in range(steps)])
