"""Two moons: a problem that no straight line solves, and a small network that does.

You will see how modules are put together, a training loop with AdamW, what a hidden layer is worth
(the same training without one stays near 85 %), and the surface that the network has drawn between
the two classes.

Run it with `python examples/04_two_moons.py`; `--out DIR` keeps the picture (it needs matplotlib,
the extra `plot`).

Exercises (solutions in tests/exercises/test_04.py):

1. Leave out the two `tanh`. What single line is the network now?
2. How many parameters has the network with hidden layers of h units?
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

import minitensor as mt
from minitensor import nn


def moons(n, rng):
    """n points on two half circles that reach into each other, with some noise; labels 0 and 1."""
    y = np.arange(n) % 2
    angle = rng.uniform(0, np.pi, n)
    x = np.column_stack(
        [
            np.where(y, 1 - np.cos(angle), np.cos(angle)),
            np.where(y, 0.5 - np.sin(angle), np.sin(angle)),
        ]
    )
    return (x + rng.normal(0, 0.12, x.shape)).astype(np.float32), y.astype(np.float32)


def train(model, x, y, steps=300):
    """Fit the model to all points at once; returns the last loss."""
    optimizer = mt.optim.AdamW(model.parameters(), lr=0.03, weight_decay=0.03)
    for _ in range(steps):
        logits = model(mt.Tensor(x)).squeeze(-1)  # (n, 1) -> (n,)
        loss = mt.binary_cross_entropy_with_logits(logits, y)
        model.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def accuracy(model, x, y):
    """The share of points on the right side."""
    with mt.no_grad():
        logits = model(mt.Tensor(x)).squeeze(-1)
    return float(((logits.data > 0) == (y == 1)).mean())


def plot(model, x, y, path):
    """The probability of class 1 over the plane, its border at 1/2, and the points."""
    try:
        import matplotlib
    except ImportError:
        print("no picture: matplotlib is not installed (pip install matplotlib)")
        return
    matplotlib.use("Agg")  # draws into files, needs no screen
    from matplotlib import pyplot as plt

    a, b = np.meshgrid(np.linspace(-1.6, 2.6, 211), np.linspace(-1.2, 1.7, 146))
    grid = np.column_stack([a.ravel(), b.ravel()]).astype(np.float32)
    with mt.no_grad():
        p = mt.sigmoid(model(mt.Tensor(grid))).data.reshape(a.shape)
    figure, axes = plt.subplots(figsize=(7, 4.8), layout="constrained")
    surface = axes.contourf(a, b, p, levels=np.linspace(0, 1, 21), cmap="RdBu_r", alpha=0.65)
    axes.contour(a, b, p, levels=[0.5], colors="black")
    for label, color in ((0, "navy"), (1, "darkred")):
        axes.scatter(
            *x[y == label].T,
            s=16,
            color=color,
            edgecolor="white",
            linewidth=0.4,
            label=f"class {label}",
        )
    figure.colorbar(surface, label="probability of class 1", ticks=np.linspace(0, 1, 6))
    axes.set(
        title="Two moons: the probability that the network gives every point",
        xlabel="x₁",
        ylabel="x₂",
    )
    axes.set_aspect("equal")
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"the decision surface is drawn in {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for the picture (default: temporary)")
    args = parser.parse_args()
    rng = np.random.default_rng(1)
    (x, y), (x_new, y_new) = moons(400, rng), moons(400, rng)

    line = nn.Linear(2, 1, rng=rng)
    network = nn.Sequential(
        nn.Linear(2, 16, rng=rng),
        mt.tanh,
        nn.Linear(16, 16, rng=rng),
        mt.tanh,
        nn.Linear(16, 1, rng=rng),
    )
    scores = {}
    for name, model in (("a line", line), ("two hidden layers", network)):
        loss = train(model, x, y)
        scores[name] = accuracy(model, x_new, y_new)
        size = sum(p.size for p in model.parameters())
        print(
            f"{name:18} {size:4} parameters, loss {loss:.4f}, {scores[name]:.1%} of 400 new "
            "points right"
        )
    assert scores["a line"] < 0.92 and scores["two hidden layers"] > 0.98

    out = args.out or Path(tempfile.mkdtemp(prefix="minitensor-"))
    out.mkdir(parents=True, exist_ok=True)
    plot(network, x_new, y_new, out / "two_moons.png")


if __name__ == "__main__":
    main()
