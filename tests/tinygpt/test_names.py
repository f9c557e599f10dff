"""Whether names are kept: the places that are asked for, and what is right there."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

import bpe
import minitensor as mt
from tinygpt import cli
from tinygpt.data import stories
from tinygpt.formats import checkpoint
from tinygpt.formats.checkpoint import Saved
from tinygpt.inspection import names
from tinygpt.model.transformer import GPT

TEXTS = list(stories.corpus(6, seed=1, split="valid"))


class Foresees:
    """What a model does that gives all tokens the same chance, or all of it to the right one."""

    def __init__(self, vocab_size: int, context: int, surely: float):
        self.config = SimpleNamespace(vocab_size=vocab_size, context=context)
        self.surely = surely

    def eval(self) -> None:
        pass

    def __call__(self, ids):
        logits = np.zeros((*ids.shape, self.config.vocab_size), np.float32)
        for i, token in enumerate(self.texts[ids.shape[1]][1:]):
            logits[0, i, token] = self.surely
        return mt.tensor(logits)

    def reads(self, texts):
        self.texts = {len(ids) - 1: ids for ids in texts}
        return self


@pytest.fixture(scope="module", params=["bpe", "char"])
def tokenizer(request):
    if request.param == "char":
        return bpe.CharTokenizer.train(TEXTS, vocab_size=80)
    return bpe.train(TEXTS, vocab_size=400)


def test_names_that_came_before_are_found():
    text = 'Bob met Lily. "Hi, Bob," said Lily. Bobby and Willow are none.'
    assert [text[a:b] for a, b in names.repeated(text)] == ["Bob", "Lily"]
    assert names.repeated("Bob met Lily.") == []


@pytest.mark.parametrize(("surely", "right", "a_token"), [(0.0, 0.0, None), (50.0, 1.0, 0.0)])
def test_a_guess_and_an_oracle(tokenizer, surely, right, a_token):
    every = [names.prompt_ids(tokenizer, text) for text in TEXTS]
    model = Foresees(tokenizer.vocab_size, 4000, surely).reads(every)
    kept = names.judge(model, tokenizer, TEXTS)
    assert kept.count == sum(len(names.repeated(text)) for text in TEXTS) > 20
    assert kept.right == right
    assert kept.other <= 1 - right
    if a_token is None:  # a name costs a guess for each of its tokens
        a_token = math.log(tokenizer.vocab_size)
        assert kept.loss >= a_token * (1 - 1e-6)
    else:
        assert kept.loss == pytest.approx(a_token, abs=1e-6)


def test_what_lies_beyond_the_context_is_not_asked(tokenizer):
    ids = names.prompt_ids(tokenizer, TEXTS[0])
    short = Foresees(tokenizer.vocab_size, len(ids) // 2, 50.0).reads([ids[: len(ids) // 2 + 1]])
    kept = names.judge(short, tokenizer, TEXTS[:1])
    assert 0 < kept.count < len(names.repeated(TEXTS[0]))
    assert kept.right == 1


@pytest.mark.parametrize(("word", "other"), [("Tim", 1.0), ("sun", 0.0)])
def test_another_name_is_told_apart_from_another_word(word, other):
    text = "Bob met Lily. Then Bob ran under the Tim sun."
    tokenizer = bpe.CharTokenizer.train([text], vocab_size=40)
    wrong = names.prompt_ids(tokenizer, text.replace("Then Bob", f"Then {word}"))
    model = Foresees(tokenizer.vocab_size, 4000, 50.0).reads([wrong])
    kept = names.judge(model, tokenizer, [text])
    assert (kept.right, kept.other, kept.count) == (0.0, other, 1)


def test_eval_tells_it_and_refuses_another_text(tiny, tmp_path, monkeypatch, capsys):
    tokenizer = bpe.CharTokenizer.train(TEXTS, vocab_size=80)
    c = tiny.replace(vocab_size=tokenizer.vocab_size, head="tied", dropout=0.0)
    params = {name: p.data for name, p in GPT(c).named_parameters()}
    checkpoint.save(tmp_path / "model.npz", Saved(c, tokenizer, params, {}))
    monkeypatch.setattr("tinygpt.inspection.evaluate.STORIES", 3)
    model = str(tmp_path / "model.npz")
    assert cli.main(["eval", model, "--names", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["names"]
    assert told.keys() == {"right", "other", "loss", "count"}
    assert cli.main(["eval", model, "--names"]) == 0
    assert f"of {told['count']} are the likeliest" in capsys.readouterr().out
    (tmp_path / "a.txt").write_text("Bob met Bob.", "utf-8")
    assert cli.main(["eval", model, "--names", "--data", str(tmp_path / "a.txt")]) == 2
    assert "embedded stories alone" in capsys.readouterr().err
