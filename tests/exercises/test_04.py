"""Solutions to the exercises of examples/04_two_moons.py."""

import numpy as np
import pytest

import minitensor as mt
from minitensor import nn


@pytest.mark.slow
def test_1_without_tanh_it_is_a_line(example):
    rng = np.random.default_rng(1)
    x, y = example.moons(400, rng)
    layers = [nn.Linear(2, 16, rng=rng), nn.Linear(16, 16, rng=rng), nn.Linear(16, 1, rng=rng)]
    network = nn.Sequential(*layers)
    example.train(network, x, y)
    assert example.accuracy(network, x, y) < 0.92
    # Linear maps one after the other are one linear map: w = W₃ W₂ W₁, b = W₃ (W₂ b₁ + b₂) + b₃.
    w, b = np.eye(2), np.zeros(2)
    for layer in layers:
        w, b = layer.weight.data @ w, layer.weight.data @ b + layer.bias.data
    assert np.allclose(network(mt.Tensor(x)).data, x @ w.T + b, atol=1e-4)


def test_2_counting_parameters():
    rng = np.random.default_rng(0)
    for h in (4, 16, 50):
        network = nn.Sequential(
            nn.Linear(2, h, rng=rng), nn.Linear(h, h, rng=rng), nn.Linear(h, 1, rng=rng)
        )
        # (2 h + h) + (h h + h) + (h + 1)
        assert sum(p.size for p in network.parameters()) == h * h + 5 * h + 1
