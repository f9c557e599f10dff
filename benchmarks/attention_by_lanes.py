"""Causal attention forward, three ways: formulas, one query at a time, one query a vector lane.

    python benchmarks/attention_by_lanes.py

The second is the loop that one writes first: numba compiles it and LLVM vectorises what it can.
docs/attention.md explains why the third is laid out as it is. One thread, float32; the ways take
turns, and the shortest of their times counts: what else a machine does only ever adds to it.
"""

import math
import time

import numpy as np

import minitensor as mt
from minitensor import kernels
from minitensor.kernels.bundles import Attend, Drop
from minitensor.kernels.compiling import exp, jit


def formulas(q, k, v, scale):
    """The formulas in NumPy, with the products by BLAS."""
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # (B, H, T, d)
    S = q @ k.swapaxes(-1, -2) * scale
    S = np.where(np.tril(np.ones(S.shape[-2:], bool)), S, np.float32(-np.inf))
    e = np.exp(S - S.max(axis=-1, keepdims=True))
    return (e / e.sum(axis=-1, keepdims=True) @ v).swapaxes(1, 2)


@jit
def one_query_at_a_time(q, k, v, scale):
    """The same result from the obvious loops: dot products along the features of a head."""
    B, T, H, d = q.shape
    out = np.empty_like(q)
    p = np.empty(T, q.dtype)
    for b in range(B):
        for h in range(H):
            for i in range(T):
                m = q.dtype.type(-np.inf)
                for j in range(i + 1):
                    s = q.dtype.type(0)
                    for n in range(d):
                        s += q[b, i, h, n] * k[b, j, h, n]
                    p[j] = s * scale
                    m = max(m, p[j])
                total = q.dtype.type(0)
                for j in range(i + 1):
                    p[j] = exp(p[j] - m)
                    total += p[j]
                for n in range(d):
                    out[b, i, h, n] = 0
                for j in range(i + 1):
                    for n in range(d):
                        out[b, i, h, n] += p[j] * v[b, j, h, n]
                for n in range(d):
                    out[b, i, h, n] /= total
    return out


def one_query_a_lane(packed, scale):
    """The kernel, without RoPE, window or dropout: q, k and v are packed in one array."""
    H, d = packed.shape[2] // 3, packed.shape[3]
    none = np.uint32(0)
    attend = Attend(H, H, d, rope=None, scale=scale, window=0, causal=True)
    return kernels.attention(packed, attend, Drop(none, np.float32(1), none, none))[0]


def shortest(calls, repeats=100):
    """The shortest time of each call in milliseconds."""
    times = [math.inf] * len(calls)
    for _ in range(repeats):
        for n, (way, *arguments) in enumerate(calls):
            start = time.perf_counter()
            way(*arguments)
            times[n] = min(times[n], time.perf_counter() - start)
    return [seconds * 1e3 for seconds in times]


def main():
    rng = np.random.default_rng(0)
    print(f"{'B':>3}{'T':>5}{'H':>4}{'d':>4}{'formulas':>12}{'by query':>12}{'by lane':>12}  ms")
    for B, T, H, d in ((4, 128, 16, 8), (4, 256, 4, 32), (1, 1024, 4, 64)):
        q, k, v = (rng.standard_normal((B, T, H, d)).astype(np.float32) for _ in range(3))
        scale = np.float32(1 / math.sqrt(d))
        calls = (
            (formulas, q, k, v, scale),
            (one_query_at_a_time, q, k, v, scale),
            (one_query_a_lane, np.concatenate([q, k, v], axis=2), scale),
        )
        with mt.Workers(1):
            results = [way(*arguments) for way, *arguments in calls]
            assert all(np.allclose(results[0], other, atol=1e-5) for other in results)
            times = "".join(f"{ms:12.2f}" for ms in shortest(calls))
        print(f"{B:3}{T:5}{H:4}{d:4}{times}")


if __name__ == "__main__":
    main()
