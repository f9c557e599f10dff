"""The check itself: it must find every planted fault, and say where."""

import subprocess
import sys

import numpy as np
import pytest

import minitensor as mt
from minitensor import gradcheck as check  # the function, as `mt.gradcheck`
from minitensor.gradcheck import check_op

RNG = np.random.default_rng


def faulty(forward, *vjps):
    """An op that is not registered, with a backward of choice."""
    names = ["a", "b"][: len(vjps)]
    namespace = {"np": np, "forward": forward, "vjps": vjps}
    exec(
        f"def fault({', '.join(f'{n}: np.ndarray' for n in names)}):\n"
        f"    return forward({', '.join(names)}), tuple(lambda g, f=f: f(g, {', '.join(names)})"
        f" for f in vjps)",
        namespace,
    )
    return mt.Op(namespace["fault"], lambda rng: [])


def draw(*shapes):
    rng = RNG(0)
    return [rng.uniform(0.5, 2, shape) for shape in shapes]


FAULTS = {  # family: an op with one fault in it, of the kinds that happen
    "elementwise, the sign": (faulty(np.cos, lambda g, a: g * np.sin(a)), draw((3, 2))),
    "elementwise, a factor": (faulty(np.square, lambda g, a: g * a), draw((3,))),
    "elementwise, the other operand": (
        faulty(np.multiply, lambda g, a, b: g * b, lambda g, a, b: g * b),
        draw((2, 3), (2, 3)),
    ),
    "broadcasting, one row for the sum": (
        faulty(np.add, lambda g, a, b: g, lambda g, a, b: g[0]),
        draw((2, 3), (3,)),
    ),
    "reduce, the mean without its n": (
        faulty(lambda a: a.mean(1), lambda g, a: np.repeat(g[:, None], 3, 1)),
        draw((2, 3)),
    ),
    "reduce, the variance of one too many": (
        faulty(np.var, lambda g, a: g * 2 * (a - a.mean()) / (a.size - 1)),
        draw((4,)),
    ),
    "shape, reshape for transpose": (
        faulty(np.transpose, lambda g, a: g.reshape(a.shape)),
        draw((2, 3)),
    ),
    "shape, a repeated index written once": (
        faulty(lambda a: a[[0, 0, 1]], lambda g, a: np.stack([g[1], g[2]])),
        draw((2, 3)),
    ),
    "linalg, a missing transpose": (
        faulty(np.matmul, lambda g, a, b: g @ b, lambda g, a, b: a.T @ g),
        draw((3, 3), (3, 3)),
    ),
    "linalg, a dropped term": (
        faulty(np.linalg.pinv, lambda g, a: -np.linalg.pinv(a).T @ g @ np.linalg.pinv(a).T),
        draw((4, 2)),
    ),
    "loss, no mean": (
        faulty(
            lambda a, b: np.square(a - b).mean(),
            lambda g, a, b: 2 * g * (a - b),
            lambda g, a, b: -2 * g * (a - b),
        ),
        draw((2, 2), (2, 2)),
    ),
    "transformer, softmax without its sum": (
        faulty(lambda a: np.exp(a) / np.exp(a).sum(), lambda g, a: g * np.exp(a) / np.exp(a).sum()),
        draw((4,)),
    ),
    "a gradient of nothing": (faulty(np.exp, lambda g, a: np.zeros_like(g)), draw((3,))),
    "a NaN": (faulty(np.exp, lambda g, a: g * np.nan), draw((3,))),
    "one element of many": (
        faulty(np.exp, lambda g, a: g * np.exp(a) * np.where(np.arange(50) == 37, 1.00001, 1)),
        draw((50,)),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault):
    operation, inputs = FAULTS[fault]
    assert not check(operation, inputs, raise_exception=False)
    with pytest.raises(mt.GradcheckError, match=r"the backward says .* differences say"):
        check(operation, inputs)


def test_the_worst_element_is_pointed_at():
    operation, inputs = FAULTS["one element of many"]
    with pytest.raises(mt.GradcheckError, match=r"input 0 at \[37\].*1 of 50 elements are off"):
        check(operation, inputs)
    operation, inputs = FAULTS["elementwise, the other operand"]
    with pytest.raises(mt.GradcheckError, match=r"input 1 at .*6 of 12 elements"):
        check(operation, inputs)


def test_it_takes_functions_of_tensors_arrays_and_closures():
    rng = RNG(1)
    layer = mt.nn.Linear(3, 2, rng=rng, dtype=np.float64)
    x = rng.normal(size=(4, 3))
    assert check(lambda *parameters: mt.tanh(layer(x)), layer.parameters())
    assert check(lambda a, ids: [a[ids], a.sum()], [x, np.array([0, 0, 2])])
    assert check(mt.mse_loss, [mt.Tensor(x, requires_grad=True), mt.Tensor(x * 2)])
    frozen = np.broadcast_to(x[:1], (4, 3))
    assert check(mt.exp, [frozen])


def test_inputs_are_put_back_even_after_an_error():
    x = RNG(0).normal(size=3)
    before = x.copy()
    calls = []

    def fails_later(t):
        calls.append(1)
        if len(calls) > 2:
            raise KeyError("planned")
        return t * 2

    with pytest.raises(KeyError):
        check(fails_later, [x])
    np.testing.assert_array_equal(x, before)


def test_wrong_calls_are_explained():
    with pytest.raises(TypeError, match="input 1 is float32; differences need float64"):
        check(mt.add, [np.ones(2), np.ones(2, np.float32)])
    with pytest.raises(ValueError, match="no input is a float64 array"):
        check(mt.exp, [np.array([1, 2])])
    with pytest.raises(ValueError, match="does not depend"):
        check(lambda x: mt.Tensor([1.0]), [np.ones(2)])


def test_the_registry_check_finds_a_fault_in_any_case():
    def forward(a: np.ndarray):
        return a * 2, (lambda g: g * (2 if g.size == 1 else 3),)

    broken = mt.Op(forward, lambda rng: [((rng.normal(size=n),), {}) for n in (1, 2)])
    count, worst = check_op(broken)
    assert count == 2 and worst.error > 0.1


def run(*args):
    return subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, encoding="utf-8", check=False
    )


@pytest.mark.slow
def test_the_table_and_its_exit_status():
    good = run("-m", "minitensor.gradcheck", "mul", "pinv")
    assert good.returncode == 0, good.stderr
    assert "mul" in good.stdout and "all 2 ops pass" in good.stdout and not good.stderr
    bad = run(
        "-c",
        "import sys, minitensor as mt\nfrom minitensor.gradcheck import main\n"
        "op = mt.registry['exp']; fn = op.fn\n"
        "op.fn = lambda x: (fn(x)[0], (lambda g: -fn(x)[1][0](g),))\n"
        "sys.exit(main(['exp', 'log']))",
    )
    assert bad.returncode == 1 and "FAIL" in bad.stdout and "1 of 2 ops failed" in bad.stdout
    unknown = run("-m", "minitensor.gradcheck", "expp")
    assert unknown.returncode == 2 and "no op is called 'expp'" in unknown.stderr
    misspelt = run("-m", "minitensor.gradcheck", "--verbos")
    assert misspelt.returncode == 2 and "unrecognized arguments: --verbos" in misspelt.stderr
    about = run("-m", "minitensor.gradcheck", "--help")
    assert about.returncode == 0 and "against finite differences" in about.stdout


@pytest.mark.slow
def test_importing_the_command_leaves_the_function():
    code = "import minitensor as mt, minitensor.gradcheck\nimport numpy as np\n"
    done = run("-c", code + "print(mt.gradcheck(mt.exp, [np.ones(2)]))")
    assert done.stdout == "True\n", done.stderr
