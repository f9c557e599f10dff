"""Starting from a model: it helps, it resumes to the bit, and what the weights fix stays fixed."""

from __future__ import annotations

import json

import numpy as np
import pytest

import bpe
import tinygpt
from tinygpt import Error, cli
from tinygpt.data import stories
from tinygpt.formats import checkpoint
from tinygpt.formats.checkpoint import Saved
from tinygpt.model.config import Config
from tinygpt.model.transformer import GPT
from tinygpt.training import finetune

TEXT = "the cat saw a dog. the dog saw a cat. "


def train(*options, debug=True):
    words = [str(word) for word in ["train", "--threads", 1, *options]]
    return cli.main([*words, "--debug"] if debug else words)


def params(folder, name="model.npz"):
    return checkpoint.load(folder / name).params


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def logged(folder, key):
    lines = (folder / "log.jsonl").read_text("utf-8").splitlines()
    return [record[key] for record in map(json.loads, lines) if key in record]


@pytest.fixture
def model(tmp_path, tiny):
    """A model file of the tiny recipe, as a run would leave it."""
    tokenizer = bpe.CharTokenizer.train(list(stories.corpus(40)), vocab_size=80)
    about = checkpoint.provenance(tiny, tokenizer, 7, "none")
    checkpoint.save(tmp_path / "m.npz", Saved(tiny, tokenizer, GPT(tiny).state_dict(), about))
    return tmp_path / "m.npz"


@pytest.fixture
def text(tmp_path):
    (tmp_path / "mine.txt").write_text(TEXT * 40, encoding="utf-8")
    return tmp_path / "mine.txt"


@pytest.mark.slow
def test_it_begins_with_the_weights_and_learns_the_text(model, text, tmp_path, capsys):
    out = tmp_path / "run"
    call = ["--from", model, "--data", text, "--out", out, "--max-iters", 20, "--set", "lr=3e-2"]
    assert train(*call) == 0
    before, after = logged(out, "valid_loss")[0], logged(out, "valid_loss")[-1]
    untouched = tinygpt.load(model)
    expected = untouched.loss(TEXT * 3)["loss"]
    assert before == pytest.approx(expected, abs=0.3)  # of the weights, not of fresh ones
    assert after < before - 0.5
    told = capsys.readouterr().err
    assert "about " in told and " of memory" in told
    assert f"text held out: loss {before:.4f} before, {after:.4f} after: it helped" in told
    first, last = logged(out, "old_loss")
    assert f"embedded stories: loss {first:.4f} before, {last:.4f} after" in told
    saved = checkpoint.load(out / "model.npz")
    assert saved.config.name == "tiny-tuned" and saved.tokenizer == untouched.tokenizer
    (origin,) = saved.provenance["from"]
    assert origin["recipe"] == "tiny" and origin["step"] == 7 and origin["data"] == "stories"
    assert origin["weights_sha256"] == finetune.origin(checkpoint.load(model))[0]["weights_sha256"]


@pytest.mark.slow
def test_it_resumes_to_the_bit(model, text, tmp_path):
    call = {"data": text, "start_from": model, "threads": 1, "lr": 1e-3}
    tinygpt.train(out=tmp_path / "whole", max_iters=6, **call)

    def stop(record):
        return record.get("step") == 2 and "loss" in record

    tinygpt.train(out=tmp_path / "parts", max_iters=6, callback=stop, **call)
    assert train("--resume", "--out", tmp_path / "parts") == 0
    assert (tmp_path / "whole/model.npz").read_bytes() == (
        tmp_path / "parts/model.npz"
    ).read_bytes()
    for key in ("loss", "valid_loss", "old_loss"):
        assert logged(tmp_path / "parts", key) == logged(tmp_path / "whole", key), key


@pytest.mark.slow
def test_killed_before_the_first_step_it_still_has_the_weights(model, text, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "watched", lambda run, check: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train("--from", model, "--data", text, "--out", out, "--max-iters", 3)
    assert same(params(out, "checkpoint.npz"), params_of(model))
    assert train("--resume", "--out", out) == 0
    tinygpt.train(out=tmp_path / "whole", start_from=model, data=text, max_iters=3, threads=1)
    assert same(params(out), params(tmp_path / "whole"))


def params_of(model):
    return checkpoint.load(model).params


def test_steps_and_rate_are_those_that_a_short_text_needs(model, tiny):
    saved = checkpoint.load(model)
    c = finetune.configuration(saved, {"data": "mine.txt"})
    assert (
        c.lr == pytest.approx(tiny.lr * finetune.SHARE)
        and c.min_lr == 0
        and c.valid_fraction == 0.1
    )
    assert c.max_documents == 0
    saved.provenance["from"] = [{}]  # it was tuned before: its rate is low already
    saved.config = c
    assert finetune.configuration(saved, {}).lr == c.lr
    assert finetune.configuration(saved, {"lr": "0.5"}).lr == 0.5
    imported = Saved(tiny, saved.tokenizer, {}, {"imported": "GPT-2"})
    assert finetune.configuration(imported, {}).lr == finetune.UNKNOWN_LR
    large = Config(context=1024, batch_size=32, accumulation=4, d_model=8, n_layer=1)
    c = finetune.configuration(Saved(large, saved.tokenizer, {}, {}), {})
    assert c.batch_size * c.accumulation * c.context == finetune.STEP_TOKENS

    class Text:
        train = np.zeros(4096 * 5)

    assert finetune.fit(c, Text, ()).max_iters == 80
    assert finetune.fit(c, Text, ()).warmup == 8
    assert finetune.fit(c, Text, {"max_iters"}).max_iters == c.max_iters
    Text.train = np.zeros(10)
    assert finetune.fit(c, Text, ()).max_iters == finetune.LEAST
    Text.train = np.zeros(10_000_000)
    assert finetune.fit(c, Text, ()).max_iters == finetune.MOST


def test_the_text_that_a_model_names_is_not_read(model, text):
    saved = checkpoint.load(model)
    saved.config = saved.config.replace(data=str(text))
    assert finetune.configuration(saved, {}).data == "stories"
    assert finetune.configuration(saved, {"data": str(text)}).data == str(text)
    assert "data" not in finetune.origin(saved)[0]


@pytest.mark.slow
def test_a_text_to_check_with(model, text, tmp_path, capsys):
    (tmp_path / "old.txt").write_text("Once there was a bird. " * 20, encoding="utf-8")
    out = tmp_path / "run"
    call = ["--from", model, "--data", text, "--out", out, "--max-iters", 40, "--set", "lr=5e-2"]
    assert train(*call, "--check", tmp_path / "old.txt") == 0
    first, last = logged(out, "old_loss")
    told = capsys.readouterr().err
    word = "it forgets" if last > first * (1 + finetune.WORSE) else "nothing is forgotten"
    assert f"old.txt: loss {first:.4f} before, {last:.4f} after: {word}" in told
    expected = tinygpt.load(model).loss("Once there was a bird. " * 20)["loss"]
    assert first == pytest.approx(expected, rel=0.02)  # eval's windows overlap


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "n_layer=3"], "n_layer: the weights come with 2, which cannot be changed"),
        (["--set", "vocab-size=90"], "vocab_size: the weights come with 80"),
        (["--set", "tokenizer=bpe"], "tokenizer: the weights come with 'char'"),
        (["quick"], "--from: the model brings its configuration; leave out 'quick'"),
        (["--config", "x.json"], "--from: the model brings its configuration; leave out --config"),
        (["--resume"], "--from: a run goes on with its own weights"),
        (["--check", "missing.txt"], "missing.txt: no such file"),
        (["--set", "context=2000"], "one context of 2000 needs 2001"),
    ],
)
def test_conflicts_are_one_line(model, text, tmp_path, capsys, options, message):
    out = tmp_path / "run"
    assert train("--from", model, "--data", text, "--out", out, *options, debug=False) in (1, 2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert message in line
    assert not (out / "config.json").exists()


@pytest.mark.slow
def test_a_text_must_be_one_that_its_tokenizer_can_write(model, text, tmp_path, capsys):
    text.write_text(TEXT * 40 + "αβγ", encoding="utf-8")
    call = ["--data", text, "--max-iters", 1]
    assert train("--from", model, "--out", tmp_path / "a", *call) == 0
    assert "data: 3 of 1,525 tokens (0.20%) are unknown" in capsys.readouterr().err
    saved = checkpoint.load(model)
    plain = bpe.CharTokenizer(saved.tokenizer.characters, control_tokens=False, vocab_size=80)
    checkpoint.save(tmp_path / "plain.npz", Saved(saved.config, plain, saved.params, {}))
    with pytest.raises(Error, match=r"'α' \(U\+03B1\) is not among .* train without --from"):
        train("--from", tmp_path / "plain.npz", "--out", tmp_path / "b", *call)


def test_a_check_needs_a_model_to_start_from(model, text, tmp_path, capsys, tiny):
    assert train("--check", text, debug=False) == 2
    assert "needs" not in capsys.readouterr().out
    tinygpt.train(tiny, out=tmp_path / "run", max_iters=1, threads=1)
    assert train("--resume", "--out", tmp_path / "run", "--check", text, debug=False) == 2
    assert "--check: judges what a run forgets" in capsys.readouterr().err


@pytest.mark.slow
def test_an_imported_folder_is_a_start(text, tmp_path):
    pytest.importorskip("safetensors")
    from tinygpt.formats.huggingface import save_folder

    tokenizer = bpe.train([TEXT * 3], 270)
    c = Config(vocab_size=272, context=16, n_layer=1, n_head=2, d_model=8, d_ff=16)  # padded
    save_folder(Saved(c, tokenizer, GPT(c).state_dict(), {}), tmp_path / "hf")
    values = json.loads((tmp_path / "hf/config.json").read_text("utf-8"))
    del values["tinygpt"]  # as GPT-2's own folder is
    (tmp_path / "hf/config.json").write_text(json.dumps(values), encoding="utf-8")
    run = tinygpt.train(
        start_from=tmp_path / "hf", data=text, out=tmp_path / "run", max_iters=30, lr=1e-2,
        threads=1,
    )  # fmt: skip
    assert run.log.valid_loss[-1] < run.log.valid_loss[0] - 0.3
    assert run.config.vocab_size == 272 and run.config.name == "gpt2-tuned"
    assert run.model.provenance["from"][0]["imported"]
    assert not logged(tmp_path / "run", "old_loss")  # nobody knows what it was trained on
    again = tinygpt.train(resume=True, out=tmp_path / "run", max_iters=32, threads=1)
    assert len(again.log.loss) == 32
