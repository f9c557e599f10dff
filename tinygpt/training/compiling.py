"""Compile the kernels that a run needs before its first step, and say so.

Two processes do it, if a run has two threads: this one begins with attention's backward and the
kernels of the way forward; a helper, from before the data is read, with attention's forward and the
kernels of the way back. The cache brings them together, and keeps either from compiling what the
other has begun. The helper is a courtesy: without it, or should it fail, all is compiled here; on
one thread at once, what writes samples too, so that there is one wait and not two.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from tqdm import tqdm

import minitensor as mt
from minitensor import kernels, optim
from tinygpt.data import streams
from tinygpt.machine import beside
from tinygpt.model import config
from tinygpt.model.config import Config
from tinygpt.model.sample import generate
from tinygpt.model.transformer import GPT
from tinygpt.training.optimizers import make_optimizer
from tinygpt.training.train import Trainer

BAR = "{n_fmt} ops compiled, {elapsed}"
TRAINING = "*_backward-*"  # the kernels without which no run has begun
# What the helper compiles: kernels whose names end so.
LOSS, UPDATE = ("linear_cross_entropy", "linear_dw"), ("sum_of_squares", "adamw", "orthogonal")
BACK = ("attention", "_backward", *LOSS, *UPDATE)


def compile_kernels(trainer: Trainer, to_write: bool = False, helped: bool = False) -> None:
    """Run one sequence forward and back, with a bar where the kernels are compiled for it.

    With `to_write` those that write a sample are compiled too, which else is done when it is due,
    or by the helper.
    """
    if kernels.backend() != "numba":
        return
    from minitensor.kernels import compiling  # imports numba
    from tinygpt.model.compiled import KERNELS, SECONDS

    c = trainer.config
    parts = {TRAINING: 15.0 if helped else 20.0}
    compiling.WAIT.expect({**parts, KERNELS: SECONDS} if to_write else parts)
    seen: set[tuple[str, str]] = set()

    def observer(op: str, phase: str, *rest: Any) -> None:
        seen.add((op, phase))
        bar.update(len(seen) - bar.n)

    model = trainer.model.train()
    row = streams.rows(trainer.dataset.train, np.zeros(1, np.int64), c.context + 1)
    silent = not sys.stderr.isatty()
    with (
        # loading takes less than a second, and the line that announces compiling comes first
        tqdm(bar_format=BAR, file=sys.stderr, leave=False, disable=silent, delay=1) as bar,
        mt.observe(observer),
    ):
        if c.dtype == "float32":
            compiling.compile_shared()
        mt.grad(model.loss(row[:, :-1], row[:, 1:]), trainer.parameters)
        if to_write and not compiling.cached(KERNELS):
            write_two_tokens(GPT(c.replace(n_layer=1)))  # more would compile nothing more


def write_two_tokens(model: GPT) -> None:
    """Let a model write, for the kernels that this takes: the first token comes after the prompt,
    the others in a loop that is compiled.
    """
    list(generate(model.eval(), [0], max_new_tokens=2))


def helper(c: Config, threads: int) -> AbstractContextManager[bool]:
    """Compile what a run needs on its way back, and to write, in a process of its own meanwhile,
    if none of it is there yet, and say whether that is so. The process ends with the context at the
    latest.
    """
    if kernels.backend() == "numba" and threads > 1:
        from minitensor.kernels import compiling  # imports numba

        if compiling.FOLDER is not None and not compiling.cached(TRAINING):
            return beside(
                f"from tinygpt.training import compiling; compiling.help_with({c.to_dict()!r})"
            )
    return nullcontext(False)


def help_with(values: dict[str, Any]) -> None:
    """The helper: a step and a token of a configuration, the way forward with NumPy kernels."""
    c = config.from_dict(values).replace(n_layer=1)  # more would compile nothing more
    for name in kernels.KERNELS:
        setattr(kernels, name, kernels.twin(name, "numba" if name.endswith(BACK) else "numpy"))
    model = GPT(c).train()
    row = np.zeros((1, c.context + 1), np.int64)
    optimizer = make_optimizer(c, dict(model.named_parameters()))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    grads = mt.grad(model.loss(row[:, :-1], row[:, 1:]), parameters)
    optim.grad_norm(grads)
    optimizer.step(grads, scale=1.0, workers=None)
    write_two_tokens(model)
