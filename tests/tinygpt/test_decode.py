"""The cached decoder against the model: architectures, prompts, batches, the full context."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minitensor as mt
from tinygpt import UsageError
from tinygpt.model import recipes
from tinygpt.model.config import Config
from tinygpt.model.decode import Decoder
from tinygpt.model.transformer import GPT

SMALLER = {"vocab_size": 50, "context": 24, "n_layer": 2, "d_ff": 37}


def smaller(c: Config) -> Config:
    """A recipe's architecture at a few thousand parameters."""
    return c.replace(
        **SMALLER,
        tokenizer="bpe",
        windows=tuple(min(w, 5) for w in c.windows),
        d_model=c.n_head * (2 if c.n_head > 8 else 6),
    )


CASES = {name: smaller(recipe) for name, recipe in recipes.RECIPES.items()}
CASES |= {
    "all-biases": Config(**SMALLER, d_model=12, n_head=2, ffn="swiglu", norm="layer"),
    "grouped": Config(**SMALLER, d_model=48, n_head=6, n_kv_head=3, positions="rope", norm="rms"),
    "many-heads": Config(**SMALLER, d_model=80, n_head=40, n_kv_head=20, positions="rope"),
    "one-head": Config(**SMALLER, d_model=7, n_head=1, head="untied"),
    "alibi": Config(
        **SMALLER, d_model=36, n_head=6, n_kv_head=3, positions="alibi", windows=(0, 9)
    ),
    "float64": Config(**SMALLER, d_model=12, n_head=2, dtype="float64", windows=(3, 0)),
}


@pytest.fixture(params=["numba", "numpy"])
def backend(request, monkeypatch):
    monkeypatch.setenv("MINITENSOR_KERNELS", request.param)


def model_of(c: Config) -> GPT:
    """A model with weights, biases included, large enough to tell its parts apart."""
    model, rng = GPT(c), np.random.default_rng(0)
    with mt.no_grad():
        for p in model.parameters():
            p[...] = rng.normal(p.data.mean(), 0.3, p.shape).astype(p.dtype)
    return model.eval()


def tokens(c: Config, length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, c.vocab_size, length).tolist()


def logits(model: GPT, ids: list[int]):
    with mt.no_grad():
        return model(np.array([ids])).data[0]


def close(actual, expected):
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("c", CASES.values(), ids=CASES.keys())
def test_logits_are_those_of_the_model(backend, c):
    model, ids = model_of(c), tokens(c, c.context)
    decoder = Decoder(model)
    steps = [decoder.feed([ids[:7]])] + [decoder.feed([[token]]) for token in ids[7:]]
    close(np.concatenate(steps), logits(model, ids)[6:])
    assert steps[0].dtype == np.dtype(c.dtype)


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_logits_are_those_of_the_model_for_any_configuration(data):
    pick = data.draw
    kv, group, half = pick(st.integers(1, 5)), pick(st.integers(1, 3)), pick(st.integers(1, 5))
    flags = {
        key: pick(st.booleans())
        for key in ("qkv_bias", "out_bias", "ffn_bias", "norm_bias", "gate_bias", "scale_attention")
    }
    choices = {
        key: pick(st.sampled_from(values))
        for key, values in {
            "norm": ("layer", "rms"),
            "positions": ("learned", "sinusoidal", "rope", "alibi"),
            "ffn": ("gelu", "gelu_tanh", "swiglu"),
            "head": ("tied", "untied", "pinv"),
            "windows": ((0,), (3, 0), (1,)),
        }.items()
    }
    c = Config(
        vocab_size=170,
        context=20,
        n_layer=2,
        n_head=kv * group,
        n_kv_head=kv,
        d_model=kv * group * 2 * half,
        d_ff=pick(st.integers(1, 70)),
        **flags,
        **choices,
    )
    model = model_of(c)
    cut, ids = pick(st.integers(1, 20)), tokens(c, 20)
    decoder = Decoder(model)
    parts = [decoder.feed([ids[:cut]]), *(decoder.feed([[token]]) for token in ids[cut:])]
    close(np.concatenate(parts), logits(model, ids)[cut - 1 :])


@pytest.mark.mostly_slow
@pytest.mark.parametrize("name", ["pinv-0.8m", "alibi"])
def test_a_sequence_gives_the_same_bits_alone_and_among_others(backend, name):
    c = CASES[name]
    model = model_of(c)
    prompts = [tokens(c, 1 + n % 9, n) for n in range(70)]
    together = Decoder(model, 70, threads=2)
    first, then = together.feed(prompts), together.feed([[n % 50] for n in range(70)])
    for n in (0, 8, 33, 69):
        alone = Decoder(model)
        assert (alone.feed([prompts[n]])[0] == first[n]).all()
        assert (alone.feed([[n % 50]])[0] == then[n]).all()
    late = together.feed([[1], [2]], [69, 33])  # only some go on, in any order
    assert (late[1] == alone_after(model, prompts[33], 33 % 50, 2)).all()


def alone_after(model: GPT, *parts):
    decoder = Decoder(model)
    return [decoder.feed([np.atleast_1d(part).tolist()]) for part in parts][-1][0]


@pytest.mark.parametrize("name", ["quick", "alibi"])
def test_processing_again_gives_the_bits_of_the_cache(backend, name):
    c = CASES[name]
    model, ids = model_of(c), tokens(c, 20)
    step = Decoder(model)
    cached = [step.feed([[token]])[0] for token in ids]
    again = Decoder(model).feed([ids])[0]
    assert (cached[-1] == again).all()


@pytest.mark.mostly_slow
def test_exact_past_the_context_sees_the_last_tokens(backend):
    c = CASES["quick"]
    model, ids = model_of(c), tokens(c, 40)
    decoder = Decoder(model, past_context="exact")
    decoder.feed([ids[:22]])
    for end in range(23, 41):
        expected = logits(model, ids[max(0, end - c.context) : end])[-1]
        close(decoder.feed([[ids[end - 1]]])[0], expected)


@pytest.mark.mostly_slow
def test_drop_past_the_context_goes_on_with_the_newer_half(backend):
    c = CASES["pinv-0.8m"]
    model, ids = model_of(c), tokens(c, 60)
    decoder, start = Decoder(model), 0
    for end in range(1, 61):
        actual = decoder.feed([[ids[end - 1]]])[0]
        if end - start > c.context:  # full: what is left begins anew at position 0
            start = end - c.context // 2
        close(actual, logits(model, ids[start:end])[-1])
    assert start == 39  # dropped at tokens 25, 38 and 51


@pytest.mark.parametrize("way", ["drop", "exact"])
def test_of_a_long_prompt_the_end_is_taken(way):
    c = CASES["mini-1m"]
    model, ids = model_of(c), tokens(c, 50)
    close(Decoder(model, 1, way).feed([ids])[0], logits(model, ids[-c.context :])[-1])


def test_what_the_kernels_do_not_know_is_decoded_by_the_model_itself(monkeypatch):
    """A compiled decoder that took ALiBi would leave the slopes out; both twins see the same."""
    monkeypatch.setenv("MINITENSOR_KERNELS", "numba")
    c = CASES["alibi"]
    model, ids = model_of(c), tokens(c, 30)
    with_kernels = Decoder(model)
    assert with_kernels.plain
    assert not Decoder(model_of(CASES["quick"])).plain
    monkeypatch.setenv("MINITENSOR_KERNELS", "numpy")
    close(with_kernels.feed([ids])[0], Decoder(model).feed([ids])[0])


def test_weights_that_change_later_are_not_seen(backend):
    model = model_of(CASES["quick"])
    model.train()  # nor does a decoder drop anything out
    decoder, before = Decoder(model), Decoder(model).feed([[1, 2, 3]])
    with mt.no_grad():
        for p in model.parameters():
            p[...] = p.data * 2
    assert (decoder.feed([[1, 2, 3]]) == before).all()


def test_a_context_of_one_token():
    c = Config(**SMALLER | {"context": 1}, d_model=8, n_head=2)
    model = model_of(c)
    decoder = Decoder(model)
    for token in (3, 4, 5):
        close(decoder.feed([[token]])[0], logits(model, [token])[0])


def test_errors_say_what_was_wrong():
    model = GPT(CASES["quick"])
    with pytest.raises(UsageError, match="past_context: expected drop or exact, got 'slide'"):
        Decoder(model, past_context="slide")
    with pytest.raises(IndexError, match="token 50 is not in the vocabulary, 0 to 49"):
        Decoder(model).feed([[50]])
    with pytest.raises(ValueError, match="sequence 0 was given no token"):
        Decoder(model).feed([[]])
