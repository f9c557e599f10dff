"""A feed-forward sublayer, rung by rung: formulas, one kernel after the other, blocks of rows.

    python benchmarks/sublayer_ladder.py

docs/sublayer.md explains each rung and quotes its function from here. The rungs are compared with
each other first. One thread, float32, 2,304 tokens; the rungs take turns, and the shortest time of
each counts: what else a machine does only ever adds to it.
"""

import argparse
import math
import time

import numpy as np

import minitensor as mt
from minitensor.kernels import gemm, reference
from minitensor.kernels.compiling import jit
from minitensor.kernels.elementwise import gelu_into
from minitensor.kernels.simd import aligned, zeros

N, D, F = 2304, 128, 512  # tokens; width of the stream, of the hidden layer
EPS = 1e-5
HEIGHTS = (12, 24, 48, 96, 192, 384, 768, N)  # rows of a block


def forward(x, scale, up, down):
    """y = x + gelu(norm(x) upᵀ) downᵀ, and what the backward needs. x is (N, D), up (F, D)."""
    r = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPS)  # (N, 1)
    h = x * r * scale  # (N, D)
    b = h @ up.T  # (N, F)
    c = reference.gelu(b, True)  # (N, F)
    return x + c @ down.T, (r, h, b, c)


def backward(g, x, scale, up, down, kept):
    """Gradients of x, scale, up and down from g, that of y: `forward` from last line to first."""
    r, h, b, c = kept
    ddown = g.T @ c  # (D, F)
    db = reference.gelu_backward(g @ down, b, True)  # (N, F)
    dup = db.T @ h  # (F, D)
    dh = db @ up  # (N, D)
    z = x * r  # the norm, before it is scaled
    w = dh * scale
    dx = g + r * (w - z * (w * z).mean(axis=-1, keepdims=True))  # past the branch, and through it
    return dx, (dh * z).sum(axis=0), dup, ddown


def separate(x, scale, up, down):
    """One op, and one kernel, after the other."""
    h = mt.rms_norm(x, scale, EPS)
    return x + mt.linear(mt.gelu(mt.linear(h, up), approximate="tanh"), down)


def fused(x, scale, up, down):
    """One op: minitensor/kernels/sublayer.py."""
    options = {"norm": "rms", "eps": EPS, "activation": "gelu_tanh"}
    return mt.feed_forward_sublayer(x, scale, None, None, None, up, None, down, None, **options)


@jit
def in_blocks(x, scale, up, down, height):
    """`forward` for `height` rows at a time."""
    (N, D), F = x.shape, len(up)
    assert N % height == 0 and height >= gemm.ROWS
    ups, downs = aligned(D * gemm.up_to(F), x), aligned(F * gemm.up_to(D), x)
    gemm.to_panels(up.reshape(-1), 0, D, True, D, F, ups)  # the panels of both weights, once
    gemm.to_panels(down.reshape(-1), 0, F, True, F, D, downs)
    nothing = zeros(gemm.up_to(max(D, F)), x)
    h, b = aligned(height * D, x), aligned(height * F, x)  # the scratch of a block, used again
    c, y = aligned(height * F, x), aligned(N * D, x)
    for n in range(0, N, height):
        for m in range(height):
            total = x.dtype.type(0)
            for d in range(D):
                total += x[n + m, d] * x[n + m, d]
            r = x.dtype.type(1 / math.sqrt(total / D + EPS))
            for d in range(D):
                h[m * D + d] = x[n + m, d] * r * scale[d]
        gemm.multiply(h, 0, D, height, ups, D, nothing, b, 0, F, F, False)
        gelu_into(b, True, c)
        gemm.multiply(c, 0, F, height, downs, F, nothing, y, n * D, D, D, False)
        for m in range(height):
            row = y[(n + m) * D : (n + m + 1) * D]
            for d in range(D):
                row[d] += x[n + m, d]
    return y.reshape(N, D)


def operands(N=N, D=D, F=F):
    """x (N, D), scale (D,), up (F, D), down (D, F) and the gradient of the result, float32."""
    rng = np.random.default_rng(0)
    shapes = ((N, D), (D,), (F, D), (D, F), (N, D))
    deviations = (1, 1, D**-0.5, F**-0.5, 1)
    return [
        rng.normal(0, deviation, shape).astype(np.float32)
        for shape, deviation in zip(shapes, deviations, strict=True)
    ]


def forward_by_ops(sublayer):
    """A function of arrays that runs ops, and records nothing for a backward."""

    def run(*arrays):
        with mt.no_grad():
            return sublayer(*(mt.Tensor(a) for a in arrays)).numpy()

    return run


def by_formulas(g, *arrays):
    """The result and all gradients, by the formulas."""
    y, kept = forward(*arrays)
    return y, *backward(g, *arrays, kept)


def by_ops(sublayer):
    """The same, by ops."""

    def run(g, *arrays):
        tensors = [mt.Tensor(a, requires_grad=True) for a in arrays]
        y = sublayer(*tensors)
        return y.data, *mt.grad(y, tensors, g)

    return run


def shortest(calls, seconds):
    """The shortest time of each (function, arguments) in milliseconds, in turns for so long."""
    times = [math.inf] * len(calls)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for n, (way, arguments) in enumerate(calls):
            start = time.perf_counter()
            way(*arguments)
            times[n] = min(times[n], time.perf_counter() - start)
    return [seconds * 1e3 for seconds in times]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20, help="for each table (default: 20)")
    args = parser.parse_args()
    *arrays, g = operands()
    with mt.Workers(1):  # one thread, BLAS's too
        ways = {
            "formulas in NumPy": by_formulas,
            "one kernel after the other": by_ops(separate),
            "one op, in blocks of rows": by_ops(fused),
        }
        results = [way(g, *arrays) for way in ways.values()]
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                assert np.allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(a).max())
        for height in HEIGHTS:
            assert np.allclose(results[0][0], in_blocks(*arrays, height), atol=1e-4)
        calls = [(way, (g, *arrays)) for way in ways.values()]
        calls += [(lambda *a: forward(*a)[0], arrays)]
        calls += [(forward_by_ops(sublayer), arrays) for sublayer in (separate, fused)]
        times = shortest(calls, args.seconds)
        print(f"{f'{N} x {D}, hidden {F}: ms':28}{'forward':>12}{'and backward':>16}")
        for name, both, alone in zip(ways, times[:3], times[3:], strict=True):
            print(f"{name:28}{alone:12.2f}{both:16.2f}")
        print("\nforward alone: rows of a block, KB of its scratch, ms")
        times = shortest([(in_blocks, (*arrays, height)) for height in HEIGHTS], args.seconds)
        for height, ms in zip(HEIGHTS, times, strict=True):
            print(f"{height:4}{4 * height * (D + 2 * F) / 1024:10,.0f}{ms:10.2f}")


if __name__ == "__main__":
    main()
