"""One token a character."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from bpe.base import MAX_ID, Tokenizer
from bpe.errors import TokenizerError, UsageError
from bpe.sources import Source, check_counts, check_specials, documents
from bpe.untrusted import shown

CONTROL_TOKENS = {"<unk>": 0, "<s>": 1, "</s>": 2}


def count_characters(source: Source, special_tokens: Iterable[str] = ()) -> Counter[str]:
    """How often each character occurs in `source`, not counting `special_tokens`."""
    counts: Counter[str] = Counter()
    for text in documents(source, check_specials(special_tokens), lambda text, limit: limit):
        counts.update(text)
    return counts


class CharTokenizer(Tokenizer, kind="char"):
    """A token for each character of a list.

    With control tokens, as in a SentencePiece model of type `char`, ids 0, 1 and 2 are unknown,
    begin and end, and characters follow from 3 on; any other character is encoded as 0. Without
    them, as in nanoGPT, characters are numbered from 0 on and any other is an error.

    Args:
        characters: distinct characters, in the order of their ids.
        control_tokens: whether ids 0, 1 and 2 are control tokens.
        vocab_size: ids in all; those above the last character are not used.
    """

    field_types: ClassVar = {"control_tokens": (bool,), "vocab_size": (int,), "characters": (str,)}

    def __init__(
        self, characters: str, *, control_tokens: bool = True, vocab_size: int | None = None
    ) -> None:
        if not isinstance(characters, str) or len(set(characters)) != len(characters):
            raise TokenizerError("characters: expected a string of distinct characters")
        if any("\ud800" <= character <= "\udfff" for character in characters):
            raise TokenizerError("characters: a surrogate is no character")
        self.characters = characters
        self.control_tokens = bool(control_tokens)
        self.special_tokens = dict(CONTROL_TOKENS) if control_tokens else {}
        self.separator_id = 1 if control_tokens else None
        self.unknown_id = 0 if control_tokens else None
        self._ids = {c: i for i, c in enumerate(characters, len(self.special_tokens))}
        needed = len(self._ids) + len(self.special_tokens)
        self.vocab_size = needed if vocab_size is None else vocab_size
        if not isinstance(self.vocab_size, int) or not needed <= self.vocab_size <= MAX_ID:
            raise UsageError(
                f"vocab_size: {needed} ids are needed ({len(characters)} characters and "
                f"{len(self.special_tokens)} control tokens), {shown(vocab_size)} were given"
            )
        self.bytes_of = dict.fromkeys(range(self.vocab_size), b"")
        self.bytes_of.update((id, character.encode()) for character, id in self._ids.items())

    @classmethod
    def train(
        cls,
        source: Source | Counter[str],
        vocab_size: int | None = None,
        control_tokens: bool = True,
        *,
        special_tokens: Iterable[str] = ("<|endoftext|>",),
    ) -> CharTokenizer:
        """The characters of `source` (as of `bpe.train`, or counts), but for `special_tokens`.

        With control tokens the most frequent character comes first, equally frequent ones by code
        point; if `vocab_size` has no room for all, the rarest are left out. Without control
        tokens they come by code point, and all must have room.
        """
        if isinstance(source, Counter):
            counts = check_counts(source, str)
        else:
            counts = count_characters(source, special_tokens)
        if not counts:
            raise TokenizerError("there is no text to train on")
        characters = sorted(c for c in counts if not "\ud800" <= c <= "\udfff")
        if control_tokens:
            characters.sort(key=lambda character: -counts[character])
            if isinstance(vocab_size, int):
                characters = characters[: max(0, vocab_size - len(CONTROL_TOKENS))]
        return cls("".join(characters), control_tokens=control_tokens, vocab_size=vocab_size)

    def last_cut(self, text: str, limit: int) -> int:
        return limit

    def encode_ordinary(self, text: str) -> list[int]:
        if self.control_tokens:
            ids = self._ids
            return [ids.get(character, 0) for character in text]
        try:
            return list(map(self._ids.__getitem__, text))
        except KeyError as error:
            unknown = error.args[0]
            raise TokenizerError(
                f"encode: {unknown!r} (U+{ord(unknown):04X}) is not among the "
                f"{len(self._ids)} characters, and this tokenizer has no token for unknown ones"
            ) from None

    def facts(self) -> Iterator[tuple[str, Any]]:
        yield "characters", len(self.characters)
