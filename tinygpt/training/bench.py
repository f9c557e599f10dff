"""Measure this machine: tokens a second by recipe and number of threads, and how close the matrix
products come to the fastest that its BLAS can do (the sgemm peak, measured first). The tokens are
random: only their number matters. A step is one batch of the recipe, of at most 8,192 tokens,
forward, backward and update.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np

import minitensor as mt
from tinygpt import UsageError
from tinygpt.data.streams import Dataset
from tinygpt.machine import threads
from tinygpt.model import recipes
from tinygpt.model.config import Config
from tinygpt.model.transformer import layout
from tinygpt.training.compiling import compile_kernels
from tinygpt.training.train import Trainer

LARGEST = 8192  # tokens in a timed step
SIDE = 1024  # of the matrices whose product gives the peak


def random_dataset(c: Config, tokens: int = 100_000) -> Any:
    """A stream of uniformly random tokens, without a tokenizer: enough for steps."""
    rng = np.random.default_rng(c.seed)
    stream = rng.integers(0, c.vocab_size, max(tokens, 2 * c.context), dtype=np.uint16)
    none = {"train": 0, "valid": 0}
    return Dataset(None, stream, stream[:0], none, none, "random", "")  # type: ignore[arg-type]


def flops_per_token(c: Config) -> float:
    """Floating-point operations of a training step that the mathematics needs, per token.

    A multiply-add is 2. Each weight of a matrix product takes one multiply-add forward and two
    backward; so does each key a query sees, twice (scores, and their mix of the values). What
    implementations compute again does not count, nor do norms, activations and a pseudo-inverse.
    """
    shapes = layout(c).items()
    weights = sum(np.prod(s) for name, s in shapes if name.startswith("blocks.") and len(s) == 2)
    keys = 0.0
    for i in range(c.n_layer):
        seen = np.arange(1, c.context + 1)
        keys += np.minimum(seen, c.window(i) or c.context).mean()
    return float(6 * (weights + c.vocab_size * c.d_model) + 12 * keys * c.d_model)


def sgemm_peak(workers: mt.Workers, repeats: int = 20) -> float:
    """The best rate of float32 matrix products here, one on each thread at a time, in FLOP/s."""
    rng = np.random.default_rng(0)
    triples = [
        [rng.standard_normal((SIDE, SIDE), np.float32) for _ in range(3)]
        for _ in range(workers.threads)
    ]

    def product(arrays: list[np.ndarray]) -> None:
        for _ in range(4):
            np.matmul(arrays[0], arrays[1], out=arrays[2])

    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        workers.map(product, triples)
        best = min(best, time.perf_counter() - begin)
    return workers.threads * 4 * 2 * SIDE**3 / best


def one_batch(c: Config) -> Config:
    """The recipe with one batch a step, of at most `LARGEST` tokens."""
    return c.replace(accumulation=1, batch_size=max(1, min(c.batch_size, LARGEST // c.context)))


def step_seconds(c: Config, workers: mt.Workers, steps: int) -> list[float]:
    """The duration of each of `steps` steps on random tokens, after two to warm up."""
    trainer = Trainer(c, random_dataset(c), workers)
    compile_kernels(trainer)
    times = []
    for step in range(steps + 2):
        begin = time.perf_counter()
        trainer.step(step)
        times.append(time.perf_counter() - begin)
    return times[2:]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``tinygpt bench``."""
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="default: all of them")
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        metavar="N",
        help="thread counts (default: 1 and all processors)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=5,
        metavar="N",
        help="timed steps, of which the median is shown (default: 5)",
    )


def main(args: argparse.Namespace) -> int:
    """Run ``tinygpt bench``."""
    counts = sorted({threads(n) for n in args.threads or (1, None)})
    if args.steps < 1:
        raise UsageError(f"--steps: expected at least 1, got {args.steps}")
    chosen = [recipes.get(name) for name in args.recipes] or list(recipes.RECIPES.values())
    peaks = {}
    for n in counts:
        with mt.Workers(n) as workers:
            peaks[n] = sgemm_peak(workers)
        print(f"sgemm peak, {n} thread{'s' * (n > 1)}: {peaks[n] / 1e9:,.0f} GFLOP/s")
    print(
        f"\n{'recipe':18}{'threads':>8}{'tokens/step':>13}{'ms/step':>10}{'tokens/s':>11}"
        f"{'GFLOP/s':>9}{'of peak':>9}"
    )
    for c in map(one_batch, chosen):
        for n in counts:
            with mt.Workers(n) as workers:
                seconds = statistics.median(step_seconds(c, workers, args.steps))
            rate = c.tokens_per_step / seconds
            done = rate * flops_per_token(c)
            print(
                f"{c.name:18}{n:8}{c.tokens_per_step:13,}{seconds * 1e3:10.1f}{rate:11,.0f}"
                f"{done / 1e9:9.0f}{done / peaks[n]:9.1%}",
                flush=True,
            )
    return 0
