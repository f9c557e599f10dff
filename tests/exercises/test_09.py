"""Solutions to the exercises of examples/09_attention_by_hand.py."""

import math

import numpy as np
import pytest

import minitensor as mt

SHAPE = 2, 3, 11, 4  # B, H, T, d


def draw(count):
    rng = np.random.default_rng(0)
    return [rng.normal(size=SHAPE) for _ in range(count)]


@pytest.mark.slow
def test_1_a_window():
    q, k, v = draw(3)
    T, d = SHAPE[2:]
    i, j = np.arange(T)[:, None], np.arange(T)
    for W in (1, 3, T):
        S = np.where((j <= i) & (i - j < W), q @ k.swapaxes(-1, -2) / math.sqrt(d), -np.inf)
        e = np.exp(S - S.max(axis=-1, keepdims=True))
        expected = e / e.sum(axis=-1, keepdims=True) @ v
        found = mt.attention(*map(mt.Tensor, (q, k, v)), causal=True, window=W)
        assert np.allclose(found.data, expected, rtol=1e-11)


def one_output(q, k, v, block=4):
    """softmax(q kᵀ / sqrt(d)) v of one query, from `block` keys and values at a time."""
    largest, total, out = -np.inf, 0.0, np.zeros(v.shape[1])
    for j in range(0, len(k), block):
        s = k[j : j + block] @ q / math.sqrt(len(q))
        new = max(largest, s.max())
        shrink = math.exp(largest - new)  # what was summed was relative to the old maximum
        e = np.exp(s - new)
        total = total * shrink + e.sum()
        out = out * shrink + e @ v[j : j + block]
        largest = new
    return out / total


def test_2_a_softmax_in_pieces(example):
    q, k, v = draw(3)
    expected = example.forward(q, k, v)[0]
    for i in range(SHAPE[2]):
        found = one_output(q[1, 2, i], k[1, 2, : i + 1], v[1, 2, : i + 1])
        assert np.allclose(found, expected[1, 2, i], rtol=1e-12)


def test_3_an_op(example):
    def cases(rng):
        yield draw(3), {}

    @mt.op(cases=cases, name="attention_by_hand")
    def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray):
        out, P = example.forward(q, k, v)
        return out, lambda g: example.backward(g, q, k, v, P)

    assert mt.gradcheck(attention, draw(3))
