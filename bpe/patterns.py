"""Where text may be cut: splitting patterns, words, and special tokens.

Byte-pair encoding never merges across the border of a *chunk*; a splitting pattern says what a
chunk is (about a word with the space in front of it). Running such a pattern over all of a text
is the most expensive part of both training and encoding, so this module looks for a cheaper
first cut. Under GPT-2's and GPT-4's patterns a chunk always ends before a space that follows a
visible character, and what lies left of such a space does not change how the right is split, nor
the other way round. Text can therefore be cut there by `str.split`, into *words*; equal words
hold equal chunks, so the pattern itself needs to see every distinct word only once.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import regex

from bpe.errors import TokenizerError, UsageError
from bpe.untrusted import shown

PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt4": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    ),
    "none": "",
}
# Other spellings of the same splits, found in published files.
ALIASES = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt2",
    **{source: name for name, source in PATTERNS.items() if source},
}
# A pattern may come from a stranger's file. Python's `regex` can do more than splitting needs: what
# could take memory without end, or time where no clock looks, is refused before it is compiled.
MAX_PATTERN = 10_000  # characters; published ones have up to 300
MAX_REPEATS = 10_000  # the product of all counts, as {1,3}, in a pattern: compiling writes them out
MAX_SECONDS = 1.0  # for a trial, and again for every 100,000 characters
_COUNT = re.compile(r"\{([0-9]*)(?:,([0-9]*))?\}")
_REFUSED = re.compile(
    r"(?<!\\)\(\?(?:R|&|P>|[-+]?[0-9])"  # recursion
    r"|(?<!\\[pPNxuU])\{[^{}]*[eids][^{}]*\}"  # fuzzy matching, as {e<=1}
)

# Unicode's White_Space property, which is `\s` in the splitting patterns. Python's own `\s` has
# U+001C to U+001F besides.
SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_SPACE_AFTER_SPACE = re.compile(f"[{SPACE}] ")
_CUT = re.compile(f"(?<=[^{SPACE}]) ")
_RUN_END = regex.compile(r"(?r)(?<=\p{L})\P{L}|(?<=\p{N})\P{N}")  # the last one: it looks back
_SURROGATE = re.compile("[\ud800-\udfff]")


def scalar(text: str) -> str:
    """`text` with surrogates, which UTF-8 cannot hold, replaced as tiktoken does.

    A pair of them becomes the character that it spells in UTF-16, a lone one U+FFFD.
    """
    if text.isascii() or not _SURROGATE.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Splitter:
    """One splitting pattern, compiled.

    `pattern` is a name of `PATTERNS` or a regular expression in the syntax of the `regex` module.
    Text between two matches of an expression is a chunk of its own, so no text is ever lost.
    """

    def __init__(self, pattern: str) -> None:
        if not isinstance(pattern, str):
            raise UsageError(f"pattern: expected a string, got {type(pattern).__name__}")
        self.name = ALIASES.get(pattern, pattern)
        self.has_words = self.name in ("gpt2", "gpt4")
        if len(pattern) > MAX_PATTERN:
            raise UsageError(f"pattern: {len(pattern)} characters; {MAX_PATTERN} are allowed")
        counts = (int(n[:9] or 1) for match in _COUNT.findall(pattern) for n in match)
        if self.name not in PATTERNS and math.prod(max(n, 1) for n in counts) > MAX_REPEATS:
            raise UsageError(f"pattern: its counts multiply to more than {MAX_REPEATS:,}")
        if found := _REFUSED.search(pattern):
            raise UsageError(
                f"pattern: {shown(found[0])}: neither recursion nor fuzzy matching is supported"
            )
        try:
            self._regex = regex.compile(PATTERNS.get(self.name, pattern))
            self._matches("A trial: 1.")  # some expressions fail only here
        except (regex.error, RecursionError, OverflowError, MemoryError) as error:
            reason = str(error) or type(error).__name__
            raise UsageError(f"pattern: not a regular expression: {reason}") from error

    def chunks(self, text: str) -> list[str]:
        """The chunks of `text`, whose concatenation is `text`."""
        if self.has_words:
            return self._regex.findall(text)
        if self.name == "none":
            return [text] if text else []
        chunks: list[str] = []
        end = 0
        for begin, after in self._matches(text):
            chunks += text[end:begin], text[begin:after]
            end = after
        return [chunk for chunk in (*chunks, text[end:]) if chunk]

    def _matches(self, text: str) -> list[tuple[int, int]]:
        """Where the matches of a pattern of unknown origin begin and end, in bounded time."""
        seconds = MAX_SECONDS * (1 + len(text) / 100_000)
        try:
            return [m.span() for m in self._regex.finditer(text, timeout=seconds) if m.group()]
        except TimeoutError:
            raise TokenizerError(
                f"pattern: {shown(self.name)} takes more than {seconds:.0f} s for a text of "
                f"{len(text):,} characters: it backtracks without end"
            ) from None

    def words(self, text: str) -> list[str]:
        """Cut `text` at the spaces that follow a visible character; those spaces are left out.

        `" ".join(words)` is `text`, and the chunks of `text` are those of the first word followed
        by those of `" " + word` for each of the others. Only where `has_words` holds.
        """
        if _SPACE_AFTER_SPACE.search(text):
            return _CUT.split(text)
        return text.split(" ")  # the same words, in less than half the time

    def last_cut(self, text: str, limit: int) -> int:
        """The last position before `limit` where `text` may be cut in two; 0 if none is known.

        That is where letters or digits end: in the patterns with words, no chunk goes on there.
        """
        found = _RUN_END.search(text, 0, limit) if self.has_words else None
        return found.start() if found else 0

    def count(self, texts: Iterable[str]) -> Counter[str]:
        """How often each chunk occurs in `texts`."""
        total: Counter[str] = Counter()
        words: Counter[str] = Counter()
        for text in map(scalar, texts):
            if self.has_words:
                rest = iter(self.words(text))
                total.update(self.chunks(next(rest)))
                words.update(rest)
            else:
                total.update(self.chunks(text))
        for word, count in words.items():
            for chunk in self._regex.findall(" " + word):
                total[chunk] += count
        return total


def special_regex(special: Iterable[str]) -> re.Pattern[str] | None:
    """An expression that finds each of `special`, the longest where several begin."""
    names = sorted(special, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None


def segments(
    parts: Iterable[str],
    special: Iterable[str],
    last_cut: Callable[[str, int], int],
    block: int = 1 << 16,
) -> Iterator[tuple[str, bool]]:
    """Cut the text that `parts` make up into pieces `(text, is_special)`, in bounded memory.

    The pieces are special tokens and the ordinary text between them, which is cut further where
    it is long and `last_cut` (see `Splitter.last_cut`) knows a place. How the text was divided
    into `parts` has no effect on the chunks that come out.
    """
    special = list(special)
    finder = special_regex(special)
    longest = max(map(len, special), default=1)
    waiting: list[str] = []
    size, enough = 0, block
    for part in parts:
        waiting.append(part)
        size += len(part)
        if size < enough:
            continue
        text = "".join(waiting)
        # A special token that begins in the last `longest` characters may not be all there yet.
        done = len(text) - longest
        start = 0
        for match in finder.finditer(text) if finder else ():
            if match.start() > done:
                break
            if match.start() > start:
                yield text[start : match.start()], False
            yield match.group(), True
            start = match.end()
        cut = last_cut(text, max(done, start))
        if cut > start:
            yield text[start:cut], False
            start = cut
        waiting = [text[start:]]
        size = len(waiting[0])
        # Where no cut was found, wait for twice as much: looking again must not become quadratic.
        enough = max(block, 2 * size)
    yield from cut_at_special("".join(waiting), finder)


def cut_at_special(text: str, finder: re.Pattern[str] | None) -> Iterator[tuple[str, bool]]:
    """`text` as pieces `(text, is_special)`."""
    pieces = finder.split(text) if finder else [text]
    for index, piece in enumerate(pieces):
        if piece:
            yield piece, index % 2 == 1
