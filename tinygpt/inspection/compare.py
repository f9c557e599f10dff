"""Several runs side by side: ``tinygpt compare RUN RUN ...``.

Prints a table (Markdown) with a column for each run: data, parameters, training, final validation,
and below these the settings that differ. Draws the validation curves over steps, tokens and minutes
(extra ``plot``). Perplexity compares runs with the same tokenizer only, and is drawn for these
alone; bits per byte compare any that were validated on the same text.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt import Error, UsageError
from tinygpt.inspection.plot import (
    MATPLOTLIB,
    figure,
    literal,
    perplexities,
    plain_log,
    read_log,
    save,
    tidy,
)
from tinygpt.model import config
from tinygpt.model.transformer import count
from tinygpt.progress import tell
from tinygpt.training.report import number, perplexity, plain

Array = np.ndarray
ROWS = (
    "recipe",
    "data",
    "tokenizer",
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

    @property
    def text(self) -> tuple[Any, ...]:
        """What its validation text depends on."""
        c = self.config
        return c.data, c.valid_fraction, c.max_documents

    @property
    def tokens(self) -> tuple[Any, ...]:
        """What its tokens depend on."""
        c = self.config
        return c.tokenizer, c.vocab_size, c.reduced_from, *self.text


def read(folder: Path) -> RunLog:
    """Read a run's folder, or that in which a model file lies.

    Raises Error, in one line, if it is none or has no validation yet.
    """
    given, folder = folder, folder.parent if folder.is_file() else folder
    if not (folder / "config.json").is_file():
        raise Error(f"{given}: not a run's folder, or a file in one (there is no config.json)")
    _, valid = read_log(folder)
    if not valid:
        raise Error(f"{folder}: the run has no validation yet; nothing can be compared")
    return RunLog(folder.as_posix(), config.load(folder / "config.json"), valid)


def figures(run: RunLog) -> tuple[str, ...]:
    """A run's column of the table; losses are those of its last validation."""
    last = {key: float(values[-1]) for key, values in run.valid.items()}
    return (
        run.config.name,
        Path(run.config.data).name,
        f"{Path(run.config.tokenizer).name} {run.config.vocab_size:,}",
        f"{sum(count(run.config)):,}",
        f"{last['step']:,.0f}",
        f"{last['tokens']:,.0f}",
        f"{last['seconds'] / 60:.1f}",
        f"{last['valid_loss']:.4f}",
        number(perplexity(last["valid_loss"])),
        f"{last['valid_bits_per_byte']:.4f}",
    )


def settings(runs: list[RunLog]) -> dict[str, tuple[str, ...]]:
    """What differs of the settings that have no row of their own, with each run's."""
    own = ("name", "data", "tokenizer", "vocab_size")
    configs = [run.config.to_dict() for run in runs]
    return {
        key: tuple(plain(c[key]) for c in configs)
        for key in configs[0]
        if not (key in own or key.endswith("_interval"))
        and any(c[key] != configs[0][key] for c in configs)
    }


def table(runs: list[RunLog], width: int) -> str:
    """All runs as Markdown tables that also line up as plain text: a column for each run, and as
    many side by side as there is `width` for."""
    differ = settings(runs)
    heads = ["run", *ROWS, *(["settings:"] if differ else []), *differ]
    columns = [
        [name, *figures(run), *([""] if differ else []), *(v[i] for v in differ.values())]
        for i, (name, run) in enumerate(zip(short_names(runs), runs, strict=True))
    ]
    room = width - len("| ") - max(map(len, heads)) - len(" |")
    groups: list[list[list[str]]] = []
    taken = 0
    for column in columns:
        taken += max(map(len, column)) + len("  |")
        if not groups or taken > room:
            groups.append([])
            taken = max(map(len, column)) + len("  |")
        groups[-1].append(column)
    return "\n\n".join(markdown(list(zip(heads, *group, strict=True))) for group in groups)


def short_names(runs: list[RunLog]) -> list[str]:
    """The runs' folders without the one in which all of them lie."""
    places = [Path(run.name).absolute() for run in runs]
    shared = Path(os.path.commonpath([place.parent for place in places]))
    if len(runs) == 1 or shared == Path(shared.anchor):
        return [run.name for run in runs]
    return [place.relative_to(shared).as_posix() for place in places]


def markdown(rows: list[tuple[str, ...]]) -> str:
    """A table of which the first row is the head; the first column goes to the left, the others
    to the right."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [f"{cell:>{w}}" for cell, w in zip(others, widths[1:], strict=True)]
        lines.append(f"| {' | '.join([f'{first:<{widths[0]}}', *cells])} |")
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    lines.insert(1, f"| {' | '.join(rule)} |")
    return "\n".join(lines)


def curves(runs: list[RunLog], path: Path) -> Path:
    """Draw validation bits per byte over steps, tokens and minutes, and perplexity, if the runs
    have the same tokens."""
    same = len({run.tokens for run in runs}) == 1
    picture = figure(14, 8 if same else 4.5)
    grid = picture.subplots(1 + same, 3, sharex="col", sharey="row", squeeze=False)
    if len({run.text for run in runs}) > 1:
        picture.suptitle("validated on different texts: the heights do not compare", fontsize=11)
    for column, (key, label, unit) in enumerate(AXES):
        upper, lower = grid[0, column], grid[-1, column]
        first = column == 0
        tidy(lower, x=label, y="validation bits per byte" if first else "")
        for run in runs:
            lower.plot(
                run.valid[key] / unit,
                run.valid["valid_bits_per_byte"],
                marker=".",
                label=literal(run.name),
            )
        if same:
            tidy(upper, y="validation perplexity" if first else "")
            for run in runs:
                x = run.valid[key] / unit
                upper.plot(x, perplexities(run.valid["valid_loss"]), marker=".")
            plain_log(upper)
        upper.set_title(f"over {label}", fontsize=11)
        if key == "tokens":
            lower.xaxis.set_major_formatter(_short)
    picture.legend(
        *grid[-1, 0].get_legend_handles_labels(),
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
    add("runs", nargs="+", type=Path, metavar="RUN", help="a run folder, or a model file in one")
    add(
        "-o",
        "--out",
        type=Path,
        metavar="FILE",
        help="the picture of the curves, replaced if it is there (default: compare.png, if "
        "matplotlib is)",
    )
    add("--table", action="store_true", help="print the table alone, which needs no matplotlib")


def main(args: argparse.Namespace) -> int:
    """Run ``tinygpt compare``: print the table, draw the curves, print the picture's path."""
    out = args.out or Path("compare.png")
    if not args.table and out.suffix.lower() != ".png":
        raise UsageError(f"--out: expected a name that ends in .png, got {out}")
    runs = [read(folder) for folder in args.runs]
    print(table(runs, shutil.get_terminal_size((80, 24)).columns))
    if len({run.text for run in runs}) > 1:
        tell(
            "these runs were validated on different texts, so their figures do not compare; judge "
            "them on one text with 'tinygpt eval RUN --data TEXT'"
        )
    elif len({run.tokens for run in runs}) > 1:
        tell(
            "loss and perplexity are per token, and the tokens of these runs differ: compare "
            "their bits per byte"
        )
    if args.table:
        return 0
    if args.out is None and importlib.util.find_spec("matplotlib") is None:
        tell(f"no picture of the curves: {MATPLOTLIB}")
        return 0
    replaced = out.exists()
    print(curves(runs, out), flush=True)
    if replaced:
        tell(f"{out}: replaced the one that was there")
    return 0
