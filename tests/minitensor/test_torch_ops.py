"""Ops and optimisers against frozen results of PyTorch (made by tests/goldens/make_ops.py)."""

from pathlib import Path

import numpy as np
import pytest

import minitensor as mt

GOLDENS = Path(__file__).parents[1] / "goldens"
EXPRESSIONS = {  # what is not simply the op of that name on the inputs
    "clip": lambda x: x.clip(-1, 1),
    "max": lambda x: x.max(1),
    "min": lambda x: x.min((0, 1)),
    "pow_0": lambda x: x**0,
    "pow_2": lambda x: x**2,
    "pow_3": lambda x: x**3,
    "pow_half": lambda x: x**0.5,
    "pow_minus_2": lambda x: x**-2,
    "pow_tensor": mt.pow,
    "pow_of_number": lambda x: 2.0**x,
    "gelu_tanh": lambda x: mt.gelu(x, approximate="tanh"),
    "std": lambda x: x.std(1),
    "var": lambda x: x.var((0, 2), ddof=1),
    "logsumexp": lambda x: x.logsumexp(1),
    "where": lambda x, y: mt.where(x > 0, x, y),
    "gather": lambda x: x[[0, 2, 2, 0], :2],
    "mask": lambda x: x[x > 0] ** 2,
    "matmul_vector": mt.matmul,
    "einsum": lambda a, b: mt.einsum("bij,kj->ibk", a, b),
    "rope": lambda x: mt.rope(
        x, **dict(zip(("cos", "sin"), mt.rope_table(3, 4, dtype="f8"), strict=True))
    ),
    "self_attention": lambda x: mt.self_attention(
        x, 4, 2, rope=mt.rope_table(5, 2, dtype="f8"), window=3, scale=1.0
    ),
    "softmax": lambda x: x.softmax(0),
    "mse": mt.mse_loss,
    "bce": mt.binary_cross_entropy_with_logits,
    "cross_entropy": lambda x: mt.cross_entropy(x, np.array([1, -100, 0]), label_smoothing=0.1),
    "cross_entropy_none": lambda x: mt.cross_entropy(x, np.array([1, 2, 0]), reduction="none"),
    "cross_entropy_sum": lambda x: mt.cross_entropy(
        x, np.array([1, 2, 2]), reduction="sum", ignore_index=2, label_smoothing=0.3
    ),
}
OPS = dict(np.load(GOLDENS / "ops.npz"))
OPTIMISERS = dict(np.load(GOLDENS / "optimisers.npz"))
NAMES = sorted({key.split("/")[0] for key in OPS})


@pytest.mark.parametrize("name", NAMES)
def test_op_gives_what_pytorch_gives(name):
    inputs = [OPS[f"{name}/in{i}"] for i in range(4) if f"{name}/in{i}" in OPS]
    xs = [mt.Tensor(x, requires_grad=True) for x in inputs]
    y = (EXPRESSIONS.get(name) or getattr(mt, name))(*xs)
    np.testing.assert_allclose(y.data, OPS[f"{name}/value"], rtol=1e-11, atol=1e-300)
    weights = np.cos(np.arange(y.size)).reshape(y.shape) * np.isfinite(y.data)
    for i, g in enumerate(mt.grad(y, xs, weights)):
        np.testing.assert_allclose(g, OPS[f"{name}/grad{i}"], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    "name, make, options",
    [
        ("sgd", mt.optim.SGD, {"lr": 0.1}),
        ("sgd_momentum", mt.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
        ("sgd_nesterov", mt.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        ("adam", mt.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
        ("adamw", mt.optim.AdamW, {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1}),
        ("muon", mt.optim.Muon, {"lr": 0.01}),
        ("muon_plain", mt.optim.Muon, {"lr": 0.01, "nesterov": False, "weight_decay": 0.0}),
    ],
)
def test_optimiser_steps_as_pytorch_does(name, make, options):
    ps = [mt.nn.Parameter(OPTIMISERS[f"start{i}"]) for i in range(2)]
    optimiser = make([{"params": ps[:1]}, {"params": ps[1:], "lr": 0.02}], **options)
    for step, want in enumerate(OPTIMISERS[name]):
        for i, p in enumerate(ps):
            p.grad = OPTIMISERS[f"gradients{i}"][step]
        optimiser.step()
        got = np.concatenate([p.data.ravel() for p in ps])
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-13)
