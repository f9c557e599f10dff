"""Logistic regression: the smallest model that learns, and a proof that it learned the right thing.

Two clouds of points; a straight line between them; the probability of the second cloud is
sigmoid(w·x + b). You will see the four lines that every training loop consists of (loss, gradient,
step, zero), check the gradient against the formula of the textbooks, and compare the end with the
true minimum, which Newton's method finds for this model.

Run it with `python examples/03_logistic_regression.py`.

Exercises (solutions in tests/exercises/test_03.py):

1. Add the penalty 0.1 |w|² / 2 to the loss. Where is the minimum now, by Newton's method?
2. Do it with two scores a point, one for each cloud, and `cross_entropy`. What do the two rows of
   weights have to do with w?
"""

import numpy as np

import minitensor as mt


def clouds(n, rng):
    """n points around (-1, -1), labelled 0, and n around (1, 1), labelled 1; they overlap."""
    x = np.concatenate([rng.normal(-1, 1.2, (n, 2)), rng.normal(1, 1.2, (n, 2))])
    return x, np.repeat([0.0, 1.0], n)


def newton(x, y, steps=20):
    """The weights (w1, w2, b) of the least loss: w -= H⁻¹ ∇, with H the matrix of second
    derivatives, Xᵀ diag(p (1 − p)) X."""
    X, w = np.column_stack([x, np.ones(len(x))]), np.zeros(3)
    for _ in range(steps):
        p = 1 / (1 + np.exp(-X @ w))
        w -= np.linalg.solve(X.T * (p * (1 - p)) @ X, X.T @ (p - y))
    return w


def main():
    x, y = clouds(200, np.random.default_rng(0))  # (400, 2), (400,)
    w = mt.Tensor(np.zeros(2), requires_grad=True)  # float64, as the array is
    b = mt.Tensor(np.zeros(1), requires_grad=True)

    def loss():
        logits = mt.Tensor(x) @ w + b  # (400,)
        return mt.binary_cross_entropy_with_logits(logits, y)

    # The textbook's gradient of this loss is Xᵀ (p − y) / n. At w = 0, every p is 1/2.
    first = loss()
    first.backward()
    by_hand = x.T @ (0.5 - y) / len(y)
    print(f"loss with w = 0: {first.item():.6f} (ln 2 = {np.log(2):.6f}: it knows nothing yet)")
    print(f"its gradient: by hand {by_hand.round(6)}, backward() {w.grad.round(6)}")
    assert np.allclose(w.grad, by_hand, rtol=1e-12)

    optimizer = mt.optim.SGD([w, b], lr=1.0)
    for step in range(401):
        optimizer.zero_grad()  # forget the last gradient: backward() adds to it
        value = loss()  # forward, which builds the graph
        value.backward()  # back through it
        optimizer.step()  # w -= lr · gradient
        if step % 100 == 0:
            print(f"step {step:3}: loss {value.item():.6f}")

    # The loss is convex, so there is one minimum, and gradient descent must end where Newton does.
    found, exact = np.array([*w.data, *b.data]), newton(x, y)
    right = ((x @ w.data + b.data > 0) == (y == 1)).mean()
    print(f"found by gradient descent  {found.round(6)}")
    print(f"the exact minimum          {exact.round(6)}")
    print(f"{right:.1%} of the points are on the right side of the line")
    assert np.allclose(found, exact, atol=1e-6) and right > 0.85


if __name__ == "__main__":
    main()
