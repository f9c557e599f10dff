"""Solutions to the exercises of examples/03_logistic_regression.py."""

import numpy as np
import pytest

import minitensor as mt


@pytest.fixture(scope="module")
def points(example):
    return example.clouds(200, np.random.default_rng(0))


def descend(parameters, loss, lr=1.0, steps=800):
    optimizer = mt.optim.SGD(parameters, lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


@pytest.mark.slow
def test_1_a_penalty(points):
    x, y = points
    w, b = (mt.Tensor(np.zeros(n), requires_grad=True) for n in (2, 1))

    def loss():
        data = mt.binary_cross_entropy_with_logits(mt.Tensor(x) @ w + b, y)
        return data + 0.05 * (w * w).sum()

    descend([w, b], loss)
    # The penalty adds 0.1 w to the gradient and 0.1 to the diagonal of the Hessian, not for b.
    X, v = np.column_stack([x, np.ones(len(x))]), np.zeros(3)
    weight = 0.1 * np.array([1, 1, 0])
    for _ in range(20):
        p = 1 / (1 + np.exp(-X @ v))
        H = X.T * (p * (1 - p)) @ X / len(x) + np.diag(weight)
        v -= np.linalg.solve(H, X.T @ (p - y) / len(x) + weight * v)
    assert np.allclose([*w.data, *b.data], v, atol=1e-6)


@pytest.mark.slow
def test_2_two_scores(example, points):
    x, y = points
    W = mt.Tensor(np.zeros((2, 2)), requires_grad=True)  # a row for each cloud
    b = mt.Tensor(np.zeros(2), requires_grad=True)
    descend([W, b], lambda: mt.cross_entropy(mt.linear(mt.Tensor(x), W, b), y.astype(int)))
    # softmax of (s0, s1) is sigmoid(s1 − s0): only the difference of the rows counts, and it is w.
    found = [*(W.data[1] - W.data[0]), b.data[1] - b.data[0]]
    assert np.allclose(found, example.newton(x, y), atol=1e-6)
    assert np.allclose(W.data[0], -W.data[1])  # they began alike and share every step
