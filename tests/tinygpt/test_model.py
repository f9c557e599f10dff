"""The model: its exact parameter counts, its start, its shapes, and the formulas it must follow."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minitensor as mt
from tinygpt.model import recipes
from tinygpt.model.config import Config
from tinygpt.model.transformer import (
    GPT,
    Cache,
    alibi_slopes,
    components,
    count,
    init_std,
    kernels_know,
    layout,
    sinusoids,
)

COUNTS = {
    "pinv-0.8m": 834_644,
    "mini-1m": 1_046_656,
    "mini-3m": 3_404_032,
    "mini-7m": 7_072_128,
    "pretrain-2m": 1_850_112,
    "neo-41m": 41_026_560,
    "shakespeare-char": 804_096,
    "shakespeare-fast": 157_344,
}
SMALL = [name for name in recipes.RECIPES if name not in ("neo-41m", "mini-7m")]


def ids_for(c: Config, batch: int = 2, length: int | None = None, seed: int = 0):
    return np.random.default_rng(seed).integers(0, c.vocab_size, (batch, length or c.context))


@pytest.mark.parametrize(("name", "parameters"), COUNTS.items())
def test_parameter_counts_are_the_published_ones(name, parameters):
    assert sum(count(recipes.get(name))) == parameters


def test_details_of_the_counts():
    assert count(recipes.get("pinv-0.8m")) == (832_128, 2_516)
    neo = recipes.get("neo-41m")
    assert sum(count(neo.replace(tokenizer="bpe", vocab_size=50_257))) == 105_931_776
    shapes = layout(recipes.get("mini-3m"))
    attention = [s for name, s in shapes.items() if name.startswith("blocks.0.attn.")]
    assert sum(math.prod(s) for s in attention) == 263_168


@pytest.mark.mostly_slow
@pytest.mark.parametrize("name", SMALL)
def test_the_layout_is_that_of_the_model(name):
    c = recipes.get(name)
    model = GPT(c)
    assert {n: p.shape for n, p in model.named_parameters()} == layout(c)
    assert sum(n for _, n in components(c)) == sum(count(c))


@pytest.mark.mostly_slow
@pytest.mark.parametrize("name", SMALL)
def test_weights_start_as_published(name):
    c = recipes.get(name)
    for key, p in GPT(c).named_parameters():
        if p.ndim > 1:
            assert p.data.std() == pytest.approx(init_std(c, key), rel=0.05), key
        else:
            assert (p.data == (1 if key.endswith("norm.weight") else 0)).all(), key


def test_residual_projections_start_smaller():
    pinv, gpt = recipes.get("pinv-0.8m"), recipes.get("pretrain-2m")
    small = 0.02 / math.sqrt(8)
    assert init_std(pinv, "blocks.3.attn.out.weight") == small
    assert init_std(pinv, "blocks.3.ffn.up.weight") == small  # llama2.c scales w3
    assert init_std(pinv, "blocks.3.ffn.down.weight") == 0.02
    assert init_std(gpt, "blocks.0.ffn.down.weight") == small


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in SMALL if recipes.get(n).head != "pinv"])
def test_the_loss_starts_near_that_of_a_uniform_guess(name):
    c = recipes.get(name)
    model = GPT(c).eval()
    ids = ids_for(c, 4)
    with mt.no_grad():
        loss = model.loss(ids[:, :-1], ids[:, 1:]).item() / ids[:, 1:].size
    assert loss == pytest.approx(math.log(c.vocab_size), rel=0.02)


def test_the_pinv_head_first_predicts_its_own_input():
    c = recipes.get("pinv-0.8m")
    ids = ids_for(c, 1)
    with mt.no_grad():
        logits = GPT(c).eval()(ids).data
    assert (logits.argmax(-1) == ids).mean() > 0.9


@pytest.mark.slow
@given(batch=st.integers(1, 3), length=st.integers(1, 256))
@settings(max_examples=10, deadline=None)
def test_logits_have_their_shape_for_every_batch_and_length(batch, length):
    c = recipes.get("pretrain-2m").replace(n_layer=1, vocab_size=50)
    with mt.no_grad():
        assert GPT(c)(ids_for(c, batch, length)).shape == (batch, length, 50)


@given(seed=st.integers(0, 2**32 - 1), length=st.integers(2, 64))
@settings(max_examples=10, deadline=None)
def test_attention_weights_are_causal_and_sum_to_one(seed, length):
    c = recipes.get("pretrain-2m").replace(n_layer=2, vocab_size=50, seed=seed)
    maps = GPT(c).attention_maps(ids_for(c, 2, length, seed))
    assert maps.shape == (2, 2, 4, length, length)
    assert (np.triu(maps, 1) == 0).all()
    np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-5)


def test_a_longer_text_than_the_context_is_an_error():
    c = Config(n_layer=1, context=8)
    with pytest.raises(ValueError, match="9 tokens exceed the context of 8"):
        GPT(c)(np.zeros((1, 9), int))


VARIANTS = {
    "gpt": {},
    "no-bias": {"qkv_bias": False, "norm_bias": False, "ffn_bias": False},
    "sinusoidal": {"positions": "sinusoidal", "ffn": "gelu_tanh"},
    "llama": {"positions": "rope", "norm": "rms", "ffn": "swiglu", "head": "untied"},
    "pinv": {"positions": "rope", "ffn": "swiglu", "gate_bias": True, "head": "pinv"},
    "grouped": {"n_kv_head": 1},
    "local": {"windows": (0, 3), "scale_attention": False},
    "alibi": {"positions": "alibi", "n_kv_head": 1, "windows": (0, 5)},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_variant_follows_the_plain_formula(changes):
    c = Config(
        vocab_size=20, context=8, n_layer=2, n_head=2, d_model=8, d_ff=12, dtype="float64", seed=3
    ).replace(**changes)
    model = GPT(c)
    rng = np.random.default_rng(0)
    with mt.no_grad():
        for p in model.parameters():
            p[...] = rng.normal(size=p.shape) * 0.5
    ids = ids_for(c)
    with mt.no_grad():
        np.testing.assert_allclose(
            model(ids).data, plain(c, model.state_dict(), ids), rtol=1e-9, atol=1e-9
        )


def score(c: Config, layer: int, head: int, t: int, s: int) -> float:
    """What is added to the score of query t and key s."""
    if s > t or (c.window(layer) and t - s >= c.window(layer)):
        return -math.inf
    return -(2 ** (-8 * (head + 1) / c.n_head)) * (t - s) if c.positions == "alibi" else 0.0


def turned(x: np.ndarray, rope) -> np.ndarray:
    """RoPE as a product of complex numbers."""
    if rope is None:
        return x
    z = (x[..., 0::2] + 1j * x[..., 1::2]) * (rope[0] + 1j * rope[1])
    return np.stack([z.real, z.imag], axis=-1).reshape(x.shape)


def plain(c: Config, w: dict, ids: np.ndarray) -> np.ndarray:
    """The whole model in plain NumPy, without an op of the engine."""

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True) if c.norm == "layer" else x
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + c.norm_eps)
        return x * w[f"{name}.weight"] + w.get(f"{name}.bias", 0)

    def act(x):
        if c.ffn == "gelu_tanh":
            return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    T, x = ids.shape[1], w["embedding.weight"][ids]
    if c.positions == "learned":
        x = x + w["positions.weight"]
    if c.positions == "sinusoidal":
        x = x + sinusoids(c.context, c.d_model, np.float64)
    rope = mt.rope_table(c.context, c.head_dim, dtype=np.float64) if c.positions == "rope" else None
    for i in range(c.n_layer):
        b = f"blocks.{i}"
        qkv = linear(norm(x, f"{b}.attn_norm"), f"{b}.attn.qkv")
        q, k, v = np.split(qkv, [c.d_model, c.d_model + c.kv_heads * c.head_dim], axis=-1)
        y = np.zeros_like(x)
        for head in range(c.n_head):
            own = slice(head * c.head_dim, (head + 1) * c.head_dim)
            shared = head // (c.n_head // c.kv_heads)
            theirs = slice(shared * c.head_dim, (shared + 1) * c.head_dim)
            bias = np.array([[score(c, i, head, t, s) for s in range(T)] for t in range(T)])
            scores = turned(q[..., own], rope) @ turned(k[..., theirs], rope).swapaxes(1, 2)
            e = np.exp(scores / (math.sqrt(c.head_dim) if c.scale_attention else 1) + bias)
            y[..., own] = e / e.sum(-1, keepdims=True) @ v[..., theirs]
        x = x + linear(y, f"{b}.attn.out")
        h = norm(x, f"{b}.ffn_norm")
        if c.ffn == "swiglu":
            gate = linear(h, f"{b}.ffn.gate")
            x = x + linear(gate / (1 + np.exp(-gate)) * linear(h, f"{b}.ffn.up"), f"{b}.ffn.down")
        else:
            x = x + linear(act(linear(h, f"{b}.ffn.up")), f"{b}.ffn.down")
    head = {
        "tied": w["embedding.weight"].T,
        "untied": w.get("head.weight", x[0]).T,
        "pinv": np.linalg.pinv(w["embedding.weight"]),
    }[c.head]
    return norm(x, "norm") @ head


BLOCKS = {name: recipes.get(name) for name in recipes.RECIPES}
BLOCKS |= {name: Config().replace(**changes) for name, changes in VARIANTS.items()}


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-11), ("float32", 2e-5)])
@pytest.mark.parametrize("c", BLOCKS.values(), ids=BLOCKS.keys())
def test_the_fused_branch_is_the_plain_one(c, dtype, tolerance):
    """Values and gradients, with the same dropout masks."""
    c = c.replace(
        vocab_size=70, context=24, n_layer=2, d_model=c.n_head * 4, d_ff=37, tokenizer="bpe",
        windows=tuple(min(w, 7) for w in c.windows), dropout=0.25, dtype=dtype,
    )  # fmt: skip
    model, ids, rng = GPT(c).train(), ids_for(c), np.random.default_rng(0)
    with mt.no_grad():
        for p in model.parameters():
            p[...] = rng.normal(p.data.mean(), 0.2, p.shape).astype(dtype)
    weights = rng.normal(size=(*ids.shape, c.d_model)).astype(dtype)
    results, seen = [], set()
    for look in (None, lambda name, x: None):
        with mt.observe(lambda op, *_: seen.add(op)):
            hidden = model.hidden(ids, 5, look=look)
        assert ("softmax" in seen) == (look is not None or not kernels_know(c))
        grads = mt.grad(hidden, model.parameters(), weights, allow_unused=True)  # the head has none
        results.append([hidden.data, *(g for g in grads if g is not None)])
    assert len(results[0]) == len(results[1]) > 10
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_parts_with_a_cache_are_the_whole(changes):
    c = Config(vocab_size=20, context=16, n_layer=2, n_head=2, d_model=8, d_ff=12, dtype="float64")
    c = c.replace(**changes)
    model, ids, cache = GPT(c), ids_for(c), Cache(c, batch=2)
    with mt.no_grad():
        whole = model.hidden(ids).data
        parts = [model.hidden(part, cache=cache).data for part in np.split(ids, [5, 6, 13], 1)]
    assert cache.length == 16
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="17 tokens exceed the context of 16"), mt.no_grad():
        model.hidden(ids[:, :1], cache=cache)


def test_a_cache_is_refused_on_the_tape():
    c = Config(n_layer=1, context=8)
    with pytest.raises(ValueError, match=r"call the model inside minitensor.no_grad\(\)"):
        GPT(c).hidden(np.zeros((1, 2), int), cache=Cache(c))


def test_whoever_looks_is_shown_every_array_in_order():
    c = Config(vocab_size=20, context=8, n_layer=2, n_head=4, n_kv_head=2, d_model=8, d_ff=12)
    seen = {}
    with mt.no_grad():
        GPT(c).hidden(ids_for(c, 3, 5), look=lambda name, x: seen.update({name: x.shape}))
    stream, block = (3, 5, 8), {"attn.weights": (3, 4, 5, 5), "attn.heads": (3, 4, 5, 2)}
    expected = {"embedding": stream}
    for i in range(2):
        expected |= {f"blocks.{i}.{site}": shape for site, shape in block.items()}
        expected |= {f"blocks.{i}.attn": stream, f"blocks.{i}.ffn": stream, f"blocks.{i}": stream}
    assert list(seen.items()) == list(expected.items())


def test_a_head_is_taken_out_by_looking_or_by_its_weights():
    c = Config(vocab_size=20, context=8, n_layer=2, n_head=4, d_model=8, d_ff=12, dtype="float64")
    model, ids = GPT(c), ids_for(c)

    def without(name, heads):
        if name == "blocks.1.attn.heads":
            return heads * np.array([1.0, 1, 0, 1])[:, None, None]

    with mt.no_grad():
        whole, looked = model.hidden(ids).data, model.hidden(ids, look=without).data
        model.blocks[1].attn.out.weight[:, 4:6] = 0
        np.testing.assert_allclose(looked, model.hidden(ids).data, rtol=1e-12, atol=1e-12)
    assert not np.allclose(looked, whole)


def test_slopes_of_alibi_are_the_published_ones():
    assert alibi_slopes(8).tolist() == [2.0**-n for n in range(1, 9)]
    assert alibi_slopes(1).tolist() == [2.0**-8]
    eight = [2.0**-n for n in range(1, 9)]
    assert alibi_slopes(12).tolist() == [*eight, *(2.0 ** (-n / 2) for n in (1, 3, 5, 7))]


def test_alibi_is_causal_and_prefers_what_is_near():
    c = Config(vocab_size=20, context=12, n_layer=1, n_head=4, d_model=16, positions="alibi")
    model, ids = GPT(c), ids_for(c)
    maps = model.attention_maps(np.full((1, 12), 3))[0, 0]  # one token, so that only place tells
    assert (np.triu(maps, 1) == 0).all()
    assert (np.diff(maps[:, -1]) > 0).all()
    ratio = np.log(maps[:, -1, 1:] / maps[:, -1, :-1])
    np.testing.assert_allclose(ratio, np.repeat(alibi_slopes(4)[:, None], 11, 1), rtol=1e-3)
    changed = ids.copy()
    changed[:, -1] += 1
    with mt.no_grad():
        a, b = model(ids).data, model(changed % 20).data
    assert np.array_equal(a[:, :-1], b[:, :-1]) and not np.allclose(a[:, -1], b[:, -1])


@pytest.mark.slow
def test_alibi_learns():
    """What came two tokens ago comes again: without positions that cannot be told."""
    c = Config(
        vocab_size=12, context=16, n_layer=2, n_head=4, d_model=32, d_ff=64, positions="alibi"
    )
    model = GPT(c)
    optimiser = mt.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(100):
        ids = np.tile(np.random.default_rng(step).integers(0, 12, (8, 2)), 9)[:, :17]
        loss = model.loss(ids[:, :-1], ids[:, 1:]) * (1 / 128)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[0] > 2.3 and losses[-1] < 0.7  # ln 12 is 2.5


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["rope", "alibi"])
@pytest.mark.parametrize("head", ["tied", "untied", "pinv"])
def test_gradients_agree_with_finite_differences(head, positions):
    c = Config(
        vocab_size=12,
        context=6,
        n_layer=1,
        n_head=2,
        d_model=8,
        d_ff=8,
        ffn="swiglu",
        gate_bias=True,
        positions=positions,
        norm="rms",
        head=head,
        dropout=0.2,
        dtype="float64",
    )
    model = GPT(c)
    ids = ids_for(c, 2, 6)
    targets = ids_for(c, 2, 6, seed=1)
    with mt.no_grad():
        for p in model.parameters():
            p[...] = p.data * 10
    parameters = model.parameters()
    grads = mt.grad(model.loss(ids, targets, key=5), parameters)
    direction = [np.random.default_rng(i).normal(size=p.shape) for i, p in enumerate(parameters)]
    start = [np.array(p.data) for p in parameters]

    def at(t: float) -> float:
        with mt.no_grad():
            for p, s, d in zip(parameters, start, direction, strict=True):
                p[...] = s + t * d
            return model.loss(ids, targets, key=5).item()

    slope = (at(1e-6) - at(-1e-6)) / 2e-6
    exact = sum((g * d).sum() for g, d in zip(grads, direction, strict=True))
    assert slope == pytest.approx(exact, rel=1e-6)
