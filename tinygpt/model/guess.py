"""Guess the tokens to come, so that one pass over the weights can process several of them.

A token is drawn by a random number u from 0 to 1: it is the one at which the running sum of the
probabilities passes u (`drawing.draw`). The number is known long before the probabilities are. What
the model thought when it last met the same few tokens is a good stand-in for what it will think
now, so the guess is the token that u would have drawn then. That comes true more often than the
likeliest token, since where the model wavers between two, the same number falls on the same side.

Only the likeliest tokens of each occasion are kept. Where u fell on none of them there is no guess:
those are the numbers with which it would most often have been wrong.

`Memory` is the plain form; the compiled decoder has one of fixed size in decode_kernels.py.
Guesses have to be compared with what is drawn: Leviathan et al. (2023) and Chen et al. (2023)
accept a guess with a probability that keeps the distribution; here the same number draws from the
model's own probabilities, and the guess is right or it is not. So the text itself stays the same,
not only its distribution. Their guesses come from a smaller model; these come from the model
itself, at no cost.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Array = np.ndarray
ORDER = 4  # tokens that a guess looks back at, at most
LIKELY = 5  # tokens that are kept of an occasion, each of which had at least
LIKELY_SHARE = 1 / 16  # of the probability
MOST = 1 << 17  # contexts that are kept: some 50 MB


class Memory:
    """The model's probabilities after some tokens, for when the same tokens come again."""

    def __init__(self) -> None:
        self.likely: dict[tuple[int, ...], list[tuple[int, float, float]]] = {}

    def remember(self, past: Sequence[int], p: Array) -> None:
        """The probabilities p (V,) followed the tokens `past`; kept if any token was likely."""
        if len(self.likely) > MOST:
            self.likely.clear()
        ends = np.cumsum(p)
        tokens = np.flatnonzero(p >= LIKELY_SHARE)[:LIKELY]
        likely = [(int(n), float(ends[n] - p[n]), float(ends[n])) for n in tokens]
        if not likely:
            return
        for order in range(1, min(ORDER, len(past)) + 1):
            self.likely[tuple(past[-order:])] = likely

    def guess(self, past: Sequence[int], u: float) -> int:
        """The token that u would have drawn the last time that as many of these tokens were met as
        have been met at all; -1 if that was none of the likely ones.
        """
        for order in range(min(ORDER, len(past)), 0, -1):
            likely = self.likely.get(tuple(past[-order:]))
            if likely is not None:
                return next((token for token, low, high in likely if low <= u < high), -1)
        return -1
