"""The byte-level BPE tokenizer: text to tokens and back, by merges that training.py learned."""

from __future__ import annotations

import heapq
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, pairwise
from typing import Any, ClassVar

from bpe.alphabet import printable, unprintable
from bpe.base import MAX_ID, Tokenizer
from bpe.checks import is_id, name_of, special_ids
from bpe.errors import TokenizerError, UsageError
from bpe.patterns import Splitter
from bpe.sources import Source, check_counts, check_specials
from bpe.terminal import counted
from bpe.training import count_chunks, learn_merges
from bpe.untrusted import shown


class BPETokenizer(Tokenizer, kind="bpe"):
    """Byte-level byte-pair encoding.

    Args:
        vocab: the bytes of each id, `None` for ids without a token.
        merges: pairs of ids, in the order in which they are merged. The joined bytes of a pair
            are in `vocab`, and every single byte is.
        special_tokens: names and ids, which are not those of `vocab`.
        pattern: what divides text into chunks, see `bpe.patterns`.
        by_token: pairs that join to the same token rank alike, by the first of them in `merges`.
            That is how tiktoken and llama2.c merge; Hugging Face ranks every pair by itself.
        whole_chunks: a chunk that is a token as a whole is that token, whatever merges would give
            (tiktoken; `ignore_merges` in Hugging Face's files).
        characters: encoding begins with the characters that are tokens, and with bytes for the
            others (llama2.c).
        training: how it was trained, for the record.
    """

    field_types: ClassVar = {
        "pattern": (str,),
        **dict.fromkeys(("by_token", "whole_chunks", "characters"), (bool,)),
        **dict.fromkeys(("training", "special_tokens"), (dict,)),
        **dict.fromkeys(("vocab", "merges"), (list,)),
    }

    def __init__(
        self,
        vocab: Iterable[bytes | None],
        merges: Iterable[tuple[int, int]],
        *,
        special_tokens: Mapping[str, int] | None = None,
        pattern: str = "gpt2",
        by_token: bool = False,
        whole_chunks: bool = False,
        characters: bool = False,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        self.vocab = list(vocab)
        self.merges = [(left, right) for left, right in merges]
        self.special_tokens = dict(special_tokens or {})
        self.by_token, self.whole_chunks, self.characters = by_token, whole_chunks, characters
        self.training = dict(training or {})
        self._split = Splitter(pattern)
        self.pattern = self._split.name
        self._index()
        self.separator_id = self.special_tokens.get("<|endoftext|>")
        # Full, these two take about 20 MB: 75,000 words and 12,000 chunks make 16 MB of stories.
        self._words = _Cache(lambda word: self._encode_chunks(" " + word), limit=1 << 16)
        self._chunks = _Cache(self._merge, limit=1 << 14)

    @classmethod
    def train(
        cls,
        source: Source | Counter[bytes],
        vocab_size: int = 8000,
        *,
        special_tokens: Iterable[str] = ("<|endoftext|>",),
        pattern: str = "gpt2",
        tie_break: str = "bytes",
        min_frequency: int = 1,
        processes: int = 1,
        progress: bool = False,
    ) -> BPETokenizer:
        """Train a byte-level BPE tokenizer.

        Args:
            source: the name of a UTF-8 file, several `Path`s, an iterable of texts, or
                how often each chunk occurs in them (`bpe.training.count_chunks`, and sums of it).
            vocab_size: ids in all: the 256 bytes, the merges, the special tokens, in this order.
            special_tokens: these divide the text when they occur in it, and get ids of their own.
            pattern: "gpt2", "gpt4", "none", or a regular expression in the syntax of `regex`.
            tie_break: which of several equally frequent pairs is merged: the "bytes" that are
                greatest, compared as pairs of byte strings, or the smallest pair of "ids" in the
                numbering of Hugging Face's trainer.
            min_frequency: a pair that occurs less often is not merged.
            processes: how many count the chunks. The result does not depend on it.
            progress: show progress bars on standard error.

        Training ends early, with a warning, when no pair is left to merge.
        """
        specials = check_specials(special_tokens)
        splitter = Splitter(pattern)
        merges = vocab_size - 256 - len(specials) if isinstance(vocab_size, int) else -1
        if merges < 0:
            raise UsageError(
                f"vocab_size: {vocab_size!r} is not a number from {256 + len(specials)} up "
                f"(256 bytes and {counted(len(specials), 'special token')})"
            )
        if tie_break not in ("bytes", "ids"):
            raise UsageError(f"tie_break: expected 'bytes' or 'ids', got {tie_break!r}")
        if not isinstance(min_frequency, int) or min_frequency < 1:
            raise UsageError(f"min_frequency: expected a number from 1 up, got {min_frequency}")
        if isinstance(source, Counter):
            counts = check_counts(source, bytes)
        else:
            counts = count_chunks(
                source, splitter, specials, processes=processes, progress=progress
            )
        if not counts:
            raise TokenizerError("there is no text to train on")
        vocab, pairs, tokens = learn_merges(
            counts, merges, tie_break=tie_break, min_frequency=min_frequency, progress=progress
        )
        if len(vocab) < 256 + merges:
            often = f" that occur {min_frequency} times or more" if min_frequency > 1 else ""
            warnings.warn(
                f"the text ran out of pairs{often}: "
                f"{len(vocab) + len(specials)} tokens instead of {vocab_size}",
                stacklevel=2,
            )
        return cls(
            vocab,
            pairs,
            special_tokens={name: len(vocab) + i for i, name in enumerate(specials)},
            pattern=splitter.name,
            training={
                "tie_break": tie_break,
                "min_frequency": min_frequency,
                "bytes": sum(len(chunk) * count for chunk, count in counts.items()),
                "tokens": tokens,
            },
        )

    def _index(self) -> None:
        """Check the parts of the tokenizer against each other and build the tables."""
        ids: dict[bytes, int] = {}
        for id, token in enumerate(self.vocab):
            if token is None:
                continue
            if self.characters and len(token) == 1:
                ids[token] = id  # llama2.c has byte tokens for decoding and letters besides
            elif ids.setdefault(token, id) != id:
                raise TokenizerError(f"vocab: ids {ids[token]} and {id} are both {shown(token)}")
        for byte in range(256):
            if bytes([byte]) not in ids:
                raise TokenizerError(f"vocab: no token for the byte 0x{byte:02x}")
        self._ids = ids
        self.byte_ids = [ids[bytes([byte])] for byte in range(256)]
        self.ranks: dict[tuple[int, int], tuple[int, int]] = {}  # pair: (rank, joined id)
        first: dict[int, int] = {}
        known = range(len(self.vocab))
        for rank, pair in enumerate(self.merges):
            parts = [self.vocab[id] if is_id(id, known) else None for id in pair]
            if None in parts:
                raise TokenizerError(
                    f"merges[{rank}]: {shown(pair[parts.index(None)])} is not a token"
                )
            joined = ids.get(b"".join(parts))  # type: ignore[arg-type]
            if joined is None:
                raise TokenizerError(
                    f"merges[{rank}]: {shown(parts[0])} and {shown(parts[1])} join to bytes "
                    "without a token"
                )
            if pair in self.ranks:
                raise TokenizerError(f"merges[{rank}]: the pair {pair} has been merged before")
            self.ranks[pair] = first.setdefault(joined, rank) if self.by_token else rank, joined
        self.bytes_of = {id: token or b"" for id, token in enumerate(self.vocab)}
        for name, id in self.special_tokens.items():
            if not is_id(id, range(MAX_ID)):
                raise TokenizerError(
                    f"special_tokens: {shown(name)} has the impossible id {shown(id)}"
                )
            if self.bytes_of.get(id):
                raise TokenizerError(
                    f"special_tokens: {shown(name)} has an id that is in use, {id}"
                )
            if not name:
                raise TokenizerError("special_tokens: an empty string cannot be one")
            self.bytes_of[id] = name.encode("utf-8", "replace")
        self.vocab_size = max(self.bytes_of) + 1
        self.bytes_of = {id: self.bytes_of.get(id, b"") for id in range(self.vocab_size)}

    # Encoding: words are looked up whole; what is new falls into chunks, then into merges.

    def last_cut(self, text: str, limit: int) -> int:
        return self._split.last_cut(text, limit)

    def encode_ordinary(self, text: str) -> list[int]:
        if not self._split.has_words:
            return self._encode_chunks(text)
        words = iter(self._split.words(text))
        first = self._encode_chunks(next(words))
        return list(chain(first, chain.from_iterable(map(self._words.__getitem__, words))))

    def _encode_chunks(self, text: str) -> list[int]:
        chunks = self._split.chunks(text)
        return list(chain.from_iterable(map(self._chunks.__getitem__, chunks)))

    def encode_bytes(self, data: bytes) -> list[int]:
        """The ids of any bytes; `decode_bytes` gives them back.

        For UTF-8 these are the ids of the text. Bytes that are not UTF-8 are split like signs
        that are neither letter, digit nor space.
        """
        return self.encode_ordinary(data.decode("utf-8", "surrogateescape"))

    def _symbols(self, chunk: str, data: bytes) -> list[int]:
        """The ids that merging starts from."""
        if not self.characters:
            return [self.byte_ids[byte] for byte in data]
        symbols: list[int] = []
        for character in chunk:
            token = character.encode("utf-8", "surrogateescape")
            id = self._ids.get(token)
            symbols += [self.byte_ids[byte] for byte in token] if id is None else [id]
        return symbols

    def _merge(self, chunk: str) -> list[int]:
        """The ids of one chunk: the best pair is merged, again and again, leftmost first.

        A heap holds the pairs of neighbours that can be merged, and `before` and `after` link
        the symbols that are left, so that a chunk of n bytes takes n log n. Entries of the heap
        whose pair no longer stands there are passed over.
        """
        data = chunk.encode("utf-8", "surrogateescape")
        if self.whole_chunks and data in self._ids:
            return [self._ids[data]]
        ids, ranks = self._symbols(chunk, data), self.ranks
        heap = [(ranks[pair][0], i, pair) for i, pair in enumerate(pairwise(ids)) if pair in ranks]
        heapq.heapify(heap)
        size, gone = len(ids), -1
        before, after = list(range(-1, size - 1)), list(range(1, size + 1))
        while heap:
            _, i, pair = heapq.heappop(heap)
            j = after[i]
            if j == size or (ids[i], ids[j]) != pair:
                continue
            ids[i], ids[j] = ranks[pair][1], gone
            after[i] = k = after[j]
            if k < size:
                before[k] = i
            for left, right in ((before[i], i), (i, k)):
                if left >= 0 and right < size:
                    pair = ids[left], ids[right]
                    if pair in ranks:
                        heapq.heappush(heap, (ranks[pair][0], left, pair))
        return [id for id in ids if id != gone]

    # Files.

    def to_fields(self) -> dict[str, Any]:
        return {
            **super().to_fields(),
            "vocab": [None if token is None else printable(token) for token in self.vocab],
            "merges": [list(pair) for pair in self.merges],
        }

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> BPETokenizer:
        options = dict(fields)
        vocab, merges = options.pop("vocab"), options.pop("merges")
        if len(vocab) > MAX_ID:
            raise TokenizerError(f"vocab: {len(vocab)} tokens; {MAX_ID} are allowed")
        for id, token in enumerate(vocab):
            if type(token) not in (str, type(None)):
                raise TokenizerError(
                    f"vocab[{id}]: expected a string or null, got {name_of(token)}"
                )
        tokens = [t if t is None else unprintable(t, f"vocab[{id}]") for id, t in enumerate(vocab)]
        for rank, pair in enumerate(merges):
            if type(pair) is not list or [type(id) for id in pair] != [int, int]:
                raise TokenizerError(f"merges[{rank}]: expected two ids, got {shown(pair)}")
        special_ids(options["special_tokens"])
        return cls(tokens, map(tuple, merges), **options)

    def facts(self) -> Iterator[tuple[str, Any]]:
        yield "merges", len(self.merges)
        yield "pattern", self.pattern
        record = dict(self.training)
        size, tokens = record.pop("bytes", 0), record.pop("tokens", 0)
        if record:
            yield "trained with", ", ".join(f"{name} {value}" for name, value in record.items())
        if type(size) is type(tokens) is int and tokens > 0:  # a file may say anything
            yield "trained on", f"{size:,} bytes: {size / tokens:.3f} bytes per token"


class _Cache(dict[str, tuple[int, ...]]):
    """Ids of strings, computed when first asked for. It forgets everything when it is full."""

    def __init__(self, compute: Callable[[str], list[int]], limit: int) -> None:
        super().__init__()
        self._compute, self._limit = compute, limit

    def __missing__(self, text: str) -> tuple[int, ...]:
        ids = tuple(self._compute(text))
        if len(text) <= 40:  # longer ones hardly come twice
            if len(self) >= self._limit:
                self.clear()
            self[text] = ids
        return ids
