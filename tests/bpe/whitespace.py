"""A new kind of tokenizer, whole: words between white space, as an example of `bpe.Tokenizer`."""

from typing import ClassVar

import bpe
from bpe.sources import documents


class WordTokenizer(bpe.Tokenizer, kind="words"):
    """A token for each word of a list, 0 for any other; white space is one space."""

    field_types: ClassVar = {"words": (list,)}

    def __init__(self, words):
        self.words = list(words)
        self.special_tokens, self.separator_id, self.unknown_id = {}, None, 0
        self.ids = {word: id for id, word in enumerate(self.words, 1)}
        self.vocab_size = len(self.words) + 1
        self.bytes_of = {id: f"{word} ".encode() for word, id in self.ids.items()} | {0: b"? "}

    @classmethod
    def train(cls, source):
        return cls(sorted({word for text in documents(source, (), cut) for word in text.split()}))

    def encode_ordinary(self, text):
        return [self.ids.get(word, 0) for word in text.split()]

    def last_cut(self, text, limit):
        return cut(text, limit)


def cut(text, limit):
    """Between a space and what follows, no word is cut in two."""
    return text.rfind(" ", 0, limit) + 1
