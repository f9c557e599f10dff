"""Random sequences that repeat, for the steps with which training may begin: the copying warm-up.

A row is a sequence of `PERIODS` tokens drawn at random, told again and again to the row's end:

    7 301 88 52 | 7 301 88 52 | 7 301 88 52 | 7 …

Nothing in it can be known but by looking back for the last time that the present token stood here,
and handing on the token that followed it. That is an induction head (Olsson et al., 2022,
arXiv:2209.11895): one layer marks every token with the one before it, a later layer looks for the
mark. Stories need the same circuit to keep a name, but teach it slowly: each half of it is worth
nothing without the other, and few of a story's tokens ask for it. Here every token does. To learn
from such rows first is procedural pre-training (arXiv:2601.21725).

Rows are short, since forming the circuit takes steps rather than tokens. What no model could know
is not predicted, as its noise would drown the rest: the first period, and the token with which it
begins again, for who knows when. So the loss falls from the logarithm of the vocabulary's size, a
guess, to near 0, where the circuit stands.

A row is a pure function of (seed, step, its place in the batch), and the steps of the warm-up are
those before 0: a run that resumes sees what an uninterrupted one does, and the steps on the text
are those of a run without a warm-up.
"""

from __future__ import annotations

import numpy as np

from minitensor import fold

Array = np.ndarray
ROWS, LENGTH = 32, 32  # rows of a step, and the tokens that a row has for the model to read
PERIODS = (4, 10)  # tokens until a row begins again: from, to
RISE = 30  # steps in which the learning rate rises from 0
IGNORE = -100  # in place of a token that is not to be predicted
BATCH = -2  # the counter that sets these draws apart from those of other kinds


def tokens(context: int) -> int:
    """How many tokens the model reads at a step."""
    return ROWS * min(LENGTH, context)


def batch(seed: int, step: int, vocab_size: int, context: int) -> tuple[Array, Array]:
    """What the model reads and what it is to predict at a step: two (ROWS, length) of int64.

    `length` is LENGTH, or the context where that is shorter.
    """
    length = min(LENGTH, context)
    rows = np.empty((ROWS, length + 1), np.int64)
    targets = np.empty((ROWS, length), np.int64)
    least, most = PERIODS
    for i in range(ROWS):
        period = least + fold(seed, BATCH, step, i) % (most - least + 1)
        sequence = [fold(seed, BATCH, step, i, place) % vocab_size for place in range(period)]
        rows[i] = np.resize(sequence, length + 1)
        targets[i] = rows[i, 1:]
        targets[i, :period] = IGNORE
    return rows[:, :-1], targets
