"""The model that comes with the package: half the room, the same texts, and none is told."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

import bpe
import tinygpt
from tinygpt import Error, UsageError, cli
from tinygpt.data import stories
from tinygpt.formats import box, checkpoint
from tinygpt.formats.checkpoint import Saved
from tinygpt.model import recipes
from tinygpt.model.transformer import GPT

ROOT = Path(__file__).parents[2]


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
    told, beside = capsys.readouterr()
    assert (
        beside == "tinygpt: no model given: this one comes with the package, tiny after 3 steps\n"
    )
    assert cli.main(["generate", str(boxed), "--max-new-tokens", "20", "--debug"]) == 0
    assert capsys.readouterr() == (told, "")
    text = tinygpt.load().generate(max_new_tokens=20, seed=1337)
    assert text + "\n" == told


def test_it_is_made_and_judged_by_one_command(saved, tmp_path, capsys, monkeypatch):
    """benchmarks/make_box.py on a run folder, as CONTRIBUTING says."""
    (tmp_path / "run").mkdir()
    checkpoint.save(tmp_path / "run" / "model.npz", saved)
    spec = importlib.util.spec_from_file_location("make_box", ROOT / "benchmarks" / "make_box.py")
    make_box = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_box)
    monkeypatch.setattr(make_box, "STORIES", 2)
    monkeypatch.setattr(box, "place", lambda: tmp_path / "box.npz")
    monkeypatch.setattr("sys.argv", ["make_box.py", str(tmp_path / "run")])
    make_box.main()
    size, *losses = capsys.readouterr().out.splitlines()
    assert size == f"{tmp_path / 'box.npz'}: {(tmp_path / 'box.npz').stat().st_size:,} bytes"
    exact, halved = (float(line.split()[2]) for line in losses)
    assert abs(exact - halved) < 0.01
    assert box.load().provenance == saved.provenance
    first = (tmp_path / "box.npz").read_bytes()
    make_box.main()
    assert (tmp_path / "box.npz").read_bytes() == first


@pytest.mark.slow
def test_the_one_in_the_package_is_the_default_recipe_and_tells_a_story():
    if not box.place().is_file():
        pytest.skip("the package carries no model: benchmarks/make_box.py makes one")
    saved, recipe = box.load(), recipes.get(recipes.DEFAULT)
    assert saved.config.replace(data=recipe.data) == recipe
    assert saved.provenance["step"] == recipe.max_iters
    assert saved.provenance["seed"] == recipe.seed
    assert Path(str(box.place())).stat().st_size <= box.MOST
    text = "\n<|endoftext|>\n".join(stories.corpus(20, seed=1, split="valid"))
    assert tinygpt.load().loss(text)["bits_per_byte"] < 0.2
    words = set(re.findall("[a-z]+", text.lower()))
    told = re.findall("[a-z]+", tinygpt.load().generate(max_new_tokens=150).lower())
    assert len(told) > 50 and sum(word in words for word in told) > 0.7 * len(told)


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
