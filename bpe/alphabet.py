"""GPT-2's alphabet: a visible character for each byte.

GPT-2 numbers the bytes by the characters that stand for them: those that are printable in Latin-1
first, in order, then the rest, as U+0100 and up.
"""

from __future__ import annotations

from bpe.errors import TokenizerError
from bpe.untrusted import shown

_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_ALPHABET = [*_PRINTABLE, *(byte for byte in range(256) if byte not in _PRINTABLE)]
GPT2_ORDER = [_ALPHABET.index(byte) for byte in range(256)]

_TO_PRINTABLE = {byte: chr(byte) for byte in _PRINTABLE}
_TO_PRINTABLE |= {byte: chr(256 + i) for i, byte in enumerate(_ALPHABET[len(_PRINTABLE) :])}
_FROM_PRINTABLE = {character: byte for byte, character in _TO_PRINTABLE.items()}


def printable(token: bytes) -> str:
    """`token` in GPT-2's alphabet."""
    return token.decode("latin-1").translate(_TO_PRINTABLE)


def unprintable(text: str, where: str = "token") -> bytes:
    """The bytes that `printable` wrote; `where` says in an error where they stand."""
    try:
        return bytes([_FROM_PRINTABLE[character] for character in text])
    except KeyError as error:
        raise TokenizerError(
            f"{where}: {shown(text)} has {error.args[0]!r}, which stands for no byte"
        ) from None
