"""The models of the recipes in JAX, as one would write them there, and a step of training.

It runs in the environment that peers.py makes. Started by step.py with a configuration of
`tinygpt` as JSON and a number of threads. XLA spreads few of its loops over threads; so each
thread is a device of its own with a part of the batch, which is faster.
"""

import functools
import json
import math
import os
import sys

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from workers import serve


def init(c, key):
    """Weights, as a tree; a linear layer is a matrix (inputs, outputs) and a bias or None."""
    width, hidden = c["d_model"], c["d_ff"]
    keys = iter(jax.random.split(key, 3 + 5 * c["n_layer"]))

    def matrix(*shape):
        return 0.02 * jax.random.normal(next(keys), shape)

    def layer(inputs, outputs, bias):
        return matrix(inputs, outputs), jnp.zeros(outputs) if bias else None

    def norm():
        return jnp.ones(width), jnp.zeros(width) if c["norm_bias"] else None

    def block():
        return {
            "norm1": norm(),
            "qkv": layer(width, 3 * width, c["qkv_bias"]),
            "out": layer(width, width, c["out_bias"]),
            "norm2": norm(),
            "gate": layer(width, hidden, c["gate_bias"]) if c["ffn"] == "swiglu" else None,
            "up": layer(width, hidden, c["ffn_bias"]),
            "down": layer(hidden, width, c["ffn_bias"]),
        }

    return {
        "embedding": matrix(c["vocab_size"], width),
        "positions": matrix(c["context"], width) if c["positions"] == "learned" else None,
        "blocks": [block() for _ in range(c["n_layer"])],
        "norm": norm(),
        "head": matrix(width, c["vocab_size"]) if c["head"] == "untied" else None,
    }


def linear(x, weights):
    matrix, bias = weights
    return x @ matrix if bias is None else x @ matrix + bias


def normalized(c, x, weights):
    gain, bias = weights
    if c["norm"] == "layer":
        x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + c["norm_eps"]) * gain
    return x if bias is None else x + bias


def dropout(c, x, key):
    p = c["dropout"]
    return jnp.where(jax.random.bernoulli(key, 1 - p, x.shape), x / (1 - p), 0) if p else x


def angles(c, width):
    rates = c["rope_theta"] ** (-jnp.arange(0, width, 2) / width)
    return jnp.outer(jnp.arange(c["context"]), rates)  # (T, width / 2)


def rotate(x, angle):
    """RoPE on interleaved pairs."""
    cos, sin, a, b = jnp.cos(angle), jnp.sin(angle), x[..., 0::2], x[..., 1::2]
    return jnp.stack((a * cos - b * sin, a * sin + b * cos), -1).reshape(x.shape)


def attention(c, qkv, key):
    """Causal attention (B, T, D) of qkv (B, T, 3 D). JAX has no fused one for a CPU; dividing the
    softmax by its sum after the values are weighted takes a pass over (B, H, T, T) less."""
    batch, length, width = qkv.shape[0], qkv.shape[1], c["d_model"]
    heads = qkv.reshape(batch, length, 3, c["n_head"], -1)
    q, k, v = heads.transpose(2, 0, 3, 1, 4)  # (B, H, T, D / H) each
    if c["positions"] == "rope":
        angle = angles(c, width // c["n_head"])
        q, k = rotate(q, angle), rotate(k, angle)
    scores = q @ k.swapaxes(-1, -2)  # (B, H, T, T)
    if c["scale_attention"]:
        scores = scores / math.sqrt(width // c["n_head"])
    scores = scores + jnp.where(jnp.tril(jnp.ones((length, length), bool)), 0, -jnp.inf)
    e = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    y = dropout(c, e, key) @ v / e.sum(-1, keepdims=True)
    return y.transpose(0, 2, 1, 3).reshape(batch, length, width)


def run_block(c, x, block, keys):
    y = attention(c, linear(normalized(c, x, block["norm1"]), block["qkv"]), keys[0])
    x = x + dropout(c, linear(y, block["out"]), keys[1])
    h = normalized(c, x, block["norm2"])
    if block["gate"] is not None:
        h = jax.nn.silu(linear(h, block["gate"])) * linear(h, block["up"])
    else:
        h = jax.nn.gelu(linear(h, block["up"]), approximate=c["ffn"] == "gelu_tanh")
    return x + dropout(c, linear(h, block["down"]), keys[2])


def loss_of(weights, c, ids, targets, key):
    """Mean cross-entropy of ids and targets (B, T)."""
    keys = jax.random.split(key, (c["n_layer"] + 1, 3))
    embedding = weights["embedding"]
    x = embedding[ids]  # (B, T, D)
    if c["positions"] == "learned":
        x = x + weights["positions"]
    elif c["positions"] == "sinusoidal":
        angle = angles(c, c["d_model"])
        x = x + jnp.stack((jnp.sin(angle), jnp.cos(angle)), -1).reshape(x.shape[1:])
    x = dropout(c, x, keys[-1, 0])
    for block, own in zip(weights["blocks"], keys[:-1], strict=True):
        x = run_block(c, x, block, own)
    x = normalized(c, x, weights["norm"])
    if c["head"] == "pinv":  # the normal equations; jnp.linalg.pinv decomposes into singular values
        head = jnp.linalg.inv(embedding.T @ embedding) @ embedding.T
    else:
        head = weights["head"] if c["head"] == "untied" else embedding.T
    logits = x @ head  # (B, T, V)
    chosen = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return (jax.nn.logsumexp(logits, -1) - chosen).mean()


def updated(c, state, gradients):
    """Clipping and AdamW, which decays matrices alone. The state is (weights, m, v, steps done)."""
    weights, m, v, number = state
    number = number + 1
    norm = jnp.sqrt(sum((g * g).sum() for g in jax.tree.leaves(gradients)))
    scale = jnp.minimum(1, c["grad_clip"] / (norm + 1e-6))
    b1, b2 = c["beta1"], c["beta2"]
    m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * scale * g, m, gradients)
    v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * (scale * g) ** 2, v, gradients)

    def one(p, m, v):
        change = m / (1 - b1**number) / (jnp.sqrt(v / (1 - b2**number)) + c["eps"])
        return p - c["lr"] * (change + (c["weight_decay"] * p if p.ndim > 1 else 0))

    return jax.tree.map(one, weights, m, v), m, v, number


def main():
    c, threads = json.loads(sys.argv[1]), int(sys.argv[2])
    assert set(c["windows"]) == {0}, "local attention is left out, as it is for PyTorch"
    os.environ["NPROC"] = str(threads)  # the size of XLA's pool of threads
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", threads)
    jax.config.update("jax_default_prng_impl", "rbg")  # threefry takes several times as long
    assert c["batch_size"] % threads == 0, "each thread has an equal part of the batch"
    mesh = jax.make_mesh((threads,), ("batch",), (AxisType.Auto,))
    every, part = PartitionSpec(), PartitionSpec("batch")
    begin, first_ids, first_targets, masks = jax.random.split(jax.random.key(0), 4)
    weights = init(c, begin)
    m, v = (jax.tree.map(jnp.zeros_like, weights) for _ in range(2))
    state = (weights, m, v, jnp.float32(0))
    parameters = sum(p.size for p in jax.tree.leaves(weights))
    shape = (c["batch_size"], c["context"])
    ids, targets = (
        jax.random.randint(key, shape, 0, c["vocab_size"]) for key in (first_ids, first_targets)
    )
    state = jax.device_put(state, jax.NamedSharding(mesh, every))
    ids, targets = jax.device_put((ids, targets), jax.NamedSharding(mesh, part))

    def of_part(weights, ids, targets, key):
        key = jax.random.fold_in(key, jax.lax.axis_index("batch"))
        both = jax.value_and_grad(loss_of)(weights, c, ids, targets, key)
        return jax.lax.pmean(both, "batch")

    mean = jax.shard_map(
        of_part, mesh=mesh, in_specs=(every, part, part, every), out_specs=every, check_vma=False
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def advance(state, ids, targets):
        key = jax.random.fold_in(masks, state[-1].astype(jnp.int32))
        loss, gradients = mean(state[0], ids, targets, key)
        return updated(c, state, gradients), loss

    def step():
        nonlocal state
        state, loss = advance(state, ids, targets)
        return loss.item()

    first = step()
    step()
    serve(
        step,
        parameters=parameters,
        loss=first,
        at_start=math.log(c["vocab_size"]),
        version=jax.__version__,
    )


if __name__ == "__main__":
    main()
