"""Compile what writes a text in two processes at once, the first time.

A text begins with the kernel `decode` and goes on with `choose` and `write`. All three are little
beside what they call: the pass over the model and the drawing of a token. So another process begins
with the drawing while this one has the pass. The cache of compiled kernels brings them together,
and keeps either from compiling what the other has begun.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np

from minitensor import kernels
from tinygpt.machine import beside, cores
from tinygpt.model.config import Config
from tinygpt.model.decode import Decoder
from tinygpt.model.drawing import Choice, choose
from tinygpt.model.transformer import GPT, kernels_know


def compiling_ahead(c: Config) -> AbstractContextManager[bool]:
    """Have `choose` and `write` compiled for this model meanwhile, if they are not there yet."""
    if kernels.backend() == "numba" and kernels_know(c) and cores() > 1:
        from minitensor.kernels import compiling  # imports numba

        if compiling.FOLDER is not None and not compiling.cached("decode_kernels.write-*"):
            return beside(f"from tinygpt.model import ahead; ahead.compile_writing({c.dtype!r})")
    return nullcontext(False)


def compile_writing(dtype: str) -> None:
    """Write a token with the smallest of models: the kernels are the same for all of a dtype."""
    c = Config(vocab_size=2, context=4, n_layer=1, n_head=1, d_model=8, d_ff=8, dtype=dtype)
    choice = Choice(temperature=1.0, top_k=0, top_p=1.0)
    choose(np.zeros((1, c.vocab_size), dtype), *choice, np.zeros(1))
    Decoder(GPT(c)).write([0], [0], np.zeros((1, 1)), c.vocab_size, choice)
