"""Solutions to the exercises of examples/01_scalar_graph_by_hand.py."""

import math

import minitensor as mt


def test_1_three_derivatives_on_paper(example):
    a, b, c = (example.scalar(x) for x in (2.0, 3.0, 1.0))
    (a * b / (b + c)).backward()
    # With s = b + c = 4, by the rule for quotients:
    assert a.grad == 3 / 4  # b / s
    assert b.grad == 2 * 1 / 4**2  # (a s − a b) / s² = a c / s²
    assert c.grad == -2 * 3 / 4**2  # −a b / s²


def test_2_newtons_method():
    x = mt.Tensor(1.0, requires_grad=True, dtype="float64")
    for _ in range(6):  # the number of right digits doubles at each step
        f = x * x - 2
        f.backward()
        x = mt.Tensor(x.data - f.data / x.grad, requires_grad=True)
    assert abs(x.item() - math.sqrt(2)) < 1e-15


def test_3_gradients_add_up(example):
    x = example.scalar(5.0)
    (x * x).backward()
    assert x.grad == 10
    (x * 3).backward()
    assert x.grad == 10 + 3
    # The gradient of a sum of losses is the sum of their gradients: the two can be computed one
    # after the other, and the graph of each freed in between.
    y = example.scalar(5.0)
    (y * y + y * 3).backward()
    assert y.grad == x.grad
