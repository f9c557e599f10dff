"""Evaluation: every token once, the same number however it is computed."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bpe
import minitensor as mt
from tinygpt import Error, cli
from tinygpt.data import stories, streams
from tinygpt.data.corpus import Options
from tinygpt.data.prepare import prepare
from tinygpt.formats import checkpoint
from tinygpt.formats.checkpoint import Saved
from tinygpt.inspection import evaluate
from tinygpt.model.transformer import GPT

TEXT = "\n<|endoftext|>\n".join(stories.corpus(6, split="valid"))


@pytest.fixture
def model(tiny) -> GPT:
    return GPT(tiny.replace(head="tied")).eval()


@pytest.fixture
def tokenizer():
    return bpe.CharTokenizer.train([TEXT], vocab_size=80)


@given(st.integers(2, 200), st.integers(1, 20), st.data())
def test_windows_judge_every_token_but_the_first_once(tokens, context, draw):
    stride = draw.draw(st.integers(1, context))
    judged = []
    for begin, first in evaluate.windows(tokens, context, stride):
        length = min(context, tokens - 1)
        assert begin + length < tokens
        judged += range(first, begin + length + 1)
    assert judged == list(range(1, tokens))


@pytest.mark.slow
def test_the_number_does_not_depend_on_batches_or_threads(model, tokenizer):
    reference = evaluate.evaluate(model, tokenizer, TEXT)
    for batch_size in (1, 3, 1000):
        assert evaluate.evaluate(model, tokenizer, TEXT, batch_size=batch_size) == reference
    with mt.Workers(3) as workers:
        assert evaluate.evaluate(model, tokenizer, TEXT, workers=workers) == reference


def test_a_stride_of_one_is_the_plain_definition(model, tokenizer):
    stream = np.array([1, *tokenizer.encode("a little fox and a hen went home")])
    context, total = model.config.context, 0.0
    for target in range(1, len(stream)):
        begin = max(0, min(target - context, len(stream) - 1 - context))
        with mt.no_grad():
            logits = model(stream[None, begin:target]).data[0, -1].astype(float)
        total += math.log(np.exp(logits).sum()) - logits[stream[target]]
    assert evaluate.stream_loss(model, stream, stride=1) == pytest.approx(total, rel=1e-5)


def test_bits_per_byte_counts_the_bytes_of_the_text(model, tokenizer):
    result = evaluate.evaluate(model, tokenizer, TEXT)
    docs = TEXT.split("\n<|endoftext|>\n")
    assert result["bytes"] == sum(len(doc.encode()) for doc in docs)
    assert result["tokens"] == sum(len(doc) + 1 for doc in docs) - 1
    assert result["bits_per_byte"] == pytest.approx(
        result["loss"] * result["tokens"] / result["bytes"] / math.log(2)
    )
    assert result["uniform"]["loss"] == pytest.approx(math.log(80))
    assert result["untrained"]["loss"] == pytest.approx(result["loss"], rel=0.02)


def test_a_text_shorter_than_the_context_is_judged_too(model, tokenizer):
    assert evaluate.evaluate(model, tokenizer, "fox")["tokens"] == 3
    with pytest.raises(Error, match="too short to judge"):
        evaluate.evaluate(model, tokenizer, "")


def test_the_command_prints_a_table_or_json(tmp_path, model, tokenizer, capsys):
    checkpoint.save(tmp_path / "m.npz", Saved(model.config, tokenizer, model.state_dict()))
    (tmp_path / "t.txt").write_text(TEXT, encoding="utf-8")
    args = ["eval", str(tmp_path / "m.npz"), "--data", str(tmp_path / "t.txt")]
    assert cli.main(args) == 0
    table = capsys.readouterr().out
    assert "bits per byte" in table and "untrained" in table and "uniform" in table
    assert cli.main([*args, "--json", "--batch_size", "2", "--threads=1"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert f"{result['loss']:.4f}" in table
    assert evaluate._text(evaluate.Path("stories")) == evaluate._text(None)
    assert cli.main([*args, "--stride", "17"]) == 2
    assert "exceeds the model's context of 16" in capsys.readouterr().err
    assert cli.main([*args, "--batch-size", "0"]) == 2
    assert "--batch-size: expected at least 1, got 0" in capsys.readouterr().err


def test_prepared_data_is_judged_by_its_validation_part(tmp_path, model, tokenizer, capsys):
    (tmp_path / "t.txt").write_text(TEXT, encoding="utf-8")
    tokenizer.save(tmp_path / "t.json")
    options = Options(tokenizer=str(tmp_path / "t.json"), vocab_size=80, valid_fraction=0.5)
    prepare([tmp_path / "t.txt"], tmp_path / "data", options=options)
    data = streams.load_prepared(tmp_path / "data")
    args = ["eval", str(tmp_path / "m.npz"), "--data", str(tmp_path / "data"), "--json"]
    checkpoint.save(tmp_path / "m.npz", Saved(model.config, tokenizer, model.state_dict()))
    assert cli.main(args) == 0
    wanted = evaluate.evaluate_stream(model, tokenizer, data.valid, data.bytes["valid"])
    assert json.loads(capsys.readouterr().out)["loss"] == wanted["loss"]
    other = bpe.CharTokenizer("abc", vocab_size=80)
    checkpoint.save(tmp_path / "m.npz", Saved(model.config, other, model.state_dict()))
    assert cli.main(args) == 1
    assert "prepared with another tokenizer than the model's" in capsys.readouterr().err


def test_without_a_separator_nothing_predicts_the_first_character(model):
    plain = bpe.CharTokenizer.train(["äbc"], control_tokens=False, vocab_size=80)
    text = "äbcä" * 5
    judged = evaluate.evaluate(model, plain, text)
    bits = judged["loss"] * judged["tokens"] / math.log(2)
    assert judged["tokens"] == 19
    assert judged["bits_per_byte"] == pytest.approx(bits / (len(text.encode()) - 2))


def test_an_empty_text_is_nothing_to_judge(tmp_path, model, tokenizer, capsys):
    checkpoint.save(tmp_path / "m.npz", Saved(model.config, tokenizer, model.state_dict()))
    (tmp_path / "t.txt").write_text("\n", encoding="utf-8")
    assert cli.main(["eval", str(tmp_path / "m.npz"), "--data", str(tmp_path / "t.txt")]) == 1
    assert "the file is empty; there is nothing to judge\n" in capsys.readouterr().err


def test_it_is_told_that_another_text_is_judged(tmp_path, model, tokenizer, monkeypatch, capsys):
    monkeypatch.setattr("tinygpt.inspection.evaluate.STORIES", 2)
    params = {name: p.data for name, p in model.named_parameters()}
    for data, told in (("mine.txt", True), ("stories", False)):
        saved = Saved(model.config.replace(data=data), tokenizer, params, {})
        checkpoint.save(tmp_path / "model.npz", saved)
        assert cli.main(["eval", str(tmp_path / "model.npz")]) == 0
        assert ("it learned from 'mine.txt': see --data" in capsys.readouterr().err) == told


def test_it_is_told_that_the_text_is_the_one_it_learned_from(model, tokenizer, tmp_path, capsys):
    for name in ("t.txt", "other.txt"):
        (tmp_path / name).write_text(TEXT, encoding="utf-8")
    config = model.config.replace(data=str(tmp_path / "t.txt"))
    checkpoint.save(tmp_path / "model.npz", Saved(config, tokenizer, model.state_dict()))
    for name, told in (("t.txt", True), ("other.txt", False)):
        assert cli.main(["eval", str(tmp_path), "--data", str(tmp_path / name)]) == 0
        assert ("it learned from most of this text" in capsys.readouterr().err) == told


def test_a_model_that_is_worse_than_a_guess_is_called_that(model, tokenizer, tmp_path, capsys):
    (tmp_path / "t.txt").write_text(TEXT, encoding="utf-8")
    for scale, worse in ((1, False), (30, True)):  # an untrained one guesses; the other is sure
        params = {name: p * np.float32(scale) for name, p in model.state_dict().items()}
        checkpoint.save(tmp_path / "model.npz", Saved(model.config, tokenizer, params))
        assert cli.main(["eval", str(tmp_path), "--data", str(tmp_path / "t.txt")]) == 0
        assert ("worse here than a guess among all tokens" in capsys.readouterr().out) == worse
