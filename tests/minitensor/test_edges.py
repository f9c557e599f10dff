"""The ends of the range: nothing at all, infinities, NaN; and calls that mean something else
elsewhere. The expected values are PyTorch 2.13's unless a docstring says why they are not."""

import math

import numpy as np
import pytest

import minitensor as mt

inf, nan = math.inf, math.nan


def leaf(*values, dtype=np.float64):
    return mt.Tensor(np.array(values, dtype), requires_grad=True)


def value_and_gradients(f, *values):
    xs = [mt.Tensor(np.array(v, np.float64), requires_grad=True) for v in values]
    with np.errstate(all="ignore"):
        y = f(*xs)
        return y.tolist(), [g.tolist() for g in mt.grad(y, xs, np.ones(y.shape))]


def same(got, want):
    np.testing.assert_array_equal(np.array(got), np.array(want))


# ------------------------------------------------------------------------------------------ nothing


@pytest.mark.parametrize(
    "make, want",
    [
        (lambda: mt.softmax(mt.zeros(2, 0)), np.zeros((2, 0))),
        (lambda: mt.log_softmax(mt.zeros(0, 2), axis=0), np.zeros((0, 2))),
        (lambda: mt.logsumexp(mt.zeros(2, 0), axis=1), [-inf, -inf]),
        (lambda: mt.zeros(2, 0).sum(1), [0, 0]),
        (lambda: mt.zeros(2, 0).prod(1), [1, 1]),
        (lambda: mt.zeros(2, 0).mean(1), [nan, nan]),
        (lambda: mt.zeros(0, 2).mean(1), np.zeros(0)),
        (lambda: mt.zeros(0, 2).amax(1), np.zeros(0)),
        (lambda: mt.zeros(0, 2).max(1).indices, np.zeros(0)),
        (lambda: mt.zeros(0, 2).argmax(1), np.zeros(0)),
        (lambda: mt.zeros(2, 0) @ mt.zeros(0, 3), np.zeros((2, 3))),
        (lambda: mt.zeros(0, 2, 3) @ mt.zeros(3), np.zeros((0, 2))),
        (lambda: mt.einsum("ij,jk", mt.zeros(2, 0), mt.zeros(0, 3)), np.zeros((2, 3))),
        (lambda: mt.pad(mt.Tensor(3.0), ()), 3.0),
        (lambda: mt.pad(mt.zeros(0), (1, 1)), [0, 0]),
        (lambda: mt.cumsum(mt.zeros(0), 0), np.zeros(0)),
        (lambda: mt.concat(mt.split(mt.zeros(0, 2), 3)), np.zeros((0, 2))),
        (lambda: mt.zeros(0).flatten(), np.zeros(0)),
        (lambda: mt.Tensor(3.0).flatten(), [3.0]),
        (lambda: mt.mse_loss(mt.zeros(0), mt.zeros(0)), nan),
        (lambda: mt.cross_entropy(mt.zeros(0, 3), []), nan),
        (lambda: mt.cross_entropy(mt.zeros(0, 3), [], reduction="sum"), 0.0),
        (lambda: mt.nll_loss(mt.zeros(2, 3), [-100, -100]), nan),
        (lambda: mt.linear_cross_entropy(mt.ones(2, 3), mt.ones(4, 3), [-100, -100]), nan),
    ],
)
def test_of_nothing(make, want):
    got = make()
    assert got.shape == np.shape(want)
    same(got.data, want)


@pytest.mark.parametrize("name", ["max", "min", "amax", "amin", "argmax", "argmin"])
def test_nothing_has_no_extreme(name):
    for x, axis in ((mt.zeros(2, 0), 1), (mt.zeros(0), None), (mt.zeros(0), 0)):
        with pytest.raises(ValueError, match="there is no extreme of nothing"):
            getattr(x, name)(axis)


def test_rows_that_do_not_count_have_no_gradient():
    x = leaf([1.0, 2.0], [3.0, 4.0])
    for loss in (mt.cross_entropy, mt.nll_loss):
        same(mt.grad(loss(x, [-100, -100]), [x])[0], np.zeros((2, 2)))
    loss = mt.cross_entropy(x, [1, 1], weight=[1.0, 0.0])
    assert math.isnan(loss.item())
    same(mt.grad(loss, [x])[0], np.zeros((2, 2)))


# ------------------------------------------------------------------------------- infinity and NaN


@pytest.mark.parametrize("which", ["numba", "numpy"])
@pytest.mark.parametrize("smoothing", [0.0, 0.25])
def test_a_small_loss_beside_large_logits_is_not_rounded_away(which, smoothing, monkeypatch):
    monkeypatch.setenv("MINITENSOR_KERNELS", which)
    z = np.array([[10000.0, 9990.0], [-30000.0, -30000.0], [77777.0, 77770.0]])
    t = np.array([0, 1, 1])
    log_p = z - z.max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    want = -(1 - smoothing) * log_p[np.arange(3), t] - smoothing * log_p.mean(1)
    x = z.astype(np.float32)
    options = {"label_smoothing": smoothing, "reduction": "none"}
    losses = mt.cross_entropy(x, t, **options).data
    np.testing.assert_allclose(losses, want, rtol=1e-3 if not smoothing else 1e-6)
    np.testing.assert_allclose(
        mt.cross_entropy(x, t, weight=[1, 1], **options).data, losses, rtol=1e-6
    )
    if not smoothing:
        assert losses[0] == pytest.approx(4.54e-5, rel=1e-3)
        total = mt.linear_cross_entropy(x, np.eye(2, dtype=np.float32), t, reduction="sum")
        assert total.item() == pytest.approx(want.sum(), rel=1e-6)
        np.testing.assert_allclose(
            mt.nll_loss(mt.log_softmax(x), t, reduction="none").data, losses, rtol=1e-6
        )


@pytest.mark.parametrize(
    "f, inputs, want, gradients",
    [
        (mt.logsumexp, [[inf, 1, 2]], inf, [[nan, 0, 0]]),
        (mt.logsumexp, [[inf, inf]], inf, [[nan, nan]]),
        (mt.logsumexp, [[-inf, 1]], 1, [[0, 1]]),
        (mt.logsumexp, [[-inf, -inf]], -inf, [[0, 0]]),  # PyTorch: NaN
        (mt.logsumexp, [[nan, 1]], nan, [[nan, nan]]),
        (mt.max, [[nan, 1, 2]], nan, [[1, 0, 0]]),
        (mt.amax, [[nan, 1, nan]], nan, [[0.5, 0, 0.5]]),  # PyTorch: NaN for all
        (lambda x: x.max(0).values, [[1, nan, 2, nan]], nan, [[0, 1, 0, 0]]),
        (mt.maximum, [[nan, 1, nan, 2], [1, nan, nan, 2]], [nan] * 3 + [2], [[1, 1, 1, 0.5]] * 2),
        (mt.minimum, [[nan, 1, nan, 2], [1, nan, nan, 2]], [nan] * 3 + [2], [[1, 1, 1, 0.5]] * 2),
        (
            mt.pow,
            [[inf, -inf, 0, 0, nan, inf, 0], [0, 0, 0, 2, 0, 2, -1]],
            [1, 1, 1, 0, 1, inf, inf],
            [[0, 0, 0, 0, 0, inf, -inf], [inf, nan, 0, 0, nan, inf, -inf]],
        ),
        (lambda x: x**0, [[inf, nan, -inf, 0]], [1, 1, 1, 1], [[0, 0, 0, 0]]),
        (lambda x: 0.0**x, [[0, 2, -1]], [1, 0, inf], [[0, 0, -inf]]),
        (lambda x: x.clip(1.0, -1.0), [[-2, -1, 0, 1, 2, nan]], [-1] * 5 + [nan], [[0] * 6]),
        (
            lambda x: x.clip(-1.0, 1.0),
            [[-2, -1, 0, 1, nan, inf, -inf]],
            [-1, -1, 0, 1, nan, 1, -1],
            [[0, 1, 1, 1, 0, 0, 0]],
        ),
        (mt.softplus, [[inf, -inf]], [inf, 0], [[1, 0]]),
        (mt.sigmoid, [[inf, -inf]], [1, 0], [[0, 0]]),
        (mt.silu, [[inf, -inf]], [inf, nan], [[nan, nan]]),
        (mt.elu, [[inf, -inf]], [inf, -1], [[1, 0]]),
        (mt.softmax, [[-inf, 0.0, -inf]], [0, 1, 0], [[0, 0, 0]]),
    ],
)
def test_infinity_and_nan(f, inputs, want, gradients):
    got, grads = value_and_gradients(f, *inputs)
    same(got, want)
    for g, expected in zip(grads, gradients, strict=True):
        same(g, expected)


@pytest.mark.parametrize("which", ["numba", "numpy"])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_of_infinity(approximate, which, monkeypatch):
    monkeypatch.setenv("MINITENSOR_KERNELS", which)
    for dtype in (np.float32, np.float64):
        x = leaf(inf, -inf, nan, 40, -40, dtype=dtype)
        with np.errstate(all="ignore"):
            y = mt.gelu(x, approximate=approximate)
            (g,) = mt.grad(y.sum(), [x])
        same(y.data, [inf, nan, nan, 40, 0])
        assert not np.isfinite(g[:3]).any()
        same(g[3:], [1, 0])


# ---------------------------------------------------------- calls that mean something elsewhere


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda x: x.transpose(), "transpose: expected two axes to exchange; permute"),
        (lambda x: x.transpose((1, 0, 2)), "transpose: expected two axes to exchange; permute"),
        (lambda x: x.transpose(1, 0, 2), "transpose: expected two axes to exchange; permute"),
        (lambda x: x.max((0, 1)), r"max: expected one axis, got \(0, 1\); amax takes several"),
        (lambda x: mt.max(x, x), "max: expected one axis, .*maximum compares two tensors"),
        (lambda x: mt.min(x, x), "min: expected one axis, .*minimum compares two tensors"),
        (lambda x: x.split([1, 2]), r"split: the sizes \[1, 2\] must add up to 2.*not places"),
        (lambda x: x.split(0), "split: the size of a part is 0"),
        (lambda x: x.split(1, 3), "split: axis 3 does not exist"),
        (lambda x: x.chunk(2, 1), "chunk: an axis of length 3 has no 2 equal parts; split"),
        (lambda x: mt.pad(x, 1), "pad: width is 1; expected one flat sequence"),
        (lambda x: mt.pad(x, [(0, 0), (1, 1), (0, 0)]), "pad: width is .*expected one flat"),
        (lambda x: mt.pad(x, (1,)), "pad: width is"),
        (lambda x: mt.pad(x, (0, -1)), "pad: width is"),
        (lambda x: mt.pad(x, (1, 1) * 4), "pad: width is .*at most 3 axes"),
        (lambda x: x.var(0, 1), "takes from 1 to 2 positional arguments"),
        (lambda x: mt.cross_entropy(x, [[0] * 4] * 2), "cross_entropy: 3 axes: say which .*axis=1"),
        (lambda x: mt.cross_entropy(x, [[0] * 4] * 2, axis=-1), "cross_entropy: targets: expected"),
        (lambda x: mt.cross_entropy(x, [0], axis=3), "cross_entropy: axis 3 does not exist"),
        (lambda x: mt.nll_loss(x, [[0] * 4] * 2), "nll_loss: 3 axes: say which"),
        (lambda x: mt.cross_entropy(x[0], [0] * 3, label_smoothing=2), "label_smoothing is 2"),
        (lambda x: mt.cross_entropy(x[0], [0] * 3, label_smoothing=-0.1), "label_smoothing is"),
        (lambda x: mt.cross_entropy(x[0], [0] * 3, weight=[1, 2]), "weight: expected 4 numbers"),
        (lambda x: mt.cross_entropy(x[0], [0, 1, 4]), "cross_entropy: target 4 at row 2 is not"),
        (lambda x: mt.cross_entropy(x[0], [0.0] * 3), "cross_entropy: expected integers"),
        (lambda x: mt.linear_cross_entropy(x[0], mt.ones(4, 9), [0] * 3), "x ends in"),
        (lambda x: mt.attention(x, x, x), "attention: q .* does not fit"),
        (lambda x: mt.attention(*[x[None]] * 3, window=2), "attention: window is 2; .*causal=True"),
        (lambda x: mt.attention(*[x[None]] * 3, mt.ones(3, 3) > 0, window=2), "part of the mask"),
        (lambda x: mt.attention(*[x[None]] * 3, [[1, 0, 1]] * 3), "expected a mask of booleans or"),
        (lambda x: x.gather(1, [[0]]), "gather: expected an index with the axes of x"),
        (lambda x: x.gather(1, [[[3]]]), "gather: the index must be from 0 to 2"),
        (lambda x: x.gather(0, np.zeros((1, 9, 1), int)), "gather: the index is longer than x"),
        (lambda x: x.repeat(2), "repeat: expected at least 3 numbers"),
        (lambda x: x.flatten(2, 1), "flatten: no axes from 2 to 1"),
        (lambda x: x.cumsum(None), "cumsum: expected one axis, got None"),
        (lambda x: mt.randn(2), r"randn: expected rng=np.random.default_rng\(seed\), got None"),
        (lambda x: mt.rand(2, rng=0), "rand: expected rng=.*got 0"),
        (lambda x: mt.arange(3, step=0), "arange: step is 0"),
        (lambda x: mt.kl_div(x, x, reduction="max"), "kl_div: reduction is 'max'; expected one of"),
    ],
)
def test_a_call_that_could_mean_two_things_is_refused(call, match):
    with pytest.raises((TypeError, ValueError, IndexError), match=match) as error:
        call(mt.ones(2, 3, 4))
    assert "\n" not in str(error.value)


def test_what_has_pytorchs_name_has_its_meaning():
    x = mt.arange(24).reshape(2, 3, 4)
    assert x.transpose(0, 1).shape == x.swapaxes(0, 1).shape == (3, 2, 4)
    assert x.permute(2, 0, 1).shape == x.permute((2, 0, 1)).shape == (4, 2, 3)
    assert x.T.shape == (4, 3, 2)
    values, indices = mt.Tensor([[1.0, 5.0], [7.0, 5.0]]).max(1)
    assert values.tolist() == [5, 7] and indices.tolist() == [1, 0]
    assert [part.shape[1] for part in x.split(2, 1)] == [2, 1]
    assert [part.shape[2] for part in x.split([1, 3], 2)] == [1, 3]
    assert [part.shape[1] for part in x.chunk(3, 1)] == [1, 1, 1]
    assert mt.pad(x, (1, 2)).shape == (2, 3, 7) and mt.pad(x, (0, 0, 1, 2)).shape == (2, 6, 4)
    assert mt.var([1.0, 2.0, 3.0]).item() == 1 and mt.std([1.0, 3.0], correction=0).item() == 1
    q = mt.randn(1, 1, 3, 2, rng=np.random.default_rng(0))
    later = mt.concat([q[:, :, :2], q[:, :, 2:] + 1], axis=2)
    first, second = (mt.attention(q, k, q).data[..., :2, :] for k in (q, later))
    assert not np.array_equal(first, second), "all see all unless causal=True"
    same(*(mt.attention(q, k, q, causal=True).data[..., :2, :] for k in (q, later)))


def test_new_tensors():
    assert mt.zeros(2, 3).tolist() == mt.zeros((2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert mt.ones(()).item() == 1 and mt.ones(2, dtype=np.int64).dtype == np.int64
    assert mt.zeros(2).dtype == mt.full((2,), 0.5).dtype == np.float32
    assert mt.full((2,), 3).dtype == np.int64 and mt.full(2, True).dtype == bool
    assert mt.arange(3).tolist() == [0, 1, 2] and mt.arange(3).dtype == np.int64
    assert mt.arange(1, 2, 0.5).tolist() == [1, 1.5] and mt.arange(2.0).dtype == np.float32
    like = mt.zeros_like(mt.Tensor([[1, 2]]))
    assert like.shape == (1, 2) and like.dtype == np.int64
    assert mt.ones_like([1.0], dtype=np.float64).dtype == np.float64
    draws = [mt.randn(2, 2, rng=np.random.default_rng(1)) for _ in range(2)]
    assert draws[0].dtype == np.float32
    same(draws[0].data, draws[1].data)
    u = mt.rand(1000, rng=np.random.default_rng(1), dtype=np.float64, requires_grad=True)
    assert u.requires_grad and u.data.min() >= 0 and u.data.max() < 1


def test_the_mask_of_attention_in_its_two_forms_with_dropout_and_groups():
    rng = np.random.default_rng(0)
    shapes = (2, 4, 5, 3), (2, 2, 5, 3), (2, 2, 5, 3)
    q, k, v = (mt.Tensor(rng.normal(size=s), requires_grad=True) for s in shapes)
    past = np.tril(np.ones((5, 5), bool))
    far = np.where(past, 0.0, -inf)
    options = {"scale": 0.3}
    want = mt.attention(q, k, v, causal=True, **options)
    g = rng.normal(size=want.shape)
    for mask in (past, far, mt.Tensor(far), np.broadcast_to(past, (2, 4, 5, 5))):
        got = mt.attention(q, k, v, mask, **options)
        np.testing.assert_allclose(got.data, want.data, rtol=1e-12)
        for a, b in zip(
            mt.grad(got, [q, k, v], g), mt.grad(want, [q, k, v], g, retain_graph=True), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)
    mt.gradcheck(
        lambda q, k, v, m: mt.attention(q, k, v, m, dropout=0.3, key=1),
        [x.data[:1, :, :3] for x in (q, k, v)] + [rng.normal(size=(4, 1, 3))],
    )
    nothing = mt.attention(q, k[:, :, :0], v[:, :, :0])
    same(nothing.data, np.zeros(q.shape))
