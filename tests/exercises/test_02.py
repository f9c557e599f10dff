"""Solutions to the exercises of examples/02_check_a_gradient.py."""

import cmath
import math

import numpy as np
import pytest

import minitensor as mt


def test_1_softplus():
    def cases(rng):
        yield (rng.normal(0, 3, (3, 4)),), {}

    @mt.op(cases=cases, name="softplus_of_the_exercise")
    def softplus(x: np.ndarray):
        """y = ln(1 + eˣ) = max(x, 0) + ln(1 + e^−|x|), whose exponent is never above 0.

        dy = eˣ / (1 + eˣ) dx = σ(x) dx, and σ(x) = (1 + tanh(x / 2)) / 2 does not overflow either.
        """
        y = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
        return y, (lambda g: g * (1 + np.tanh(x / 2)) / 2,)

    for inputs, _ in softplus.cases(np.random.default_rng(0)):
        assert mt.gradcheck(softplus, inputs)
    x = mt.Tensor([-1000.0, 0.0, 1000.0], requires_grad=True, dtype="float64")
    y = softplus(x)
    y.sum().backward()
    assert y.data == pytest.approx([0, math.log(2), 1000])
    assert x.grad == pytest.approx([0, 0.5, 1])


def test_2_a_complex_step():
    # f(x + ih) = f(x) + ih f'(x) − h² f''(x) / 2 − …: the derivative stands alone in the imaginary
    # part. Nothing is subtracted, so nothing cancels, however small h is.
    h = 1e-20
    for f, df in ((cmath.sin, math.cos), (cmath.exp, math.exp)):
        assert f(1 + 1j * h).imag / h == pytest.approx(df(1.0), rel=1e-15)


def test_3_a_fault_that_some_cases_miss():
    def cases(rng):
        yield (rng.uniform(0.5, 1.5, (3, 4)),), {}

    @mt.op(cases=cases, name="half_right")
    def half_right(x: np.ndarray):
        return np.abs(x), (lambda g: g,)

    rng = np.random.default_rng(0)
    assert mt.gradcheck(half_right, [rng.uniform(0.5, 1.5, (3, 4))])  # positive: all is well
    with pytest.raises(mt.GradcheckError):  # cases need both signs
        mt.gradcheck(half_right, [rng.uniform(-1.5, -0.5, (3, 4))])
