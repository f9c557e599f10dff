"""A transformer block, piece by piece, with the shape at every line.

The block of the llama family: attention, by which positions exchange what they know, and a
feed-forward network, by which each position thinks for itself; both read a normalised copy of the
stream and add what they found to it. Here it is out of elementary ops, nothing fused, and at the
end it is compared with `tinygpt`'s block, which computes the same in a handful of calls.

Run it with `python examples/08_transformer_block.py`.

Exercises (solutions in tests/exercises/test_08.py):

1. Leave out the rotation and the mask, and put the tokens in another order. What happens to the
   result? And with the rotation?
2. Rotate the same query and the same key at every position. What do their products depend on?
3. How many parameters has the block, from D, H, KV, hd and F?
"""

import math

import numpy as np

import minitensor as mt
from tinygpt.model.config import Config
from tinygpt.model.transformer import Block, Pass

B, T, D = 2, 6, 32  # sequences, tokens of each, width of the stream
H, KV = 4, 2  # query heads; key/value heads, each shared by two of the former
hd, F = D // H, 48  # width of a head; of the feed-forward network

CONFIG = Config(
    n_head=H,
    n_kv_head=KV,
    d_model=D,
    d_ff=F,
    context=T,
    norm="rms",
    norm_bias=False,
    positions="rope",
    ffn="swiglu",
    qkv_bias=False,
    out_bias=False,
    ffn_bias=False,
    dtype="float64",
)


def show(name, x, meaning):
    """Print a line of the table, and pass the tensor on."""
    print(f"{name:10} {x.shape!s:16} {meaning}")
    return x


def rms_norm(x, weight):
    """Every token scaled to a mean square of 1, then each of its features by a learned weight."""
    return x * mt.rsqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5) * weight


def heads(x, n):
    """(B, T, n · hd) -> (B, n, T, hd): each head works on a slice of its own."""
    return x.reshape(B, T, n, hd).swapaxes(1, 2)


def rotate(x):
    """Rotary positions: features 2n and 2n+1 of the token at t are turned by an angle t θₙ, so that
    the product of a query and a key depends on how far apart they are."""
    cos, sin = mt.rope_table(T, hd, dtype=np.float64)  # (T, hd / 2) each
    even, odd = x[..., 0::2], x[..., 1::2]  # (B, n, T, hd / 2) each
    turned = mt.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape)


def attention(x, w):
    """Each token asks (q), all before it answer (k, v)."""
    x = show("normed", rms_norm(x, w["attn_norm.weight"]), "each token at mean square 1")
    qkv = show("qkv", x @ w["attn.qkv.weight"].T, "queries, keys and values side by side")
    q, k, v = mt.split(qkv, [H * hd, KV * hd, KV * hd], axis=-1)
    q = show("q", rotate(heads(q, H)), "what each token looks for, by head")
    k = show("k", rotate(heads(k, KV)), "what each has to offer")
    v = show("v", heads(v, KV), "and what it hands over")
    shared = np.repeat(np.arange(KV), H // KV)  # 0 0 1 1
    k, v = k[:, shared], v[:, shared]  # (B, H, T, hd)
    scores = show("scores", q @ k.swapaxes(-1, -2) / math.sqrt(hd), "row i: query i against all")
    past = np.tril(np.ones((T, T), dtype=bool))
    scores = mt.where(past, scores, -np.inf)  # nobody sees the future
    weights = show("weights", mt.softmax(scores), "each row adds up to 1")
    y = show("mixed", weights @ v, "the weighted mean of the values")
    y = show("joined", y.swapaxes(1, 2).reshape(B, T, D), "heads side by side again")
    return show("branch", y @ w["attn.out.weight"].T, "what is added to the stream"), weights


def feed_forward(x, w):
    """SwiGLU: one projection decides how much of the other passes."""
    x = show("normed", rms_norm(x, w["ffn_norm.weight"]), "a normalised copy again")
    gate = show("gate", mt.silu(x @ w["ffn.gate.weight"].T), "open or closed, feature by feature")
    up = show("up", x @ w["ffn.up.weight"].T, "what could pass")
    return show("branch", (gate * up) @ w["ffn.down.weight"].T, "back to the stream's width")


def block(x, w):
    """The whole block, and its attention weights."""
    branch, weights = attention(x, w)
    x = show("stream", x + branch, "each token, with what it heard")
    return show("stream", x + feed_forward(x, w), "and what it made of it"), weights


def main():
    rng = np.random.default_rng(0)
    model = Block(CONFIG, 0, rng).astype(np.float64)
    parameters = dict(model.named_parameters())
    x = mt.Tensor(rng.normal(size=(B, T, D)), requires_grad=True)

    print(f"{'name':10} {'shape':16} meaning")
    y, weights = block(show("stream", x, "B sequences of T tokens, each D numbers"), parameters)
    print(f"\nparameters: {sum(p.size for p in parameters.values()):,}")

    print("\nattention weights of the first head: row i is whom token i listens to")
    print(weights.data[0, 0].round(2))
    assert np.allclose(weights.data.sum(axis=-1), 1)

    # Changing the last token must not change what was computed for the tokens before it.
    changed = x.data.copy()
    changed[:, -1] += 1
    now = Pass(rope=mt.rope_table(T, hd, dtype=np.float64))
    with mt.no_grad():
        fused = [model(mt.Tensor(a), now).numpy() for a in (x.data, changed)]
    assert np.array_equal(fused[0][:, :-1], fused[1][:, :-1])
    assert not np.allclose(fused[0][:, -1], fused[1][:, -1])
    print("\nthe last token was changed: no token before it noticed")

    error = np.abs(y.data - fused[0]).max()
    print(f"largest difference to tinygpt's block: {error:.1e}")
    assert error < 1e-12

    # And the gradients: back through the elementary ops, and through the fused ones.
    tensors = [x, *parameters.values()]
    weight = rng.normal(size=y.shape)
    by_hand = mt.grad(y, tensors, weight)
    by_tinygpt = mt.grad(model(x, now), tensors, weight)
    error = max(np.abs(a - b).max() for a, b in zip(by_hand, by_tinygpt, strict=True))
    print(f"largest difference of a gradient:      {error:.1e}")
    assert error < 1e-12


if __name__ == "__main__":
    main()
