"""Neighbours and analogies in an embedding whose geometry is made by hand."""

from __future__ import annotations

import argparse

import numpy as np
import pytest

import bpe
from tinygpt import Error, UsageError
from tinygpt.formats import checkpoint
from tinygpt.inspection import probe
from tinygpt.inspection.probe import Embedding, parse_terms
from tinygpt.model.config import Config
from tinygpt.model.transformer import GPT

TEXT = "the princess , the girl , the boy , the prince , a cat . " * 5 + " dad Dad dad Dad mom mom"


@pytest.fixture(scope="module")
def tokenizer():
    return bpe.train([TEXT], 289)


@pytest.fixture
def embedding(tokenizer):
    """Axes: royal, female, male; everything else points elsewhere."""
    rows = np.zeros((tokenizer.vocab_size, 5))
    rows[:, 4] = 1.0
    for word, row in {
        " princess": (1, 1, 0, 0, 0), " girl": (0, 1, 0, 0, 0), " boy": (0, 0, 1, 0, 0),
        " prince": (1, 0, 1, 0, 0), " cat": (0.1, 0, 0, 1, 0), " dad": (0, 0, 2, 0.1, 0),
    }.items():  # fmt: skip
        (id,) = tokenizer.encode(word)
        rows[id] = row
    return Embedding(rows, tokenizer)


def shown(embedding, answers):
    return [embedding.show(id) for id, _ in answers]


def test_neighbours_come_by_their_cosine_without_the_word_itself(embedding):
    answers = embedding.near("boy", 2)
    assert shown(embedding, answers) == ['" dad"', '" prince"']
    np.testing.assert_allclose([c for _, c in answers], [2 / np.hypot(2, 0.1), 1 / np.sqrt(2)])


def test_the_analogy_of_the_page(embedding):
    answers = embedding.analogy(parse_terms(["princess", "-", "girl", "+", "boy"]), 1)
    assert shown(embedding, answers) == ['" prince"']
    assert not {'" princess"', '" girl"', '" boy"'} & set(
        shown(embedding, embedding.analogy(parse_terms(["princess - girl + boy"]), 999))
    )


def test_a_word_is_looked_up_with_its_space_and_in_the_shorter_spelling(embedding, tokenizer):
    assert embedding.spelling("girl") == tokenizer.encode(" girl")
    assert len(embedding.spelling("zebra")) > 1


def test_a_word_of_several_tokens_is_the_mean_of_their_rows(embedding, tokenizer):
    ids = embedding.spelling("princessboy")
    assert len(ids) > 1
    mean = embedding.rows[ids].mean(axis=0)
    np.testing.assert_allclose(embedding.vector("princessboy"), mean / np.linalg.norm(mean))


def test_rows_without_text_and_special_tokens_are_no_answers():
    tokenizer = bpe.CharTokenizer.train(["abc"], vocab_size=20)
    embedding = Embedding(np.ones((20, 3)), tokenizer)
    assert sorted(shown(embedding, embedding.near("a", 99))) == ['"b"', '"c"']


@pytest.mark.parametrize("word", ["ä", "", " "])
def test_a_word_that_the_tokens_cannot_write(word):
    embedding = Embedding(np.ones((6, 3)), bpe.CharTokenizer.train(["abc"]))
    with pytest.raises(Error, match="cannot be written"):
        embedding.near(word)


def test_terms():
    assert parse_terms(["- a + b - c"]) == [(-1, "a"), (1, "b"), (-1, "c")]
    for words in ([], ["a"], ["a", "b"], ["a", "-"], ["a", "-", "-", "b"], ["a", "b", "+", "c"]):
        with pytest.raises(UsageError, match="analogy: expected words with"):
            parse_terms(words)


def test_a_zero_row_has_cosine_zero(tokenizer):
    rows = np.zeros((tokenizer.vocab_size, 4))
    assert Embedding(rows, tokenizer).near("boy", 1)[0][1] == 0.0


@pytest.mark.parametrize("words", [["near", "boy"], ["analogy", "boy", "-", "girl", "+", "cat"]])
def test_the_command(words, tokenizer, tmp_path, capsys):
    config = Config(vocab_size=tokenizer.vocab_size, n_layer=1, d_model=8, n_head=2, d_ff=8)
    params = {name: p.data for name, p in GPT(config).named_parameters()}
    checkpoint.save(tmp_path / "model.npz", checkpoint.Saved(config, tokenizer, params))
    parser = argparse.ArgumentParser()
    probe.add_arguments(parser)
    args = parser.parse_args([str(tmp_path / "model.npz"), *words, "--count", "3"])
    assert probe.main(args) == 0
    told = capsys.readouterr().out
    assert probe.main(parser.parse_args([str(tmp_path), *words, "--count", "3"])) == 0
    assert capsys.readouterr().out == told  # a run folder stands for its model
    lines = told.splitlines()
    assert len(lines) == (4 if words[0] == "near" else 6)
    assert lines[0] == f'{words[1]}: " {words[1]}"'


def test_a_head_of_its_own_is_what_knows_the_words(tokenizer):
    config = Config(vocab_size=tokenizer.vocab_size, n_layer=1, d_model=8, n_head=2, d_ff=8)
    for head, name in (("untied", "head.weight"), ("tied", "embedding.weight")):
        model = GPT(config.replace(head=head))
        params = {name: p.data for name, p in model.named_parameters()}
        saved = checkpoint.Saved(model.config, tokenizer, params)
        np.testing.assert_array_equal(Embedding.of(saved).rows, params[name])
        np.testing.assert_array_equal(
            Embedding.of(saved, "embedding").rows, params["embedding.weight"]
        )
    with pytest.raises(UsageError, match="no head of its own"):
        Embedding.of(saved, "head")


def test_wrong_calls():
    parser = argparse.ArgumentParser()
    probe.add_arguments(parser)
    with pytest.raises(UsageError, match="one word"):
        probe.main(parser.parse_args(["m.npz", "near", "a", "b"]))
    with pytest.raises(UsageError, match="--count"):
        probe.main(parser.parse_args(["m.npz", "near", "a", "--count", "0"]))
