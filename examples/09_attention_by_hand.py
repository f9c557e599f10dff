"""Attention by hand, forward and backward, against the fused kernel.

The formulas take ten lines of NumPy. You will see that the kernel computes the same, in values and
in gradients, to the last few digits; what the formulas keep in memory for the backward and the
kernel does not; and how long each takes. docs/attention.md derives the formulas and explains the
kernel.

Run it with `python examples/09_attention_by_hand.py`.

Exercises (solutions in tests/exercises/test_09.py):

1. Let each token see only the last W tokens, itself included, and compare with the fused kernel's
   `window`.
2. Compute one output without holding its row of scores: read keys and values four at a time, and
   correct the sums whenever a larger score turns up.
3. Make `forward` and `backward` an op, and let `gradcheck` judge it.
"""

import math
import time

import numpy as np

import minitensor as mt


def forward(q, k, v):
    """softmax(q kᵀ / sqrt(d), seeing no future) v, and the weights P. All are (B, H, T, d)."""
    T, d = q.shape[-2:]
    S = q @ k.swapaxes(-1, -2) / math.sqrt(d)  # (B, H, T, T): a score for every pair
    S = np.where(np.tril(np.ones((T, T), bool)), S, -np.inf)
    e = np.exp(S - S.max(axis=-1, keepdims=True))  # shifted, so that nothing overflows
    P = e / e.sum(axis=-1, keepdims=True)  # rows add up to 1
    return P @ v, P


def backward(g, q, k, v, P):
    """Gradients of q, k and v from g, that of the output."""
    d = q.shape[-1]
    dv = P.swapaxes(-1, -2) @ g  # o = P v is linear in v ...
    dP = g @ v.swapaxes(-1, -2)  # ... and in P
    dS = P * (dP - (P * dP).sum(axis=-1, keepdims=True))  # through the softmax, row by row
    dq = dS @ k / math.sqrt(d)  # S = q kᵀ / sqrt(d)
    dk = dS.swapaxes(-1, -2) @ q / math.sqrt(d)
    return dq, dk, dv


def compare(B=2, H=3, T=37, d=8):
    """Values and gradients in float64: by hand, by the fused kernel, by the walk over plain ops."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(B, H, T, d)) for _ in range(4)]
    g = arrays.pop()
    out, P = forward(*arrays)
    by_hand = [out, *backward(g, *arrays, P)]

    q, k, v = (mt.Tensor(a, requires_grad=True) for a in arrays)
    fused = mt.attention(q, k, v, causal=True)
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(d)
    plain = mt.softmax(mt.where(np.tril(np.ones((T, T), bool)), scores, -np.inf)) @ v

    print(f"largest difference, {B} sequences, {H} heads, {T} tokens")
    print(f"{'':6}{'hand - fused':>14}{'hand - walk':>14}")
    results = [[y.data, *mt.grad(y, [q, k, v], g)] for y in (fused, plain)]
    for name, a, b, c in zip(("out", "dq", "dk", "dv"), by_hand, *results, strict=True):
        print(f"{name:6}{np.abs(a - b).max():14.1e}{np.abs(a - c).max():14.1e}")
        assert np.allclose(a, b, rtol=1e-11, atol=1e-13) and np.allclose(a, c, rtol=1e-11)

    # The trick that lets the kernel do without P: the row sums of P ∘ dP, which the softmax's
    # backward needs, are those of g ∘ out, because both are Σ_jn P_ij v_jn g_in.
    dP = g @ arrays[2].swapaxes(-1, -2)
    assert np.allclose((P * dP).sum(axis=-1), (g * out).sum(axis=-1))
    print("Σ_j P dP = Σ_n g out, row by row: true\n")


def measure(B=2, H=4, T=512, d=32, repeats=20):
    """Shortest time of forward and backward, float32, one thread, and what is kept in between."""
    rng = np.random.default_rng(0)
    q, k, v, g = (rng.normal(size=(B, H, T, d)).astype(np.float32) for _ in range(4))
    leaves = [mt.Tensor(a, requires_grad=True) for a in (q, k, v)]

    def by_hand():
        _, P = forward(q, k, v)
        backward(g, q, k, v, P)

    def fused():
        mt.grad(mt.attention(*leaves, causal=True), leaves, g)

    with mt.Workers(1):  # one thread for both
        for name, run, kept in (
            ("by hand", by_hand, q.itemsize * B * H * T * T),
            ("fused", fused, q.itemsize * B * H * T),
        ):
            run()  # compiles the kernel, once
            times = []
            for _ in range(repeats):
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
            print(
                f"{name:8} {min(times) * 1e3:7.1f} ms, keeps {kept / 1024:6,.0f}"
                " KB besides q, k, v and the output"
            )


def main():
    compare()
    measure()


if __name__ == "__main__":
    main()
