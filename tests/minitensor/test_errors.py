"""Values of single ops, what the tensor is, and errors that say what to do."""

import doctest
import warnings

import numpy as np
import pytest

import minitensor as mt


def f32(*values):
    return mt.Tensor(np.array(values, np.float32), requires_grad=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x * 2.5,
        lambda x: 2 - x,
        lambda x: x / np.float64(3),
        lambda x: np.int64(3) * x,
        lambda x: x + [0.1, 0.2],  # noqa: RUF005
        lambda x: x * np.array([1, 2]),
        lambda x: np.array([True, False]) * x,
        lambda x: mt.Tensor([3, 4]) / x,
        lambda x: x ** np.float64(2.7),
        lambda x: 2.0**x,
        lambda x: mt.where([True, False], x, 0.5),
        lambda x: mt.maximum(x, 1),
        lambda x: x @ [[1], [2]],
        lambda x: mt.mse_loss(x, [1.0, 2.0]),
        lambda x: mt.mse_loss(np.array([1, 2]), x),
        lambda x: x + mt.Tensor([1, 2]) * 0.5,
        lambda x: x // 2 + x % 0.3,
        lambda x: mt.outer(np.array([1, 2]), x),
        lambda x: x.mean() * 3 - 1e-5,
        lambda x: x.std(),
        lambda x: mt.prod(x) + mt.cumsum(x, 0),
        lambda x: mt.clip(x, 0.5),
    ],
)
def test_numbers_lists_and_integers_do_not_widen_float32(make):
    assert make(f32(1.0, 2.0)).dtype == np.float32


def test_python_numbers_become_float32_and_arrays_keep_their_dtype():
    assert mt.Tensor([1.0]).dtype == mt.exp(1.0).dtype == mt.exp([1.0]).dtype == np.float32
    assert mt.Tensor(np.ones(1)).dtype == np.float64 and mt.Tensor([1]).dtype == np.int64
    assert mt.tensor([1], dtype=np.float32, requires_grad=True).requires_grad


def test_a_tensor_behaves_like_an_array():
    x = mt.Tensor([[1.0, 2.0], [3.0, 4.0]])
    assert (x.shape, x.ndim, x.size, len(x)) == ((2, 2), 2, 4, 2)
    assert [row.tolist() for row in x] == x.tolist() == [[1, 2], [3, 4]]
    assert float(x[1, 1]) == x[1, 1].item() == 4 and bool(x[0, 0] > 0)
    np.testing.assert_array_equal(np.asarray(x), x.data)
    np.testing.assert_array_equal((~(x >= 2)).data, [[True, False], [False, False]])
    np.testing.assert_array_equal((x == 2).data, (np.array(2) == x.data))
    assert len({x, x.T, x}) == 2, "hashed by identity"
    assert repr(f32(1.0)) == "Tensor([1.], float32, requires_grad=True)"
    assert repr(f32(1.0) * 2) == "Tensor([2.], float32, op=mul)"
    assert repr(mt.nn.Parameter([1.0])) == "Parameter([1.], float32, requires_grad=True)"
    assert abs(-x).tolist() == x.tolist()


def test_reflected_operators_and_matmul():
    a, b = np.array([1.0, 2.0]), np.array([[1.0, 2.0], [3.0, 4.0]])
    t = mt.Tensor(b)
    for got, want in [
        (a + t, a + b),
        (a - t, a - b),
        (a * t, a * b),
        (a / t, a / b),
        (a**t, a**b),
        (a @ t, a @ b),
        (2 / t, 2 / b),
        (2**t, 2**b),
    ]:
        assert isinstance(got, mt.Tensor)
        np.testing.assert_allclose(got.data, want)


def test_ties_share_the_gradient():
    x = mt.Tensor(np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]), requires_grad=True)
    (g,) = mt.grad(x.max(), [x])
    np.testing.assert_array_equal(g, [[0, 0.5, 0.5], [0, 0, 0]])
    np.testing.assert_allclose(
        mt.grad(x.amin(axis=1).sum(), [x])[0], [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]]
    )
    (g,) = mt.grad(mt.maximum(x, 2.0).sum(), [x])
    np.testing.assert_array_equal(g, [[0, 1, 1], [0.5, 0.5, 0.5]])


def test_argmax_has_no_gradient():
    x = f32(1.0, 5.0, 5.0)
    assert x.argmax().item() == 1 and not x.argmax().requires_grad
    assert mt.argmax([[1, 2], [4, 3]], axis=1, keepdims=True).tolist() == [[1], [0]]


def test_where_keeps_a_harmless_nan_harmless():
    x = f32(-1.0, 4.0)
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        y = mt.where(x > 0, x, 1.0)
        (g,) = mt.grad(mt.where(x > 0, mt.sqrt(y), np.float32(np.nan))[1:].sum(), [x])
    np.testing.assert_allclose(g, [0, 0.25])


def test_extreme_logits_stay_finite():
    x = mt.Tensor(np.array([1e4, -1e4, 0.0]), requires_grad=True)
    for f in (mt.sigmoid, mt.softplus, mt.silu, mt.softmax, mt.logsumexp, mt.tanh):
        assert np.isfinite(f(x).data).all()
        assert np.isfinite(mt.grad(f(x).sum(), [x])[0]).all()
    loss = mt.binary_cross_entropy_with_logits(x, np.array([1.0, 0.0, 0.5]))
    np.testing.assert_allclose(loss.item(), np.log(2) / 3)


def test_nothing_gives_nan_or_zero_as_numpy_does_and_no_warning():
    x = mt.Tensor(np.zeros((2, 0)), requires_grad=True)
    assert x.sum().item() == 0 and np.isnan(x.mean().item()) and np.isnan(x.var().item())
    assert mt.grad(x.sum(), [x])[0].shape == (2, 0)
    assert np.isneginf(mt.logsumexp(mt.Tensor([-np.inf, -np.inf])).item())


def test_pinv_is_accurate_and_scale_free():
    rng = np.random.default_rng(0)
    E, scale = rng.normal(size=(50, 8)), 10.0 ** rng.integers(-8, 8, 8)
    P = mt.pinv(E * scale).data
    np.testing.assert_allclose((P * scale[:, None]) @ E, np.eye(8), atol=1e-12)
    small = rng.normal(size=(361, 128)).astype(np.float32) * np.float32(0.02)
    np.testing.assert_allclose(
        mt.pinv(small).data, np.linalg.pinv(small.astype(np.float64)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    "call, match",
    [
        (
            lambda: f32(1, 2) + f32(1, 2, 3),
            r"add: .*could not be broadcast.*got float32\[2\], float32",
        ),
        (lambda: f32(1, 2) @ f32(1, 2, 3), r"matmul: .*got float32\[2\], float32\[3\]"),
        (
            lambda: mt.Tensor(np.ones((2, 3, 4))) @ mt.Tensor(np.ones((3, 2))),
            "matmul: the inner lengths 4 and 3 differ",
        ),
        (lambda: f32(1) @ 2, "matmul: an operand has no axes"),
        (lambda: f32(1, 2).sum(axis=1), r"sum: axis 1 does not exist in 1 axes; got float32\[2\]"),
        (lambda: f32(1, 2).mean(axis=(0, -1)), r"mean: axis \(0, -1\) names one axis twice"),
        (lambda: f32(1, 2).reshape(3), r"reshape: cannot reshape"),
        (lambda: f32(1, 2).squeeze(0), r"squeeze: .*got float32\[2\]"),
        (
            lambda: mt.Tensor(np.zeros(0)).max(),
            r"amax: there is no extreme of nothing.*got float64\[0\]",
        ),
        (lambda: mt.chunk(f32(1, 2, 3), 2), "chunk: an axis of length 3 has no 2 equal parts"),
        (lambda: mt.tril(f32(1)), "tril: needs at least 2 axes"),
        (lambda: mt.outer(f32(1), mt.Tensor([[1.0]])), "outer: needs two vectors"),
        (lambda: mt.clip(f32(1)), "clip: give low, high or both"),
        (lambda: mt.mse_loss(f32(1, 2), mt.Tensor([[1.0], [2.0]])), "mse_loss: .*the same shape"),
        (
            lambda: mt.mse_loss(f32(1), f32(1), "max"),
            "mse_loss: reduction is 'max'; expected one of mean",
        ),
        (lambda: mt.einsum("ij,jk", f32(1)), "einsum: 'ij,jk' names 2 operands"),
        (lambda: mt.einsum("ij", f32(1)), "einsum: 'ij' does not fit an operand of 1 axes"),
        (lambda: mt.pinv(np.ones((2, 3))), "pinv: needs a matrix with at least as many rows"),
        (lambda: mt.pinv(np.ones((3, 2))), r"pinv: the 2 columns are not independent \(rank 1\)"),
        (lambda: mt.pinv(np.array([[np.nan]])), "pinv: the matrix holds a non-finite value"),
        (
            lambda: mt.concat([f32(1), mt.Tensor([[1.0]])]),
            r"concat: .*float32\[1\], float32\[1, 1\]",
        ),
        (lambda: mt.stack([]), "stack: need at least one array"),
    ],
)
def test_errors_name_the_op_and_what_came(call, match):
    with pytest.raises(ValueError, match=match) as error:
        call()
    assert "\n" not in str(error.value)


def test_index_and_type_errors():
    with pytest.raises(IndexError, match=r"getitem: index 5 is out of bounds.*got float32\[2\]"):
        f32(1, 2)[5]
    with pytest.raises(IndexError, match="embedding: ids run from 0 to 9"):
        mt.embedding(mt.Tensor(np.ones((3, 2))), [0, 9])
    with pytest.raises(TypeError, match="cannot make a tensor of"):
        f32(1) + "a"


def cases(rng):
    yield (rng.normal(size=2),), {}


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda: mt.op(lambda x: x), TypeError, r"op: write @op\(cases=...\)"),
        (lambda: mt.op(), TypeError, r"op: write @op\(cases=...\)"),
        (
            lambda: mt.op(cases=cases)(lambda x: (x, (lambda g: g,))),
            TypeError,
            r"op <lambda>: parameter 'x' has no annotation; write x: Array",
        ),
    ],
)
def test_an_op_that_would_lose_its_gradient_is_not_made(make, error, match):
    before = dict(mt.registry)
    with pytest.raises(error, match=match):
        make()
    assert mt.registry == before


def test_every_parameter_of_an_op_says_what_it_is():
    def half(x: mt.Array, y):
        return x * y, (lambda g: g * y,)

    def none(p: float):
        return np.full(2, p), None

    for fn, match in ((half, "half: parameter 'y'"), (none, "none: no input stands first")):
        with pytest.raises(TypeError, match=match):
            mt.op(cases=cases)(fn)
    assert not {"half", "none"} & set(mt.registry)


def test_inputs_by_name_may_leave_out_those_before():
    x, b = mt.Tensor(np.ones((2, 3))), mt.Tensor(np.arange(3.0), requires_grad=True)
    y = mt.layer_norm(x, bias=b)
    np.testing.assert_allclose(y.data, [[0, 1, 2]] * 2)
    np.testing.assert_array_equal(mt.grad(y.sum(), b)[0], [2, 2, 2])
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'weight'"):
        mt.linear(x, bias=b.detach())


def test_an_option_takes_no_gradient_in_silence():
    x = f32(1.0, 2.0)
    with pytest.raises(TypeError, match=r"dropout: an option is a tensor that requires a grad"):
        mt.dropout(x, x[0] * 0.1, 3)
    with mt.no_grad():
        mt.sum(x, axis=None)


def test_a_taken_name_is_not_replaced_by_chance():
    def exp(x: mt.Array):
        return -x, (lambda g: -g,)

    built_in = mt.registry["exp"]
    with pytest.raises(ValueError, match=r"op: there is one called 'exp'; .* replace=True"):
        mt.op(cases=cases)(exp)
    assert mt.registry["exp"] is built_in
    try:
        assert mt.op(cases=cases, replace=True)(exp) is mt.registry["exp"]
    finally:
        mt.registry["exp"] = built_in


def keyed():
    """Each op's registered cases that drop something, without the key."""
    for name, operation in sorted(mt.registry.items()):
        for inputs, options in operation.cases(np.random.default_rng(0)):
            p = options.get("p", options.get("dropout", 0))
            if p:
                yield name, inputs, {k: v for k, v in options.items() if k not in ("key", "keys")}


@pytest.mark.parametrize(("name", "inputs", "options"), list(keyed()), ids=lambda v: str(v)[:20])
def test_dropout_asks_for_a_key(name, inputs, options):
    with pytest.raises(ValueError, match=rf"^{name}: dropout of 0\.\d needs a key, .*fold"):
        mt.registry[name](*inputs, **options)


def test_no_dropout_needs_no_key():
    x = mt.Tensor(np.ones((1, 1, 2, 2)))
    for y in (mt.dropout(x, 0.0), mt.dropout_add(x, x, 0.0) - x, mt.attention(x, x, x)):
        np.testing.assert_array_equal(y.data, x.data)


def test_the_first_example_of_the_package():
    assert doctest.testmod(mt) == (0, 4)
