"""The one exception of the package."""

LONGEST = 400


class TokenizerError(ValueError):
    """A tokenizer, its file or its input is not valid; the message is one line."""

    def __init__(self, message: str) -> None:
        line = " ".join(message.splitlines())  # whatever it quotes
        super().__init__(line if len(line) <= LONGEST else line[:LONGEST] + "…")
