"""Several runs side by side: ``tinygpt compare RUN RUN ...``.

Prints a table (Markdown) of parameters, training and final validation, and draws the validation
curves over steps, tokens and minutes (extra ``plot``). Perplexity compares runs with the same
tokenizer only; bits per byte of text compare any.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinygpt import Error, UsageError
from tinygpt.inspection.plot import figure, literal, perplexities, plain_log, read_log, save, tidy
from tinygpt.model import config
from tinygpt.model.transformer import count
from tinygpt.training.report import number, perplexity

Array = np.ndarray
COLUMNS = (
    "run",
    "recipe",
    "parameters",
    "steps",
    "tokens",
    "minutes",
    "loss",
    "perplexity",
    "bits per byte",
)
AXES = (("step", "steps", 1), ("tokens", "tokens seen", 1), ("seconds", "minutes", 60))


@dataclass(frozen=True)
class RunLog:
    """A run's name, its configuration, and the columns of its validations."""

    name: str
    config: config.Config
    valid: dict[str, Array]


def read(folder: Path) -> RunLog:
    """Read a run's folder. Raises Error, in one line, if it is none or has no validation yet."""
    if not (folder / "config.json").is_file():
        raise Error(f"{folder}: not a run's folder (there is no config.json)")
    _, valid = read_log(folder)
    if not valid:
        raise Error(f"{folder}: the run has no validation yet; nothing can be compared")
    return RunLog(folder.as_posix(), config.load(folder / "config.json"), valid)


def row(run: RunLog) -> tuple[str, ...]:
    """A run's line of the table; losses are those of its last validation."""
    last = {key: float(values[-1]) for key, values in run.valid.items()}
    return (
        run.name,
        run.config.name,
        f"{sum(count(run.config)):,}",
        f"{last['step']:,.0f}",
        f"{last['tokens']:,.0f}",
        f"{last['seconds'] / 60:.1f}",
        f"{last['valid_loss']:.4f}",
        number(perplexity(last["valid_loss"])),
        f"{last['valid_bits_per_byte']:.4f}",
    )


def table(runs: list[RunLog]) -> str:
    """All runs as a Markdown table whose columns also line up as plain text."""
    rows = [COLUMNS, *map(row, runs)]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = []
    for cells in rows:
        # names to the left, figures to the right
        parts = [
            f"{cell:{'<' if i < 2 else '>'}{w}}"
            for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(parts)} |")
    rule = ["-" * w if i < 2 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    lines.insert(1, f"| {' | '.join(rule)} |")
    return "\n".join(lines)


def curves(runs: list[RunLog], path: Path) -> Path:
    """Draw validation perplexity and bits per byte over steps, tokens and minutes."""
    picture = figure(14, 8)
    grid = picture.subplots(2, 3, sharex="col", sharey="row")
    for column, (key, label, unit) in enumerate(AXES):
        upper, lower = grid[:, column]
        first = column == 0
        tidy(upper, f"over {label}", y="validation perplexity" if first else "")
        tidy(lower, x=label, y="validation bits per byte" if first else "")
        for run in runs:
            x = run.valid[key] / unit
            upper.plot(
                x, perplexities(run.valid["valid_loss"]), marker=".", label=literal(run.name)
            )
            lower.plot(x, run.valid["valid_bits_per_byte"], marker=".")
        plain_log(upper)
        if key == "tokens":
            lower.xaxis.set_major_formatter(_short)
    picture.legend(
        *grid[0, 0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=min(len(runs), 5),
        frameon=False,
    )
    return save(picture, path)


def _short(value: float, _: int) -> str:
    """A large number on an axis: 250k, 1.5M."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``tinygpt compare``."""
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="the folder of a run")
    add(
        "--out",
        type=Path,
        default=Path("compare.png"),
        metavar="FILE",
        help="the picture of the curves (default: compare.png)",
    )
    add("--table", action="store_true", help="print the table alone, which needs no matplotlib")


def main(args: argparse.Namespace) -> int:
    """Run ``tinygpt compare``: print the table, draw the curves, print the picture's path."""
    if not args.table and args.out.suffix.lower() != ".png":
        raise UsageError(f"--out: a name that ends in .png is expected, not {args.out}")
    runs = [read(folder) for folder in args.runs]
    print(table(runs))
    if len({(run.config.tokenizer, run.config.vocab_size) for run in runs}) > 1:
        print(
            "loss and perplexity are per token, and the tokens of these runs differ: compare "
            "their bits per byte",
            file=sys.stderr,
        )
    if not args.table:
        print(curves(runs, args.out))
    return 0
