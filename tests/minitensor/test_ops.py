"""Every registered op: its gradient, its dtypes, its treatment of strides; and that none is left
out."""

import inspect

import numpy as np
import pytest

import minitensor as mt
from minitensor.gradcheck import TOLERANCE, check_op

NAMES = sorted(mt.registry)
NOT_OPS = {  # public, but no op of their own: what they are made of, or why there is no gradient
    "einsum": "einsum",
    "attention": "attention",
    "gather": "gather",
    "split": "getitem",
    "chunk": "getitem",
    "flatten": "reshape",
    "max": "amax",
    "min": "amin",
    "masked_fill": "where",
    "argmax": None,
    "argmin": None,
    "any": None,
    "all": None,
    **dict.fromkeys(mt.ops.create.__all__),
    "rope_table": None,
}


def cases(name):
    return list(mt.registry[name].cases(np.random.default_rng(0)))


def is_float(x):
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


@pytest.mark.parametrize("name", NAMES)
def test_gradient_agrees_with_differences(name):
    count, worst = check_op(mt.registry[name])
    assert count >= 1
    assert worst.size > 0, "no case has an element to differentiate"
    assert worst.error <= TOLERANCE, worst


def test_everything_public_is_registered_or_explained():
    for name in mt.ops.__all__:
        thing = getattr(mt, name)
        assert thing is getattr(mt.ops, name)
        if isinstance(thing, mt.Op):
            assert mt.registry[thing.name] is thing
        else:
            made_of = NOT_OPS[name]
            assert made_of is None or made_of in mt.registry
    assert set(NAMES) <= set(mt.ops.__all__), "a registered op is not exported"


def test_every_method_of_a_tensor_ends_in_registered_ops():
    seen = set()
    x = mt.Tensor(np.full((2, 2), 0.5), requires_grad=True)
    arguments = {
        "reshape": (4,),
        "transpose": (1, 0),
        "permute": (1, 0),
        "view": (-1,),
        "flatten": (),
        "repeat": (2, 1),
        "flip": (0,),
        "gather": (1, [[0], [1]]),
        "masked_fill": ([True, False], 0.0),
        "cumsum": (0,),
        "split": (1,),
        "chunk": (2,),
        "expand": (3, 2, 2),
        "swapaxes": (0, 1),
        "squeeze": (),
        "unsqueeze": (0,),
        "astype": (np.float32,),
        "clip": (0, 1),
        "__pow__": (2,),
        "__rpow__": (2,),
        "__mod__": (0.3,),
        "__rmod__": (0.3,),
        "__floordiv__": (0.3,),
        "__rfloordiv__": (0.3,),
        "__getitem__": (0,),
    }
    nullary = {
        "T",
        "exp",
        "log",
        "log1p",
        "expm1",
        "prod",
        "amax",
        "amin",
        "tril",
        "triu",
        "clone",
        "sqrt",
        "rsqrt",
        "sin",
        "cos",
        "tanh",
        "sigmoid",
        "relu",
        "abs",
        "sum",
        "mean",
        "max",
        "min",
        "logsumexp",
        "var",
        "std",
        "softmax",
        "log_softmax",
        "__neg__",
        "__abs__",
    }
    binary = {f"__{r}{o}__" for o in ["add", "sub", "mul", "truediv", "matmul"] for r in ("", "r")}
    for name in sorted(nullary | binary | set(arguments)):
        value = getattr(x, name)
        args = arguments.get(name, (x.detach(),) if name in binary else ())
        y = value(*args) if callable(value) else value
        y = y[0] if isinstance(y, list) else y
        assert y.requires_grad, name
        seen.add(y._node.op)
    assert seen <= set(NAMES)
    other = {
        "item",
        "tolist",
        "numpy",
        "backward",
        "retain_grad",
        "register_hook",
        "detach",
        "copy_",
        "requires_grad_",
        "argmax",
        "argmin",
        "any",
        "all",
        "T",
    }
    public = {n for n, v in vars(mt.Tensor).items() if inspect.isfunction(v) and n[0] != "_"}
    assert public <= nullary | set(arguments) | other


@pytest.mark.parametrize("name", NAMES)
def test_docstring_and_cases(name):
    operation = mt.registry[name]
    assert operation.__doc__ and len(operation.__doc__) > 30
    assert len(cases(name)) >= 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_promoted(name, dtype):
    """A dtype in is that dtype out, in values and in gradients, before the walk could cast them."""
    for inputs, options in cases(name):
        if name == "astype":
            options = {"dtype": dtype}
        xs = [mt.Tensor(x, requires_grad=True, dtype=dtype) if is_float(x) else x for x in inputs]
        y = mt.registry[name](*xs, **options)
        assert y.dtype == dtype
        backward = y._node.backward
        g = np.ones(y.shape, dtype)
        sent = (
            [
                vjp(g)
                for vjp, p in zip(backward, y._node.parents, strict=False)
                if vjp is not None and p is not None
            ]
            if isinstance(backward, tuple)
            else backward(g)
        )
        for part in sent if isinstance(sent, (tuple, list)) else [sent]:
            if part is not None:
                assert (part.grad if isinstance(part, mt.Part) else np.asarray(part)).dtype == dtype


def layouts(x):
    """The same values, differently laid out in memory."""
    yield np.asfortranarray(x)
    padded = np.full([2 * n for n in x.shape], np.nan)
    every_second = padded[(..., *(slice(None, None, 2) for _ in x.shape))]
    every_second[...] = x
    yield every_second
    backwards = tuple(slice(None, None, -1) for _ in x.shape)
    yield np.ascontiguousarray(x[backwards])[(..., *backwards)]


@pytest.mark.parametrize("name", NAMES)
def test_memory_layout_changes_nothing(name):
    for inputs, options in cases(name):
        want_y, want = run(name, inputs, options)
        for kind in range(3):
            moved = [list(layouts(x))[kind] if is_float(x) else x for x in inputs]
            y, grads = run(name, moved, options)
            np.testing.assert_allclose(y, want_y, rtol=1e-12, atol=1e-14)
            for a, b in zip(grads, want, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def run(name, inputs, options):
    """Value and gradients of an op, on arrays exactly as they lie in memory."""
    xs = [mt.Tensor._wrap(x).requires_grad_() if is_float(x) else x for x in inputs]
    y = mt.registry[name](*xs, **options)
    leaves = [x for x in xs if isinstance(x, mt.Tensor)]
    weights = np.cos(np.arange(y.size)).reshape(y.shape)
    return y.data, mt.grad(y, leaves, weights)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_and_gradient_are_left_as_they_were(name):
    for inputs, options in cases(name):
        before = [np.copy(x) for x in inputs if is_float(x)]
        xs = [mt.Tensor._wrap(x).requires_grad_() if is_float(x) else x for x in inputs]
        y = mt.registry[name](*xs, **options)
        value, g = np.copy(y.data), np.ones(y.shape)
        mt.grad(y, [x for x in xs if isinstance(x, mt.Tensor)], g)
        for x, old in zip([x for x in inputs if is_float(x)], before, strict=True):
            np.testing.assert_array_equal(x, old)
        np.testing.assert_array_equal(y.data, value)
        np.testing.assert_array_equal(g, 1)


def test_small_powers_are_products(monkeypatch):
    monkeypatch.setattr(np, "power", None)
    for dtype in (np.float32, np.float64):
        x = mt.Tensor(np.array([1.0, 4.0]), requires_grad=True, dtype=dtype)
        for n in (0, 1, 2, 3, 4, 7, 16, 0.5, -0.5, 1.5, -1, -2, 2.0, np.float32(3), np.int64(2)):
            y = x**n
            (g,) = mt.grad(y.sum(), [x])
            assert y.dtype == g.dtype == dtype
            assert y.data[1] == pytest.approx(4.0**n) and g[1] == pytest.approx(n * 4.0 ** (n - 1))


def test_cutting_into_n_parts_costs_n_parts_in_the_backward():
    sent = []
    x = mt.Tensor(np.ones((60, 7)), requires_grad=True)
    with mt.observe(
        lambda op, phase, seconds, arrays, g: (
            sent.append(sum(a.size for a in arrays))
            if (op, phase) == ("getitem", "backward")
            else None
        )
    ):
        loss = sum((row * i).sum() for i, row in enumerate(x))
        loss = loss + sum((part * part).sum() for part in mt.chunk(x, 12))
        loss.backward()
    assert sum(sent) == 2 * x.size
    np.testing.assert_array_equal(x.grad, np.arange(60)[:, None] + 2 * np.ones((60, 7)))
