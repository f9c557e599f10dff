"""Pictures of a small run: what is drawn is true, and every file is a picture."""

from __future__ import annotations

import argparse
import builtins
import json
import struct

import numpy as np
import pytest

import bpe
from tinygpt import Error, cli
from tinygpt.formats import checkpoint
from tinygpt.inspection import plot
from tinygpt.model.config import Config
from tinygpt.model.transformer import GPT

TEXT = "Once upon a time there was a cat. It cost $5 and said “miau” to a dog.\n"


@pytest.fixture(scope="module")
def saved():
    """A fresh model with everything that a picture has to tell apart."""
    tokenizer = bpe.train([TEXT], 300)
    config = Config(
        name="$mall", vocab_size=300, context=16, n_layer=2, n_head=4, n_kv_head=2, d_model=16,
        d_ff=24, positions="rope", ffn="swiglu", windows=(0, 3), head="untied",
    )  # fmt: skip
    params = {name: p.data for name, p in GPT(config).named_parameters()}
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=p.shape).astype(p.dtype) for name, p in params.items()}
    return checkpoint.Saved(config, tokenizer, params)


@pytest.fixture
def texts(monkeypatch):
    """Stands in for the sampler, whose tests are elsewhere; the options of each call."""
    calls = []

    def sample_text(model, tokenizer, **options):
        calls.append(options)
        return "a $text$ " + "W" * 500 + "\n\n\x0cend"

    monkeypatch.setattr("tinygpt.model.sample.sample_text", sample_text)
    return calls


@pytest.fixture
def run(saved, tmp_path):
    """A run's folder with a model and the log of twenty steps."""
    checkpoint.save(tmp_path / "model.npz", saved)
    lines = [{"event": "start", "step": 0}]
    for step in range(20):
        seconds = {"tokens": step * 64, "seconds": step / 2}
        lines.append({"step": step, "loss": 3 / (step + 1), "lr": 0.1, "grad_norm": 1, **seconds})
        if step % 5 == 0:
            lines.append({"step": step, "valid_loss": 4 / (step + 1), "valid_perplexity": 1,
                          "valid_bits_per_byte": 2 / (step + 1), **seconds})  # fmt: skip
    write_log(tmp_path, [json.dumps(line) for line in lines])
    return tmp_path


def write_log(folder, lines):
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def size_of(path):
    """Width and height of a PNG, from its header."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


@pytest.mark.slow
def test_the_command_draws_everything_at_a_legible_size(run, texts, capsys):
    parser = argparse.ArgumentParser()
    plot.add_arguments(parser)
    assert plot.main(parser.parse_args([str(run)])) == 0
    pictures = sorted(p.relative_to(run / "plots").as_posix() for p in run.rglob("*.png"))
    assert pictures == [
        "attention_heatmaps/layer_0.png", "attention_heatmaps/layer_1.png", "embedding_map.png",
        "temperatures.png", "training_curves.png", "weight_distributions/layer_0.png",
        "weight_distributions/layer_1.png", "weight_distributions/model.png",
        "weight_distributions/spectral_norms.png",
    ]  # fmt: skip
    assert len(capsys.readouterr().out.splitlines()) == len(pictures)
    for name in pictures:
        width, height = size_of(run / "plots" / name)
        assert 600 <= width <= 2000 and 300 <= height <= 2000


@pytest.mark.slow
def test_a_run_without_a_model_has_curves_only(run, capsys):
    (run / "model.npz").unlink()
    parser = argparse.ArgumentParser()
    plot.add_arguments(parser)
    assert plot.main(parser.parse_args([str(run)])) == 0
    assert capsys.readouterr().out.splitlines() == [str(run / "plots" / "training_curves.png")]


def test_the_log_is_read_by_columns(run):
    train, valid = plot.read_log(run)
    np.testing.assert_allclose(train["loss"], 3 / np.arange(1, 21))
    np.testing.assert_array_equal(valid["step"], [0, 5, 10, 15])
    np.testing.assert_array_equal(valid["tokens"], [0, 320, 640, 960])


@pytest.mark.parametrize(
    "damaged",
    [
        b'{"step": 1, "lo',
        b"\x00" * 50,
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"step": [1], "loss": 1.0}',
        b'{"step": 1, "loss": "high"}',
        b'{"step": 1, "loss": 1' + b"0" * 5000 + b"}",
        b'{"step": 1, "loss": 1e999}',
        b'{"loss": 2.0}',
    ],
)
def test_damaged_lines_are_left_out_and_told(run, capsys, damaged):
    good = {"step": 0, "loss": 1.0, "lr": 1e-3, "grad_norm": None, "tokens": 0, "seconds": 0.1}
    text = json.dumps(good).encode()
    (run / "log.jsonl").write_bytes(text + b"\n" + damaged + b"\n" + text + b"\n")
    train, valid = plot.read_log(run)
    assert train["step"].tolist() == [0, 0] and valid == {}
    assert np.isnan(train["grad_norm"]).all()
    told = capsys.readouterr().err
    assert "log.jsonl: 1 line that cannot be read is left out" in told
    assert told.count("\n") == 1


@pytest.mark.slow
def test_a_run_that_diverged_is_drawn(run):
    step = {"lr": 1e-3, "grad_norm": None, "tokens": 0, "seconds": 0.1}
    valid = {"valid_perplexity": None, "valid_bits_per_byte": 900.0, "tokens": 0, "seconds": 0.1}
    losses = [4.0, 900.0, None]
    lines = [json.dumps({"step": n, "loss": loss, **step}) for n, loss in enumerate(losses)]
    lines += [json.dumps({"step": n, "valid_loss": loss, **valid}) for n, loss in enumerate(losses)]
    write_log(run, [*lines, '{"step": 9, "loss": NaN, "lr": 1}'])
    plot.training_curves(run, "diverged", run)
    assert (run / "training_curves.png").stat().st_size > 5000


def test_characters_that_the_model_lacks_are_left_out_of_the_default_prompt():
    tokenizer = bpe.CharTokenizer.train(["dog, a Lily"], control_tokens=False, special_tokens=())
    assert plot.known(tokenizer, "A dog, Lily!") == " dog, Lily"
    assert len(plot.known(tokenizer, "ÄÖÜ")) == tokenizer.vocab_size
    assert plot.opening("one two  three", 2) == "one two"
    assert plot.opening("onetwo", 2) == "onetwo"


def test_a_model_file_is_drawn_as_the_run_in_which_it_lies(run, monkeypatch, capsys):
    for name in ("attention_heatmaps", "weight_distributions"):
        monkeypatch.setattr(plot, name, lambda *args: [])
    for name in ("training_curves", "embedding_map", "temperatures"):
        monkeypatch.setattr(plot, name, lambda *args, name=name: f"{name} in {args[-1]}")
    monkeypatch.setattr(plot, "training_curves", lambda run, name, out: f"curves in {out}")
    parser = argparse.ArgumentParser()
    plot.add_arguments(parser)
    for path in (run, run / "model.npz"):
        assert plot.main(parser.parse_args([str(path)])) == 0
        told = capsys.readouterr()
        assert told.out.startswith(f"curves in {run / 'plots'}\nembedding_map in {run / 'plots'}")
        assert told.err == ""
    (run / "log.jsonl").unlink()
    assert plot.main(parser.parse_args([str(run / "model.npz")])) == 0
    told = capsys.readouterr()
    assert told.out.startswith("embedding_map") and "no curves" in told.err


@pytest.mark.parametrize("window", [0, 1, 3])
def test_what_attention_cannot_see_is_what_is_grey(saved, window):
    c = saved.config.replace(windows=(window,))
    ids = np.array([saved.tokenizer.encode(TEXT)[:12]])
    maps = checkpoint.Saved(c, saved.tokenizer, saved.params).model().attention_maps(ids)
    np.testing.assert_array_equal(plot.unseen(12, window), maps[0, 0, 0] == 0)


@pytest.mark.parametrize("lines", [[], ['{"event": "start"}']])
def test_a_log_without_steps_is_an_error(run, lines):
    write_log(run, lines)
    with pytest.raises(Error, match="nothing to draw"):
        plot.training_curves(run, "x", run)


def test_a_folder_that_is_no_run(tmp_path):
    parser = argparse.ArgumentParser()
    plot.add_arguments(parser)
    with pytest.raises(Error, match="neither a run folder"):
        plot.main(parser.parse_args([str(tmp_path)]))
    with pytest.raises(Error, match="nothing: no such file or folder"):
        plot.main(parser.parse_args([str(tmp_path / "nothing")]))


def test_smoothing_is_the_mean_of_the_neighbourhood():
    values = np.array([1.0, 2.0, 6.0, 3.0])
    np.testing.assert_allclose(plot.smooth(values, 3), [1.5, 3.0, 11 / 3, 4.5])
    np.testing.assert_allclose(plot.smooth(values, 1), values)


def test_attention_that_is_shown_gives_the_models_own_logits(saved):
    """Layer by layer in NumPy: the maps, applied to the values, lead to what the model says."""
    c, p, model = saved.config, saved.params, saved.model()
    ids = np.array([saved.tokenizer.encode(TEXT)[:12]])
    maps = model.attention_maps(ids)[:, 0]

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + c.norm_eps)
        return x * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    x = p["embedding.weight"][ids[0]].astype(np.float64)
    for i, weights in enumerate(maps):
        v = linear(norm(x, f"blocks.{i}.attn_norm"), f"blocks.{i}.attn.qkv")[:, -8:]
        v = np.repeat(v.reshape(-1, 2, 4), 2, axis=1)  # two queries share a value
        seen = np.einsum("hts,shd->thd", weights, v).reshape(-1, 16)
        x = x + linear(seen, f"blocks.{i}.attn.out")
        h = norm(x, f"blocks.{i}.ffn_norm")
        gate = linear(h, f"blocks.{i}.ffn.gate")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(h, f"blocks.{i}.ffn.up"),
                       f"blocks.{i}.ffn.down")  # fmt: skip
    logits = norm(x, "norm") @ p["head.weight"].T
    np.testing.assert_allclose(model(ids).data[0], logits, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-5)
    assert (maps[:, :, np.triu(np.ones((12, 12), bool), 1)] == 0).all()
    assert (maps[1][:, np.tri(12, k=-3, dtype=bool)] == 0).all()  # left of the local window


def test_matrices_are_grouped_by_layer_and_the_projection_is_taken_apart(saved):
    groups = plot.matrices(saved)
    assert list(groups) == ["model", "layer_0", "layer_1"]
    assert list(groups["model"]) == ["embedding", "head"]
    shapes = {name: w.shape for name, w in groups["layer_0"].items()}
    assert shapes == {
        "attn.query": (16, 16), "attn.key": (8, 16), "attn.value": (8, 16), "attn.out": (16, 16),
        "ffn.gate": (24, 16), "ffn.up": (24, 16), "ffn.down": (16, 24),
    }  # fmt: skip


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5)])
def test_singular_values_are_those_of_numpy(shape):
    weight = np.random.default_rng(0).normal(size=shape)
    expected = np.linalg.svd(weight, compute_uv=False)
    assert plot.singular_values(weight) == pytest.approx(expected, abs=1e-6)


def test_principal_components_find_the_widest_directions():
    rng = np.random.default_rng(1)
    turn, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    rows = rng.normal(size=(2000, 4)) * [5, 2, 0.1, 0.1] @ turn + 3
    points, shares = plot.principal_components(rows)
    np.testing.assert_allclose(points.std(axis=0), [5, 2], rtol=0.1)
    np.testing.assert_allclose(shares, [25 / 29, 4 / 29], atol=0.02)
    np.testing.assert_allclose(plot.principal_components(rows[::-1])[0][::-1], points, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [1e200, 3e38, 0.0])
def test_numbers_whose_squares_no_float_holds(saved, tmp_path, numbers):
    same = np.full((3, 4), numbers)
    assert plot.singular_values(same)[0] == pytest.approx(numbers * 12**0.5)
    points, _ = plot.principal_components(np.diag([numbers, -numbers, 0]))
    assert np.isfinite(points).all()
    params = {"blocks.0.attn.out.weight": np.full((3, 4), min(numbers, 3e38), np.float32)}
    alike = checkpoint.Saved(saved.config, saved.tokenizer, params)
    assert len(plot.weight_distributions(alike, tmp_path)) == 2


def test_a_model_without_finite_logits_is_told(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("MINITENSOR_KERNELS", "numpy")
    params = {name: np.full_like(p, 3e38) for name, p in saved.params.items()}
    broken = checkpoint.Saved(saved.config, saved.tokenizer, params)
    with np.errstate(all="ignore"), pytest.raises(Error, match="logits are not finite"):
        plot.temperatures(broken.model(), saved.tokenizer, "Once", tmp_path)


def test_token_labels():
    tokenizer = bpe.BPETokenizer(
        [*(bytes([b]) for b in range(256)), b" $a"], [], special_tokens={"<|endoftext|>": 257}
    )
    labels = [plot.token_label(tokenizer, id) for id in (10, 32, 255, 7, 256, 257)]
    assert labels == ["↵", "␣", "0xff", "0x07", "␣\\$a", "<|endoftext|>"]


def test_a_missing_matplotlib_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Error, match=r"^pictures need matplotlib: 'pip install matplotlib"):
        plot.figure(3, 3)


@pytest.mark.slow
def test_the_texts_differ_by_their_temperature_alone(saved, texts, tmp_path):
    plot.temperatures(saved.model(), saved.tokenizer, "Once", tmp_path)
    assert [options.pop("temperature") for options in texts] == [0.3, 0.7, 1.0, 1.5]
    assert all(options == texts[0] for options in texts)
    assert size_of(tmp_path / "temperatures.png") == (1200, 1000)


def test_what_is_replaced_is_told_once_there_is_something_to_draw(tmp_path, capsys):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "old.png").write_bytes(b"")
    assert cli.main(["plot", str(tmp_path / "none")]) == 1
    assert "are replaced" not in capsys.readouterr().err
