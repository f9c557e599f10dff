"""Gradients against finite differences: of any function, and of every registered op.

A gradient g of f at x claims that f(x + h d) changes by h <g, d> for every direction d. Here the
outputs are weighted by random numbers and added up, so one backward gives the whole claim, and
each element of the inputs is moved in turn. The five-point difference
(f(x-2h) - 8 f(x-h) + 8 f(x+h) - f(x+2h)) / 12h errs by h⁴: with h = 1e-3, about 1e-12.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minitensor.gradients import grad
from minitensor.op import Op, registry
from minitensor.tape import Array, no_grad
from minitensor.tensor import Tensor

TOLERANCE = 1e-6


class GradcheckError(AssertionError):
    """A gradient is not what finite differences say."""


class Worst(NamedTuple):
    """The element whose gradient is furthest off, and by how much."""

    error: float  # |claimed - measured| / max(|claimed|, |measured|, a floor above rounding)
    input: int
    at: tuple[int, ...]
    claimed: float
    measured: float
    off: int  # elements beyond the tolerance
    size: int


def gradcheck(
    f: Callable[..., Any],
    inputs: Sequence[Any] | Tensor,
    *,
    eps: float = 1e-3,
    tolerance: float = TOLERANCE,
    raise_exception: bool = True,
) -> bool:
    """Whether the backward of ``f(*inputs)`` agrees with central differences.

    Floating arrays and tensors that require a gradient are moved (and put back), and must be
    float64; other inputs are passed on. `f` returns a tensor or several, and must be smooth within
    2 `eps` of the inputs. GradcheckError points at the worst element; with
    ``raise_exception=False`` the result is False instead.
    """
    worst = furthest(f, [inputs] if isinstance(inputs, Tensor) else inputs, eps, tolerance)
    if worst.error <= tolerance:
        return True
    if raise_exception:
        raise GradcheckError(
            f"gradcheck: input {worst.input} at {list(worst.at)}: the backward says "
            f"{worst.claimed:.9g}, differences say {worst.measured:.9g} (relative error "
            f"{worst.error:.1e}, at most {tolerance:.0e} allowed); {worst.off} of {worst.size} "
            "elements are off"
        )
    return False


def furthest(
    f: Callable[..., Any], inputs: Sequence[Any], eps: float = 1e-3, tolerance: float = TOLERANCE
) -> Worst:
    """The element of the inputs whose gradient is furthest from the differences."""
    leaves = [_leaf(i, x) for i, x in enumerate(inputs)]
    moved = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.requires_grad]
    if not moved:
        raise ValueError("gradcheck: no input is a float64 array or requires a gradient")
    outputs = f(*leaves)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    rng = np.random.default_rng(0)
    weights = [rng.uniform(0.5, 1.5, y.shape) * rng.choice([-1, 1], y.shape) for y in outputs]
    tracked = [(y, w) for y, w in zip(outputs, weights, strict=True) if y.requires_grad]
    if not tracked:
        raise ValueError(
            "gradcheck: the result does not depend on an input that requires a gradient"
        )
    claims = grad(
        [y for y, _ in tracked],
        [leaves[i] for i in moved],
        [w for _, w in tracked],
        materialize_grads=True,
    )

    def value() -> float:
        with no_grad():
            ys = f(*leaves)
        ys = [ys] if isinstance(ys, Tensor) else ys
        return float(sum((y._array * w).sum() for y, w in zip(ys, weights, strict=True)))

    noise = 1e-6 * (1 + sum(np.abs(y._array * w).sum() for y, w in tracked))
    worst, off, size = Worst(0.0, moved[0], (), 0.0, 0.0, 0, 0), 0, 0
    for i, claimed in zip(moved, claims, strict=True):
        measured = _differences(value, leaves[i]._array, eps)
        if not measured.size:
            continue
        floor = max(float(np.abs(measured).max()) / 1000, noise)
        scale = np.maximum(np.maximum(np.abs(claimed), np.abs(measured)), floor)
        errors = np.abs(claimed - measured) / scale
        errors = np.where(np.isnan(errors), np.inf, errors)
        off, size = off + int((errors > tolerance).sum()), size + errors.size
        at = np.unravel_index(int(errors.argmax()), errors.shape)
        if errors[at] >= worst.error:
            worst = Worst(
                float(errors[at]),
                i,
                tuple(map(int, at)),
                float(claimed[at]),
                float(measured[at]),
                0,
                0,
            )
    return worst._replace(off=off, size=size)


def _leaf(i: int, x: Any) -> Any:
    """An input as a leaf that can be moved: itself if it is one (a function may also reach it
    otherwise), or one that shares its memory, so that strides stay what they are."""
    array = x._array if isinstance(x, Tensor) else x
    learned = x.requires_grad if isinstance(x, Tensor) else True
    if not (isinstance(array, np.ndarray) and array.dtype.kind == "f" and learned):
        return x
    if array.dtype != np.float64:
        raise TypeError(f"gradcheck: input {i} is {array.dtype}; differences need float64")
    if not array.flags.writeable:
        array = array.copy()
    elif isinstance(x, Tensor) and x.is_leaf:
        return x
    return Tensor._wrap(array).requires_grad_()


def _differences(value: Callable[[], float], x: Array, eps: float) -> Array:
    """The derivative of `value()` for each element of `x`, which it reads."""
    out = np.empty(x.shape)
    for at in np.ndindex(x.shape):
        before, total = x[at], 0.0
        try:
            for steps, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
                x[at] = before + steps * eps
                total += weight * value()
        finally:
            x[at] = before
        out[at] = total / (12 * eps)
    return out


def check_op(operation: Op) -> tuple[int, Worst]:
    """Check an op on its registered cases: their number, and the worst of all."""
    cases = list(operation.cases(np.random.default_rng(0)))
    found = [
        furthest(lambda *xs, o=options: operation(*xs, **o), inputs) for inputs, options in cases
    ]
    return len(cases), max(found, key=lambda worst: worst.error)


def main(arguments: Sequence[str]) -> int:
    """The command: a table of the named ops, or of all. 0 if every gradient is right, 1 if not, 2
    for an unknown name."""
    parser = argparse.ArgumentParser(
        prog="python -m minitensor.gradcheck",
        description="Check the gradient of every registered op against finite differences, on the "
        "cases it was registered with. Status 1 if one is wrong.",
    )
    parser.add_argument("ops", nargs="*", metavar="OP", help="only these; all if none is named")
    names = parser.parse_args(arguments).ops
    unknown = [name for name in names if name not in registry]
    if unknown:
        print(
            f"gradcheck: no op is called {unknown[0]!r}; there are {', '.join(sorted(registry))}",
            file=sys.stderr,
        )
        return 2
    failed = 0
    print(f"{'op':<34}{'cases':>6}{'worst relative error':>24}  result")
    for name in names or sorted(registry):
        cases, worst = check_op(registry[name])
        passed = worst.error <= TOLERANCE
        failed += not passed
        print(f"{name:<34}{cases:>6}{worst.error:>24.1e}  {'pass' if passed else 'FAIL'}")
        if not passed:
            print(
                f"    input {worst.input} at {list(worst.at)}: the backward says "
                f"{worst.claimed:.9g}, differences say {worst.measured:.9g}"
            )
    print(
        f"{failed} of {len(names or registry)} ops failed"
        if failed
        else f"all {len(names or registry)} ops pass at {TOLERANCE:.0e}"
    )
    return 1 if failed else 0
