"""The model that comes with the package: half the room, the same texts, and none is told."""

from __future__ import annotations

import numpy as np
import pytest

import bpe
import tinygpt
from tinygpt import Error, UsageError, cli
from tinygpt.data import stories
from tinygpt.formats import box, checkpoint
from tinygpt.formats.checkpoint import Saved
from tinygpt.model.transformer import GPT


@pytest.fixture
def saved(tiny):
    tokenizer = bpe.CharTokenizer.train(list(stories.corpus(20)), vocab_size=80)
    return Saved(tiny, tokenizer, GPT(tiny).state_dict(), {"step": 3})


@pytest.fixture
def boxed(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(box, "place", lambda: tmp_path / "box.npz")
    assert box.make(saved, tmp_path / "box.npz") < 30_000
    return tmp_path / "box.npz"


def test_the_weights_lie_in_half_the_room(saved, boxed, tmp_path):
    checkpoint.save(tmp_path / "whole.npz", saved)
    numbers = sum(value.size for value in saved.params.values())
    assert (tmp_path / "whole.npz").stat().st_size - boxed.stat().st_size == 2 * numbers
    read = box.load()
    assert read.config == saved.config and read.tokenizer == saved.tokenizer
    for name, value in saved.params.items():
        assert read.params[name].dtype == np.float32
        np.testing.assert_array_equal(read.params[name], value.astype(np.float16))


def test_without_a_model_it_is_the_one_that_writes(boxed, capsys):
    assert cli.main(["generate", "--max-new-tokens", "20", "--debug"]) == 0
    told = capsys.readouterr().out
    assert cli.main(["generate", str(boxed), "--max-new-tokens", "20", "--debug"]) == 0
    assert told == capsys.readouterr().out
    text = tinygpt.load().generate(max_new_tokens=20, seed=1337)
    assert text + "\n" == told


def test_a_package_without_one_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(box, "place", lambda: tmp_path / "none.npz")
    assert cli.main(["generate"]) == 2
    assert "this installation carries none: train one" in capsys.readouterr().err
    with pytest.raises(UsageError):
        tinygpt.load()


def test_it_must_be_small(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(box, "MOST", 1000)
    with pytest.raises(Error, match="expected at most 1,000 bytes for the package, got"):
        box.make(saved, tmp_path / "box.npz")
    assert not list(tmp_path.iterdir())


def test_moments_are_never_halved(saved, tmp_path):
    saved.training = {
        "step": 1, "shown": True, "optimizer": {"array": "m"}, "best": None, "seconds": 0.0,
        "data_sha256": "", "sizes": {},
    }  # fmt: skip
    saved.optim = {"m": np.ones(3, np.float16)}
    checkpoint.save(tmp_path / "checkpoint.npz", saved)
    with pytest.raises(Error, match="'optim/m': expected numbers of float32, got float16"):
        checkpoint.load(tmp_path / "checkpoint.npz")
