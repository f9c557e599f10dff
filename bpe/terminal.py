"""What a terminal is shown: messages in lines of its width, and texts that cannot move its cursor.

A file or a pipe gets every message as one line, for grep, and every text to the byte.
"""

from __future__ import annotations

import os
import re
import textwrap
from typing import TextIO

COMMAND = re.compile(r"(?<!\w)'[\w.]+ [^']{,99}'")  # one that is quoted stays in one piece
GLUE = "\0"
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)")


def counted(number: int, unit: str) -> str:
    """`number` of something: 1 step, 2 steps, 1,000 steps."""
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


def columns(stream: TextIO) -> int:
    """The width of the terminal that `stream` is, 80 if it does not tell; 0 for what is none."""
    try:
        if not stream.isatty():
            return 0
    except (AttributeError, ValueError):  # none, or closed
        return 0
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and int(told):
        return int(told)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (AttributeError, OSError, ValueError):
        return 80


def fitted(text: str, stream: TextIO) -> str:
    """`text` for `stream`: on a terminal, lines that are too long go on in the next ones.

    Words, paths and quoted commands stay whole, so that they can be copied.
    """
    width = columns(stream)
    if not width:
        return text
    lines = (line if len(line) <= width else _wrapped(line, width) for line in text.split("\n"))
    return "\n".join(lines)


def _wrapped(line: str, width: int) -> str:
    indent = " " * (len(line) - len(line.lstrip()) + 2)

    def glue(match: re.Match[str]) -> str:
        fits = len(match[0]) <= width - len(indent)
        return match[0].replace(" ", GLUE) if fits else match[0]

    glued = COMMAND.sub(glue, line)
    lines = textwrap.fill(
        glued,
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )
    return lines.replace(GLUE, " ")


def harmless(text: str, stream: TextIO) -> str:
    r"""`text` for `stream`: on a terminal, control characters but line ends and tabs are written as
    Python does (``\x1b``). A model that has seen few texts may write anything, and what it writes
    must not clear a screen or rename a window.
    """
    if not columns(stream):
        return text
    return CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def show(text: str, stream: TextIO) -> None:
    """Write a piece of a text to `stream`, `harmless`, at once."""
    if text:
        stream.write(harmless(text, stream))
        stream.flush()
