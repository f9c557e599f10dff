"""How to know that a gradient is right: finite differences, and a fault that they catch.

A derivative is a promise about small steps, so one can measure it: move an input a little, see how
far the result moves. You will see how small a step should be (not too small!), how
`minitensor.gradcheck` uses this to check a whole function, and what it says of a backward with a
term left out, the most common mistake there is.

Run it with `python examples/02_check_a_gradient.py`.

Exercises (solutions in tests/exercises/test_02.py):

1. Write softplus(x) = ln(1 + eˣ) as an op that does not overflow at x = 1000, and check it.
2. Measure a derivative with a complex step, Im f(x + ih) / h. Why can h be 1e-20 here?
3. An op returns |x| and claims the derivative 1. Which cases let `gradcheck` see it?
"""

import math

import numpy as np

import minitensor as mt


def cases(rng):
    """Inputs on which an op is checked: positive, so that no sum is near zero."""
    yield (rng.uniform(0.5, 1.5, (3, 4)),), {}


@mt.op(cases=cases)
def share(x: np.ndarray):
    """y = x / Σx along the last axis.

    dy = dx / s − x ds / s², with s = Σx and ds = Σdx. So <g, dy> = Σ (g − Σ g y) dx / s, and x gets
    (g − Σ g y) / s. The second term is there because every x is also in the sum.
    """
    s = x.sum(axis=-1, keepdims=True)
    y = x / s
    return y, (lambda g: (g - (g * y).sum(axis=-1, keepdims=True)) / s,)


@mt.op(cases=cases)
def share_with_a_fault(x: np.ndarray):
    """The same, as if the sum were a constant: the second term is forgotten."""
    s = x.sum(axis=-1, keepdims=True)
    return x / s, (lambda g: g / s,)


def main():
    # One derivative, measured with smaller and smaller steps. The error of a one-sided difference
    # shrinks with h, that of a central one with h²; below a point rounding, about 1e-16 / h, wins.
    true = math.cos(1.0)
    print("the derivative of sin at 1, measured: relative error")
    print(f"{'h':>8}{'one-sided':>14}{'central':>14}")
    errors = {}
    for h in (1e-1, 1e-2, 1e-3, 1e-5, 1e-8, 1e-12):
        one_sided = (math.sin(1 + h) - math.sin(1)) / h
        central = (math.sin(1 + h) - math.sin(1 - h)) / (2 * h)
        errors[h] = abs(central / true - 1)
        print(f"{h:8.0e}{abs(one_sided / true - 1):14.1e}{errors[h]:14.1e}")
    assert errors[1e-5] < errors[1e-2] and errors[1e-5] < errors[1e-12]
    print("so take float64, central differences, and a step that is neither large nor tiny\n")

    # The same for every element of every input. gradcheck uses four points, so that the error
    # shrinks with h⁴, and allows a relative error of 1e-6.
    x = np.random.default_rng(0).uniform(0.5, 1.5, (3, 4))
    assert mt.gradcheck(share, [x])
    print("share: the backward agrees with finite differences")
    assert mt.gradcheck(lambda a, b: mt.tanh(a @ b).sum(axis=0), [x, x.T.copy()])
    print("tanh(a @ b).sum(axis=0): any function of tensors can be checked, not only an op")

    # And a backward that is wrong. It gives numbers of the right shape and a plausible size; a
    # training with it may even go down. Only a check tells.
    try:
        mt.gradcheck(share_with_a_fault, [x])
    except mt.GradcheckError as error:
        print(f"share_with_a_fault: {error}")
    else:
        raise AssertionError("the fault went unnoticed")


if __name__ == "__main__":
    main()
