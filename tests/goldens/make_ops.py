"""Write ops.npz and optimisers.npz: what PyTorch computes, for tests that then need no PyTorch.

Run by hand in an environment with torch: python tests/goldens/make_ops.py
Ops: inputs, value and gradients, chosen for the corners (ties, limits, kinks, zeros, masks).
Optimisers: parameters after each of six steps along fixed gradients.
"""

import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

HERE = Path(__file__).parent
inf = float("inf")
T = torch.tensor
rng = np.random.default_rng(0)


def normal(*shape):
    return rng.normal(size=shape).round(3)


def turn(x):
    """RoPE on (..., T, d): neighbours as complex numbers, turned by e^(i t theta)."""
    T, d = x.shape[-2:]
    angle = torch.outer(torch.arange(T), 10000.0 ** (-torch.arange(0, d, 2).double() / d))
    z = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(z * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


def self_attention(x):
    """Four heads of width 2 on two key/value heads, with RoPE, a window of 3, and no scale."""
    q, k, v = (t.unflatten(-1, (-1, 2)).transpose(1, 2) for t in x.split([8, 4, 4], -1))
    back = torch.arange(5)[:, None] - torch.arange(5)
    return (
        F.scaled_dot_product_attention(
            turn(q), turn(k), v, (back >= 0) & (back < 3), scale=1.0, enable_gqa=True
        )
        .transpose(1, 2)
        .flatten(-2)
    )


OPS = {  # name: (function of torch tensors, inputs)
    "abs": (torch.abs, [[-1.0, 0.0, 2.0]]),
    "relu": (torch.relu, [[-1.0, 0.0, 2.0]]),
    "maximum": (torch.maximum, [[1.0, 2.0, 3.0], [1.0, 3.0, 2.0]]),
    "minimum": (torch.minimum, [[1.0, 2.0, 3.0], [1.0, 3.0, 2.0]]),
    "clip": (lambda x: x.clamp(-1, 1), [[-2.0, -1.0, 0.0, 1.0, 2.0]]),
    "max": (lambda x: x.amax(1), [[[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]]),
    "min": (lambda x: x.amin((0, 1)), [[[1.0, 3.0, 3.0], [2.0, 1.0, 2.0]]]),
    "pow_0": (lambda x: x**0, [[0.0, 1.0, -2.0]]),
    "pow_2": (lambda x: x**2, [[0.0, 1.0, -2.0]]),
    "pow_3": (lambda x: x**3, [[0.0, 1.0, -2.0]]),
    "pow_half": (lambda x: x**0.5, [[0.25, 1.0, 2.0]]),
    "pow_minus_2": (lambda x: x**-2, [[0.25, 1.0, -2.0]]),
    "pow_tensor": (torch.pow, [[0.0, 0.0, 2.0, 1.5], [0.0, 2.0, -1.0, 0.5]]),
    "pow_of_number": (lambda x: 2.0**x, [[0.0, -1.0, 3.5]]),
    "sigmoid": (torch.sigmoid, [[-800.0, -40.0, 0.0, 3.0, 800.0]]),
    "softplus": (
        lambda x: torch.logaddexp(x, torch.zeros_like(x)),
        [[-800.0, -40.0, 0.0, 3.0, 800.0]],
    ),
    "silu": (F.silu, [[-800.0, -4.0, 0.0, 3.0, 800.0]]),
    "gelu": (F.gelu, [[-30.0, -4.0, 0.0, 3.0, 30.0]]),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), [[-30.0, -4.0, 0.0, 3.0, 30.0]]),
    "erf": (torch.erf, [[-3.0, -0.5, 0.0, 0.1, 6.0]]),
    "std": (lambda x: x.std(1, correction=0), [[[1.0, 1.0, 1.0], [1.0, 2.0, 4.0]]]),
    "var": (lambda x: x.var((0, 2), correction=1), [normal(2, 3, 4)]),
    "logsumexp": (lambda x: x.logsumexp(1), [[[1000.0, 1001.0], [-1000.0, -inf]]]),
    "where": (lambda x, y: torch.where(x > 0, x, y), [[-1.0, 0.0, 2.0], [5.0, 6.0, 7.0]]),
    "gather": (lambda x: x[[0, 2, 2, 0], :2], [normal(3, 3)]),
    "mask": (lambda x: x[x > 0] ** 2, [normal(3, 3)]),
    "pinv": (torch.linalg.pinv, [normal(6, 3)]),
    "matmul": (torch.matmul, [normal(4, 1, 2, 3), normal(5, 3, 2)]),
    "matmul_vector": (torch.matmul, [normal(4, 2, 3), normal(3)]),
    "einsum": (lambda a, b: torch.einsum("bij,kj->ibk", a, b), [normal(2, 3, 4), normal(5, 4)]),
    "softmax": (lambda x: x.softmax(0), [[[1000.0, -1.0], [1001.0, -inf], [0.0, 2.0]]]),
    "log_softmax": (lambda x: x.log_softmax(-1), [normal(3, 4) * 100]),
    "layer_norm": (
        lambda x, w, b: F.layer_norm(x, (4,), w, b),
        [normal(3, 4), normal(4), normal(4)],
    ),
    "rms_norm": (lambda x, w: F.rms_norm(x, (4,), w, eps=1e-5), [normal(3, 4), normal(4)]),
    "cross_entropy": (
        lambda x: F.cross_entropy(x, T([1, -100, 0]), label_smoothing=0.1),
        [normal(3, 4)],
    ),
    "cross_entropy_none": (
        lambda x: F.cross_entropy(x, T([1, 2, 0]), reduction="none"),
        [normal(3, 4) * 300],
    ),
    "cross_entropy_sum": (
        lambda x: F.cross_entropy(
            x, T([1, 2, 2]), reduction="sum", ignore_index=2, label_smoothing=0.3
        ),
        [normal(3, 4)],
    ),
    "mse": (F.mse_loss, [normal(3, 2), normal(3, 2)]),
    "bce": (F.binary_cross_entropy_with_logits, [[-900.0, -1.0, 0.0, 900.0], [0.0, 1.0, 0.3, 1.0]]),
    "rope": (turn, [normal(1, 2, 3, 4)]),
    "self_attention": (self_attention, [normal(2, 5, 16)]),
    "linear": (F.linear, [normal(2, 3, 4), normal(5, 4), normal(5)]),
    "swiglu": (lambda a, b: F.silu(a) * b, [normal(2, 3), normal(2, 3)]),
    "attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
        [normal(2, 4, 5, 2), normal(2, 2, 5, 2), normal(2, 2, 5, 2)],
    ),
}

later = np.random.default_rng(1)  # what came later leaves the others as they are


def more(*shape):
    return later.normal(size=shape).round(3)


SEEN = np.tril(np.ones((3, 4), bool), 1)
SEEN[1] = False  # a query that sees nothing
FAR = np.where(SEEN, more(3, 4), -inf)
OPS |= {
    "attention_mask": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, T(SEEN)),
        [more(2, 2, 3, 2), more(2, 2, 4, 2), more(2, 2, 4, 3)[..., :2]],
    ),
    "attention_added_mask": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, T(FAR), enable_gqa=True),
        [more(2, 4, 3, 2), more(2, 2, 4, 2), more(2, 2, 4, 2)],
    ),
    "attention_causal_to_more_keys": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        [more(1, 2, 3, 2), more(1, 2, 4, 2), more(1, 2, 4, 2)],
    ),
    "clip_crossed": (lambda x: x.clamp(1, -1), [[-2.0, -1.0, 0.0, 1.0, 2.0]]),
    "cross_entropy_images": (
        lambda x: F.cross_entropy(x, T([[0, 2], [1, 1]]), label_smoothing=0.1),
        [more(2, 3, 2)],
    ),
    "cross_entropy_none_counts": (lambda x: F.cross_entropy(x, T([-100, -100])), [more(2, 3)]),
    "cross_entropy_weighted": (
        lambda x: F.cross_entropy(
            x, T([1, -100, 0, 2]), T([0.5, 0.0, 3.0]).double(), label_smoothing=0.2
        ),
        [more(4, 3)],
    ),
    "cross_entropy_weighted_sum": (
        lambda x: F.cross_entropy(x, T([1, 0]), T([0.5, 2.0]).double(), reduction="sum"),
        [more(2, 2)],
    ),
    "cumsum": (lambda x: x.cumsum(1), [more(2, 3)]),
    "elu": (lambda x: F.elu(x, 0.5), [[-800.0, -1.0, 0.0, 2.0]]),
    "expm1": (torch.expm1, [[-1.0, 0.0, 1e-9]]),
    "flip": (lambda x: x.flip(0, -1), [more(2, 2, 3)]),
    "gather_along": (lambda x: x.gather(1, T([[0, 0], [3, 1]])), [more(3, 4)]),
    "kl_div": (F.kl_div, [[-1.0, -2.0, -0.5], [0.2, 0.3, 0.5]]),
    "kl_div_batch": (
        lambda x, t: F.kl_div(x, t, reduction="batchmean", log_target=True),
        [more(2, 3), more(2, 3)],
    ),
    "l1": (F.l1_loss, [[1.0, 2.0, 3.0], [1.0, 3.0, 2.0]]),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), [[-1.0, 0.0, 2.0]]),
    "log1p": (torch.log1p, [[-0.5, 0.0, 1e-9]]),
    "logsumexp_inf": (lambda x: x.logsumexp(1)[:1], [[[-inf, 1.0], [inf, 1.0]]]),
    "max_along": (lambda x: x.max(1).values, [[[1.0, 3.0, 3.0], [2.0, 1.0, 0.0]]]),
    "min_along": (lambda x: x.min(0, keepdim=True).values, [[[1.0, 3.0], [1.0, 2.0]]]),
    "nll": (lambda x: F.nll_loss(x, T([2, 0, -100]), T([0.5, 1.0, 3.0]).double()), [more(3, 3)]),
    "nll_images": (lambda x: F.nll_loss(x, T([[0, 2], [1, 1]]), reduction="none"), [more(2, 3, 2)]),
    "pad": (lambda x: F.pad(x, (1, 0, 0, 2), value=0.5), [more(2, 2, 3)]),
    "prod": (lambda x: x.prod(1), [[[2.0, 0.0, 3.0], [0.0, 0.0, 3.0], [1.0, 2.0, 4.0]]]),
    "remainder": (torch.remainder, [[5.0, -5.0, 5.0], [3.0, 3.0, -3.0]]),
    "repeat": (lambda x: x.repeat(2, 1, 3), [more(2, 2)]),
    "split": (lambda x: x.split(2, 1)[2] * x.split([1, 4], 1)[0], [more(2, 5)]),
    "std_default": (lambda x: x.std(0), [more(3, 2)]),
    "transpose": (lambda x: x.transpose(0, 1), [more(2, 3, 2)]),
    "var_default": (torch.var, [more(3, 2)]),
}

OPTIMISERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "sgd_momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    "sgd_nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1}),
    "muon": (torch.optim.Muon, {"lr": 0.01}),
    "muon_plain": (torch.optim.Muon, {"lr": 0.01, "nesterov": False, "weight_decay": 0.0}),
}


def ops():
    out = {"attention_added_mask/mask": FAR}
    for name, (f, inputs) in OPS.items():
        xs = [torch.tensor(np.array(x), dtype=torch.float64, requires_grad=True) for x in inputs]
        y = f(*xs)
        weights = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).reshape(y.shape)
        (y * torch.where(torch.isfinite(y), weights, 0)).nan_to_num(0, 0, 0).sum().backward()
        out[f"{name}/value"] = y.detach().numpy()
        for i, x in enumerate(xs):
            out[f"{name}/in{i}"] = x.detach().numpy()
            out[f"{name}/grad{i}"] = x.grad.numpy()
    return out


def optimisers():
    out = {
        "start0": normal(4, 3),
        "start1": normal(2, 5),
        "gradients0": normal(6, 4, 3),
        "gradients1": normal(6, 2, 5),
    }
    torch.Tensor.bfloat16 = lambda x: x.clone()  # Muon rounds inside; compare without that
    for name, (make, options) in OPTIMISERS.items():
        ps = [torch.tensor(out[f"start{i}"], requires_grad=True) for i in range(2)]
        optimiser = make([{"params": ps[:1]}, {"params": ps[1:], "lr": 0.02}], **options)
        steps = []
        for step in range(6):
            for i, p in enumerate(ps):
                p.grad = torch.tensor(out[f"gradients{i}"][step])
            optimiser.step()
            steps.append(np.concatenate([p.detach().numpy().ravel() for p in ps]))
        out[name] = np.array(steps)
    return out


def page():
    """The left column of the tables of docs/pytorch.md, and what its names stand for."""
    rng = np.random.default_rng(2)
    shapes = {"x": (2, 3, 4), "a": (3, 4), "b": (3, 4), "w": (5, 4), "g": 4, "h": 4, "c": 5}
    shapes |= {"z": (5, 3), "images": (5, 3, 2), "q": (1, 2, 3, 4), "k": (1, 2, 3, 4)}
    shapes |= {"v": (1, 2, 3, 4)}
    variables = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    variables |= {
        "p": rng.dirichlet(np.ones(4), 3),
        "ids": rng.integers(0, 3, (2, 3)),
        "t": np.array([2, 1, 2, 2, 1]),
        "t2": rng.integers(0, 3, (5, 2)),
        "mask": rng.random((3, 4)) < 0.5,
        "past": np.tril(np.ones((3, 3), bool)),
    }
    out = {f"var/{name}": array for name, array in variables.items()}
    scope = {"torch": torch, "F": F, **{k: torch.tensor(v) for k, v in variables.items()}}
    text = (HERE.parents[1] / "docs" / "pytorch.md").read_text(encoding="utf-8")
    tables = text.split("## The same call")[1].split("## Gradients")[0]
    for cell in re.findall(r"^\| `(.*?)` \|", tables, flags=re.MULTILINE):
        expression = cell.replace("\\|", "|")
        result = eval(expression, scope)
        parts = list(result) if isinstance(result, (list, tuple)) else [result]
        out[f"{expression}/count"] = len(parts)
        out |= {f"{expression}/{i}": np.asarray(part) for i, part in enumerate(parts)}
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(1, 2, 5, 4)), rng.normal(size=(2, 2, 3, 2))
    out["conv2d"] = F.conv2d(T(x), T(w), stride=2, padding=1).numpy()
    return out


if __name__ == "__main__":
    np.savez_compressed(HERE / "pytorch.npz", **page())
    np.savez_compressed(HERE / "ops.npz", **ops())
    np.savez_compressed(HERE / "optimisers.npz", **optimisers())
