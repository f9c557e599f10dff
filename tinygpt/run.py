"""Training from Python, and a run as an object: its log as arrays, its model.

    >>> import tinygpt
    >>> run = tinygpt.train("quick", max_iters=200)      # doctest: +SKIP
    >>> run.log.loss[-1], run.log.valid_loss             # doctest: +SKIP
    >>> print(run.model.generate("Once upon a time"))    # doctest: +SKIP

What this is not: another way of training. `train` does what ``tinygpt train`` does, to the bit.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt import Error, UsageError
from tinygpt.inspection.plot import TRAIN_KEYS, VALID_KEYS, read_log
from tinygpt.language_model import LanguageModel, load
from tinygpt.machine import threads as usable_threads
from tinygpt.model import config, recipes
from tinygpt.model.config import Config
from tinygpt.training.command import Job, configured, going_on, perform, starting_from
from tinygpt.training.folder import new_folder

Array = np.ndarray


def train(
    recipe: str | Config | None = None,
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    start_from: str | Path | None = None,
    check: str | Path | None = None,
    resume: bool = False,
    callback: Callable[[dict[str, Any]], Any] | None = None,
    threads: int | None = None,
    **settings: Any,
) -> Run:
    """Train a model as ``tinygpt train`` does, with the same bits, and return its run.

    `recipe` is the name of one, or a `Config` (default: "quick"); `settings` are fields of the
    configuration, such as ``max_iters=200, lr=1e-3``. `out` is the run's folder (default:
    runs/RECIPE, numbered). `start_from` is a model whose weights the run begins with, in place of a
    recipe, and `check` a text that it knows (see `tinygpt.training.finetune`). With `resume` the
    run in `out`, or the latest one, goes on.

    `callback` is called with each record of the log, a dict such as ``{"step": 3, "loss": 2.1,
    "lr": …}`` (see `tinygpt.training.train`); if it returns True or "stop", the run is saved and
    ends. Ctrl-C does the same: nothing is lost, and `resume` goes on.

    Raises tinygpt.Error, in one line, if the run cannot be made.
    """
    changes = {**settings, **({} if data is None else {"data": str(data)})}
    folder, text = None if out is None else Path(out), None if check is None else Path(check)
    name = recipe.name if isinstance(recipe, Config) else recipe
    if resume:
        if start_from is not None:
            raise UsageError("start_from: a run goes on with its own weights; resume needs none")
        job = going_on(folder, name, changes, text)
    elif start_from is not None:
        if recipe is not None:
            raise UsageError(f"start_from: the model brings its configuration; leave out {name!r}")
        job = starting_from(start_from, changes, folder, text)
    elif text is not None:
        raise UsageError("check: judges what a run forgets that has start_from; this one has none")
    else:
        if isinstance(recipe, Config):
            c = configured(recipe, changes, {"data"}, with_its_text=False)
        else:
            base = recipes.get(recipe or recipes.DEFAULT)
            c = configured(base, changes, set(), with_its_text=True)
        job = Job(c, new_folder(folder, c.name))
    perform(job, usable_threads(threads, "threads"), callback or (lambda record: None))
    return Run(job.out)


@dataclass(frozen=True)
class Log:
    """The columns of a run's log.jsonl as arrays of float64; NaN for what is not finite.

    One entry a training step that was logged: `steps`, `loss` (nats a token, before the update),
    `lr`, `grad_norm`, `tokens` and `seconds` (since the start). One a validation: `valid_steps`,
    `valid_loss`, `valid_perplexity`, `valid_bits_per_byte`, `valid_tokens`, `valid_seconds`.
    """

    steps: Array
    loss: Array
    lr: Array
    grad_norm: Array
    tokens: Array
    seconds: Array
    valid_steps: Array
    valid_loss: Array
    valid_perplexity: Array
    valid_bits_per_byte: Array
    valid_tokens: Array
    valid_seconds: Array


class Run:
    """A run's folder, of one that `train` has just made or of any other.

    Attributes: `folder` and `config`. `log` and `model` are read from the folder when asked for, as
    they are then.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / "config.json").is_file():
            raise Error(f"{self.folder}: not a run's folder (there is no config.json)")
        self.config = config.load(self.folder / "config.json")

    @property
    def log(self) -> Log:
        """What was logged, as arrays."""
        train, valid = read_log(self.folder)
        empty = np.zeros(0)
        columns = [train.get(key, empty) for key in TRAIN_KEYS]
        return Log(*columns, *(valid.get(key, empty) for key in VALID_KEYS))

    @property
    def model(self) -> LanguageModel:
        """The model as it was saved last."""
        return load(self.folder)

    @property
    def best(self) -> LanguageModel:
        """The model with the lowest validation loss."""
        return load(self.folder / "best.npz")

    def __repr__(self) -> str:
        log, c = self.log, self.config
        done = int(log.steps[-1]) + 1 if len(log.steps) else 0
        parts = [f"{done:,} of {c.max_iters:,} steps"]
        if done:
            parts.append(f"loss {log.loss[0]:.3f} → {log.loss[-1]:.3f}")
        if len(log.valid_loss):
            parts.append(f"validation {log.valid_loss[0]:.3f} → {log.valid_loss[-1]:.3f}")
        return f"<run of {c.name} in {self.folder}: {', '.join(parts)}>"

    def _repr_html_(self) -> str:
        """A notebook's view: the curve of the loss and the validations."""
        log = self.log
        rows = "".join(
            f"<tr><td>{step:,.0f}</td><td>{loss:.4f}</td><td>{bits:.4f}</td></tr>"
            for step, loss, bits in zip(
                log.valid_steps, log.valid_loss, log.valid_bits_per_byte, strict=True
            )
        )
        head = "<tr><th>step</th><th>validation loss</th><th>bits per byte</th></tr>"
        return f"<p>{html.escape(repr(self))}</p>{_curve(log)}<table>{head}{rows}</table>"


WIDTH, HEIGHT, POINTS = 480, 120, 400  # of the drawn curve


def _curve(log: Log) -> str:
    """The training loss by step as a small SVG; empty for a run without steps."""
    keep = np.flatnonzero(np.isfinite(log.loss))
    keep = keep[:: max(1, len(keep) // POINTS)]
    if len(keep) < 2:
        return ""
    x, y = log.steps[keep], log.loss[keep]
    x = (x - x[0]) / max(x[-1] - x[0], 1) * WIDTH
    y = (y.max() - y) / max(y.max() - y.min(), 1e-9) * HEIGHT
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return (
        f"<svg width='{WIDTH}' height='{HEIGHT}' viewBox='-2 -2 {WIDTH + 4} {HEIGHT + 4}'>"
        f"<polyline points='{points}' fill='none' stroke='#1f5fa8'/></svg>"
    )
