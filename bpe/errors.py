"""The one exception of the package."""

from bpe.untrusted import one_line

LONGEST = 400


class TokenizerError(ValueError):
    """A tokenizer, its file or its input is not valid; the message is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message, LONGEST))  # whatever it quotes
