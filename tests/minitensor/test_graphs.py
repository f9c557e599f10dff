"""Drawn shapes, layouts, values and compositions, each against central differences in float64."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import minitensor as mt

DRAWN = settings(deadline=None, max_examples=40, derandomize=True)

axis_lengths = st.integers(0, 3)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def arrays(draw, shape=None, low=-2.0, high=2.0, layout=None):
    """A float64 array of up to three axes (0 and 1 among their lengths) in any memory layout."""
    if shape is None:
        shape = tuple(draw(st.lists(axis_lengths, max_size=3)))
    values = np.random.default_rng(draw(seeds)).uniform(low, high, shape)
    layout = layout or draw(st.sampled_from(["C", "Fortran", "reversed", "strided", "transposed"]))
    if layout == "Fortran":
        return np.asfortranarray(values)
    if layout == "reversed":
        return np.ascontiguousarray(values)[(..., *(slice(None, None, -1),) * values.ndim)]
    if layout == "strided":
        wide = np.zeros([2 * n for n in shape])
        inside = wide[(..., *(slice(None, None, 2),) * values.ndim)]
        inside[...] = values
        return inside
    return np.ascontiguousarray(values.T).T if layout == "transposed" else np.asarray(values)


@st.composite
def broadcasting_pairs(draw, low=-2.0, high=2.0):
    """Two arrays whose shapes fit each other by NumPy's rules."""
    full = draw(st.lists(axis_lengths, max_size=3))

    def one():
        shape = [draw(st.sampled_from([1, n])) for n in full[draw(st.integers(0, len(full))) :]]
        return draw(arrays(tuple(shape), low, high))

    return one(), one()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["exp", "sin", "cos", "tanh", "sigmoid", "silu", "softplus", "erf", "neg", "gelu"]
)
@DRAWN
@given(x=arrays())
def test_smooth_functions(name, x):
    mt.gradcheck(getattr(mt, name), [x])


@pytest.mark.mostly_slow
@pytest.mark.parametrize("name", ["log", "sqrt", "rsqrt", "abs", "relu"])
@DRAWN
@given(x=arrays(low=0.3, high=2.0))
def test_functions_of_positive_numbers(name, x):
    mt.gradcheck(getattr(mt, name), [x])


@pytest.mark.mostly_slow
@pytest.mark.parametrize("name", ["add", "sub", "mul"])
@DRAWN
@given(pair=broadcasting_pairs())
def test_broadcast_arithmetic(name, pair):
    mt.gradcheck(getattr(mt, name), pair)


@pytest.mark.mostly_slow
@pytest.mark.parametrize("name", ["div", "pow"])
@DRAWN
@given(pair=broadcasting_pairs(low=0.5))
def test_broadcast_division_and_power(name, pair):
    mt.gradcheck(getattr(mt, name), pair)


@DRAWN
@given(x=arrays(low=0.5), n=st.one_of(st.integers(-18, 18), st.sampled_from([0.5, -0.5, 1.5, 2.2])))
def test_powers_agree_with_numpy(x, n):
    np.testing.assert_allclose(mt.pow(x, n).data, np.power(x, float(n)), rtol=1e-13)
    mt.gradcheck(lambda t: t**n, [x])


@pytest.mark.slow
@DRAWN
@given(x=arrays(), data=st.data(), keepdims=st.booleans())
@pytest.mark.parametrize("name", ["sum", "mean", "var", "std", "logsumexp", "amax", "amin"])
def test_reductions_over_any_axes(name, x, data, keepdims):
    axes = data.draw(st.lists(st.integers(0, x.ndim - 1), unique=True)) if x.ndim else []
    axis = data.draw(st.sampled_from([None, tuple(axes), tuple(a - x.ndim for a in axes)]))
    over = [x.shape[a] for a in (range(x.ndim) if axis is None else axis)]
    assume(np.prod(over) > (0 if name != "std" else 1))
    if name in ("amax", "amin"):  # nowhere near a tie
        x = (np.random.default_rng(x.size).permutation(x.size) * 0.1).reshape(x.shape)
    options = {"correction": 0} if name in ("var", "std") else {}
    y = getattr(mt, name)(x, axis=axis, keepdims=keepdims, **options)
    if name != "logsumexp":
        want = getattr(np, name)(x, axis=axis, keepdims=keepdims)
        np.testing.assert_allclose(y.data, want, rtol=1e-12, atol=1e-14)
    mt.gradcheck(lambda t: getattr(mt, name)(t, axis=axis, keepdims=keepdims, **options), [x])


@pytest.mark.slow
@DRAWN
@given(data=st.data())
def test_matmul_follows_every_rule_of_numpy(data):
    n, k, m = (data.draw(axis_lengths) for _ in range(3))
    lead = data.draw(st.lists(st.integers(1, 2), max_size=2))
    first, second = (
        [data.draw(st.sampled_from([1, d])) for d in lead[data.draw(st.integers(0, len(lead))) :]]
        for _ in range(2)
    )
    a = data.draw(arrays((k,) if data.draw(st.booleans()) and not first else (*first, n, k)))
    b = data.draw(arrays((k,) if data.draw(st.booleans()) and not second else (*second, k, m)))
    np.testing.assert_allclose((mt.Tensor(a) @ b).data, a @ b, atol=1e-13)
    mt.gradcheck(mt.matmul, [a, b])


@DRAWN
@given(x=arrays(), data=st.data())
def test_basic_and_advanced_indexing(x, data):
    def one(n):
        kinds = [st.slices(n), st.just(slice(None))]
        if n:
            number = st.integers(-n, n - 1)
            kinds += [number, st.lists(number, min_size=3, max_size=3)]
        return data.draw(st.one_of(kinds))

    index = tuple(one(n) for n in x.shape[: data.draw(st.integers(0, x.ndim))])
    if data.draw(st.booleans()):
        index = (*index, *data.draw(st.sampled_from([(None,), (...,)])))
    plain = tuple(np.array(i) if isinstance(i, list) else i for i in index)
    np.testing.assert_array_equal(mt.Tensor(x)[index].data, x[plain])
    mt.gradcheck(lambda t: t[index], [x])


UNARY = {
    "tanh": mt.tanh,
    "sin": mt.sin,
    "sigmoid": mt.sigmoid,
    "softplus": mt.softplus,
    "gelu": mt.gelu,
    "exp∘tanh": lambda x: mt.exp(mt.tanh(x)),
    "x²": lambda x: x**2,
    "rsqrt": lambda x: mt.rsqrt(x * x + 1),
    "softmax": lambda x: mt.softmax(x, axis=0),
    "layer_norm": lambda x: mt.layer_norm(x, eps=0.1),
    "transpose": lambda x: x.T.reshape(2, 3),
    "gather": lambda x: x[[1, 0, 1]][:2],
    "slice": lambda x: mt.concat([x[:, 1:], x[:, :1]], 1),
    "reverse": lambda x: x[::-1, ::-1],
    "matrix": lambda x: x @ x.T @ x * 0.1,
    "centre": lambda x: x - x.mean(axis=0, keepdims=True),
    "stack": lambda x: mt.stack([x[0], x[1]]),
    "einsum": lambda x: mt.einsum("ij,kj,kl->il", x, x, x) * 0.1,
    "checkpoint": lambda x: mt.checkpoint(lambda t: mt.tanh(t) * t, x),
    "logsumexp": lambda x: x - mt.logsumexp(x, axis=1, keepdims=True),
    "split": lambda x: mt.concat(mt.chunk(x, 3, axis=1)[::-1], axis=1),
    "pad": lambda x: mt.pad(x, (1, 1, 1, 1))[1:3, :3] + mt.tril(x),
}
BINARY = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: 1 - a + b * 0.5,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / (b * b + 1),
    "row": lambda a, b: a * b[0],
    "column": lambda a, b: a + b[:, 1:2],
    "where": lambda a, b: mt.where(np.eye(2, 3) > 0, a, b),
    "swiglu": mt.swiglu,
    "linear": lambda a, b: mt.linear(a, b) @ b,
    "scalar": lambda a, b: a * b.sum() * 0.2,
}


@pytest.mark.slow
@settings(DRAWN, max_examples=150)
@given(data=st.data())
def test_random_graphs_with_reuse(data):
    """A stack of (2, 3) tensors; each step puts on a function of any of those before it."""
    leaves = [data.draw(arrays((2, 3))) for _ in range(data.draw(st.integers(1, 3)))]
    plan = []
    for step in range(data.draw(st.integers(1, 8))):
        number = st.integers(0, len(leaves) + step - 1)
        if data.draw(st.booleans()):
            plan.append((UNARY[data.draw(st.sampled_from(sorted(UNARY)))], [data.draw(number)]))
        else:
            plan.append(
                (
                    BINARY[data.draw(st.sampled_from(sorted(BINARY)))],
                    [data.draw(number), data.draw(number)],
                )
            )

    def graph(*xs):
        stack = list(xs)
        for f, operands in plan:
            stack.append(f(*(stack[i] for i in operands)))
        total = stack[-1] + 0.1 * sum(stack[:-1])
        assume(np.abs(total.data).max() < 1e3)
        return total

    mt.gradcheck(graph, leaves)
