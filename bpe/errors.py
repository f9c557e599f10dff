"""The exceptions of the package."""

from bpe.untrusted import one_line

LONGEST = 400


class TokenizerError(ValueError):
    """A tokenizer, its file or its input is not valid; the message is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message, LONGEST))  # whatever it quotes


class UsageError(TokenizerError):
    """The call is wrong, not what it works on: an option without a meaning (exit status 2)."""
