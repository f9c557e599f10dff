"""Solutions to the exercises of examples/07_train_a_bpe.py."""

import pytest
import regex

import bpe
from tinygpt.data import stories


@pytest.fixture(scope="module")
def learned(example):
    """Some texts, and the merges of the naive trainer."""
    texts = list(stories.corpus(20))
    return texts, example.naive_bpe(texts, 556)


def encode(example, text, merges, pattern=bpe.PATTERNS["gpt2"]):
    """The tokens of a text as byte strings."""
    tokens = []
    for chunk in regex.findall(pattern, text):
        parts = [bytes([byte]) for byte in chunk.encode()]
        for left, right in merges:
            parts = example.replace(parts, left, right)
        tokens += parts
    return tokens


@pytest.mark.slow
def test_1_encoding(example, learned):
    texts, merges = learned
    tokenizer = bpe.train(texts, 556, special_tokens=())
    for text in (next(stories.corpus(1, split="valid")), "dogs? 42 dögs!", ""):
        expected = [tokenizer.token_bytes(i) for i in tokenizer.encode(text)]
        assert encode(example, text, merges) == expected


@pytest.mark.slow
def test_2_merges_shorten(example, learned):
    texts, merges = learned
    text = texts[0]
    lengths = [len(encode(example, text, merges[:n])) for n in range(0, 301, 100)]
    # A merge joins two tokens to one wherever it applies, and does nothing anywhere else.
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == len(text.encode()) and lengths[-1] < 0.5 * lengths[0]
