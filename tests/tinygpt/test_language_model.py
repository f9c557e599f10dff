"""A model from Python: what it says, what its arrays are, and that importing stays cheap."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import bpe
import minitensor as mt
import tinygpt
from tinygpt import Error, UsageError
from tinygpt.data import stories
from tinygpt.formats import checkpoint
from tinygpt.formats.checkpoint import Saved
from tinygpt.inspection.evaluate import evaluate
from tinygpt.model.sample import sample_text
from tinygpt.model.transformer import GPT


@pytest.fixture(scope="module")
def tokenizer():
    return bpe.CharTokenizer.train(list(stories.corpus(20)), vocab_size=80)


@pytest.fixture
def model(tmp_path, tiny, tokenizer):
    checkpoint.save(tmp_path / "model.npz", Saved(tiny, tokenizer, GPT(tiny).state_dict(), {}))
    return tinygpt.load(tmp_path)


def test_text_is_that_of_the_command_line(model, tokenizer):
    text = model.generate("Once", max_new_tokens=30, seed=3)
    assert text.startswith("Once")
    assert text == sample_text(model.gpt, tokenizer, "Once", max_new_tokens=30, seed=3)
    assert "".join(model.generate("Once", max_new_tokens=30, seed=3, stream=True)) == text
    assert model.generate("Once", max_new_tokens=30, seed=4) != text


def test_the_arrays_are_those_of_the_module(model, tiny):
    T = len("Once") + 1  # the separator is in front
    assert model.tokens("Once") == ["", "O", "n", "c", "e"]
    assert model.logits("Once").shape == (T, tiny.vocab_size)
    assert model.embed("Once").shape == (T, tiny.d_model)
    assert model.attention("Once").shape == (tiny.n_layer, tiny.n_head, T, T)
    np.testing.assert_allclose(model.attention("Once").sum(-1), 1, rtol=1e-5)
    with mt.no_grad():
        expected = model.gpt(model.ids("Once")).data[0]
    np.testing.assert_array_equal(model.logits("Once"), expected)
    np.testing.assert_array_equal(model.logits(model.ids("Once")[0].tolist()), expected)


def test_the_loss_is_that_of_eval(model, tokenizer):
    text = next(stories.corpus(1))
    assert model.loss(text) == evaluate(model.gpt, tokenizer, text)


def test_changed_weights_are_what_is_saved(model, tmp_path):
    with mt.no_grad():
        model.gpt.embedding.weight[0] = 7.0
    model.save(tmp_path / "other.npz")
    assert (tinygpt.load(tmp_path / "other.npz").gpt.embedding.weight.data[0] == 7).all()
    pytest.importorskip("safetensors")
    model.export(tmp_path / "m.safetensors", to="safetensors")
    np.testing.assert_array_equal(
        tinygpt.load(tmp_path / "m.safetensors").logits("Once"),
        tinygpt.load(tmp_path / "other.npz").logits("Once"),
    )


@pytest.mark.parametrize("text", [[], [80], [-1], "x" * 30])
def test_tokens_that_cannot_be_read(model, text):
    with pytest.raises(UsageError, match="ids:"):
        model.logits(text)


def test_errors_are_one_line(model, tmp_path):
    with pytest.raises(Error, match="no such file"):
        tinygpt.load(tmp_path / "missing.npz")
    with pytest.raises(UsageError, match="expected one of safetensors, hf"):
        model.export(tmp_path / "x", to="onnx")
    with pytest.raises(AttributeError, match="no attribute 'lead'"):
        tinygpt.lead


def test_it_says_what_one_wants_to_know(model):
    assert "2 layers" in repr(model) and "char vocabulary 80" in repr(model)
    assert "<table>" in model._repr_html_() and "token embedding" in model._repr_html_()


def test_importing_is_cheap():
    code = "import sys, tinygpt; sys.exit('numpy' in sys.modules or 'numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
