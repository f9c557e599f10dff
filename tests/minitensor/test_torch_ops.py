"""Ops and optimisers against frozen results of PyTorch (made by tests/goldens/make_ops.py)."""

from pathlib import Path

import numpy as np
import pytest

import minitensor as mt

GOLDENS = Path(__file__).parents[1] / "goldens"
EXPRESSIONS = {  # what is not simply the op of that name on the inputs
    "clip": lambda x: x.clip(-1, 1),
    "max": lambda x: x.amax(1),
    "min": lambda x: x.amin((0, 1)),
    "pow_0": lambda x: x**0,
    "pow_2": lambda x: x**2,
    "pow_3": lambda x: x**3,
    "pow_half": lambda x: x**0.5,
    "pow_minus_2": lambda x: x**-2,
    "pow_tensor": mt.pow,
    "pow_of_number": lambda x: 2.0**x,
    "gelu_tanh": lambda x: mt.gelu(x, approximate="tanh"),
    "std": lambda x: x.std(1, correction=0),
    "var": lambda x: x.var((0, 2)),
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
    "attention": lambda q, k, v: mt.attention(q, k, v, causal=True),
    "mse": mt.mse_loss,
    "bce": mt.binary_cross_entropy_with_logits,
    "cross_entropy": lambda x: mt.cross_entropy(x, np.array([1, -100, 0]), label_smoothing=0.1),
    "cross_entropy_none": lambda x: mt.cross_entropy(x, np.array([1, 2, 0]), reduction="none"),
    "cross_entropy_sum": lambda x: mt.cross_entropy(
        x, np.array([1, 2, 2]), reduction="sum", ignore_index=2, label_smoothing=0.3
    ),
}
SEEN = np.tril(np.ones((3, 4), bool), 1)
SEEN[1] = False
EXPRESSIONS |= {
    "attention_mask": lambda q, k, v: mt.attention(q, k, v, SEEN),
    "attention_added_mask": lambda q, k, v: mt.attention(q, k, v, OPS["attention_added_mask/mask"]),
    "attention_causal_to_more_keys": lambda q, k, v: mt.attention(q, k, v, causal=True),
    "clip_crossed": lambda x: x.clip(1, -1),
    "cross_entropy_images": lambda x: mt.cross_entropy(
        x, np.array([[0, 2], [1, 1]]), label_smoothing=0.1, axis=1
    ),
    "cross_entropy_none_counts": lambda x: mt.cross_entropy(x, [-100, -100]),
    "cross_entropy_weighted": lambda x: mt.cross_entropy(
        x, [1, -100, 0, 2], weight=mt.Tensor([0.5, 0.0, 3.0]), label_smoothing=0.2
    ),
    "cross_entropy_weighted_sum": lambda x: mt.cross_entropy(
        x, [1, 0], weight=[0.5, 2.0], reduction="sum"
    ),
    "cumsum": lambda x: x.cumsum(1),
    "elu": lambda x: mt.elu(x, 0.5),
    "flip": lambda x: x.flip(0, -1),
    "gather_along": lambda x: x.gather(1, np.array([[0, 0], [3, 1]])),
    "kl_div_batch": lambda x, t: mt.kl_div(x, t, reduction="batchmean", log_target=True),
    "l1": mt.l1_loss,
    "leaky_relu": lambda x: mt.leaky_relu(x, 0.2),
    "logsumexp_inf": lambda x: x.logsumexp(1)[:1],
    "max_along": lambda x: x.max(1).values,
    "min_along": lambda x: x.min(0, keepdims=True).values,
    "nll": lambda x: mt.nll_loss(x, [2, 0, -100], weight=[0.5, 1.0, 3.0]),
    "nll_images": lambda x: mt.nll_loss(x, np.array([[0, 2], [1, 1]]), reduction="none", axis=1),
    "pad": lambda x: mt.pad(x, (1, 0, 0, 2), value=0.5),
    "prod": lambda x: x.prod(1),
    "repeat": lambda x: x.repeat(2, 1, 3),
    "split": lambda x: x.split(2, 1)[2] * x.split([1, 4], 1)[0],
    "std_default": lambda x: x.std(0),
    "transpose": lambda x: x.transpose(0, 1),
    "var_default": mt.var,
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
