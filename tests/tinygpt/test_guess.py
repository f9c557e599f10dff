"""Guessing ahead: it changes no bit of a text, and comes true where a text repeats itself.

The long form, over 200 seeds of every recipe, is benchmarks/guessing.py.
"""

from __future__ import annotations

import numpy as np
import pytest

import minitensor as mt
from tinygpt.model import recipes
from tinygpt.model.compiled import no_guesses
from tinygpt.model.config import Config
from tinygpt.model.decode import Decoder
from tinygpt.model.drawing import Choice, choose, draw, uniform, uniforms
from tinygpt.model.guess import LIKELY, Memory
from tinygpt.model.sample import generate_many
from tinygpt.model.transformer import GPT


def small(c: Config, spread: float = 0.3) -> GPT:
    """A recipe's architecture with a few thousand weights."""
    c = c.replace(
        vocab_size=60,
        context=24,
        n_layer=2,
        d_ff=37,
        tokenizer="char",
        reduced_from=0,
        windows=tuple(min(w, 5) for w in c.windows),
        d_model=c.n_head * (2 if c.n_head > 8 else 6),
    )
    model, rng = GPT(c), np.random.default_rng(0)
    with mt.no_grad():
        for p in model.parameters():
            p[...] = rng.normal(p.data.mean(), spread, p.shape).astype(p.dtype)
    return model.eval()


@pytest.fixture(params=["numba", "numpy"])
def backend(request, monkeypatch):
    monkeypatch.setenv("MINITENSOR_KERNELS", request.param)


def texts(model, prompts, **options):
    out = [[] for _ in prompts]
    for n, token in generate_many(model, prompts, **options):
        out[n].append(token)
    return out


@pytest.mark.mostly_slow
@pytest.mark.parametrize("name", ["quick", "pinv-0.8m", "mini-1m", "neo-41m"])
def test_a_guess_changes_no_text(backend, name):
    model = small(recipes.get(name))
    for seed, (together, temperature) in enumerate([(1, 0.0), (2, 0.8), (5, 1.0), (1, 2.0)]):
        prompts = [[n + 1] * (1 + 7 * n) for n in range(together)]
        options = {"temperature": temperature, "seed": seed, "max_new_tokens": 50, "stop": (5,)}
        options |= {"top_k": (200, 7)[seed % 2], "top_p": (1.0, 0.9)[seed // 2]}
        without = texts(model, prompts, **options, guessing=False)
        assert texts(model, prompts, **options, guessing=True) == without
        assert max(len(text) for text in without) > 24 or seed, "the first goes past the context"


def test_wrong_guesses_change_no_text(monkeypatch):
    """A memory of another text is wrong nearly always."""
    monkeypatch.setenv("MINITENSOR_KERNELS", "numba")
    model = small(recipes.get("quick"))
    decoder = Decoder(model)
    decoder.feed([[3]])
    memory = no_guesses()
    rng = np.random.default_rng(0)
    prompts, options = [[3]], {"temperature": 1.0, "seed": 1, "max_new_tokens": 20}
    expected = texts(model, prompts, **options, guessing=False)[0][:-1]
    entries = memory.entries.reshape(-1, 1 + 3 * LIKELY)
    u = uniforms(1, [0], 0, 20)
    work, choice = [(0, 1, [3, expected[0]])], Choice(1.0, 200, 1.0)
    for _ in range(3):  # at first there are none, then they are right, then all of them are wrong
        new = decoder.twin.write(work, 60, choice, u[1:], memory)
        assert new[:, 0].tolist() == expected[1:]
        known = entries[:, 0] != 0
        passes = int(memory.counts[0])
        entries[known, 1 : 1 + LIKELY] = rng.integers(0, 60, (int(known.sum()), LIKELY))
        memory.rates[:] = 1
        memory.counts[:] = 0
    assert passes > 12, "wrong guesses should not have come true"


def test_a_text_that_repeats_itself_takes_few_passes(monkeypatch):
    monkeypatch.setenv("MINITENSOR_KERNELS", "numba")
    model = small(recipes.get("quick"))
    decoder = Decoder(model)
    first = choose(decoder.feed([[3]]), 0.0, 0, 1.0, np.array([0.0]))
    u, memory, choice = np.zeros((20, 1)), no_guesses(), Choice(0.0, 0, 1.0)
    work = [(0, 1, [3, *first])]
    once = decoder.twin.write(work, 60, choice, u, memory)
    memory.counts[:] = 0
    assert (decoder.twin.write(work, 60, choice, u, memory) == once).all()
    passes, rows, drawn = memory.counts
    assert drawn == 20 and passes <= 8 and rows >= 20


def test_what_is_remembered_is_what_the_same_number_drew():
    memory, p = Memory(), np.array([0.3, 0.0, 0.5, 0.02, 0.18])
    assert memory.guess([7, 8], 0.4) == -1
    memory.remember([7, 8], p)
    for u in np.linspace(0, 0.999, 50):
        token = draw(p, u)
        assert memory.guess([7, 8], u) == (token if p[token] > 0.1 else -1)
        assert memory.guess([1, 8], u) == memory.guess([7, 8], u), "the last token alone is known"
    assert memory.guess([8, 7], 0.4) == -1
    memory.remember([1, 8], np.array([0.0, 1.0]))
    assert memory.guess([7, 8], 0.1) == 0, "the longer context counts"
    assert memory.guess([2, 8], 0.1) == 1


def test_numbers_are_those_of_the_formula(backend):
    u = uniforms(-5, [0, 3, 64], 7, 4)
    assert u.tolist() == [[uniform(-5, n, 7 + i) for n in (0, 3, 64)] for i in range(4)]
