"""Backpropagation from nothing: a tape for single numbers in some forty lines, and a fit with it.

Every library of this kind, `minitensor` too, is the class below with arrays in place of numbers. A
`Value` remembers which values it was made of, and the derivative for each. `backward` walks from
the result to the inputs and applies the chain rule at every step. You will see it agree with finite
differences, and a network of 13 numbers learn a curve. Nothing but Python is used.

Run it with `python examples/00_scalar_tape.py`.

Exercises (solutions in tests/exercises/test_00.py):

1. Add `exp` and division, and check them against finite differences at a few points.
2. Walk without sorting: from the result, give each parent its share at once and go on from there.
   It is still right, but how many steps does it take for x = x + x, thirty times over?
3. Make `backward` work for a chain of 100,000 additions, which is deeper than Python's stack.
"""

import math
import random


class Value:
    """A number, and what it was made of."""

    def __init__(self, number, parents=()):
        self.number = number
        self.parents = parents  # pairs: a value, and the derivative of this one for it
        self.grad = 0.0  # the derivative of the result for this one

    def __add__(self, other):
        return Value(self.number + other.number, [(self, 1.0), (other, 1.0)])

    def __sub__(self, other):
        return Value(self.number - other.number, [(self, 1.0), (other, -1.0)])

    def __mul__(self, other):
        return Value(self.number * other.number, [(self, other.number), (other, self.number)])

    def tanh(self):
        t = math.tanh(self.number)
        return Value(t, [(self, 1 - t * t)])

    def backward(self):
        """Add the derivative of this value to `grad` of every value that it was made of."""
        order, seen = [], set()

        def visit(value):  # puts a value behind all that it was made of
            if value not in seen:
                seen.add(value)
                for parent, _ in value.parents:
                    visit(parent)
                order.append(value)

        visit(self)
        self.grad = 1.0
        # From the result back: when a value's turn comes, everything that was made of it has had
        # its own, so its gradient is complete and can be passed on.
        for value in reversed(order):
            for parent, derivative in value.parents:
                parent.grad += value.grad * derivative


def difference(function, numbers, n, step=1e-6):
    """The derivative of a function of numbers for the n-th of them, measured."""
    above, below = list(numbers), list(numbers)
    above[n] += step
    below[n] -= step
    return (function(above) - function(below)) / (2 * step)


def expression(a, b, c):
    """Something with a value used twice and a value used three times."""
    d = a * b + c
    return d * d - (d * a).tanh()


def check():
    """The walk against finite differences."""
    numbers = [0.5, -1.5, 1.0]
    values = [Value(x) for x in numbers]
    result = expression(*values)
    result.backward()
    print(f"f({', '.join(map(str, numbers))}) = {result.number:.6f}")
    for n, (name, value) in enumerate(zip("abc", values, strict=True)):
        measured = difference(lambda xs: expression(*map(Value, xs)).number, numbers, n)
        print(f"df/d{name}: backward() {value.grad:9.6f}, measured {measured:9.6f}")
        assert abs(value.grad - measured) < 1e-8


def predict(x, weights):
    """A hidden layer of four tanh units: out + Σ v tanh(w x + b)."""
    y = weights[0]
    for w, b, v in zip(weights[1::3], weights[2::3], weights[3::3], strict=True):
        y = y + v * (w * x + b).tanh()
    return y


def fit(points, steps=1000, rate=0.2):
    """Gradient descent on the mean square error; returns the weights and the loss of each step."""
    draw = random.Random(0)
    weights = [Value(draw.uniform(-1, 1)) for _ in range(13)]
    losses = []
    for _ in range(steps):
        loss = Value(0.0)
        for x, y in points:
            error = predict(Value(x), weights) - Value(y)
            loss = loss + error * error * Value(1 / len(points))
        for weight in weights:
            weight.grad = 0.0  # backward() adds to it
        loss.backward()
        for weight in weights:
            weight.number -= rate * weight.grad
        losses.append(loss.number)
    return weights, losses


def main():
    check()
    points = [(x / 10, math.sin(x / 5)) for x in range(-15, 16, 2)]  # sin 2x, from -1.5 to 1.5
    weights, losses = fit(points)
    print(f"\nfitting sin 2x: loss {losses[0]:.4f} at first, {losses[-1]:.4f} at the end")
    for x in (-1.0, 0.2, 0.8):
        y = predict(Value(x), weights).number
        print(f"at {x:4}: predicted {y:6.3f}, true {math.sin(2 * x):6.3f}")
    assert losses[-1] < 0.02 * losses[0]


if __name__ == "__main__":
    main()
