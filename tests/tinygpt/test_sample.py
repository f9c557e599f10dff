"""Sampling against a plain reference, and tinygpt generate from its arguments to its output."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bpe
import minitensor as mt
from tinygpt import Error, UsageError, cli
from tinygpt.formats import checkpoint
from tinygpt.formats.checkpoint import Saved
from tinygpt.model.config import Config
from tinygpt.model.decode_kernels import choose as compiled_choose
from tinygpt.model.drawing import Choice, choose, draw, probabilities
from tinygpt.model.sample import generate, generate_many, prompt_ids, sample_text
from tinygpt.model.transformer import GPT

C = Config(
    vocab_size=40,
    context=12,
    n_layer=1,
    n_head=2,
    d_model=16,
    d_ff=24,
    positions="rope",
    norm="rms",
    ffn="swiglu",
    tokenizer="char",
)
TOKENIZER = bpe.CharTokenizer.train(["abcdefghij é€😀"], vocab_size=40)


@pytest.fixture(scope="module")
def model():
    made = GPT(C)
    rng = np.random.default_rng(1)
    with mt.no_grad():
        for p in made.parameters():
            p[...] = rng.normal(p.data.mean(), 0.3, p.shape).astype(p.dtype)
    return made.eval()


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.npz"
    params = {name: p.data for name, p in model.named_parameters()}
    checkpoint.save(path, Saved(C, TOKENIZER, params))
    return path


def reference(logits, temperature, top_k, top_p):
    """The distribution, written without any care for speed."""
    order = sorted(range(len(logits)), key=lambda n: -logits[n])
    top_k = top_k or len(logits)
    kept = [n for n in order if logits[n] >= logits[order[min(top_k, len(order)) - 1]]]
    weights = {n: np.exp((float(logits[n]) - float(logits[order[0]])) / temperature) for n in kept}
    mass, nucleus = 0.0, []
    for n in kept:
        if mass >= top_p * sum(weights.values()) - 1e-12 and logits[n] != logits[nucleus[-1]]:
            break
        nucleus.append(n)
        mass += weights[n]
    p = np.zeros(len(logits))
    p[nucleus] = [weights[n] / mass for n in nucleus]
    return p


OPTIONS = {
    "temperature": st.sampled_from([0.2, 0.8, 1.0, 3.0]),
    "top_k": st.integers(0, 40),
    "top_p": st.sampled_from([0.05, 0.3, 0.9, 0.99, 1.0]),
    "seed": st.integers(0, 999),
}


@given(**OPTIONS)
@settings(max_examples=60, deadline=None)
def test_the_distribution_is_that_of_a_plain_reference(temperature, top_k, top_p, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, 30).astype(np.float32)
    if seed % 3 == 0:
        logits = np.round(logits)  # with equal ones
    p = reference(logits, temperature, top_k, top_p)
    np.testing.assert_allclose(probabilities(logits, temperature, top_k, top_p), p, atol=1e-12)


@given(**OPTIONS)
@settings(max_examples=60, deadline=None)
def test_the_kernel_draws_what_the_formula_draws(temperature, top_k, top_p, seed):
    rng = np.random.default_rng(seed)
    logits = np.round(rng.normal(0, 2, (20, 33)), seed % 3).astype(np.float32)
    u = rng.random(20)
    expected = [
        draw(probabilities(row, temperature, top_k, top_p), x)
        for row, x in zip(logits, u, strict=True)
    ]
    drawn = compiled_choose(logits, Choice(temperature, top_k, top_p), u)
    assert drawn.tolist() == expected


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_how_often_tokens_are_drawn(backend, monkeypatch):
    monkeypatch.setenv("MINITENSOR_KERNELS", backend)
    p = np.array([0.5, 0.25, 0.15, 0.1])
    logits = np.repeat(np.log(p)[None], 4000, axis=0)
    u = (np.arange(4000) + 0.5) / 4000
    kept = {(0, 1.0): p, (2, 1.0): p[:2] / 0.75, (0, 0.8): p[:3] / 0.9}
    for (top_k, top_p), expected in kept.items():
        share = np.bincount(choose(logits, 1.0, top_k, top_p, u), minlength=4) / 4000
        np.testing.assert_allclose(share[: len(expected)], expected, atol=1e-3)


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_logits_that_are_not_finite_are_an_error(backend, monkeypatch):
    monkeypatch.setenv("MINITENSOR_KERNELS", backend)
    for bad in (np.nan, np.inf):
        with pytest.raises(Error, match="the model's logits are not finite"):
            choose(np.array([[0.0, bad, 1.0]]), 1.0, 0, 1.0, np.array([0.5]))


def test_greedy_is_the_argmax_of_the_model_and_what_top_k_1_gives(model):
    ids = [1]
    for _ in range(C.context - 1):
        with mt.no_grad():
            ids.append(int(model(np.array([ids])).data[0, -1].argmax()))
    assert list(generate(model, [1], max_new_tokens=C.context - 1, temperature=0)) == ids[1:]
    assert list(generate(model, [1], max_new_tokens=C.context - 1, top_k=1, seed=5)) == ids[1:]


@given(**OPTIONS)
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_same_seed_gives_the_same_sequence(model, temperature, top_k, top_p, seed):
    def run():
        return list(
            generate(
                model,
                [1],
                max_new_tokens=20,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed,
            )
        )

    assert run() == run()


def test_the_seed_decides_the_sequence(model):
    def run(seed):
        return list(generate(model, [1], max_new_tokens=40, seed=seed))

    assert run(3) == run(3)
    assert run(3) != run(4)


@pytest.mark.slow
@pytest.mark.parametrize("past_context", ["drop", "exact"])
def test_a_sample_is_the_same_alone_and_in_a_batch(model, past_context):
    def run(samples, threads=1):
        texts = {n: [] for n in range(samples)}
        for n, token in generate_many(
            model,
            [[1]] * samples,
            max_new_tokens=30,
            stop=(7,),
            seed=2,
            past_context=past_context,
            threads=threads,
        ):
            texts[n].append(token)
        return texts

    many = run(12)
    assert many == run(12, threads=3)
    for n in (1, 5):
        assert run(n) == {i: many[i] for i in range(n)}
    assert all(text[-1] is None and 7 not in text for text in many.values())
    assert len({len(text) for text in many.values()}) > 1, "they should stop at different times"


def test_both_twins_write_the_same_text(model, monkeypatch):
    fast = sample_text(model, TOKENIZER, "abc", max_new_tokens=30, seed=1, ignore_eot=True)
    monkeypatch.setenv("MINITENSOR_KERNELS", "numpy")
    assert sample_text(model, TOKENIZER, "abc", max_new_tokens=30, seed=1, ignore_eot=True) == fast
    assert fast.startswith("abc")


def test_a_prompt_begins_as_a_document_does():
    assert prompt_ids(TOKENIZER, "abc") == [TOKENIZER.separator_id, *TOKENIZER.encode("abc")]
    assert prompt_ids(TOKENIZER, "") == [TOKENIZER.separator_id]
    bare = bpe.CharTokenizer.train(["ab\n"], control_tokens=False)
    assert prompt_ids(bare, "") == bare.encode("\n")


def run_cli(capsys, *args):
    status = cli.main(["generate", *map(str, args)])
    return status, *capsys.readouterr()


def test_generate_prints_the_prompt_and_what_follows(file, capsys):
    status, out, err = run_cli(capsys, file, "--prompt", "ab", "--max_new_tokens", 20, "--seed", 2)
    assert (status, err) == (0, "")
    assert out.startswith("ab") and out.endswith("\n")
    assert out == run_cli(capsys, file, "--prompt", "ab", "--max-new-tokens=20", "--seed=2")[1]


@pytest.mark.parametrize("terminal", [True, False])
def test_control_characters_reach_a_file_but_no_terminal(file, capsys, monkeypatch, terminal):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    monkeypatch.setattr(
        "tinygpt.generate.generate_many", lambda *args, **options: iter([(0, 1), (0, None)])
    )
    monkeypatch.setattr("bpe.StreamDecoder.feed", lambda self, id: "\x1b[2J")
    assert cli.main(["generate", str(file), "--prompt", "a"]) == 0
    assert capsys.readouterr().out == ("a\\x1b[2J\n" if terminal else "a\x1b[2J\n")


def test_samples_are_separated_and_do_not_depend_on_their_number(file, capsys):
    _, three, _ = run_cli(capsys, file, "--num-samples", 3, "--max-new-tokens", 15)
    _, one, _ = run_cli(capsys, file, "--max-new-tokens", 15)
    parts = three.split("\n---\n")
    assert len(parts) == 3 and len(set(parts)) == 3
    assert parts[0] + "\n" == one


@pytest.mark.parametrize("which", ["numba", "numpy"])
@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-45, 1e-39, 2.9e-39, 1e-37])
def test_a_temperature_near_0_is_greedy(monkeypatch, which, temperature):
    """And gives ids of the vocabulary: what is drawn is an index at the next step."""
    monkeypatch.setenv("MINITENSOR_KERNELS", which)
    logits = np.random.default_rng(0).normal(size=(20, 50)).astype(np.float32) * 30
    for top_k, top_p in ((0, 1.0), (7, 1.0), (0, 0.5), (7, 0.5)):
        drawn = choose(logits, temperature, top_k, top_p, np.linspace(0, 0.999, 20))
        assert drawn == logits.argmax(axis=1).tolist()


def test_greedy_is_temperature_0(file, capsys):
    _, greedy, _ = run_cli(capsys, file, "--greedy", "--max-new-tokens", 20)
    assert greedy == run_cli(capsys, file, "--temperature", 0, "--max-new-tokens", 20)[1]


def test_the_end_of_a_text_stops_unless_ignored(file, model, capsys):
    ids = list(generate(model, [1], max_new_tokens=400, seed=1337, vocab_size=40))
    assert 1 in ids, "the separator should come up"
    _, stopped, _ = run_cli(capsys, file, "--max-new-tokens", 400)
    _, on, _ = run_cli(capsys, file, "--max-new-tokens", 400, "--ignore-eot")
    assert stopped == TOKENIZER.decode(ids[: ids.index(1)]) + "\n"
    assert on == TOKENIZER.decode(ids) + "\n"


def test_characters_of_several_tokens_come_out_whole(capsys, monkeypatch, tmp_path):
    tokenizer = bpe.train(["x"], 257)
    made = GPT(C.replace(vocab_size=257))
    path = tmp_path / "model.npz"
    checkpoint.save(
        path, Saved(made.config, tokenizer, {name: p.data for name, p in made.named_parameters()})
    )
    smiley = [(0, tokenizer.encode_bytes(bytes([b]))[0]) for b in "😀".encode()]
    monkeypatch.setattr("tinygpt.generate.generate_many", lambda *_, **__: [*smiley, (0, None)])
    written = []
    monkeypatch.setattr(
        sys,
        "stdout",
        type("Out", (io.StringIO,), {"write": lambda self, text: written.append(text)})(),
    )
    assert cli.main(["generate", str(path), "--max-new-tokens", "4"]) == 0
    assert written == ["😀", "\n"]


WRONG = {
    "--temperature=-1": "--temperature: expected 0 (greedy) or more, got -1.0",
    "--temperature=nan": "--temperature: expected 0 (greedy) or more, got nan",
    "--top-k=-2": "--top-k: expected 0 (off) or more, got -2",
    "--top-p=0": "--top-p: expected above 0 and at most 1 (off), got 0.0",
    "--max-new-tokens=-1": "--max-new-tokens: expected 0 or more, got -1",
    "--num-samples=0": "--num-samples: expected at least 1, got 0",
}


@pytest.mark.parametrize(("option", "message"), WRONG.items())
def test_wrong_values_are_told_in_a_line(option, message, file, capsys):
    assert run_cli(capsys, file, option) == (2, "", f"tinygpt: error: {message}\n")


def test_a_wrong_file_is_told_in_a_line(tmp_path, capsys):
    status, out, err = run_cli(capsys, tmp_path / "none.npz")
    assert (status, out) == (1, "") and err.count("\n") == 1 and "no such file or folder" in err


def test_library_calls_check_their_values(model):
    with pytest.raises(UsageError, match="top-p"):
        next(generate(model, [1], top_p=1.5))
