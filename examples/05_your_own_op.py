"""An op of your own: a 2-D convolution with its derivation and its check, and a filter it learns.

An op is a function on arrays that returns its result and one function per input that sends a
gradient back. That is all `minitensor` needs to know: the op then records, differentiates, draws
and is checked like those that come with it. To see it learn something whose answer is known, it
gets images and their edges, and has to find the filter that makes the one from the other.

Run it with `python examples/05_your_own_op.py`.

Exercises (solutions in tests/exercises/test_05.py):

1. Give `conv2d` a stride: every second row and column of the result, in the backward too.
2. Write the largest of every 2 × 2 pixels as an op, `pool`, with a backward that sends the gradient
   to where the largest was. Check it.
3. Leave the filters unturned in `dx`. Which of the three cases still passes, and why?
"""

import numpy as np

import minitensor as mt


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
    element is multiplied by.

        dw[o,c,u,v] = Σ_nij g[n,o,i,j] x[n, c, i+u, j+v]         the windows of x, weighted by g
        dx[n,c,a,b] = Σ_ouv g[n, o, a−u, b−v] w[o,c,u,v]         put a = i+u and b = j+v

    The second is itself a correlation: of g, with K−1 and L−1 zeros around it, with the filters
    turned by 180° and their two kinds of channels exchanged.
    """
    if x.ndim != 4 or w.ndim != 4 or x.shape[1] != w.shape[1]:
        raise ValueError(
            "conv2d: expected x (N, C, H, W) and w (O, C, K, L) with the same channels C, "
            f"got {x.shape} and {w.shape}"
        )
    K, L = w.shape[2:]
    y, windows = correlate(x, w)

    def dx(g):
        around = np.pad(g, ((0, 0), (0, 0), (K - 1, K - 1), (L - 1, L - 1)))
        return correlate(around, w[:, :, ::-1, ::-1].swapaxes(0, 1))[0]

    def dw(g):
        return np.tensordot(g, windows, axes=([0, 2, 3], [0, 2, 3]))

    return y, (dx, dw)


SOBEL = np.array([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])  # answers upright edges


def learn(images, edges, steps=200):
    """The 3 × 3 filter that makes `edges` from `images`, by gradient descent from zeros."""
    w = mt.Tensor(np.zeros((1, 1, 3, 3)), requires_grad=True)
    optimizer = mt.optim.SGD([w], lr=0.2, momentum=0.5)
    for step in range(steps):
        loss = ((conv2d(images, w) - edges) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step:3}: loss {loss.item():.2e}")
    return w.data[0, 0]


def main():
    rng = np.random.default_rng(0)
    checked = [mt.gradcheck(conv2d, inputs) for inputs, _ in conv2d.cases(rng)]
    print(f"conv2d: the gradient is right in {sum(checked)} of {len(checked)} cases")

    images = rng.standard_normal((8, 1, 16, 16))
    edges = correlate(images, SOBEL[None, None])[0]  # (8, 1, 14, 14)
    found = learn(mt.Tensor(images), edges)
    print("the filter it found:")
    print(found.round(4) + 0.0)  # −0 to 0
    assert np.allclose(found, SOBEL, atol=1e-6)


if __name__ == "__main__":
    main()
