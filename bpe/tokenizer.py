"""What all tokenizers share, and the byte-level BPE tokenizer."""

from __future__ import annotations

import codecs
import hashlib
import heapq
import json
import os
import tempfile
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

from bpe.errors import TokenizerError
from bpe.patterns import Splitter, batches, cut_at_special, scalar, segments, special_regex
from bpe.workers import imap

# GPT-2 numbers the bytes by the printable characters that stand for them: those that are
# printable in Latin-1 first, in order, then the rest, as U+0100 and up.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_ALPHABET = [*_PRINTABLE, *(byte for byte in range(256) if byte not in _PRINTABLE)]
GPT2_ORDER = [_ALPHABET.index(byte) for byte in range(256)]

MAX_ID = 1 << 20  # ids from 0 up to this; a larger one in a file is a mistake or an attack


class Tokenizer(ABC):
    """Text to ids and back. The subclasses are BPETokenizer, CharTokenizer, ReducedTokenizer."""

    kind: str
    vocab_size: int
    special_tokens: dict[str, int]
    separator_id: int | None
    _bytes: dict[int, bytes]  # of every id below vocab_size; b"" for those without text

    # What a kind of tokenizer has to provide.

    @abstractmethod
    def _encode_ordinary(self, text: str) -> list[int]:
        """The ids of a text without special tokens."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The tokenizer as what JSON can hold; `bpe.from_dict` is the way back."""

    @abstractmethod
    def _last_cut(self, text: str, limit: int) -> int:
        """The last place up to `limit` to cut `text` without an effect on its ids, or 0."""

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
            raise TokenizerError(f"encode: a str is expected, not {type(text).__name__}")
        allowed = self._allowed(allowed_special)
        if disallowed_special:
            self._refuse(text, disallowed_special, allowed)
        if not allowed:
            return self._encode_ordinary(scalar(text))
        ids: list[int] = []
        for piece, is_special in cut_at_special(scalar(text), special_regex(allowed)):
            if is_special:
                ids.append(self.special_tokens[piece])
            else:
                ids += self._encode_ordinary(piece)
        return ids

    def encode_iterable(
        self, chunks: Iterable[str], *, allowed_special: Collection[str] | str = frozenset()
    ) -> Iterator[int]:
        """Yield the ids of the text that `chunks` make up together, in bounded memory.

        The ids are those of `encode("".join(chunks))`; where the chunks divide the text does not
        matter. An open file is such an iterable (open it with `newline=""` to keep "\\r\\n").
        """
        allowed = self._allowed(allowed_special)
        for piece, is_special in segments(chunks, allowed, self._last_cut):
            if is_special:
                yield self.special_tokens[piece]
            else:
                yield from self._encode_ordinary(scalar(piece))

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
            raise TokenizerError("encode_batch: a list of texts is expected, not one text")
        if processes == 1:
            return [self.encode(text, allowed_special=allowed) for text in texts]
        lists: list[list[int]] = []
        jobs = batches(texts)
        for lengths, data in imap(_batch_encoder, (self.to_dict(), allowed), jobs, processes):
            ids = iter(array("i", data))
            lists += [list(islice(ids, length)) for length in lengths]
        return lists

    def _allowed(self, allowed: Collection[str] | str) -> set[str]:
        if isinstance(allowed, str):
            if allowed != "all":
                raise TokenizerError(
                    f"allowed_special: a set of tokens or 'all' is expected, not {allowed!r}"
                )
            return set(self.special_tokens)
        # As in tiktoken, a name that is no special token here allows nothing.
        return set(allowed) & set(self.special_tokens)

    def _refuse(self, text: str, disallowed: Collection[str] | str, allowed: set[str]) -> None:
        if isinstance(disallowed, str):
            if disallowed != "all":
                raise TokenizerError(
                    f"disallowed_special: a set of tokens or 'all' is expected, not {disallowed!r}"
                )
            disallowed = self.special_tokens.keys() - allowed
        finder = special_regex(disallowed)
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
            return b"".join(map(self._bytes.__getitem__, ids))
        except (KeyError, TypeError):
            bad = next(id for id in ids if not _is_id(id, self._bytes))
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
        parts: list[str] = []
        offsets: list[int] = []
        length = 0
        for id in ids:
            offsets.append(length)
            parts.append(decoder.feed(id))
            length += len(parts[-1])
        return "".join(parts) + decoder.flush(), offsets

    def stream_decoder(self, errors: str = "replace") -> StreamDecoder:
        """A decoder that takes one id at a time and gives out whole characters only."""
        return StreamDecoder(self, errors)

    # Files.

    @property
    def sha256(self) -> str:
        """The SHA-256 of the canonical JSON form: the same for equal tokenizers, anywhere."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def save(self, path: str | os.PathLike[str], format: str = "json") -> None:
        """Write the tokenizer to `path`, which is replaced whole or not at all.

        `format` is "json" (the package's own, which keeps everything), or one of
        `bpe.formats.WRITERS`: "huggingface", "gpt2", "tiktoken", "llama2c".
        """
        if format == "json":
            items = self.to_dict().items()
            lines = [f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in items]
            write_file(Path(path), ("{" + ",\n ".join(lines) + "}\n").encode("utf-8"))
            return
        from bpe.formats import write  # which imports this module

        write(self, Path(path), format)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __reduce__(self) -> tuple[Any, ...]:
        from bpe.formats import from_dict

        return from_dict, (self.to_dict(),)

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
        """What is left at the end: nothing, or a replacement for an incomplete character."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding.

    Args:
        vocab: the bytes of each id, `None` for ids without a token.
        merges: pairs of ids, the one to be merged first at the front. The joined bytes of a pair
            are in `vocab`, and every single byte is.
        special_tokens: names and ids, which are not those of `vocab`.
        pattern: what divides text into chunks, see `bpe.patterns`.
        by_token: pairs that join to the same token rank alike, by the first of them in `merges`.
            That is how tiktoken and llama2.c merge; Hugging Face's rule is one rank a pair.
        whole_chunks: a chunk that is a token as a whole is that token, whatever merges would give
            (tiktoken; `ignore_merges` in Hugging Face's files).
        characters: encoding begins with the characters that are tokens, and with bytes for the
            others (llama2.c).
        training: how it was trained, for the record.
    """

    kind = "bpe"

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
        self._chunks = _Cache(self._encode_chunk, limit=1 << 14)

    def _index(self) -> None:
        """Check the parts of the tokenizer against each other and build the tables."""
        ids: dict[bytes, int] = {}
        for id, token in enumerate(self.vocab):
            if token is None:
                continue
            if self.characters and len(token) == 1:
                ids[token] = id  # llama2.c has byte tokens for decoding and letters besides
            elif ids.setdefault(token, id) != id:
                raise TokenizerError(f"vocab: ids {ids[token]} and {id} are both {token!r}")
        for byte in range(256):
            if bytes([byte]) not in ids:
                raise TokenizerError(f"vocab: no token for the byte 0x{byte:02x}")
        self._ids = ids
        self.byte_ids = [ids[bytes([byte])] for byte in range(256)]
        self.ranks: dict[tuple[int, int], tuple[int, int]] = {}  # pair: (rank, joined id)
        first: dict[int, int] = {}
        for rank, pair in enumerate(self.merges):
            parts = [_at(self.vocab, id) for id in pair]
            if None in parts:
                raise TokenizerError(f"merges[{rank}]: {pair[parts.index(None)]!r} is not a token")
            joined = ids.get(b"".join(parts))  # type: ignore[arg-type]
            if joined is None:
                raise TokenizerError(
                    f"merges[{rank}]: {parts[0]!r} and {parts[1]!r} join to bytes without a token"
                )
            if pair in self.ranks:
                raise TokenizerError(f"merges[{rank}]: the pair {pair} has been merged before")
            self.ranks[pair] = first.setdefault(joined, rank) if self.by_token else rank, joined
        self._bytes = {id: token or b"" for id, token in enumerate(self.vocab)}
        for name, id in self.special_tokens.items():
            if not _is_id(id, range(MAX_ID)):
                raise TokenizerError(f"special_tokens: {name!r} has the impossible id {id!r}")
            if self._bytes.get(id):
                raise TokenizerError(f"special_tokens: {name!r} has an id that is in use, {id}")
            if not name:
                raise TokenizerError("special_tokens: an empty string cannot be one")
            self._bytes[id] = name.encode("utf-8", "replace")
        self.vocab_size = max(self._bytes) + 1
        self._bytes = {id: self._bytes.get(id, b"") for id in range(self.vocab_size)}

    # Encoding: words are looked up whole; what is new falls into chunks, then into merges.

    def _last_cut(self, text: str, limit: int) -> int:
        return self._split.last_cut(text, limit)

    def _encode_ordinary(self, text: str) -> list[int]:
        if not self._split.has_words:
            return self._encode_chunks(text)
        words = iter(self._split.words(text))
        first = self._encode_chunks(next(words))
        return list(chain(first, chain.from_iterable(map(self._words.__getitem__, words))))

    def _encode_chunks(self, text: str) -> list[int]:
        chunks = self._split.chunks(text)
        return list(chain.from_iterable(map(self._chunks.__getitem__, chunks)))

    def _encode_chunk(self, chunk: str) -> list[int]:
        return self._merge(chunk.encode("utf-8", "surrogateescape"))

    def encode_bytes(self, data: bytes) -> list[int]:
        """The ids of any bytes; `decode_bytes` gives them back.

        For UTF-8 these are the ids of the text. Bytes that are not UTF-8 are split like signs
        that are neither letter, digit nor space.
        """
        return self._encode_ordinary(data.decode("utf-8", "surrogateescape"))

    def _symbols(self, data: bytes) -> list[int]:
        """The ids that merging starts from."""
        if not self.characters:
            return [self.byte_ids[byte] for byte in data]
        symbols: list[int] = []
        for character in data.decode("utf-8", "surrogateescape"):
            token = character.encode("utf-8", "surrogateescape")
            id = self._ids.get(token)
            symbols += [self.byte_ids[byte] for byte in token] if id is None else [id]
        return symbols

    def _merge(self, data: bytes) -> list[int]:
        """The ids of one chunk: the best pair is merged, again and again, leftmost first.

        A heap holds the pairs of neighbours that can be merged, and `before` and `after` link
        the symbols that are left, so that a chunk of n bytes takes n log n. Entries of the heap
        whose pair no longer stands there are passed over.
        """
        if self.whole_chunks and data in self._ids:
            return [self._ids[data]]
        ids, ranks = self._symbols(data), self.ranks
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

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": "bpe",
            "version": 1,
            "kind": self.kind,
            "pattern": self.pattern,
            "by_token": self.by_token,
            "whole_chunks": self.whole_chunks,
            "characters": self.characters,
            "training": self.training,
            "special_tokens": self.special_tokens,
            "vocab": [None if token is None else printable(token) for token in self.vocab],
            "merges": [list(pair) for pair in self.merges],
        }


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


def printable(token: bytes) -> str:
    """`token` in GPT-2's alphabet, which has a visible character for each byte."""
    return token.decode("latin-1").translate(_TO_PRINTABLE)


def unprintable(text: str) -> bytes:
    """The bytes that `printable` wrote; KeyError for characters outside of the alphabet."""
    return bytes([_FROM_PRINTABLE[character] for character in text])


_TO_PRINTABLE = {
    byte: chr(byte) if order < len(_PRINTABLE) else chr(256 + order - len(_PRINTABLE))
    for order, byte in enumerate(_ALPHABET)
}
_FROM_PRINTABLE = {character: byte for byte, character in _TO_PRINTABLE.items()}


def write_file(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, see it on the disk, then put it in the place of `path`."""
    try:
        handle, name = tempfile.mkstemp(prefix=path.name + ".", dir=path.parent)
        try:
            with open(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)  # mkstemp's files are private
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be written: {error.strerror}") from error


def _is_id(id: Any, known: Container[int]) -> bool:
    try:
        return id in known
    except TypeError:  # not hashable, so no id
        return False


def _at(vocab: list[bytes | None], id: Any) -> bytes | None:
    return vocab[id] if _is_id(id, range(len(vocab))) else None


def _batch_encoder(
    tokenizer: dict[str, Any], allowed: set[str]
) -> Callable[[list[str]], tuple[list[int], bytes]]:
    """What a worker of `encode_batch` does: texts to the lengths and the bytes of their ids."""
    from bpe.formats import from_dict

    encode = from_dict(tokenizer).encode

    def work(texts: list[str]) -> tuple[list[int], bytes]:
        lists = [encode(text, allowed_special=allowed) for text in texts]
        return [len(ids) for ids in lists], array("i", chain.from_iterable(lists)).tobytes()

    return work
