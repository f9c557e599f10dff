"""Write models.npz: loss, gradients and twenty AdamW steps of each architecture, by PyTorch.

Run by hand in an environment with torch: python tests/goldens/make_models.py
The models are written out here a second time, from their descriptions and with PyTorch's own
functions, so that agreement means something. Weights and batches come from integer arithmetic, so
the tests (which read CONFIGS, weights and batch from this file) make the same ones anywhere.
"""

import zlib
from pathlib import Path

import numpy as np

SIZE = {"vocab_size": 13, "context": 8, "n_layer": 2, "n_head": 2, "d_model": 8, "d_ff": 12}
BARE = {"qkv_bias": False, "out_bias": False, "ffn_bias": False}
CONFIGS = {  # the recipes, small; and the parts that none of them has
    "quick": {"norm": "rms", "positions": "rope", "ffn": "swiglu", "head": "tied", **BARE},
    "pinv-0.8m": {
        "norm": "rms",
        "positions": "rope",
        "ffn": "swiglu",
        "gate_bias": True,
        "head": "pinv",
        **BARE,
    },
    "mini": {"norm": "layer", "positions": "sinusoidal", "ffn": "gelu", "head": "tied"},
    "pretrain-2m": {"norm": "layer", "positions": "learned", "ffn": "gelu", "head": "tied"},
    "neo-41m": {
        "norm": "layer",
        "positions": "learned",
        "ffn": "gelu_tanh",
        "qkv_bias": False,
        "windows": (0, 3),
        "scale_attention": False,
        "head": "untied",
    },
    "shakespeare-char": {
        "norm": "layer",
        "norm_bias": False,
        "positions": "learned",
        "ffn": "gelu",
        "head": "tied",
        **BARE,
    },
    "grouped": {
        "n_head": 4,
        "n_kv_head": 2,
        "norm": "rms",
        "positions": "rope",
        "ffn": "swiglu",
        "head": "untied",
        "windows": (3,),
    },
}
ADAMW = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
CLIP, STEPS = 1.0, 20


def numbers(seed, shape):
    """Reproducible numbers in [-0.5, 0.5), exact in float32."""
    i = np.arange(np.prod(shape, dtype=np.int64), dtype=np.uint64)
    x = (i + np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ x >> np.uint64(29)) * np.uint64(0xBF58476D1CE4E5B9)
    return ((x >> np.uint64(44)).astype(np.float64) / 2**20 - 0.5).reshape(shape)


def weights(name, shape):
    """The start of a parameter: near 1 for the weight of a norm, small otherwise."""
    x = numbers(zlib.crc32(name.encode()), shape) * (1.5 if "embedding" in name else 0.6)
    return x + 1 if name.endswith("norm.weight") else x


def batch():
    """Token ids and targets (3, 8)."""
    stream = ((numbers(7, (3, 9)) + 0.5) * SIZE["vocab_size"]).astype(np.int64)
    return stream[:, :-1], stream[:, 1:]


def shapes(c):
    """Name and shape of every parameter."""
    d, hd = c["d_model"], c["d_model"] // c["n_head"]
    kv = c.get("n_kv_head", c["n_head"])
    out = {"embedding.weight": (c["vocab_size"], d)}
    if c["positions"] == "learned":
        out["positions.weight"] = (c["context"], d)
    norms = ["norm"]
    linears = {}
    for i in range(c["n_layer"]):
        norms += [f"blocks.{i}.attn_norm", f"blocks.{i}.ffn_norm"]
        linears[f"blocks.{i}.attn.qkv"] = (c["n_head"] + 2 * kv) * hd, d, c.get("qkv_bias", True)
        linears[f"blocks.{i}.attn.out"] = d, d, c.get("out_bias", True)
        ffn = c.get("ffn_bias", True)
        if c["ffn"] == "swiglu":
            linears[f"blocks.{i}.ffn.gate"] = c["d_ff"], d, ffn or c.get("gate_bias", False)
        linears[f"blocks.{i}.ffn.up"] = c["d_ff"], d, ffn
        linears[f"blocks.{i}.ffn.down"] = d, c["d_ff"], ffn
    for name in norms:
        out[f"{name}.weight"] = (d,)
        if c["norm"] == "layer" and c.get("norm_bias", True):
            out[f"{name}.bias"] = (d,)
    for name, (rows, columns, bias) in linears.items():
        out[f"{name}.weight"] = (rows, columns)
        if bias:
            out[f"{name}.bias"] = (rows,)
    if c["head"] == "untied":
        out["head.weight"] = (c["vocab_size"], d)
    return out


def loss(c, p, ids, targets):
    """Mean cross-entropy of a model with parameters `p`."""
    import torch
    import torch.nn.functional as F

    T = ids.shape[1]
    H, hd = c["n_head"], c["d_model"] // c["n_head"]
    KV = c.get("n_kv_head", H)
    turns = torch.outer(torch.arange(T), 10000.0 ** (-torch.arange(0, hd, 2) / hd)).double()

    def norm(x, name):
        if c["norm"] == "rms":
            return F.rms_norm(x, x.shape[-1:], p[f"{name}.weight"], eps=1e-5)
        return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p.get(f"{name}.bias"), 1e-5)

    def linear(x, name):
        return F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))

    def turn(x):  # pairs of neighbours as complex numbers, turned by e^(i angle)
        z = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(z * torch.polar(torch.ones_like(turns), turns)).flatten(-2)

    def attention(x, i):
        q, k, v = linear(x, f"blocks.{i}.attn.qkv").split([H * hd, KV * hd, KV * hd], -1)
        q, k, v = (t.unflatten(-1, (-1, hd)).transpose(1, 2) for t in (q, k, v))
        if c["positions"] == "rope":
            q, k = turn(q), turn(k)
        windows = c.get("windows", (0,))
        window = windows[i % len(windows)] or T
        back = torch.arange(T)[:, None] - torch.arange(T)
        scale = None if c.get("scale_attention", True) else 1.0
        y = F.scaled_dot_product_attention(
            q, k, v, (back >= 0) & (back < window), scale=scale, enable_gqa=True
        )
        return linear(y.transpose(1, 2).flatten(-2), f"blocks.{i}.attn.out")

    def feed_forward(x, i):
        up = linear(x, f"blocks.{i}.ffn.up")
        if c["ffn"] == "swiglu":
            up = F.silu(linear(x, f"blocks.{i}.ffn.gate")) * up
        else:
            up = F.gelu(up, approximate="tanh" if c["ffn"] == "gelu_tanh" else "none")
        return linear(up, f"blocks.{i}.ffn.down")

    x = p["embedding.weight"][ids]
    if c["positions"] == "learned":
        x = x + p["positions.weight"][:T]
    elif c["positions"] == "sinusoidal":
        d = c["d_model"]
        angle = torch.outer(torch.arange(T), 10000.0 ** (-torch.arange(0, d, 2) / d)).double()
        x = x + 0.02 * torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)
    for i in range(c["n_layer"]):
        x = x + attention(norm(x, f"blocks.{i}.attn_norm"), i)
        x = x + feed_forward(norm(x, f"blocks.{i}.ffn_norm"), i)
    x = norm(x, "norm")
    head = {
        "tied": lambda: p["embedding.weight"].T,
        "untied": lambda: p["head.weight"].T,
        "pinv": lambda: torch.linalg.pinv(p["embedding.weight"]),
    }[c["head"]]()
    return F.cross_entropy((x @ head).flatten(0, 1), targets.flatten())


def golden(name):
    """Entries of the file for one architecture."""
    import torch

    c = {**SIZE, **CONFIGS[name]}
    ids, targets = map(torch.tensor, batch())
    p = {n: torch.tensor(weights(n, s), requires_grad=True) for n, s in shapes(c).items()}
    value = loss(c, p, ids, targets)
    grads = torch.autograd.grad(value, list(p.values()))
    out = {f"{name}/loss": value.item()}
    out.update({f"{name}/grad/{n}": g.numpy() for n, g in zip(p, grads, strict=True)})
    optimiser = torch.optim.AdamW(
        [
            {"params": [t for t in p.values() if t.ndim > 1]},
            {"params": [t for t in p.values() if t.ndim == 1], "weight_decay": 0.0},
        ],
        **ADAMW,
    )
    losses = []
    for _ in range(STEPS):
        optimiser.zero_grad()
        value = loss(c, p, ids, targets)
        value.backward()
        torch.nn.utils.clip_grad_norm_(p.values(), CLIP)
        optimiser.step()
        losses.append(value.item())
    out[f"{name}/losses"] = np.array(losses)
    return out


if __name__ == "__main__":
    import torch

    torch.set_default_dtype(torch.float64)
    entries = {key: value for name in CONFIGS for key, value in golden(name).items()}
    np.savez_compressed(Path(__file__).parent / "models.npz", **entries)
