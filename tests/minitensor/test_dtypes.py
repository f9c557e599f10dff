"""One rule of dtypes for all ops (see `tensor.Op`): every registered op with every dtype."""

import numpy as np
import pytest

import minitensor as mt
from minitensor.kernels import backend

NAMES = sorted(mt.registry)
INTEGERS = [np.dtype(d) for d in (bool, "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")]
WIDE = {"sum", "prod", "cumsum"}  # int64 from integers and booleans
REFUSED = {("sub", "b"), ("neg", "b"), ("pow", "b"), ("pow", "i"), ("pow", "u")}  # NumPy's errors


def is_float(x):
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def cases(name):
    return list(mt.registry[name].cases(np.random.default_rng(0)))


def whole(inputs, dtype):
    """The same inputs with small numbers from 1 in the place of floats."""
    rng = np.random.default_rng(1)
    return [rng.integers(1, 4, x.shape).astype(dtype) if is_float(x) else x for x in inputs]


def cast(inputs, changed, dtype):
    return [y.astype(dtype) if is_float(x) else y for x, y in zip(inputs, changed, strict=True)]


def outcome(name, inputs, options):
    try:
        with np.errstate(all="ignore"):
            return mt.registry[name](*inputs, **options).data
    except ValueError as error:
        return str(error).split("; got")[0]


@pytest.mark.slow
@pytest.mark.parametrize("which", ["numba", "numpy"])
@pytest.mark.parametrize("name", [n for n in NAMES if not mt.registry[n].integers])
def test_integers_are_float32_to_an_op_of_floats(name, which, monkeypatch):
    monkeypatch.setenv("MINITENSOR_KERNELS", which)
    assert backend() == which
    for inputs, options in cases(name):
        for dtype in INTEGERS:
            given = whole(inputs, dtype)
            want = outcome(name, cast(inputs, given, np.float32), options)
            got = outcome(name, given, options)
            if isinstance(want, np.ndarray):
                assert got.dtype == np.float32, dtype
            np.testing.assert_array_equal(got, want, err_msg=str(dtype))


@pytest.mark.parametrize("name", [n for n in NAMES if mt.registry[n].integers])
def test_integers_stay_integers_where_they_mean_something(name):
    for inputs, options in cases(name):
        number = any(type(v) is float for v in (*inputs, *options.values()) if name != "pad")
        for dtype in INTEGERS:
            given = whole(inputs, dtype)
            if (name, dtype.kind) in REFUSED:
                continue
            y = mt.registry[name](*given, **options)
            want = mt.registry[name](*cast(inputs, given, np.float64), **options).data
            if name == "astype":
                assert y.dtype == options["dtype"]
            elif number:
                assert y.dtype == np.float32, dtype
            elif name in WIDE:
                assert y.dtype == np.int64, dtype
            elif dtype.kind != "b" or y.dtype.kind != "i":  # True // True is a number in NumPy
                assert y.dtype == dtype
            least = 0 if dtype.kind == "u" else -128  # beyond them integers wrap around
            if dtype.kind != "b" and ((least <= want) & (want <= 127)).all():
                np.testing.assert_allclose(y.data, want, rtol=1e-6, err_msg=str(dtype))


@pytest.mark.parametrize("floating", [np.float32, np.float64])
@pytest.mark.parametrize("name", NAMES)
def test_integers_take_the_floating_dtype_beside_them(name, floating):
    for inputs, options in cases(name):
        places = [i for i, x in enumerate(inputs) if is_float(x)]
        if len(places) < 2:
            continue
        changed = whole(inputs, np.int32)
        for keep in places[:2]:
            given = list(changed)
            given[keep] = inputs[keep].astype(floating)
            want = outcome(name, cast(inputs, given, floating), options)
            got = outcome(name, given, options)
            assert type(got) is type(want)
            np.testing.assert_array_equal(got, want)
            if isinstance(got, np.ndarray) and name != "astype":
                assert got.dtype == floating


@pytest.mark.parametrize("name", NAMES)
def test_float32_beside_float64_is_float64(name):
    for inputs, options in cases(name):
        places = [i for i, x in enumerate(inputs) if is_float(x)]
        if len(places) < 2:
            continue
        rounded = [x.astype(np.float32) if is_float(x) else x for x in inputs]
        mixed = list(rounded)
        mixed[places[0]] = mixed[places[0]].astype(np.float64)
        got = mt.registry[name](*mixed, **options)
        assert got.dtype == np.float64
        want = mt.registry[name](*cast(inputs, rounded, np.float64), **options)
        np.testing.assert_array_equal(got.data, want.data)
        leaf = mt.Tensor(mixed[places[1]], requires_grad=True)
        mixed[places[1]] = leaf
        y = mt.registry[name](*mixed, **options)
        (g,) = mt.grad(y, [leaf], np.ones(y.shape))
        assert g.dtype == np.float32 and g.shape == leaf.shape


@pytest.mark.parametrize(
    "dtype", [np.float16, np.longdouble, np.complex64, np.complex128, object], ids=str
)
def test_what_no_tensor_holds_is_refused_with_a_sentence(dtype):
    if np.dtype(dtype) == np.float64:
        pytest.skip("long double is float64 here")
    for name in NAMES:
        inputs, options = cases(name)[0]
        places = [i for i, x in enumerate(inputs) if is_float(x)]
        given = list(inputs)
        given[places[-1]] = given[places[-1]].astype(dtype)
        with pytest.raises(TypeError, match=f"{name}: cannot hold .*float32") as error:
            mt.registry[name](*given, **options)
        assert "\n" not in str(error.value)
    with pytest.raises(TypeError, match=r"Tensor: cannot hold .*float32"):
        mt.Tensor(np.ones(2).astype(dtype))
    with pytest.raises(TypeError, match=r"astype: cannot hold .*float32"):
        mt.Tensor([1.0]).astype(dtype)


def test_a_number_with_a_point_makes_integers_float32():
    x = mt.Tensor([1, 2])
    for y in (x * 0.5, 0.5 + x, x**0.5, x / 2, x / x, x.mean(), x.exp(), x.clip(0.5), x % 0.5):
        assert y.dtype == np.float32
    assert (mt.Tensor([1.0]) * (x * 0.5)).dtype == np.float32
    for y in (x * 2, x**2, x // 2, x % 2, -x, x.sum(), x.amax(), x.clip(1), x @ x, x[0], x + True):
        assert y.dtype == np.int64
    assert (mt.Tensor([True]) + mt.Tensor([True])).dtype == bool
    assert (x > 1).mean().item() == 0.5


@pytest.mark.parametrize(
    "call, match",
    [
        (
            lambda i: mt.Tensor(i.astype("u8")) + mt.Tensor(i),
            "add: uint64 and int64 have no common",
        ),
        (lambda i: mt.Tensor(i.astype("i1")) + 300, "add: .*300 out of bounds for int8"),
        (lambda i: mt.Tensor(i) ** -1, "pow: Integers to negative integer powers"),
        (lambda i: mt.Tensor(i) // 0, "floor_divide: integers cannot be divided by 0"),
        (lambda i: mt.Tensor(i) % mt.Tensor([1, 0]), "remainder: integers cannot be divided by 0"),
        (lambda i: -mt.Tensor(i > 0), "neg: .*boolean"),
        (lambda i: mt.embedding(i, np.ones((2, 3))), "embedding: expected integers or booleans as"),
        (lambda i: mt.where(i * 1.0, i, i), "where: expected integers or booleans as condition"),
        (lambda i: mt.pad(mt.Tensor(i), (1, 1), 0.5), "pad: int64 has no value 0.5"),
        (lambda i: mt.Tensor(i * 0.5) & True, "&: expected booleans or integers, got float64"),
        (lambda i: ~mt.Tensor(i * 0.5), "~: expected booleans or integers"),
        (lambda i: mt.Tensor(i) > mt.Tensor([1, 2, 3]), ">: .*got int64.2., int64.3."),
        (lambda i: f"{mt.Tensor(i):.2f}", "expected a tensor of one element"),
        (lambda i: [0, 1][mt.Tensor([0.5])[0]], "index: expected an integer tensor"),
    ],
)
def test_what_cannot_be_is_said(call, match):
    with pytest.raises((TypeError, ValueError), match=match):
        call(np.array([1, 2]))


def test_truth_and_bits():
    a, b = mt.Tensor([True, True, False]), np.array([True, False, False])
    assert (a & b).tolist() == (b & a).tolist() == [True, False, False]
    assert (a | b).tolist() == (b | a).tolist() == [True, True, False]
    assert (a ^ b).tolist() == (b ^ a).tolist() == [False, True, False]
    assert (mt.Tensor([6, 5]) & 3).tolist() == [2, 1] and (1 | mt.Tensor([2])).tolist() == [3]
    assert a.any() and not a.all() and a.any(axis=0).dtype == bool
    assert mt.all([[1, 0], [2, 3]], axis=1).tolist() == [False, True]
    assert mt.any(np.zeros((2, 0)), axis=1).tolist() == [False, False]


def test_a_tensor_of_one_number_is_that_number():
    x = mt.Tensor([3.75])
    assert (float(x), int(x), f"{x:.1f}", f"{x[0]}") == (3.75, 3, "3.8", "3.75")
    assert f"{mt.Tensor([1, 2])}" == "Tensor([1, 2], int64)"
    letters = ["a", "b", "c"]
    scores = mt.Tensor([[0.0, 2.0, 1.0], [5.0, 0.0, 0.0]])
    assert [letters[i] for i in scores.argmax(1)] == ["b", "a"]
    assert scores[0, scores[0].argmax()].item() == 2
    assert scores[mt.arange(2), scores.argmax(1)].tolist() == [2, 5]
