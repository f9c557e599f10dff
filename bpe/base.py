"""What every kind of tokenizer shares: encoding and decoding around the algorithm, and files.

A new kind is a subclass of `Tokenizer` with its `kind`; `tests/bpe/whitespace.py` has one in thirty
lines.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, ClassVar

from bpe.checks import field, is_id, name_of
from bpe.errors import TokenizerError
from bpe.patterns import cut_at_special, scalar, segments, special_regex
from bpe.sources import batches
from bpe.untrusted import shown
from bpe.workers import imap

MAX_ID = 1 << 18  # ids from 0 up to this; the largest published tokenizers of bytes have 200,000

KINDS: dict[str, type[Tokenizer]] = {}  # every kind of tokenizer, filled by their definitions
WRITERS: dict[str, Callable[[Any, Path], None]] = {}  # every format, filled by `bpe.formats`


class Tokenizer(ABC):
    """Text to ids and back.

    A kind of tokenizer is a subclass: `class Words(Tokenizer, kind="words")`. It sets the
    attributes below, and defines the two abstract methods and a class method `train(source, ...)`.
    `field_types` lists what it is made from: the arguments of its constructor, which are attributes
    too, with their types in JSON. That is all that `save`, `load`, worker processes and the command
    need.

    Attributes:
        vocab_size: the number of ids, which are 0 to vocab_size - 1.
        special_tokens: names and ids of the tokens that are not text.
        separator_id: the id that opens a document, if there is one.
        unknown_id: the id of whatever has none, if there is one: this kind can lose text.
        bytes_of: the bytes of every id; none for ids that stand for no text.
    """

    kind: ClassVar[str]
    field_types: ClassVar[dict[str, tuple[type, ...]]]
    train: ClassVar[Callable[..., Tokenizer]]
    vocab_size: int
    special_tokens: dict[str, int]
    separator_id: int | None
    unknown_id: int | None = None
    bytes_of: dict[int, bytes]

    def __init_subclass__(cls, *, kind: str, **options: Any) -> None:
        super().__init_subclass__(**options)
        if kind in KINDS and KINDS[kind].__qualname__ != cls.__qualname__:
            raise TypeError(f"kind: {kind!r} is {KINDS[kind].__qualname__} already")
        cls.kind = kind
        KINDS[kind] = cls

    # What a kind of tokenizer has to provide.

    @abstractmethod
    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of a text without special tokens and surrogates."""

    @abstractmethod
    def last_cut(self, text: str, limit: int) -> int:
        """The last place up to `limit` to cut `text` without an effect on its ids, or 0."""

    # What it may override.

    def to_fields(self) -> dict[str, Any]:
        """What `field_types` announces, as JSON can hold it."""
        return {name: getattr(self, name) for name in self.field_types}

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Tokenizer:
        """The tokenizer of `to_fields`. Only the types of the fields have been checked."""
        return cls(**fields)

    def facts(self) -> Iterator[tuple[str, Any]]:
        """What `bpe info` says about this kind only."""
        yield from ()

    # Encoding.

    def encode(
        self,
        text: str,
        *,
        allowed_special: Collection[str] | str = frozenset(),
        disallowed_special: Collection[str] | str = (),
    ) -> list[int]:
        """The ids of `text`.

        Special tokens in the text are ordinary characters, unless they are in `allowed_special`
        (a set of them, or "all"): then each becomes its id, the longest where several begin. A
        token of `disallowed_special` ("all": every one not allowed) in the text is an error.

        Lone surrogates, which no UTF-8 text has, are encoded as U+FFFD.
        """
        if not isinstance(text, str):
            raise TokenizerError(f"encode: expected a str, got {type(text).__name__}")
        allowed = self._allowed(allowed_special)
        if disallowed_special:
            self._refuse(text, disallowed_special, allowed)
        if not allowed:
            return self.encode_ordinary(scalar(text))
        pieces = cut_at_special(text, special_regex(allowed))
        return list(chain.from_iterable(self._encode_pieces(pieces)))

    def encode_iterable(
        self, chunks: Iterable[str], *, allowed_special: Collection[str] | str = frozenset()
    ) -> Iterator[int]:
        """Yield the ids of the text that `chunks` make up together, in bounded memory.

        The ids are those of `encode("".join(chunks))`; where the chunks divide the text does not
        matter. An open file is such an iterable (open it with `newline=""` to keep "\\r\\n").
        """
        pieces = segments(chunks, self._allowed(allowed_special), self.last_cut)
        return chain.from_iterable(self._encode_pieces(pieces))

    def _encode_pieces(self, pieces: Iterable[tuple[str, bool]]) -> Iterator[list[int]]:
        for piece, is_special in pieces:
            if is_special:
                yield [self.special_tokens[piece]]
            else:
                yield self.encode_ordinary(scalar(piece))

    def encode_batch(
        self,
        texts: Iterable[str],
        *,
        processes: int = 1,
        allowed_special: Collection[str] | str = frozenset(),
    ) -> list[list[int]]:
        """The ids of each of `texts`, computed by `processes` worker processes."""
        allowed = self._allowed(allowed_special)
        if isinstance(texts, str):
            raise TokenizerError("encode_batch: expected a list of texts, got one text")
        if processes == 1 or type(self).__module__ == "__main__":  # which workers cannot import
            return [self.encode(text, allowed_special=allowed) for text in texts]
        lists: list[list[int]] = []
        jobs = batches(texts)
        for lengths, data in imap(_batch_encoder, (self, allowed), jobs, processes):
            ids = iter(array("i", data))
            lists += [list(islice(ids, length)) for length in lengths]
        return lists

    def _allowed(self, allowed: Collection[str] | str) -> set[str]:
        # As in tiktoken, a name that is no special token here allows nothing.
        return self._named("allowed_special", allowed) & set(self.special_tokens)

    def _named(self, option: str, names: Collection[str] | str) -> set[str]:
        if isinstance(names, str) and names != "all":
            raise TokenizerError(f"{option}: expected a set of tokens or 'all', got {names!r}")
        return set(self.special_tokens if names == "all" else names)

    def _refuse(self, text: str, disallowed: Collection[str] | str, allowed: set[str]) -> None:
        refused = self._named("disallowed_special", disallowed)
        finder = special_regex(refused - allowed if disallowed == "all" else refused)
        if finder and (match := finder.search(text)):
            raise TokenizerError(
                f"the text has the special token {match.group()!r} at character {match.start()}; "
                "pass it in allowed_special to encode it as a token, or leave it out of "
                "disallowed_special to encode it as text"
            )

    # Decoding.

    def token_bytes(self, id: int) -> bytes:
        """The bytes that `id` stands for; none for ids that stand for no text."""
        return self.decode_bytes([id])

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that `ids` stand for."""
        ids = ids if isinstance(ids, list | tuple) else list(ids)
        try:
            return b"".join(map(self.bytes_of.__getitem__, ids))
        except (KeyError, TypeError):
            bad = next(id for id in ids if not is_id(id, self.bytes_of))
        raise TokenizerError(
            f"decode: {bad!r} is not an id; ids go from 0 to {self.vocab_size - 1}"
        )

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text that `ids` stand for; `errors` says what to do with bytes that are not UTF-8.

        The values are those of `bytes.decode`; "strict" raises TokenizerError.
        """
        data = self.decode_bytes(ids)
        try:
            return data.decode("utf-8", errors)
        except UnicodeDecodeError as error:
            raise TokenizerError(
                f"decode: not UTF-8: {error.reason} at byte {error.start}"
            ) from error

    def decode_with_offsets(self, ids: Iterable[int]) -> tuple[str, list[int]]:
        """The text of `ids`, and the character of it in which each token begins."""
        decoder = self.stream_decoder()
        parts = [decoder.feed(id) for id in ids]
        starts = accumulate(map(len, parts), initial=0)
        return "".join(parts) + decoder.flush(), list(islice(starts, len(parts)))

    def stream_decoder(self, errors: str = "replace") -> StreamDecoder:
        """A decoder that takes one id at a time and gives out whole characters only."""
        return StreamDecoder(self, errors)

    # Files.

    @property
    def sha256(self) -> str:
        """The SHA-256 of the canonical JSON form: the same for equal tokenizers, anywhere."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The tokenizer as values that JSON can hold; `bpe.from_dict` reads them."""
        return {"format": "bpe", "version": 1, "kind": self.kind, **self.to_fields()}

    def save(self, path: str | os.PathLike[str], format: str = "json") -> None:
        """Write the tokenizer to `path`, which is replaced whole or not at all.

        `format` is "json" (the package's own, which keeps everything), "huggingface", "gpt2",
        "tiktoken" or "llama2c".
        """
        if format not in WRITERS:
            raise TokenizerError(f"format: {format!r} is none of {', '.join(WRITERS)}")
        WRITERS[format](self, Path(path))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_fields, (self.to_fields(),)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.vocab_size} ids>"


class StreamDecoder:
    """Decodes ids one by one, holding back bytes until their character is complete."""

    def __init__(self, tokenizer: Tokenizer, errors: str = "replace") -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors)

    def feed(self, id: int) -> str:
        """The characters that `id` completes."""
        return self._decoder.decode(self._tokenizer.token_bytes(id))

    def flush(self) -> str:
        """The rest at the end: nothing, or a replacement for an incomplete character."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def from_dict(data: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that `Tokenizer.to_dict` described."""
    if not isinstance(data, Mapping):
        raise TokenizerError(f"expected an object, got {name_of(data)}")
    if field(data, "format", str) != "bpe" or field(data, "version", int) != 1:
        raise TokenizerError("format: only 'bpe', version 1, is known; it may be of a newer bpe")
    kind = field(data, "kind", str)
    if kind not in KINDS:
        raise TokenizerError(f"kind: {shown(kind)} is none of {', '.join(map(repr, KINDS))}")
    types = KINDS[kind].field_types
    for key in data:
        if key not in ("format", "version", "kind", *types):
            raise TokenizerError(f"{key}: not a field of a tokenizer of kind {kind!r}")
    return KINDS[kind].from_fields({key: field(data, key, *types[key]) for key in types})


def _batch_encoder(
    tokenizer: Tokenizer, allowed: set[str]
) -> Callable[[list[str]], tuple[list[int], bytes]]:
    """The work of an `encode_batch` worker: texts to the lengths and the bytes of their ids."""

    def work(texts: list[str]) -> tuple[list[int], bytes]:
        lists = [tokenizer.encode(text, allowed_special=allowed) for text in texts]
        return [len(ids) for ids in lists], array("i", chain.from_iterable(lists)).tobytes()

    return work
