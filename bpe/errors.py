"""The one exception of the package."""


class TokenizerError(ValueError):
    """A tokenizer, its file or its input is not what it has to be; the message is one line."""
