"""A matrix product, rung by rung: from three loops to the kernel of minitensor/kernels/gemm.py.

    python benchmarks/matmul_ladder.py

docs/matmul.md explains each rung and quotes its function from here. Every rung is first compared
with the product in float64. One thread, float32, GFLOP/s (2 M N K operations a product); the rungs
take turns, and the shortest time of each counts: what else a machine does only ever adds to it.
"""

import argparse
import math
import time

import numpy as np

import minitensor as mt
from minitensor.kernels import gemm
from minitensor.kernels.compiling import inline, jit
from minitensor.kernels.simd import LANES, aligned, load, splat, store

WIDTH = 2 * LANES  # columns of a tile and of a panel


def three_loops(a, b, out):
    """The definition: out[m, n] = Σ_k a[m, k] b[k, n]."""
    M, K = a.shape
    N = b.shape[1]
    for m in range(M):
        for n in range(N):
            total = a.dtype.type(0)
            for k in range(K):
                total += a[m, k] * b[k, n]
            out[m, n] = total
    return out


compiled_loops = jit(three_loops)


@jit
def row_by_row(a, b, out):
    """The inner loop runs along a row of b and a row of out, which lie in order in memory."""
    M, K = a.shape
    N = b.shape[1]
    for m in range(M):
        out[m] = 0
        for k in range(K):
            x = a[m, k]
            for n in range(N):
                out[m, n] += x * b[k, n]
    return out


@inline
def four_rows(a, i, K, b, j, step, out, o, N):
    """A tile, 4 rows by 2 vectors, of which all eight sums stay in registers."""
    s0 = s1 = s2 = s3 = splat(a.dtype.type(0))
    t0 = t1 = t2 = t3 = splat(a.dtype.type(0))
    for k in range(K):
        v, w = load(b, j), load(b, j + LANES)
        s0, t0 = s0 + v * a[i + k], t0 + w * a[i + k]
        s1, t1 = s1 + v * a[i + K + k], t1 + w * a[i + K + k]
        s2, t2 = s2 + v * a[i + 2 * K + k], t2 + w * a[i + 2 * K + k]
        s3, t3 = s3 + v * a[i + 3 * K + k], t3 + w * a[i + 3 * K + k]
        j += step
    store(out, o, s0)
    store(out, o + LANES, t0)
    store(out, o + N, s1)
    store(out, o + N + LANES, t1)
    store(out, o + 2 * N, s2)
    store(out, o + 2 * N + LANES, t2)
    store(out, o + 3 * N, s3)
    store(out, o + 3 * N + LANES, t3)


@jit
def tiles(a, b, out):
    """Tile by tile."""
    (M, K), N = a.shape, b.shape[1]
    assert M % 4 == 0 and N % WIDTH == 0
    x, w, y = a.reshape(-1), b.reshape(-1), out.reshape(-1)
    for n in range(0, N, WIDTH):
        for m in range(0, M, 4):
            four_rows(x, m * K, K, w, n, N, y, m * N + n, N)
    return out


@jit
def panels(a, b, out):
    """The same tiles, reading copies of WIDTH columns of b in which row follows row."""
    (M, K), N = a.shape, b.shape[1]
    assert M % 4 == 0 and N % WIDTH == 0
    panel = aligned(K * WIDTH, a)
    x, w, y = a.reshape(-1), b.reshape(-1), out.reshape(-1)
    for n in range(0, N, WIDTH):
        for k in range(K):
            store(panel, k * WIDTH, load(w, k * N + n))
            store(panel, k * WIDTH + LANES, load(w, k * N + n + LANES))
        for m in range(0, M, 4):
            four_rows(x, m * K, K, panel, 0, WIDTH, y, m * N + n, N)
    return out


@jit
def large_tiles(a, b, out):
    """As many sums as there are registers for, and all panels made first: strips of `out` are then
    finished in order, each with one strip of `a`, which stays in the L1 cache."""
    (M, K), N = a.shape, b.shape[1]
    assert M >= gemm.ROWS
    copies, bias = aligned(K * gemm.up_to(N), a), np.zeros(gemm.up_to(N), a.dtype)
    gemm.to_panels(b.reshape(-1), 0, N, False, K, N, copies)
    gemm.multiply(a.reshape(-1), 0, K, M, copies, K, bias, out.reshape(-1), 0, N, N, False)
    return out


def kernel(a, b, out):
    """gemm.py: the panels in use at a time fit in the L2 cache, the terms of a strip in L1."""
    return gemm.linear_dx(a, b)


def blas(a, b, out):
    """What NumPy calls."""
    return np.matmul(a, b, out=out)


RUNGS = {
    "three loops": compiled_loops,
    "row by row": row_by_row,
    "tiles of 4 rows": tiles,
    "and panels": panels,
    f"tiles of {gemm.ROWS} rows": large_tiles,
    "and L2 blocks: the kernel": kernel,
    "BLAS": blas,
}
# Rows, inner size, columns: q, k and v of `quick`; the feed-forward network of `neo-41m`; an output
# layer of its width for the 8,000 tokens of `pretrain-2m`.
SHAPES = ((512, 128, 384), (512, 768, 3072), (512, 768, 8064))
FEW = 12  # rows are enough to see how slow the three loops are


def operands(M, K, N):
    """a (M, K), b (K, N) and an array for their product, float32, each from a cache line on."""
    rng = np.random.default_rng(0)
    a, b, out = gemm.empty(M, K), gemm.empty(K, N), gemm.empty(M, N)
    a[:], b[:], out[:] = rng.standard_normal((M, K)), rng.standard_normal((K, N)), np.nan
    return a, b, out


def error(product, a, b, out):
    """The largest difference from the product in float64, as a share of Σ |a| |b|."""
    y = product(a, b, out).astype(np.float64)
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float((np.abs(y - a @ b) / (np.abs(a) @ np.abs(b))).max())


def rates(calls, seconds):
    """GFLOP/s of each (product, a, b, out) in its shortest time, in turns for so many seconds."""
    times = [math.inf] * len(calls)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for n, (product, *arrays) in enumerate(calls):
            start = time.perf_counter()
            product(*arrays)
            times[n] = min(times[n], time.perf_counter() - start)
    return [
        2 * out.size * a.shape[1] / least / 1e9
        for (_, a, _, out), least in zip(calls, times, strict=True)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20, help="for each shape (default: 20)")
    args = parser.parse_args()
    columns = []
    with mt.Workers(1):  # one thread, BLAS's too
        for shape in SHAPES:
            a, b, out = operands(*shape)
            calls = [(product, a, b, out) for product in RUNGS.values()]
            calls[0] = (compiled_loops, a[:FEW], b, out[:FEW])
            for name, call in zip(RUNGS, calls, strict=True):
                assert error(*call) < 1e-6, name
            columns.append(rates(calls, args.seconds))
        a, b, out = operands(*SHAPES[0])
        python = rates([(three_loops, a[:FEW], b, out[:FEW])], 1)
    rows = [python, *zip(*columns, strict=True)]
    print(f"{'GFLOP/s':28}" + "".join(f"{f'{M} x {K} x {N}':>18}" for M, K, N in SHAPES))
    for name, row in zip(["three loops, in Python", *RUNGS], rows, strict=True):
        print(f"{name:28}" + "".join(f"{rate:18.4g}" for rate in row))


if __name__ == "__main__":
    main()
