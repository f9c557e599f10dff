"""The most frequent tokens of a larger vocabulary, the rest as one unknown token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from bpe.base import Tokenizer, from_dict
from bpe.bytelevel import BPETokenizer
from bpe.errors import TokenizerError, UsageError
from bpe.sources import Source, check_counts, documents
from bpe.untrusted import shown


def count_ids(base: BPETokenizer, source: Source) -> Counter[int]:
    """How often each token of `base` occurs in `source` (see `bpe.train`)."""
    counts: Counter[int] = Counter()
    for text in documents(source, base.special_tokens, base.last_cut):
        counts.update(base.encode(text))
    return counts


class ReducedTokenizer(Tokenizer, kind="reduced"):
    """A BPE tokenizer of which only some tokens are kept.

    Ids 0 to K - 1 are the kept tokens; id K, `unknown_id`, stands for every other one and decodes
    to U+FFFD. So it is the one tokenizer here that can lose text.

    Args:
        base: the tokenizer that divides text into tokens.
        kept: ids of `base`, in the order of their new ids.
        coverage: the share of the tokens of the training text that are kept.
    """

    field_types: ClassVar = {"coverage": (float, int), "kept": (list,), "base": (dict,)}

    def __init__(self, base: BPETokenizer, kept: Iterable[int], coverage: float) -> None:
        self.base = _checked(base)
        self.kept = list(kept)
        self.coverage = coverage
        if not isinstance(coverage, int | float) or not 0 <= coverage <= 1:
            raise TokenizerError(f"coverage: expected a share from 0 to 1, got {shown(coverage)}")
        names = {id: name for name, id in base.special_tokens.items()}
        self._new: dict[int, int] = {}
        for new, id in enumerate(self.kept):
            if not isinstance(id, int) or not 0 <= id < base.vocab_size:
                raise TokenizerError(f"kept[{new}]: {shown(id)} is not an id of the base tokenizer")
            if self._new.setdefault(id, new) != new:
                raise TokenizerError(f"kept[{new}]: the id {id} is there twice")
        self.unknown_id = len(self.kept)
        self.vocab_size = len(self.kept) + 1
        self.special_tokens = {names[id]: new for id, new in self._new.items() if id in names}
        separator = base.separator_id
        self.separator_id = None if separator is None else self._new.get(separator)
        self.bytes_of = {new: base.token_bytes(id) for id, new in self._new.items()}
        self.bytes_of[self.unknown_id] = "\ufffd".encode()

    @classmethod
    def train(
        cls, base: BPETokenizer, source: Source | Counter[int], size: int = 8000
    ) -> ReducedTokenizer:
        """Keep the `size` most frequent tokens of `base` in `source`; `vocab_size` is one more.

        The special tokens of `base` are always kept and come last. Equally frequent tokens come
        by their id in `base`; if the text has fewer different tokens than `size`, unused ones
        fill up. The source may be counted already (`count_ids`).
        """
        specials = list(_checked(base).special_tokens.values())
        known = range(base.vocab_size)
        if not isinstance(size, int) or not max(1, len(specials)) <= size <= len(known):
            raise UsageError(
                f"size: expected a number from {max(1, len(specials))} to {len(known)}, "
                f"got {size!r}"
            )
        if isinstance(source, Counter):
            counts = check_counts(source, int)
        else:
            counts = count_ids(base, source)
        total = counts.total()
        if not total:
            raise TokenizerError("there is no text to train on")
        by_count = sorted(known, key=lambda id: (-counts[id], id))
        ordinary = [id for id in by_count if id not in specials][: size - len(specials)]
        kept = ordinary + specials
        return cls(base, kept, sum(counts[id] for id in kept) / total)

    def last_cut(self, text: str, limit: int) -> int:
        return self.base.last_cut(text, limit)

    def encode_ordinary(self, text: str) -> list[int]:
        new, unknown = self._new, len(self.kept)
        return [new.get(id, unknown) for id in self.base.encode_ordinary(text)]

    def to_fields(self) -> dict[str, Any]:
        return {**super().to_fields(), "base": self.base.to_dict()}

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> ReducedTokenizer:
        if fields["base"].get("kind") != BPETokenizer.kind:  # else they nest without end
            raise TokenizerError("base: expected a tokenizer of kind 'bpe'")
        return cls(**{**fields, "base": from_dict(fields["base"])})

    def facts(self) -> Iterator[tuple[str, Any]]:
        yield "reduced from", f"{self.base.vocab_size} ids"
        yield "coverage", f"{self.coverage:.4%} of the tokens of its training text"


def _checked(base: Any) -> BPETokenizer:
    if not isinstance(base, BPETokenizer):
        raise UsageError(f"base: expected a BPETokenizer, got {type(base).__name__}")
    return base
