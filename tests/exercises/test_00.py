"""Solutions to the exercises of examples/00_scalar_tape.py."""

import math

import pytest


def test_1_exp_and_division(example):
    class Value(example.Value):
        def exp(self):
            y = math.exp(self.number)
            return Value(y, [(self, y)])  # its own derivative

        def __truediv__(self, other):  # d(a/b) = da / b − a db / b²
            a, b = self.number, other.number
            return Value(a / b, [(self, 1 / b), (other, -a / b**2)])

    def function(numbers, values=None):
        a, b = values or map(Value, numbers)
        return a.exp() / b

    for numbers in ([0.5, 2.0], [-1.0, 0.3], [2.0, -4.0]):
        values = [Value(x) for x in numbers]
        function(numbers, values).backward()
        for n, value in enumerate(values):
            measured = example.difference(lambda xs: function(xs).number, numbers, n)
            assert value.grad == pytest.approx(measured, rel=1e-7)


def walk_without_sorting(value, share=1.0):
    """Every path from the result brings its share by itself; returns the steps that it took."""
    value.grad += share
    return 1 + sum(walk_without_sorting(parent, share * d) for parent, d in value.parents)


def test_2_walking_without_sorting(example):
    a, b = (example.Value(x) for x in (2.0, 3.0))
    walk_without_sorting(a * b + a)
    assert (a.grad, b.grad) == (4.0, 2.0)

    x = leaf = example.Value(1.0)
    for _ in range(15):
        x = x + x
    # Each doubling doubles the paths below it: 1 + 2 + 4 + … + 2¹⁵ steps, for 16 values. With
    # thirty doublings it would be two thousand million.
    assert walk_without_sorting(x) == 2**16 - 1
    assert leaf.grad == 2**15


def backward_without_recursion(result):
    """`Value.backward` with a stack of its own: a value is met twice, before and after the values
    that it was made of."""
    order, seen, stack = [], set(), [(result, False)]
    while stack:
        value, done = stack.pop()
        if done:
            order.append(value)
        elif value not in seen:
            seen.add(value)
            stack.append((value, True))
            stack.extend((parent, False) for parent, _ in value.parents)
    result.grad = 1.0
    for value in reversed(order):
        for parent, derivative in value.parents:
            parent.grad += value.grad * derivative


@pytest.mark.slow
def test_3_a_chain_deeper_than_the_stack(example):
    numbers = [0.5, -1.5, 1.0]
    mine, theirs = ([example.Value(x) for x in numbers] for _ in range(2))
    backward_without_recursion(example.expression(*mine))
    example.expression(*theirs).backward()
    assert [v.grad for v in mine] == [v.grad for v in theirs]

    x = leaf = example.Value(1.0)
    for _ in range(100_000):
        x = x + leaf
    backward_without_recursion(x)
    assert leaf.grad == 100_001
