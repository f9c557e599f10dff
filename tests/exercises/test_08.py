"""Solutions to the exercises of examples/08_transformer_block.py."""

import math

import numpy as np

import minitensor as mt
from tinygpt.model.transformer import Block


def attend(example, x, rotate):
    """Softmax attention of x with itself, all heads, without a mask."""
    q = k = rotate(example.heads(x, example.H))
    weights = mt.softmax(q @ k.swapaxes(-1, -2) / math.sqrt(example.hd))
    mixed = weights @ example.heads(x, example.H)
    return mixed.swapaxes(1, 2).reshape(x.shape).data


def test_1_order_comes_from_positions(example):
    rng = np.random.default_rng(0)
    x = mt.Tensor(rng.normal(size=(example.B, example.T, example.D)))
    order = rng.permutation(example.T)
    shuffled = mt.Tensor(x.data[:, order])

    def without(x):
        return x

    # Without positions, attention sees a set: the result is the same, in the other order.
    assert np.allclose(
        attend(example, shuffled, without), attend(example, x, without)[:, order], rtol=1e-12
    )
    assert not np.allclose(
        attend(example, shuffled, example.rotate), attend(example, x, example.rotate)[:, order]
    )


def test_2_rotation_leaves_distances(example):
    rng = np.random.default_rng(0)
    shape = (example.B, example.H, example.T, example.hd)
    q, k = (
        example.rotate(mt.Tensor(np.broadcast_to(rng.normal(size=example.hd), shape).copy()))
        for _ in range(2)
    )
    scores = (q @ k.swapaxes(-1, -2)).data[0, 0]  # (T, T)
    for distance in range(-example.T + 1, example.T):  # a diagonal: all pairs that far apart
        along = np.diagonal(scores, distance)
        assert np.allclose(along, along[0])
    assert not np.allclose(scores[0], scores[0, 0])


def test_3_counting_parameters(example):
    D, H, KV, hd, F = example.D, example.H, example.KV, example.hd, example.F
    block = Block(example.CONFIG, 0, np.random.default_rng(0))
    norms, attention, feed_forward = 2 * D, (2 * H + 2 * KV) * hd * D, 3 * D * F
    assert sum(p.size for p in block.parameters()) == norms + attention + feed_forward
