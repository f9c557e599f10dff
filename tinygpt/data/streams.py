"""Text to tokens to batches.

A source is the embedded stories, a UTF-8 text (documents are separated by lines holding exactly
``<|endoftext|>``), or a folder made by ``tinygpt data prepare``. Its tokens are one flat stream in
which the tokenizer's separator, if it has one, opens every document. A text's stream is kept in
a cache, keyed by the text and the settings, in the layout of a prepared folder.

A batch is a pure function of (seed, step): a resumed run sees what an uninterrupted one does.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bpe.files import open_ordinary
from bpe.terminal import counted
from bpe.untrusted import MAX_JSON, one_line, parse_json, shown
from tinygpt import Error, archive
from tinygpt.data import documents
from tinygpt.data.documents import Array, Say
from tinygpt.files import cache_folder, replacing, sha256_of
from tinygpt.model.config import TOKENIZERS, Config

if TYPE_CHECKING:
    from bpe import Tokenizer

NAME, FORMAT = "tinygpt-data", 1  # raise it when the same text would give another stream
SCAN = 1 << 20  # tokens that are looked at together
STORIES = 20_000  # embedded stories unless max_documents says otherwise


@dataclass
class Dataset:
    """Token streams for training and validation, with what is needed to judge them.

    `documents` and `bytes` hold, by split, the number of documents and of UTF-8 bytes of text;
    `left_out` is how many documents of the text `max_documents` did not take.
    """

    tokenizer: Tokenizer
    train: Array
    valid: Array
    documents: dict[str, int]
    bytes: dict[str, int]
    source: str
    sha256: str  # of the source and of what was done to it
    left_out: int = 0

    def bits_per_byte(self, nats_per_token: float) -> float:
        """Validation loss as bits per byte of text, comparable across tokenizers."""
        tokens_per_byte = len(self.valid) / max(self.bytes["valid"], 1)
        return nats_per_token * tokens_per_byte / float(np.log(2.0))

    def token_counts(self) -> list[int]:
        """How often each token of the vocabulary comes in the text to train on."""
        counts = np.zeros(self.tokenizer.vocab_size, np.int64)
        for begin in range(0, len(self.train), SCAN):  # bincount makes int64 of what it is given
            counts += np.bincount(self.train[begin : begin + SCAN], minlength=len(counts))
        return counts.tolist()


# ------------------------------------------------------------------------------------- text


def read_text(path: str | Path, purpose: str = "learn from") -> str:
    """The text of a UTF-8 file, exactly. Raises Error for a missing, empty or foreign one.

    `purpose` is what is to be done with it.
    """
    path = Path(path)
    if path.is_dir():
        raise Error(
            f"{path}: a folder that holds no prepared data; make it with "
            f"'tinygpt data prepare {path} --out DIR' and give that DIR"
        )
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise Error(
            f"{path}: no such file; give a UTF-8 text, a prepared folder, or 'stories' for the "
            "embedded ones"
        ) from None
    except OSError as error:
        raise Error(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Error(
            f"{path}: not UTF-8 text: byte {raw[error.start]:#04x} at offset "
            f"{error.start}; convert it, as with iconv -t utf-8"
        ) from None
    if not text.strip():
        raise Error(f"{path}: the file is empty; there is nothing to {purpose}")
    return text


# ---------------------------------------------------------------------------------- datasets


def load(
    config: Config, say: Say = lambda line: None, tokenizer: Tokenizer | None = None
) -> Dataset:
    """The data of a configuration, from the cache if it was read before.

    `tokenizer` is used instead of training one (a resumed run has its own). Raises Error, in one
    line, for what cannot be read or is too short.
    """
    if config.data != "stories" and (Path(config.data) / "meta.json").is_file():
        dataset = load_prepared(Path(config.data))
    else:
        dataset = _from_text(config, say, tokenizer)
    if len(dataset.train) <= config.context:
        most = len(dataset.train) - 1
        shorter = f", or --context {most} or less" if most > 1 else ""
        raise Error(
            f"{config.data}: {counted(len(dataset.train), 'token')} for training, but one context "
            f"of {config.context} needs {config.context + 1}: give a longer text{shorter}"
        )
    return dataset


def _from_text(config: Config, say: Say, tokenizer: Tokenizer | None) -> Dataset:
    """Tokens of a text or of the stories: from the cache, where the text's hash is known."""
    source = _source_key(config)
    known = cache_folder() / "tokenizers" / f"{_tokenizer_key(config, source)[:32]}.json"
    if tokenizer is None:
        tokenizer = _cached_tokenizer(known)
    if tokenizer is not None:
        try:
            dataset = load_prepared(_stream_folder(source, tokenizer))
            if (dataset.tokenizer, dataset.sha256) == (tokenizer, _hash(source, tokenizer.sha256)):
                say(f"data: {config.data}, tokens from the cache")
                return dataset
        except Error:  # not there, or damaged: made again
            pass
    train, valid, left_out = _read(config, say)
    trained = tokenizer is None
    if tokenizer is None:
        docs = {"train": train, "valid": valid}
        tokenizer = documents.make_tokenizer(
            config.tokenizer,
            documents.size_asked_for(config),
            config.reduced_from,
            lambda count, *splits: count(chain.from_iterable(docs[split] for split in splits)),
            say,
        )
    parts = len(train) + len(valid)
    say(f"data: encoding {'the text' if parts <= 2 else counted(parts, 'document')}")
    dataset = Dataset(
        tokenizer,
        documents.encode_documents(tokenizer, train),
        documents.encode_documents(tokenizer, valid),
        {"train": len(train), "valid": len(valid)},
        {"train": documents.text_bytes(train), "valid": documents.text_bytes(valid)},
        config.data,
        _hash(source, tokenizer.sha256),
        left_out,
    )
    try:
        _store(dataset, _stream_folder(source, tokenizer))
        if trained:
            _write_json(known, tokenizer.to_dict())
    except (OSError, Error) as error:
        say(f"data: the tokens are not kept for the next run: {error}")
    return dataset


def _read(config: Config, say: Say) -> tuple[list[str], list[str], int]:
    """The documents to train on and to validate with, and how many were left out."""
    if config.data == "stories":
        from tinygpt.data import stories

        total = config.max_documents or STORIES
        say(f"data: writing {total:,} embedded stories")
        held = documents.held_out(total, config.valid_fraction)
        return (
            list(stories.corpus(total - held, split="train")),
            list(stories.corpus(held, split="valid")),
            0,
        )
    say(f"data: reading {config.data}")
    docs = documents.cut_documents(read_text(config.data))
    taken = docs[: config.max_documents or len(docs)]
    return *documents.split_documents(taken, config.valid_fraction), len(docs) - len(taken)


def load_prepared(folder: Path) -> Dataset:
    """Read a prepared folder (see `tinygpt data prepare`); its streams stay on disk.

    Raises Error, in one line, unless its parts are sound and belong together: the tokenizer that
    encoded the streams, their lengths, their checksums, and every token an id of the tokenizer.
    """
    import bpe

    try:
        meta = read_meta(folder / "meta.json")
        if not (folder / "tokenizer.json").is_file():
            raise ValueError("it has no tokenizer.json")
        tokenizer = bpe.load(folder / "tokenizer.json")
        if meta.get("tokenizer_sha256", tokenizer.sha256) != tokenizer.sha256:
            raise ValueError("tokenizer.json is not the tokenizer that the data was prepared with")
        train, valid = (
            _open_stream(folder, s, meta[s], tokenizer.vocab_size) for s in documents.SPLITS
        )
    except (OSError, ValueError) as error:
        raise Error(
            f"{folder}: not a folder of prepared data: {error}; prepare the data again"
        ) from error
    return Dataset(
        tokenizer,
        train,
        valid,
        {split: meta[split]["documents"] for split in documents.SPLITS},
        {split: meta[split]["bytes"] for split in documents.SPLITS},
        one_line(meta.get("source", str(folder))),
        meta["sha256"],
        meta.get("left_out", 0),
    )


def read_meta(path: Path) -> dict[str, Any]:
    """The meta.json of a prepared folder. Raises ValueError unless it says all that is needed."""
    with open_ordinary(path) as file:
        meta = parse_json(file.read(MAX_JSON + 1))
    if not isinstance(meta, dict) or (meta.get("format"), meta.get("version")) != (NAME, FORMAT):
        raise ValueError(f"meta.json: expected an object of the format {NAME!r}, version {FORMAT}")
    for key in {"source", "sha256", "tokenizer_sha256"} & meta.keys() | {"sha256"}:
        if not isinstance(meta.get(key), str):
            raise ValueError(f"meta.json: {key}: expected text, got {shown(meta.get(key))}")
    if not _is_count(meta.get("left_out", 0)):
        raise ValueError(f"meta.json: left_out: expected a count, got {shown(meta['left_out'])}")
    for split in documents.SPLITS:
        about = meta.get(split)
        counts = about if isinstance(about, dict) else {}
        for key in {"documents", "tokens", "bytes", *counts}:
            if not _is_count(counts.get(key)):
                raise ValueError(
                    f"meta.json: {split}.{key}: expected a count, got {shown(counts.get(key))}"
                )
    return meta


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 50


def _open_stream(folder: Path, split: str, about: dict[str, int], vocab_size: int) -> Array:
    """The tokens of a split, mapped. Raises ValueError unless they are those that were written."""
    path = folder / f"{split}.npy"
    stored = archive.array_file(path)
    if stored.dtype not in (np.uint16, np.uint32) or stored.shape != (about["tokens"],):
        raise ValueError(
            f"{path.name}: expected {about['tokens']:,} tokens as uint16 or uint32, got "
            f"{stored.dtype} {archive.shape_of(stored.shape)}"
        )
    if not about["tokens"]:
        return np.zeros(0, stored.dtype)
    stream = np.memmap(path, stored.dtype, "r", stored.start, stored.shape)
    crc = 0
    for start in range(0, len(stream), SCAN):
        part = stream[start : start + SCAN]
        crc = zlib.crc32(part.data, crc)
        if part.max() >= vocab_size:
            at = start + int(np.argmax(part >= vocab_size))
            raise ValueError(
                f"{path.name}: token {at:,} is {stream[at]}, but the tokenizer has "
                f"{vocab_size:,} ids"
            )
    if crc != about.get("crc32", crc):
        raise ValueError(f"{path.name}: its tokens are not those that were prepared")
    return stream


def _store(dataset: Dataset, folder: Path) -> None:
    """Write a dataset in the layout of a prepared folder."""
    folder.mkdir(parents=True, exist_ok=True)
    meta: dict[str, Any] = {
        "format": NAME,
        "version": FORMAT,
        "source": dataset.source,
        "sha256": dataset.sha256,
        "tokenizer_sha256": dataset.tokenizer.sha256,
        "left_out": dataset.left_out,
    }
    for split, stream in (("train", dataset.train), ("valid", dataset.valid)):
        with replacing(folder / f"{split}.npy") as handle:
            np.save(handle, stream)
        meta[split] = {
            "documents": dataset.documents[split],
            "tokens": len(stream),
            "bytes": dataset.bytes[split],
            "crc32": zlib.crc32(np.ascontiguousarray(stream).data),
        }
    _write_json(folder / "tokenizer.json", dataset.tokenizer.to_dict())
    _write_json(folder / "meta.json", meta)  # last: what has it, is whole


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as handle:
        handle.write(json.dumps(value).encode())


def _cached_tokenizer(path: Path) -> Tokenizer | None:
    import bpe

    try:
        return bpe.load(path)
    except (OSError, ValueError):  # not there, or damaged: trained again
        return None


def _stream_folder(source: str, tokenizer: Tokenizer) -> Path:
    return cache_folder() / "data" / _hash(source, tokenizer.sha256)[:32]


def _source_key(config: Config) -> str:
    """SHA-256 of the source's bytes and of how it is divided."""
    embedded, path = config.data == "stories", Path(config.data)
    if embedded:  # not by its path: the package may lie in a zip
        import importlib.resources

        source = importlib.resources.files("tinygpt.data").joinpath("stories.py").read_bytes()
        digest = hashlib.sha256(source).hexdigest()
    else:
        if not path.is_file() or path.stat().st_size == 0:
            read_text(path)  # says what is wrong with it
        digest = sha256_of(path)
    return _hash(FORMAT, digest, embedded, config.valid_fraction, config.max_documents)


def _tokenizer_key(config: Config, source: str) -> str:
    """SHA-256 of all that decides the tokenizer."""
    if config.tokenizer not in TOKENIZERS and Path(config.tokenizer).is_file():
        return _hash(sha256_of(Path(config.tokenizer)))
    return _hash(source, config.tokenizer, documents.size_asked_for(config), config.reduced_from)


def _hash(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


# ----------------------------------------------------------------------------------- batches


def starts(seed: int, step: int, sequences: int, tokens: int, context: int) -> Array:
    """Where each sequence of a step begins in a stream of `tokens`: uniform, by counter."""
    from minitensor import fold

    places = tokens - context  # a sequence takes context + 1 tokens
    return np.array([fold(seed, -1, step, i) % places for i in range(sequences)], dtype=np.int64)


def even_starts(sequences: int, tokens: int, context: int) -> Array:
    """At most `sequences` starts that do not overlap, spread evenly over a stream."""
    fit = max((tokens - 1) // context, 1)
    chosen = np.arange(min(sequences, fit)) * fit // min(sequences, fit)
    return chosen.astype(np.int64) * context


def rows(stream: Array, begin: Array, length: int) -> Array:
    """(len(begin), length) int64: the tokens from each start on."""
    return stream[begin[:, None] + np.arange(length)].astype(np.int64)
