"""Solutions to the exercises of examples/10_train_and_generate.py."""

import math

import numpy as np
import pytest

import bpe
import minitensor as mt
from tinygpt.data import documents, stories, streams
from tinygpt.model.transformer import GPT


@pytest.fixture(scope="module")
def text(example):
    """Stories, and their stream of tokens."""
    docs = list(stories.corpus(60))
    tokenizer = bpe.train(docs, example.CONFIG.vocab_size)
    return docs, documents.encode_documents(tokenizer, docs)


def bits_per_byte(loss, tokens, size):
    """The nats of all tokens, in bits, over the bytes of the text: the same for every tokenizer."""
    return loss * tokens / (math.log(2) * size)


@pytest.mark.slow
def test_1_bits_per_byte(example, text):
    docs, stream = text
    model = GPT(example.CONFIG)
    head = dict(model.named_parameters())["head.weight"]
    model.load_state_dict({**model.state_dict(), "head.weight": np.zeros_like(head.data)})
    loss = example.validation_loss(model, stream)  # every score is 0, so every token equally likely
    vocabulary = example.CONFIG.vocab_size
    assert loss == pytest.approx(math.log(vocabulary), rel=1e-6)
    size = sum(len(doc.encode()) for doc in docs)
    # log₂ V bits a token, times tokens per byte: long tokens make a guess cheaper per byte.
    expected = math.log2(vocabulary) * len(stream) / size
    assert bits_per_byte(loss, len(stream), size) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_2_a_batch_in_halves(example, text):
    c, stream = example.CONFIG, text[1]
    model = GPT(c)
    parameters = model.parameters()
    batch = streams.rows(
        stream, streams.starts(c.seed, 0, c.batch_size, len(stream), c.context), c.context + 1
    )

    def gradients(rows):
        # Divided by the tokens of the whole batch, not of these rows: then shares add up.
        loss = model.loss(rows[:, :-1], rows[:, 1:]) * (1 / c.tokens_per_step)
        return mt.grad(loss, parameters)

    whole, first, second = (gradients(rows) for rows in (batch, batch[:8], batch[8:]))
    # Equal up to rounding: the sums are made in another order.
    for a, left, right in zip(whole, first, second, strict=True):
        assert np.allclose(a, left + right, atol=1e-6 * np.abs(a).max())
