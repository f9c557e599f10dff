"""The way from text to tokens, the same for `train --data TEXT` and `data prepare`.

A text is cut into documents at lines that hold exactly ``<|endoftext|>``. One without such a line
is a single document, which is kept as it is; others lose the white space around them, and blank
ones are no documents. Every document is opened by the tokenizer's separator, if it has one.

Two rules say which documents are for validation:

- ``last``: the last ones, as in nanoGPT. A text's own order decides, and their number must be
  known before the first is placed.
- ``hash``: those with the smallest hashes. Equal documents stay on one side, and a document keeps
  its side when others are added or the order changes: what a large collection needs.

Of a single document, either rule takes the last part.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinygpt import Error, UsageError
from tinygpt.model.config import TOKENIZERS, Config

if TYPE_CHECKING:
    from bpe import BPETokenizer, Tokenizer

Array = np.ndarray
Say = Callable[[str], None]

SEPARATOR = "<|endoftext|>"
SEPARATOR_LINE = rf"(?m)^{re.escape(SEPARATOR)}\r?$"
SPLITS = ("train", "valid")
RULES = ("hash", "last")
VOCAB_SIZE = 4096  # of a BPE, unless asked for another
ALL_HASHES = 1 << 64  # one more than the largest document hash


def cut_documents(text: str) -> list[str]:
    """The documents of a text; one without separator lines is one document, kept as it is."""
    parts = re.split(SEPARATOR_LINE, text)
    if len(parts) == 1:
        return parts
    return [part.strip() for part in parts if part.strip()]


def held_out(count: int, fraction: float) -> int:
    """How many of `count` documents are for validation."""
    return max(1, round(count * fraction)) if fraction else 0


def border(length: int, fraction: float) -> int:
    """The character of a single document with which its validation part begins."""
    return int(length * (1 - fraction))


def document_hash(text: str) -> int:
    """64 bits that stand for a document: blake2b of its text without outer white space."""
    return int.from_bytes(hashlib.blake2b(text.strip().encode(), digest_size=8).digest(), "big")


def split_documents(docs: Sequence[str], fraction: float) -> tuple[list[str], list[str]]:
    """Documents to train on and to validate with, by the rule ``last``."""
    if len(docs) == 1:
        cut = border(len(docs[0]), fraction)
        return [docs[0][:cut]], [docs[0][cut:]] if cut < len(docs[0]) else []
    first = len(docs) - held_out(len(docs), fraction)
    return list(docs[:first]), list(docs[first:])


def check_tokenizer(kind: str, vocab_size: int | None, reduced_from: int) -> None:
    """Raise Error or UsageError for what `make_tokenizer` cannot make."""
    if kind not in TOKENIZERS and not Path(kind).is_file():
        raise Error(f"tokenizer: {kind!r} is neither a file nor one of {', '.join(TOKENIZERS)}")
    if vocab_size is not None and vocab_size < 1:
        raise UsageError(f"vocab_size: expected at least 1, got {vocab_size}")
    size = vocab_size or VOCAB_SIZE
    if kind == "reduced" and reduced_from < size:
        raise UsageError(f"reduced_from: expected at least vocab_size ({size}), got {reduced_from}")


def make_tokenizer(
    kind: str,
    vocab_size: int | None,
    reduced_from: int,
    count: Callable[..., Counter],
    say: Say = lambda line: None,
) -> Tokenizer:
    """A tokenizer of one of `TOKENIZERS`, trained on the text, or read from a file.

    ``count(counter, *splits)`` gives what the function `counter` counts in the documents of these
    splits, perhaps part by part and in other processes. Those of characters are trained on all:
    what cannot be written down cannot be predicted. Without a `vocab_size` they are as large as
    they need to be, and others have `VOCAB_SIZE` tokens.
    """
    import bpe
    from bpe.char import count_characters
    from bpe.patterns import Splitter
    from bpe.reduced import count_ids
    from bpe.training import count_chunks

    check_tokenizer(kind, vocab_size, reduced_from)
    if kind not in TOKENIZERS:
        return bpe.load(kind)
    if kind in ("char", "char-plain"):
        characters = count(count_characters, *SPLITS)
        if kind == "char-plain":  # as many as there are, whatever the size
            return bpe.CharTokenizer.train(characters, control_tokens=False)
        return bpe.CharTokenizer.train(characters, vocab_size)
    vocab_size = vocab_size or VOCAB_SIZE
    size = reduced_from if kind == "reduced" else vocab_size
    say(f"tokenizer: training a byte-level BPE of {size:,} tokens")
    counter = partial(count_chunks, splitter=Splitter("gpt2"), specials=(SEPARATOR,))
    chunks = count(counter, "train")
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        base: BPETokenizer = bpe.train(chunks, size, special_tokens=(SEPARATOR,), pattern="gpt2")
    for note in notes:
        say(f"tokenizer: {note.message}")
    if kind == "bpe":
        return base
    # vocab_size - 1 kept tokens and the unknown one
    ids = count(partial(count_ids, base), "train")
    return bpe.ReducedTokenizer.train(base, ids, min(vocab_size - 1, base.vocab_size))


def size_asked_for(config: Config) -> int | None:
    """The vocabulary's size; None where characters decide and nobody has set another."""
    unset = config.tokenizer == "char" and config.vocab_size == Config.vocab_size
    return None if unset else config.vocab_size


def dtype_of(tokenizer: Tokenizer) -> np.dtype:
    """The smallest unsigned type that holds all ids."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


def encode(tokenizer: Tokenizer, text: str, begins: bool = True) -> Array:
    """The ids of a text, after the separator if it begins a document; (n,), `dtype_of`."""
    opens = begins and tokenizer.separator_id is not None
    opening = [tokenizer.separator_id] if opens else []
    return np.array(opening + tokenizer.encode(text), dtype_of(tokenizer))


def encode_documents(tokenizer: Tokenizer, docs: Iterable[str]) -> Array:
    """One stream of all documents, (n,)."""
    empty = np.zeros(0, dtype_of(tokenizer))
    return np.concatenate([empty, *(encode(tokenizer, doc) for doc in docs)])


def text_bytes(docs: Iterable[str]) -> int:
    """UTF-8 bytes of the documents."""
    return sum(len(doc.encode("utf-8")) for doc in docs)
