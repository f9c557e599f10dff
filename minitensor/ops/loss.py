"""Losses. `reduction` is "mean" over all elements (or over the rows that count), "sum", or "none"
for one value per element (or row).

Prediction and target of the elementwise losses have one shape: ValueError otherwise, since a column
and a row would silently make a matrix. The classification losses take integer targets, one per row.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitensor import kernels
from minitensor.dtypes import IndexArray
from minitensor.op import op
from minitensor.ops.activation import sigmoid_array
from minitensor.ops.elementwise import Cases, Forward, Rng, drawn
from minitensor.tape import Array, recording


def _weight(reduction: str, n: int) -> float:
    """How much one element's loss counts in the reduced one."""
    _check_reduction(reduction, "mean", "sum", "none")
    return (1 / n if n else math.nan) if reduction == "mean" else 1.0


def _check_reduction(reduction: str, *known: str) -> None:
    if reduction not in known:
        raise ValueError(f"reduction is {reduction!r}; expected one of {', '.join(known)}")


def _same_shape(x: Array, target: Array) -> None:
    if np.shape(x) != np.shape(target):
        raise ValueError(
            "prediction and target must have the same shape, or a column and a row "
            "would silently make a matrix; reshape one of them"
        )


def _cases(rng: np.random.Generator) -> Cases:
    for reduction in ("mean", "sum", "none"):
        (x,) = drawn(rng, (3, 4))
        yield (x, rng.uniform(0, 1, (3, 4))), {"reduction": reduction}


@op(cases=_cases)
def mse_loss(x: Array, target: Array, reduction: str = "mean") -> Forward:
    """(x - t)², reduced. d = 2 (x - t)(dx - dt): x gets g w 2 (x - t), with w = 1/n for the mean;
    t gets the opposite."""
    _same_shape(x, target)
    w = _weight(reduction, np.size(x))
    d = x - target
    y = d * d if reduction == "none" else (d * d).sum() * w
    return y, (lambda g: g * (2 * w) * d, lambda g: g * (-2 * w) * d)


def _apart(rng: Rng) -> Cases:
    """Away from the kink at x = t."""
    for (x, _), options in _cases(rng):
        yield (x, x + rng.choice([-1.0, 1.0], x.shape) * rng.uniform(0.1, 1, x.shape)), options


@op(cases=_apart)
def l1_loss(x: Array, target: Array, reduction: str = "mean") -> Forward:
    """|x - t|, reduced: x gets g w sign(x - t), with w = 1/n for the mean; t gets the opposite."""
    _same_shape(x, target)
    w = _weight(reduction, np.size(x))
    d = x - target
    y = np.abs(d) if reduction == "none" else np.abs(d).sum() * w
    return y, (lambda g: g * w * np.sign(d), lambda g: g * -w * np.sign(d))


def _kl_cases(rng: Rng) -> Cases:
    for reduction in ("mean", "sum", "none", "batchmean"):
        (x,) = drawn(rng, (3, 4))
        yield (x, rng.uniform(0.1, 1, (3, 4))), {"reduction": reduction}
    yield drawn(rng, (2, 3), (2, 3)), {"log_target": True}


@op(cases=_kl_cases)
def kl_div(x: Array, target: Array, reduction: str = "mean", log_target: bool = False) -> Forward:
    """t (ln t - x), the pointwise divergence of probabilities t from those whose logarithms are x.

    "batchmean" divides the sum by the length of the first axis: the divergence of distributions
    along the other axes; "mean", by the number of elements, is PyTorch's default. With
    `log_target` the target is ln t. x gets -g w t; t gets g w (ln t - x + 1), and ln t that times
    t. Where t is 0 the value is 0.
    """
    _same_shape(x, target)
    _check_reduction(reduction, "mean", "sum", "none", "batchmean")
    batch = reduction == "batchmean"
    w = _weight("mean", len(x)) if batch else _weight(reduction, np.size(x))
    t = np.exp(target) if log_target else target
    with np.errstate(divide="ignore"):
        log = target if log_target else np.log(t)
    y = np.where(t > 0, t * (np.where(t > 0, log, 0) - x), 0)
    inner = t if log_target else 1
    return y if reduction == "none" else y.sum() * w, (
        lambda g: g * -w * t,
        lambda g: g * w * (log - x + 1) * inner,
    )


@op(cases=_cases)
def binary_cross_entropy_with_logits(x: Array, target: Array, reduction: str = "mean") -> Forward:
    """-t ln s(x) - (1 - t) ln(1 - s(x)) with s = sigmoid, reduced; targets t in [0, 1].

    Since ln s(x) = x + ln(1 - s(x)), it is softplus(x) - t x, computed as max(x, 0) + ln(1 +
    e^-|x|) - t x, which never overflows. Its derivative is s(x) - t for x, and -x for t.
    """
    _same_shape(x, target)
    w = _weight(reduction, np.size(x))
    y = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))) - target * x
    return y if reduction == "none" else y.sum() * w, (
        lambda g: g * w * (sigmoid_array(x) - target),
        lambda g: g * -w * x,
    )


# -------------------------------------------------------------------------- classification losses


def _classes_last(scores: Array, axis: int | None) -> Array:
    """The scores with their axis of classes moved to the end.

    With three or more axes PyTorch takes the second as the classes, while a language model has them
    last, so then the axis must be given.
    """
    if axis is None:
        if scores.ndim > 2:
            raise ValueError(
                f"{scores.ndim} axes: say which one is the classes, axis=1 as PyTorch takes it or "
                "axis=-1 for the last"
            )
        axis = -1
    if not -scores.ndim <= axis < scores.ndim:
        raise ValueError(f"axis {axis} does not exist in {scores.ndim} axes")
    return np.moveaxis(scores, axis, -1)


def _flat_targets(targets: Array, shape: tuple[int, ...]) -> Array:
    """Targets as a flat int64 array."""
    t = np.ascontiguousarray(targets).reshape(-1)
    if t.dtype.kind not in "iu" or np.shape(targets) != shape:
        raise ValueError(
            f"targets: expected integers of shape {shape}, one a row, got {t.dtype} of shape "
            f"{np.shape(targets)}"
        )
    return t.astype(np.int64, copy=False)


def _check_targets(targets: Array, shape: tuple[int, ...], classes: int, ignore: int) -> Array:
    """Targets as a flat int64 array, each a class or the one to ignore."""
    t = _flat_targets(targets, shape)
    bad = ((t < 0) | (t >= classes)) & (t != ignore)
    if bad.any():
        raise IndexError(
            f"target {t[bad][0]} at row {int(np.argmax(bad))} is not a class of 0..{classes - 1}"
        )
    return t


def _class_weights(weight: Any, classes: int, dtype: Any) -> Array:
    w = np.asarray(weight, dtype)
    if w.shape != (classes,) or not (w >= 0).all():
        raise ValueError(f"weight: expected {classes} numbers from 0, one a class, got {weight!r}")
    return w


def _cross_entropy_cases(rng: Rng) -> Cases:
    n = rng.standard_normal
    yield (n((3, 4)), np.array([0, 3, 1])), {}
    yield (n(4), np.array(2)), {}
    yield (n((2, 2, 4)), np.array([[0, 3], [-100, 1]])), {"reduction": "sum", "axis": -1}
    yield (n((3, 4)), np.array([0, 3, 1])), {"reduction": "none", "label_smoothing": 0.2}
    yield (n((3, 4)), np.array([0, 2, 1])), {"ignore_index": 2, "label_smoothing": 0.1}
    yield (n((2, 4, 2)), np.array([[0, 3], [1, -100]])), {"axis": 1, "weight": np.arange(1.0, 5)}
    yield (
        (n((3, 3)), np.array([0, 2, 1])),
        {"weight": [0.5, 2, 0], "label_smoothing": 0.3, "reduction": "none"},
    )


@op(cases=_cross_entropy_cases)
def cross_entropy(
    logits: Array,
    targets: IndexArray,
    *,
    weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    axis: int | None = None,
) -> Forward:
    """-Σ t log softmax(logits) with t = (1-s) onehot(target) + s/V; logits (N, V), targets (N,).

    With more axes `axis` says which of them is the V classes; the targets have the others. `weight`
    (V,) multiplies t class by class, and the mean then divides by the sum of the targets' weights.
    Rows whose target is `ignore_index` count for nothing; the mean of no row is NaN, as in PyTorch.
    Backward: d logits = g (softmax(logits) Σ t - t).
    Errors: ValueError for a shape or option that does not fit, IndexError for a target that is no
    class.
    """
    _check_reduction(reduction, "mean", "sum", "none")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; expected a number from 0 to 1")
    last = _classes_last(logits, axis)
    lead, V = last.shape[:-1], last.shape[-1]
    t = _check_targets(targets, lead, V, ignore_index)
    rows = np.array(last, order="C").reshape(len(t), V)  # a copy: it becomes the gradient
    used = t != ignore_index
    total = used.sum()  # what the mean divides by
    if weight is not None:
        w = _class_weights(weight, V, rows.dtype)
        total = np.where(used, w[np.where(used, t, 0)], 0).sum()
    scale = (1 / total if total else 0.0) if reduction == "mean" else 1.0
    if weight is None:
        losses = kernels.cross_entropy(
            rows, t, ignore_index, label_smoothing, rows.dtype.type(scale)
        )
    else:
        losses = _weighted(rows, t, used, w, label_smoothing, scale)

    def backward(g: Array) -> Array:
        return np.moveaxis((rows * g).reshape(last.shape), -1, -1 if axis is None else axis)

    if reduction == "none":
        return losses.reshape(lead), (lambda g: backward(g.reshape(-1, 1)), None)
    if reduction == "mean" and not total:
        scale = math.nan
    return np.asarray(losses.sum(dtype=np.float64) * scale, rows.dtype), (backward, None)


def _weighted(rows: Array, t: Array, used: Array, w: Array, s: float, scale: float) -> Array:
    """The losses of rows of logits with class weights; the rows become their gradient."""
    V = rows.shape[1]
    wanted = np.full_like(rows, s / V if V else 0)  # t of the docstring
    wanted[np.arange(len(t)), np.where(used, t, 0)] += 1 - s
    wanted *= w * used[:, None]
    z = rows - rows.max(axis=1, keepdims=True, initial=-math.inf)
    z -= np.log(np.exp(z).sum(axis=1, keepdims=True))
    rows[...] = (np.exp(z) * wanted.sum(axis=1, keepdims=True) - wanted) * scale
    return -np.where(wanted > 0, wanted * np.where(wanted > 0, z, 0), 0).sum(axis=1)


def _nll_cases(rng: Rng) -> Cases:
    (x,) = drawn(rng, (3, 4))
    yield (x, np.array([0, 3, 1])), {}
    yield (x[0], np.array(2)), {}
    yield (x, np.array([0, -100, 1])), {"weight": [1, 2, 3, 4], "reduction": "sum"}
    yield (*drawn(rng, (2, 3, 2)), np.array([[0, 2], [1, 1]])), {"axis": 1, "reduction": "none"}


@op(cases=_nll_cases)
def nll_loss(
    log_probs: Array,
    targets: IndexArray,
    *,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    axis: int | None = None,
) -> Forward:
    """-w log_probs[target] for every row: of `log_softmax`, it gives `cross_entropy`. Same options.

    Linear in log_probs: only the target's element gets a gradient, -g w.
    """
    _check_reduction(reduction, "mean", "sum", "none")
    last = _classes_last(log_probs, axis)
    lead, V = last.shape[:-1], last.shape[-1]
    t = _check_targets(targets, lead, V, ignore_index)
    used = t != ignore_index
    place = np.arange(len(t)), np.where(used, t, 0)
    w = np.ones(V, last.dtype) if weight is None else _class_weights(weight, V, last.dtype)
    each = np.where(used, w[place[1]], 0)
    if reduction == "mean":
        total = each.sum()
        scale, each = (1.0, each / total) if total else (math.nan, each * 0)
    else:
        scale = 1.0
    losses = -each * last.reshape(len(t), V)[place]

    def backward(g: Array) -> Array:
        rows = np.zeros((len(t), V), last.dtype)
        rows[place] = -each * np.reshape(g, (-1,) if reduction == "none" else ())
        return np.moveaxis(rows.reshape(last.shape), -1, -1 if axis is None else axis)

    if reduction == "none":
        return losses.reshape(lead), (backward, None)
    return np.asarray(losses.sum() * scale, last.dtype), (backward, None)


def _linear_cross_entropy_cases(rng: Rng) -> Cases:
    n = rng.standard_normal
    yield (n((2, 3, 4)), n((5, 4)), np.array([[0, 4, 1], [2, -100, 2]])), {}
    yield (n((3, 4)), n((5, 4)), np.array([0, 4, 1])), {"reduction": "sum"}


@op(cases=_linear_cross_entropy_cases)
def linear_cross_entropy(
    x: Array,
    weight: Array,
    targets: IndexArray,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Forward:
    """cross_entropy(x Wᵀ, targets), a block of rows at a time: the logits are never stored whole.

    x (..., D), weight (V, D), targets (...). With a vocabulary of thousands the logits are the
    largest array of a model, so each block is turned into its gradient p − t while it is in cache,
    and sent on at once: dx = (p − t) W and dW = (p − t)ᵀ x. The loss is a scalar, so its gradient g
    only scales both, later.
    """
    _check_reduction(reduction, "mean", "sum")
    if weight.ndim != 2 or x.shape[-1:] != weight.shape[1:]:
        raise ValueError(
            f"x ends in {x.shape[-1:]} features, and weight is {weight.shape}; expected (V, D)"
        )
    t = _flat_targets(targets, x.shape[:-1])  # whether each is a class, the kernel's door sees
    rows = np.ascontiguousarray(x).reshape(len(t), x.shape[-1])
    weight = np.ascontiguousarray(weight)
    count = int((t != ignore_index).sum()) if reduction == "mean" else 1
    scale = 1 / max(count, 1)
    factor = x.dtype.type(scale)
    loss, dx, dw = kernels.linear_cross_entropy(rows, weight, t, ignore_index, factor, recording())
    if not count:
        loss = math.nan  # as in cross_entropy
    return np.asarray(loss * scale, x.dtype), (
        lambda g: (dx * g).reshape(x.shape),
        lambda g: dw * g,
        None,
    )
