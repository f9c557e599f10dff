"""What a model knows of words: neighbours of a word, and analogies between words.

    tinygpt probe MODEL near dad
    tinygpt probe MODEL analogy she - girl + boy

Every token is a row of a matrix, and rows are compared by the cosine of the angle between them
(Mikolov et al., 2013, arXiv:1301.3781). The matrix is the embedding, or the head where that is a
matrix of its own: its rows are alike for words that can follow the same beginnings, while an
embedding apart from it may stay near the random rows that it began with, as that of `quick` does.

In running text most words follow a space, which belongs to their token, so a word is looked up with
its space as well as without, and the spelling of fewer tokens is taken (with the space if both have
as many). A word of several tokens is the mean of their rows. The answers are always single tokens.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt import Error, UsageError
from tinygpt.formats.checkpoint import Saved
from tinygpt.formats.exchange import load_any

Array = np.ndarray


class Embedding:
    """The rows (V, D) of a model's embedding or head, with the tokens that they stand for."""

    @classmethod
    def of(cls, saved: Saved, rows: str | None = None) -> Embedding:
        """The rows of the "embedding" or the "head": unless told, those that know the words.

        Raises UsageError for the head where it is no matrix of its own.
        """
        rows = rows or ("head" if "head.weight" in saved.params else "embedding")
        if f"{rows}.weight" not in saved.params:
            raise UsageError(
                "--rows: this model has no head of its own, but makes it of its embedding"
            )
        return cls(saved.params[f"{rows}.weight"], saved.tokenizer)

    def __init__(self, rows: Array, tokenizer: Any) -> None:
        self.rows = rows.astype(np.float64)
        self.tokenizer = tokenizer
        special = set(tokenizer.special_tokens.values())
        self.tokens = {  # those that stand for text; rows without any were never trained
            id: token
            for id in range(tokenizer.vocab_size)
            if id not in special and (token := tokenizer.token_bytes(id))
        }

    def spelling(self, word: str) -> list[int]:
        """The ids of a word: with the space in front or without, whichever is shorter."""
        spellings = [(text, self.tokenizer.encode(text)) for text in (" " + word, word)]
        known = [ids for text, ids in spellings if self.tokenizer.decode(ids) == text]
        if not word.strip() or not known:
            raise Error(f"{word!r} cannot be written in the tokens of this model")
        return min(known, key=len)

    def vector(self, word: str) -> Array:
        """The direction (D,) of a word, of length one."""
        return _unit(self.rows[self.spelling(word)].mean(axis=0))

    def nearest(
        self, vector: Array, count: int, without: Collection[int] = ()
    ) -> list[tuple[int, float]]:
        """The `count` tokens of the largest cosine to `vector` (D,), with it, largest first."""
        ids = np.array([id for id in self.tokens if id not in without], dtype=np.int64)
        cosines = _unit(self.rows[ids]) @ _unit(vector)
        best = np.argsort(-cosines, kind="stable")[:count]
        return [(int(ids[i]), float(cosines[i])) for i in best]

    def near(self, word: str, count: int = 10) -> list[tuple[int, float]]:
        """The tokens nearest to a word, the word itself left out."""
        return self.nearest(self.vector(word), count, set(self.spelling(word)))

    def analogy(self, terms: list[tuple[int, str]], count: int = 10) -> list[tuple[int, float]]:
        """The tokens nearest to a sum of words with the signs +1 and -1.

        All words have length one before they are added, and none of them is an answer, in neither
        of its spellings.
        """
        total = np.sum([sign * self.vector(word) for sign, word in terms], axis=0)
        words = {word.encode() for _, word in terms}
        without = {id for id, token in self.tokens.items() if token.strip() in words}
        return self.nearest(total, count, without)

    def show(self, id: int) -> str:
        """A token in quotation marks, so that its space is seen."""
        try:
            return json.dumps(self.tokens[id].decode("utf-8"), ensure_ascii=False)
        except UnicodeDecodeError:  # a part of a character
            return str(self.tokens[id])


def _unit(vectors: Array) -> Array:
    """`vectors` (..., D) scaled to length one; zero stays zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1.0))


def parse_terms(words: list[str]) -> list[tuple[int, str]]:
    """``princess - girl + boy`` as [(1, "princess"), (-1, "girl"), (1, "boy")]."""
    parts = " ".join(words).split()
    if parts and parts[0] not in ("+", "-"):
        parts.insert(0, "+")
    signs, names = parts[::2], parts[1::2]
    alternate = all(s in ("+", "-") for s in signs) and not {"+", "-"} & set(names)
    if len(names) < 2 or len(signs) != len(names) or not alternate:
        raise UsageError(
            "analogy: expected words with + and - between them, as in she - girl + boy, got "
            f"{' '.join(words)!r}"
        )
    return [(1 if sign == "+" else -1, name) for sign, name in zip(signs, names, strict=True)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``tinygpt probe``."""
    add = parser.add_argument
    add("model", type=Path, help="a run folder or a model file, such as runs/quick/best.npz")
    add("what", choices=("near", "analogy"), help="neighbours of a word, or a sum of words")
    add("words", nargs="+", metavar="WORD", help="dad, or she - girl + boy")
    add(
        "--rows",
        choices=("embedding", "head"),
        help="the matrix to look into (default: the head if it is one of its own)",
    )
    add("--count", type=int, default=10, metavar="N", help="answers to show (default: 10)")


def main(args: argparse.Namespace) -> int:
    """Run ``tinygpt probe``: print cosines and tokens, the nearest first."""
    if args.what == "near" and len(args.words) != 1:
        raise UsageError(f"near: expected one word, got {' '.join(args.words)!r}")
    if args.count < 1:
        raise UsageError(f"--count: expected a number from 1 up, got {args.count}")
    saved = load_any(args.model)
    embedding = Embedding.of(saved, args.rows)
    terms = parse_terms(args.words) if args.what == "analogy" else [(1, args.words[0])]
    for _, word in terms:
        ids = embedding.spelling(word)
        means = f" (the mean of {len(ids)} tokens)" if len(ids) > 1 else ""
        print(f"{word}: {' '.join(embedding.show(id) for id in ids)}{means}")
    if args.what == "near":
        answers = embedding.near(args.words[0], args.count)
    else:
        answers = embedding.analogy(terms, args.count)
    for id, cosine in answers:
        print(f"{cosine:7.3f}  {embedding.show(id)}")
    return 0
