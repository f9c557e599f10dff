"""What a run reports: its plan, its pace, and quantities in readable form."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from bpe.terminal import counted
from minitensor import kernels
from tinygpt.data import copying
from tinygpt.data.streams import Dataset
from tinygpt.machine import cores, megabytes
from tinygpt.model import recipes
from tinygpt.model.config import Config
from tinygpt.model.recipes import duration
from tinygpt.model.transformer import count

PROGRAM = {"numba": 180_000_000, "numpy": 45_000_000}  # bytes of the program and its libraries

NEAR = 12  # settings in which a configuration may differ from a recipe and still be like it


def plan(
    c: Config, dataset: Dataset, threads: int, out: Path, step: int | None = None
) -> list[str]:
    """What a run is going to do, in a few lines; one that goes on, from `step` on."""
    step = -c.warmup_copy if step is None else step
    matrices, vectors = count(c)
    tokens = c.tokens_per_step
    batch = " x ".join(str(n) for n in (c.batch_size, c.accumulation, c.context) if n != 1)
    total = c.max_iters * tokens
    known = recipes.times().get(c.name) if recipes.is_recipe(c) else None
    to_do = recipes.work(c, step)
    before = (
        f", {duration(known * to_do)} at the {known * 1e3:.0f} ms a step that were the best here"
        if known and to_do
        else ""
    )
    like, differs = recipes.differences(c)
    mine = c.to_dict()
    parts = [f"{key} {plain(mine[key])} (not {plain(value)})" for key, value in differs.items()]
    compared = f"differs from the recipe {like}"
    if c.name != like:
        compared = f"a configuration of its own, most like the recipe {like}, from which it differs"
        if len(parts) > NEAR:
            parts = []
    went = f" ({step:,} of them done)" if step > 0 else ""
    used = sum(dataset.documents.values())
    return [
        *([f"{compared}: {', '.join(parts)}"] if parts else []),
        f"{c.name}: {matrices + vectors:,} parameters ({matrices:,} + {vectors:,}), "
        f"{dataset.tokenizer.kind} vocabulary {c.vocab_size:,}, context {c.context}, "
        f"head {c.head}",
        f"data: {c.data}: {counted(len(dataset.train), 'token')} to train on "
        f"({counted(dataset.documents['train'], 'document')}), {len(dataset.valid):,} to validate "
        f"with ({dataset.documents['valid']:,})",
        *(
            [
                f"data: the first {used:,} of {used + dataset.left_out:,} documents; "
                "--set max_documents=0 takes all"
            ]
            if dataset.left_out
            else []
        ),
        *(
            [
                f"first {counted(-step, 'step')} of {copying.tokens(c.context):,} random "
                "tokens that repeat, to learn copying; not counted below"
            ]
            if step < 0
            else []
        ),
        f"{counted(c.max_iters, 'step')}{went} of {batch} = {tokens:,} tokens: {total:,} in all, "
        f"{total / len(dataset.train):.3g} times the data{before}",
        f"{counted(threads, 'thread')}, about {megabytes(memory(c, threads))} of memory; "
        f"run folder {out}",
    ]


def plain(value: Any) -> str:
    """A setting as one would write it after ``--set key=``."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def memory(c: Config, threads: int) -> int:
    """Estimated bytes of a run: weights, moments, gradients on their way, each thread's shard."""
    size = np.dtype(c.dtype).itemsize
    qkv = (c.n_head + 2 * c.kv_heads) * c.head_dim
    # What a layer keeps of a token for its backward, and half as much that comes and goes in it.
    token = 1.5 * c.n_layer * (c.d_model + qkv + c.d_ff)
    shard = max(c.shard_tokens, c.context) * token * size
    waiting = math.log2(max(1, c.tokens_per_step // max(c.shard_tokens, c.context)))
    copies = 3 + threads + waiting  # of the weights' size; sums of the tree wait for their pairs
    return int(sum(count(c)) * size * copies + threads * shard) + PROGRAM[kernels.backend()]


class StepTimes:
    """Durations of the steps of this process."""

    FIRST = 10  # steps after which the time to go is told, or five seconds of them

    def __init__(self, tokens: int):
        self.tokens = tokens  # of a step
        self.all: list[float] = []
        self.told = False

    def add(self, seconds: float) -> None:
        """Take in one step."""
        self.all.append(seconds)

    def enough(self) -> bool:
        """True once: when there are enough steps to say how long the run will take."""
        if self.told or len(self.all) < 2:
            return False
        self.told = len(self.all) >= self.FIRST or sum(self.all) > 5
        return self.told

    def enough_known(self) -> bool:
        """Whether there are enough steps to know what is usual."""
        return len(self.all) >= self.FIRST

    def median(self) -> float:
        """Median of the last fifty, without the first."""
        return float(np.median(self.all[1:][-50:] or self.all))

    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.median()

    def remember(self, c: Config, threads: int) -> None:
        """Keep a recipe's time on all of this machine, for `tinygpt recipes`."""
        if len(self.all) > self.FIRST and threads == cores():
            recipes.remember_time(c, self.median())


def perplexity(loss: float) -> float:
    """exp(loss) to four digits; infinity where it would overflow."""
    return float(f"{math.exp(loss):.4g}") if not loss >= 700 else math.inf


def number(value: float) -> str:
    """A quantity in three to six digits: 6.30, 294.3, 1,058, 3.142e+07."""
    places = 2 if abs(value) < 100 else 1 if abs(value) < 1000 else 0
    return f"{value:,.{places}f}" if abs(value) < 1e6 else f"{value:.4g}"
