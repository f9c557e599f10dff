"""Where the time of a training step goes, by op and direction: `tinygpt profile`.

Ops are watched through the engine's own hook, `minitensor.observe`, which reports the duration and
the arrays of each. GFLOP/s are those of matrix products, with causal attention counted as half
the square and a local window as if it saw everything; bytes are those of an op's arrays, in and
out, each counted once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import minitensor as mt
from bpe.terminal import counted
from tinygpt import UsageError
from tinygpt.training.command import add_choice, chosen, ready
from tinygpt.training.train import Trainer

Array = np.ndarray


@dataclass
class Cost:
    """What an op took in one direction, over all its calls."""

    calls: int = 0
    seconds: float = 0.0
    flops: int = 0
    bytes: int = 0


def flops(op: str, phase: str, arrays: Sequence[Array], last: Array) -> int:
    """Floating-point operations of an op's matrix products; 0 for ops without.

    Forward, `arrays` are the inputs and `last` is the output; backward, `arrays` are the gradients
    of the inputs and `last` is that of the output.
    """
    forward = phase == "forward"
    if op == "linear":
        if forward:
            return 2 * arrays[0].size * len(arrays[1])
        return sum(2 * last.size * a.shape[-1] for a in arrays if a.ndim > 1)  # not the bias
    if op == "linear_cross_entropy":  # its forward makes the gradients too, its backward scales
        return 6 * arrays[0].size * len(arrays[1]) if forward else 0
    if op.endswith("_sublayer"):  # each weight is one product forward, two backward
        rows = last.size // last.shape[-1]
        work = (2 if forward else 4) * rows * sum(a.size for a in arrays if a.ndim == 2)
        return work + flops("self_attention", phase, [], last) * (op == "attention_sublayer")
    if op == "self_attention":  # two products forward, four backward, half of each is masked
        return (2 if forward else 4) * last.size * (last.shape[1] + 1)
    return 0


def measure(trainer: Trainer, steps: int) -> tuple[dict[tuple[str, str], Cost], float]:
    """The cost of each (op, phase) over `steps` steps, and the seconds they took in all."""
    costs: dict[tuple[str, str], Cost] = {}

    def observer(op: str, phase: str, seconds: float, arrays: Sequence[Array], last: Array) -> None:
        cost = costs.setdefault((op, phase), Cost())
        cost.calls += 1
        cost.seconds += seconds
        cost.flops += flops(op, phase, arrays, last)
        cost.bytes += last.nbytes + sum(a.nbytes for a in arrays)

    trainer.step(0)  # compiles, and fills the caches
    begin = time.perf_counter()
    with mt.observe(observer):
        for step in range(1, steps + 1):
            trainer.step(step)
    return costs, time.perf_counter() - begin


def profile(trainer: Trainer, steps: int) -> None:
    """Print the costs of `steps` steps, the largest first."""
    costs, total = measure(trainer, steps)
    work = sum(cost.flops for cost in costs.values())
    print(
        f"{counted(steps, 'step')} on one thread, {total / steps * 1e3:.1f} ms each, "
        f"{work / total / 1e9:.1f} GFLOP/s\n"
    )
    print(
        f"{'op':24}{'phase':9}{'calls':>6}{'ms/step':>9}{'share':>7}{'GFLOP/s':>9}"
        f"{'MB/step':>9}{'GB/s':>7}"
    )
    for (op, phase), cost in sorted(costs.items(), key=lambda item: -item[1].seconds):
        rate = f"{cost.flops / cost.seconds / 1e9:9.1f}" if cost.flops else f"{'-':>9}"
        print(
            f"{op:24}{phase:9}{cost.calls / steps:6.0f}{cost.seconds / steps * 1e3:9.2f}"
            f"{cost.seconds / total:7.1%}{rate}{cost.bytes / steps / 1e6:9.1f}"
            f"{cost.bytes / max(cost.seconds, 1e-9) / 1e9:7.1f}"
        )
    rest = total - sum(cost.seconds for cost in costs.values())
    print(
        f"{'everything else: tape, update, batch':39}{rest / steps * 1e3:9.2f}{rest / total:7.1%}"
    )


# ---------------------------------------------------------------------------------- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``tinygpt profile``."""
    add_choice(parser)
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="steps (default: 10)")


def main(args: argparse.Namespace) -> int:
    """Run ``tinygpt profile``: on one thread, keeping nothing."""
    if args.steps < 1:
        raise UsageError(f"--steps: expected at least 1, got {args.steps}")
    with ready(chosen(args), threads=1) as trainer:
        profile(trainer, args.steps)
    return 0
