"""Small language models on a plain CPU: configuration, training, evaluation and generation.

Built on `minitensor` (gradients) and `bpe` (tokenizers). Importing this package is cheap: what
needs NumPy or numba is imported by the module that uses it; `load` and `train` come with the first
use.
"""

from typing import Any

__version__ = "0.1.0"


class Error(Exception):
    """The work failed, for a reason that the message gives in one line (exit status 1).

    The line is short and printable whatever it quotes: a message may hold what a file holds.
    """

    def __init__(self, message: object = "") -> None:
        from bpe.untrusted import one_line  # not needed until something fails

        super().__init__(one_line(str(message), 1000))


class UsageError(Error):
    """The call itself is wrong: an unknown option, recipe, key or value (exit status 2)."""


def __getattr__(name: str) -> Any:
    if name in ("LanguageModel", "load"):
        from tinygpt import language_model

        return getattr(language_model, name)
    if name in ("Run", "train"):
        from tinygpt import run

        return getattr(run, name)
    raise AttributeError(f"module 'tinygpt' has no attribute {name!r}")
