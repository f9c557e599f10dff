"""Solutions to the exercises of examples/05_your_own_op.py."""

import numpy as np
import pytest

import minitensor as mt


def test_1_a_stride(example):
    def cases(rng):
        for inputs, _ in example.cases(rng):
            yield inputs, {}

    @mt.op(cases=cases, name="conv2d_of_stride_2")
    def strided(x: np.ndarray, w: np.ndarray):
        """Every second row and column of the convolution. Backward: what was left out has no
        gradient, so g is put into zeros in the places it came from."""
        y, (dx, dw) = example.conv2d.fn(x, w)

        def spread(g):
            full = np.zeros(y.shape, g.dtype)
            full[:, :, ::2, ::2] = g
            return full

        return y[:, :, ::2, ::2], (lambda g: dx(spread(g)), lambda g: dw(spread(g)))

    for inputs, _ in cases(np.random.default_rng(0)):
        assert mt.gradcheck(strided, inputs)


def test_2_a_pool():
    def cases(rng):
        yield (rng.standard_normal((2, 3, 4, 6)),), {}

    @mt.op(cases=cases, name="pool")
    def pool(x: np.ndarray):
        """The largest of every 2 × 2 pixels of x (N, C, H, W). Backward: only the largest was in
        the result, so it alone gets the gradient."""
        N, C, H, W = x.shape
        tiles = x.reshape(N, C, H // 2, 2, W // 2, 2).swapaxes(3, 4).reshape(N, C, -1, 4)
        largest = tiles.argmax(axis=-1)[..., None]  # of equal ones, the first
        y = np.take_along_axis(tiles, largest, axis=-1)  # (N, C, H W / 4, 1)

        def backward(g):
            dx = np.zeros_like(tiles)
            np.put_along_axis(dx, largest, g.reshape(y.shape), axis=-1)
            return dx.reshape(N, C, H // 2, W // 2, 2, 2).swapaxes(3, 4).reshape(x.shape)

        return y.reshape(N, C, H // 2, W // 2), (backward,)

    (x,), _ = next(cases(np.random.default_rng(0)))
    assert np.array_equal(pool(mt.Tensor(x)).data, x.reshape(2, 3, 2, 2, 3, 2).max(axis=(3, 5)))
    assert mt.gradcheck(pool, [x])


def test_3_filters_that_are_not_turned(example):
    def unturned(x: np.ndarray, w: np.ndarray):
        y, (_, dw) = example.conv2d.fn(x, w)
        K, L = w.shape[2:]

        def dx(g):
            around = np.pad(g, ((0, 0), (0, 0), (K - 1, K - 1), (L - 1, L - 1)))
            return example.correlate(around, w.swapaxes(0, 1))[0]

        return y, (dx, dw)

    faulty = mt.op(cases=example.cases, name="conv2d_unturned")(unturned)
    several, pixel, whole = (inputs for inputs, _ in example.cases(np.random.default_rng(0)))
    assert mt.gradcheck(faulty, pixel)  # a filter of one pixel looks the same from both sides
    for inputs in (several, whole):
        with pytest.raises(mt.GradcheckError):
            mt.gradcheck(faulty, inputs)
