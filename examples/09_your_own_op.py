"""An op of your own: a 2-D convolution with its derivation and check, and a net on digits with it.

An op is a function on arrays that returns its result and one function per input that sends a
gradient back. That is all `minitensor` needs to know: the op then records, differentiates, draws
and is checked like those that come with it. The digits are drawn here too: a small font, turned,
shifted, scaled and with noise.

Run it with `python examples/09_your_own_op.py`; `--out DIR` keeps pictures of the digits and of
the filters that were learned (they need matplotlib, the extra `plot`).
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

import minitensor as mt
from minitensor import nn

# ------------------------------------------------------------------------------------- the op


def cases(rng):
    """What the op is checked on: several filters and channels; a single pixel; a filter as large
    as the image."""
    n = rng.standard_normal
    yield (n((2, 3, 5, 6)), n((4, 3, 3, 2))), {}
    yield (n((1, 2, 3, 3)), n((2, 2, 1, 1))), {}
    yield (n((2, 1, 3, 4)), n((1, 1, 3, 4))), {}


def correlate(x, w):
    """y[n,o,i,j] = Σ_cuv x[n, c, i+u, j+v] w[o,c,u,v], as one matrix product over windows of x."""
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))
    y = np.tensordot(windows, w, axes=([1, 4, 5], [1, 2, 3]))  # (N, H', W', O)
    return np.moveaxis(y, -1, 1), windows


@mt.op(cases=cases)
def conv2d(x: np.ndarray, w: np.ndarray):
    """Every filter of w (O, C, K, L) on every place of x (N, C, H, W) -> (N, O, H−K+1, W−L+1).

        y[n,o,i,j] = Σ_cuv x[n, c, i+u, j+v] w[o,c,u,v]

    Backward, with g the gradient of y: Σ g dy is linear in dw and in dx, so read off what each
    element is multiplied with.

        dw[o,c,u,v] = Σ_nij g[n,o,i,j] x[n, c, i+u, j+v]         the windows of x, weighed with g
        dx[n,c,a,b] = Σ_ouv g[n, o, a−u, b−v] w[o,c,u,v]         put a = i+u and b = j+v

    The second is itself a correlation: of g, with K−1 and L−1 zeros around it, with the filters
    turned by 180° and their two kinds of channels exchanged.
    """
    if x.ndim != 4 or w.ndim != 4 or x.shape[1] != w.shape[1]:
        raise ValueError("x (N, C, H, W) and w (O, C, K, L) must agree in channels C")
    K, L = w.shape[2:]
    y, windows = correlate(x, w)

    def dx(g):
        around = np.pad(g, ((0, 0), (0, 0), (K - 1, K - 1), (L - 1, L - 1)))
        return correlate(around, w[:, :, ::-1, ::-1].swapaxes(0, 1))[0]

    def dw(g):
        return np.tensordot(g, windows, axes=([0, 2, 3], [0, 2, 3]))

    return y, (dx, dw)


# ----------------------------------------------------------------------------------- the digits

FONT = """
.###. ..#.. .###. ##### ...#. ##### ..##. ##### .###. .###.
#...# .##.. #...# ...#. ..##. #.... .#... ....# #...# #...#
#..## ..#.. ....# ..#.. .#.#. ####. #.... ...#. #...# #...#
#.#.# ..#.. ...#. ...#. #..#. ....# ####. ..#.. .###. .####
##..# ..#.. ..#.. ....# ##### ....# #...# .#... #...# ....#
#...# ..#.. .#... #...# ...#. #...# #...# .#... #...# ...#.
.###. .###. ##### .###. ...#. .###. .###. .#... .###. .##..
"""
SIZE = 16


def draw_digits(n, rng):
    """n images (n, 1, SIZE, SIZE) and what they show (n,): turned, sheared, scaled, shifted, and
    with noise."""
    rows = [line.split() for line in FONT.split("\n") if line]
    glyphs = np.array([[[c == "#" for c in row[d]] for row in rows] for d in range(10)], float)
    glyphs = np.pad(glyphs, ((0, 0), (2, 2), (2, 2)))  # (10, 11, 9), a margin of zeros
    labels = rng.integers(10, size=n)
    # For each pixel of the image, the place in the font that it shows: a linear map and a shift.
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, SIZE)] * 2, indexing="ij"))  # (2, SIZE, SIZE)
    turn, shear, scale = (rng.normal(0, s, n) for s in (0.18, 0.15, 0.12))
    c, s = np.cos(turn), np.sin(turn)
    maps = np.array([[c, -s + shear], [s, c]]) * np.exp(scale) * [[[4.8]], [[3.6]]]  # (2, 2, n)
    place = np.einsum("abn,bij->naij", maps, grid) + rng.normal(0, 0.5, (n, 2, 1, 1))
    place += np.array([5, 4])[:, None, None]  # the middle of a glyph
    place = np.clip(place, 0, np.array([9.999, 7.999])[:, None, None])
    (i, j), (u, v) = place.astype(int).swapaxes(0, 1), (place % 1).swapaxes(0, 1)
    d = labels[:, None, None]
    images = (
        (1 - u) * (1 - v) * glyphs[d, i, j]
        + (1 - u) * v * glyphs[d, i, j + 1]
        + u * (1 - v) * glyphs[d, i + 1, j]
        + u * v * glyphs[d, i + 1, j + 1]
    )
    images += rng.normal(0, 0.15, images.shape)
    return images[:, None].astype(np.float32), labels


# -------------------------------------------------------------------------------------- the net


def pool(x):
    """The largest of every 2 × 2 pixels."""
    N, C, H, W = x.shape
    return x.reshape(N, C, H // 2, 2, W // 2, 2).max(axis=(3, 5))


class Net(nn.Module):
    """Two convolutions, each with a ReLU and a pooling, and a linear map to ten scores."""

    def __init__(self, rng):
        self.first = nn.Parameter(rng.normal(0, 0.2, (8, 1, 5, 5)), dtype=np.float32)
        self.second = nn.Parameter(rng.normal(0, 0.1, (16, 8, 3, 3)), dtype=np.float32)
        self.out = nn.Linear(16 * 2 * 2, 10, rng=rng)

    def forward(self, x):  # (N, 1, 16, 16)
        x = pool(mt.relu(conv2d(x, self.first)))  # 12 × 12, pooled (N, 8, 6, 6)
        x = pool(mt.relu(conv2d(x, self.second)))  # 4 × 4, pooled (N, 16, 2, 2)
        return self.out(x.reshape(len(x), -1))  # (N, 10)


def train(net, rng, steps=300):
    """Fresh digits at every step, so none is ever seen twice."""
    optimizer = mt.optim.AdamW(net.parameters(), lr=0)
    for step in range(steps):
        images, labels = draw_digits(64, rng)
        loss = mt.cross_entropy(net(mt.Tensor(images)), labels)
        net.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = mt.optim.cosine(step, lr=5e-3, warmup=20, total=steps)
        optimizer.step()
        if step % 75 == 0:
            print(f"step {step:3}: loss {loss.item():.3f}")


def plot(images, labels, said, filters, out):
    """Some digits with what the net said of them, and the filters of the first layer."""
    try:
        import matplotlib
    except ImportError:
        print("no pictures: matplotlib is not installed (pip install matplotlib)")
        return
    matplotlib.use("Agg")  # draws into files, needs no screen
    from matplotlib import pyplot as plt

    wrong = np.flatnonzero(said != labels)
    shown = np.concatenate([wrong[:8], np.flatnonzero(said == labels)])[:32]  # mistakes first
    figure, axes = plt.subplots(4, 8, figsize=(8, 4.8), layout="constrained")
    figure.suptitle("Digits, and what the net takes them for (red: wrong)")
    for ax, n in zip(axes.flat, shown, strict=True):
        ax.imshow(images[n, 0], cmap="gray_r")
        ax.set_title(said[n], color="black" if said[n] == labels[n] else "red")
        ax.axis("off")
    figure.savefig(out / "digits.png", dpi=110)
    figure, axes = plt.subplots(1, 8, figsize=(8, 1.4), layout="constrained")
    figure.suptitle("The eight filters of the first layer (red: positive, blue: negative)")
    for ax, f in zip(axes, filters[:, 0], strict=True):
        ax.imshow(f, cmap="RdBu_r", vmin=-np.abs(filters).max(), vmax=np.abs(filters).max())
        ax.axis("off")
    figure.savefig(out / "filters.png", dpi=110)
    plt.close("all")
    print(f"pictures: {out / 'digits.png'} and {out / 'filters.png'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for the pictures (default: temporary)")
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    checked = [mt.gradcheck(conv2d, inputs) for inputs, _ in conv2d.cases(rng)]
    print(f"conv2d: the gradient is right in {sum(checked)} of {len(checked)} cases")

    net = Net(rng)
    print(f"the net has {sum(p.size for p in net.parameters()):,} parameters")
    with mt.Workers(1):  # products as small as these are done sooner by one thread than by many
        train(net, rng)
    images, labels = draw_digits(1000, rng)
    with mt.no_grad():
        said = net(mt.Tensor(images)).argmax(axis=-1).data
    right = (said == labels).mean()
    print(f"of 1,000 new digits, {right:.1%} are read right")
    assert right > 0.95

    out = args.out or Path(tempfile.mkdtemp(prefix="minitensor-"))
    out.mkdir(parents=True, exist_ok=True)
    plot(images, labels, said, net.first.data, out)


if __name__ == "__main__":
    main()
