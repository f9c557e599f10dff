"""Compile the kernels that a run needs before its first step, and say so."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from tqdm import tqdm

import minitensor as mt
from minitensor import kernels
from tinygpt.data import streams
from tinygpt.training.train import Trainer


def compile_kernels(trainer: Trainer) -> None:
    """Run one sequence forward and back, with a bar where the kernels are compiled for it."""
    if kernels.backend() != "numba":
        return
    from minitensor.kernels import compiling  # imports numba

    seen: set[tuple[str, str]] = set()

    def observer(op: str, phase: str, *rest: Any) -> None:
        seen.add((op, phase))
        bar.update(len(seen) - bar.n)

    model, context = trainer.model.train(), trainer.config.context
    row = streams.rows(trainer.dataset.train, np.zeros(1, np.int64), context + 1)
    cold = not compiling.cached() and sys.stderr.isatty()
    with (
        # the line that announces it comes before the bar
        tqdm(unit=" ops", file=sys.stderr, leave=False, disable=not cold, delay=1e-3) as bar,
        mt.observe(observer),
    ):
        mt.grad(model.loss(row[:, :-1], row[:, 1:]), trainer.parameters)
