"""Standard error: messages, and progress, which is a bar on a terminal and in a notebook, and
elsewhere a line now and then.

A file or a pipe gets no carriage returns and no padding, and a line for each message, so that grep
and tail can read it.
"""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

from tqdm import TqdmWarning, tqdm

from bpe.terminal import fitted, harmless

EVERY = 10.0  # seconds between two lines
LINE = "{desc}{n_fmt} of {total_fmt} {unit} ({percentage:.0f}%), {elapsed}, {remaining} to go"


def say(text: str) -> None:
    """A text to standard error, above a progress bar if there is one."""
    tqdm.write(fitted(harmless(text, sys.stderr), sys.stderr), file=sys.stderr)
    sys.stderr.flush()


def tell(line: str) -> None:
    """A message to standard error, with the program's name before it."""
    say(f"tinygpt: {line}")


def in_notebook() -> bool:
    """Whether this runs in a notebook's kernel: IPython knows, if it is there."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def bar(total: int, unit: str, **options: Any) -> Any:
    """A tqdm bar, or what stands in for it where standard error is no terminal.

    `options` are tqdm's: desc, initial, leave, disable, unit_scale.
    """
    kind: Any = tqdm
    if in_notebook():
        with warnings.catch_warnings():  # a notebook without widgets shows the bar as text
            warnings.simplefilter("ignore", TqdmWarning)
            from tqdm.auto import tqdm as kind
    elif not sys.stderr.isatty():
        return Lines(total, unit, **options)
    return kind(
        total=total,
        unit=unit,
        file=sys.stderr,
        mininterval=0.2,
        dynamic_ncols=True,
        smoothing=0.05,
        **options,
    )


class Lines:
    """The part of tqdm's interface that is used here, as lines: one every ten seconds, and with
    `leave` a last one."""

    def __init__(
        self,
        total: int,
        unit: str,
        *,
        desc: str = "",
        initial: int = 0,
        leave: bool = True,
        disable: bool = False,
        unit_scale: bool = False,
    ):
        self.total, self.unit, self.desc, self.scale = total, unit, desc, unit_scale
        self.leave, self.disable, self.postfix = leave, disable, ""
        self.n = self.initial = initial
        self.started = self.told = time.monotonic()

    def reset(self) -> None:
        """Start over."""
        self.n = self.initial = 0
        self.started = self.told = time.monotonic()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """What stands at the end of the line."""
        self.postfix = text

    def update(self, n: int = 1) -> None:
        """Take in `n` more, and write a line if it is time."""
        self.n += n
        if time.monotonic() - self.told >= EVERY:
            self._write()

    def _write(self) -> None:
        self.told = now = time.monotonic()
        if not self.disable:
            line = tqdm.format_meter(
                self.n,
                self.total,
                now - self.started,
                prefix=f"{self.desc}: " if self.desc else "",
                unit=self.unit,
                unit_scale=self.scale,
                initial=self.initial,
                postfix=self.postfix,
                bar_format=LINE + "{postfix}",
            )
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.leave and self.n > self.initial:
            self._write()
