"""Call every kernel wrongly, beside memory that must not be touched, and see what happens.

    python benchmarks/wrong_shapes.py [--calls 100000] [--seed N]

Half of the calls are of kernels, drawn from their declarations, so a new one is here by itself;
half are of the ops that use them, with their gradients. Most are made wrong in one place or two: an
axis longer, shorter, empty, missing or turned; another dtype; strides; an array that may not be
written, lies askew or is mapped from a file; a number out of bounds or of another kind. Each call
runs in a child process, whose arrays end (or begin) right at a page of memory that may not be
touched, and those that may not be written lie in pages that cannot be. It runs once with numba and
once with NumPy, and must give the same error, in the same words, or the same result: arrays of the
same shapes and dtypes, and the same numbers up to rounding where none that went in is beyond 1e6.
The script exits with status 1 if a call did not, or if it ended its process.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import mmap
import os
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import minitensor as mt  # noqa: E402
from minitensor import kernels  # noqa: E402
from minitensor.kernels import contract  # noqa: E402

PAGE = mmap.PAGESIZE
NOTHING, READ = 0, 1  # what mprotect may allow
SIZES = [0, 1, 2, 3, 4, 5, 8, 15, 16, 17, 24, 31, 32, 33, 48, 64]
WRONG = [None, True, 0, 1, -1, 2, 7, 2**50, 2**70, 0.5, -0.5, np.nan, np.inf, 1e300, "x",
         np.float32(2), np.int64(3), np.zeros(3), (1, 2)]  # fmt: skip
DTYPES = ["float16", "float32", "float64", ">f4", "int64", "int8", "uint8", "bool", "complex64"]
INEXACT = [  # they are handed what no forward saved, of which the two sides use different parts
    "attention_backward",
    "attention_sublayer_backward",
    "feed_forward_sublayer_backward",
]


# ------------------------------------------------------------------------------ guarded memory


def protect(address: int, size: int, rights: int) -> None:
    """Say what may be done with whole pages."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), rights):
        raise OSError(ctypes.get_errno(), "mprotect")


def fenced(x: np.ndarray, how: str = "") -> np.ndarray:
    """A copy of x with the same strides between two pages that must not be touched. `how` may hold
    "low" (at the lower page), "askew" (a byte off) and "fixed" (not to be written)."""
    step = [s if n > 1 else 0 for s, n in zip(x.strides, x.shape, strict=True)]
    first = sum(s * (n - 1) for s, n in zip(step, x.shape, strict=True) if s < 0)
    span = sum(abs(s) * (n - 1) for s, n in zip(step, x.shape, strict=True)) + x.itemsize
    span = span if x.size else 0
    pages = max(1, -(-(span + 1) // PAGE))
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    askew = "askew" in how
    begin = PAGE + askew if "low" in how else (pages + 1) * PAGE - span - askew
    y = np.ndarray(x.shape, x.dtype, memory, begin - first, x.strides)
    if x.size:
        y[...] = x
    protect(address, PAGE, NOTHING)
    protect(address + (pages + 1) * PAGE, PAGE, NOTHING)
    if "fixed" in how:
        y.flags.writeable = False
        protect(address + PAGE, pages * PAGE, READ)
    return y


def mapped(x: np.ndarray) -> np.ndarray:
    """A copy of x in a file that is mapped for reading."""
    if not x.size:
        return x
    with tempfile.TemporaryFile() as file:
        file.write(np.ascontiguousarray(x).tobytes())
        file.flush()
        return np.memmap(file, x.dtype, "r", shape=x.shape)


# ------------------------------------------------------------------------------ drawing a call


def draw_by(check: Any, rng: Any, sizes: dict[str, Any], dtype: str) -> Any:
    """An argument that fits its declaration."""
    if isinstance(check, contract.Optional):
        return None if rng.random() < 0.4 else draw_by(check.some, rng, sizes, dtype)
    if isinstance(check, contract.Bundle):
        x = check.kind._make([draw_by(field, rng, sizes, dtype) for field in check.fields])
        return x if not hasattr(x, "centred") or x.centred else x._replace(bias=None)
    if isinstance(check, contract.ArrayOf):
        for _, letter in check.letters:
            sizes.setdefault(letter, int(rng.choice(SIZES[:12] if letter in "BT" else SIZES)))
        shape = [int(contract.formula(d)(sizes)) for d in check.dims]
        if isinstance(check, contract.Indices):
            size = sizes.setdefault(check.size, int(rng.choice(SIZES)))
            ids = rng.integers(0, max(size, 1), shape)
            return np.where(rng.random(shape) < 0.2, sizes.get(check.other, ids), ids)
        return rng.normal(size=shape).astype(dtype)
    if isinstance(check, contract.Integer):
        low = max(check.low, -3)
        return sizes.setdefault(check.letter, int(low + rng.integers(0, 4)))
    if isinstance(check, contract.Real):
        return float(min(rng.choice([1.0, 1.25, 0.5 + max(check.low, 0)]), check.high - 0.1))
    if isinstance(check, contract.Uint32):
        return np.uint32(rng.choice([0, 1, 2**30, 2**31, 2**32 - 1]))
    return bool(rng.integers(2))


def kernel_call(rng: Any) -> tuple[str, list[Any], dict[str, Any]]:
    """A kernel and arguments that fit it."""
    name = str(rng.choice(list(kernels.KERNELS)))
    declared, sizes = kernels.KERNELS[name], {}
    K = int(rng.integers(1, 4))
    sizes.update(K=K, H=K * int(rng.integers(1, 3)), d=2 * int(rng.integers(0, 10)))
    sizes.update(ignore_index=-100, rows=int(rng.choice(SIZES)), step=1 + int(rng.integers(3)))
    dtype = str(rng.choice(["float32", "float32", "float64"]))
    return name, [draw_by(check, rng, sizes, dtype) for check in declared.checks], {}


def load_cases() -> dict[str, Any]:
    """The calls of ops that tests/minitensor/test_kernels.py compares."""
    path = ROOT / "tests" / "minitensor" / "test_kernels.py"
    spec = importlib.util.spec_from_file_location("test_kernels", path)
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CASES


CASES = load_cases()


def op_call(rng: Any) -> tuple[Any, list[Any], dict[str, Any]]:
    """An op and arguments that fit it."""
    dtype = str(rng.choice(["float32", "float32", "float64"]))
    op, inputs, options = CASES[str(rng.choice(list(CASES)))](dtype)
    return (
        op,
        [x.astype(dtype) if x is not None and x.dtype.kind == "f" else x for x in inputs],
        dict(options),
    )


def reshaped(x: np.ndarray, rng: Any) -> np.ndarray:
    """x with another shape."""
    way, axis = rng.integers(7), int(rng.integers(max(x.ndim, 1)))
    if way == 0 or not x.ndim:
        return x[None]
    if way == 1:
        return x[0] if len(x) else x.reshape(-1)
    if way == 2:
        return np.ascontiguousarray(x.swapaxes(axis, -1) if x.ndim > 1 else x[::-1])
    if way == 3:
        return x.reshape(-1)
    size = [0, max(x.shape[axis] - 1, 0), x.shape[axis] + 1, 2 * x.shape[axis] + 1][
        int(rng.integers(4))
    ]
    return np.resize(x, (*x.shape[:axis], size, *x.shape[axis + 1 :]))


def strided(x: np.ndarray, rng: Any) -> np.ndarray:
    """x with the same numbers, or some of them repeated, and other strides."""
    way = rng.integers(4)
    if way == 0:
        return np.repeat(x, 2, axis=-1)[..., ::2] if x.ndim else x
    if way == 1:
        return np.asfortranarray(x)
    if way == 2:
        return x[::-1] if x.ndim else x
    return np.broadcast_to(x[:1], x.shape) if x.ndim and len(x) else x


def spoil(x: Any, rng: Any) -> Any:
    """Another argument, which may or may not fit."""
    if isinstance(x, tuple) and x and rng.random() < 0.95:
        fields = list(x)
        i = int(rng.integers(len(fields)))
        fields[i] = spoil(fields[i], rng)
        return type(x)._make(fields) if hasattr(x, "_fields") else type(x)(fields)
    if not isinstance(x, np.ndarray) or rng.random() < 0.03:
        return WRONG[int(rng.integers(len(WRONG)))]
    way = rng.integers(5)
    if way <= 1:
        return reshaped(x, rng)
    if way == 2:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dtype = str(rng.choice(DTYPES))
            if dtype[0] in "ub":  # a few ones and twos: not 255 for -1, nor True nearly everywhere
                x = np.where(np.abs(x) > 1.5, np.abs(x), 0)
            return x.astype(dtype)
    if way == 3:
        return strided(x, rng)
    y = x.copy()
    if y.size and y.dtype == np.int64:
        y.flat[rng.integers(y.size)] = rng.choice([-1, -100, -(2**62), 2**31, 2**62])
    return y


class Layout:
    """How the arrays of a call lie in memory: the same for both sides."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)

    def place(self, x: Any) -> Any:
        if isinstance(x, tuple):
            fields = [self.place(v) for v in x]
            return type(x)._make(fields) if hasattr(x, "_fields") else type(x)(fields)
        if not isinstance(x, np.ndarray):
            return x
        draw = self.rng.random()
        if draw < 0.03:
            return mapped(x)
        how = "low " * (self.rng.random() < 0.2)
        return fenced(x, how + "askew" * (0.03 < draw < 0.06) + "fixed" * (0.06 < draw < 0.2))


# ---------------------------------------------------------------------------- making the call


def arrays_in(x: Any) -> list[Any]:
    """All arrays, numbers and Nones of a result, in order."""
    if isinstance(x, (tuple, list)):
        return [a for v in x for a in arrays_in(v)]
    return [x]


def outcome(side: str, what: Any, args: list[Any], options: dict[str, Any], seed: int) -> Any:
    """The error of a call in words, or its results and what is in its arguments afterwards."""
    layout = Layout(seed)
    args = [layout.place(x) for x in args]
    options = {k: layout.place(v) for k, v in options.items()}
    try:
        if isinstance(what, str):
            result = kernels.twin(what, side)(*args)
            return [*arrays_in(result), *arrays_in(tuple(args))]
        xs = [
            mt.Tensor._wrap(x).requires_grad_()  # as it lies: the constructor copies
            if isinstance(x, np.ndarray) and x.dtype.kind == "f" and x.dtype.itemsize > 2
            else x
            for x in args
        ]
        y = what(*xs, **options)
        leaves = [x for x in xs if isinstance(x, mt.Tensor)]
        weights = np.cos(np.arange(y.size)).reshape(y.shape)
        grads = mt.grad(y, leaves, weights) if y.requires_grad else []
        return [y.data, *grads, *(x.data for x in leaves)]
    except Exception as error:  # of any kind, so long as it is the same
        words = "" if isinstance(error, MemoryError) else str(error)
        return f"{type(error).__name__}: {words}"


def alike(a: Any, b: Any, values: bool) -> bool:
    """Whether two outcomes are the same, numbers up to rounding."""
    if isinstance(a, str) or isinstance(b, str):
        return bool(isinstance(a, str) and isinstance(b, str) and a == b)
    if len(a) != len(b):
        return False
    for x, y in zip(a, b, strict=True):
        if isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
            if np.shape(x) != np.shape(y) or getattr(x, "dtype", 0) != getattr(y, "dtype", 0):
                return False
        elif (x is None) != (y is None):
            return False
        if not values or x is None or not np.size(x) or np.asarray(x).dtype.kind not in "fiub":
            continue
        p, q = np.asarray(x, np.float64), np.asarray(y, np.float64)
        finite = q[np.isfinite(q)]
        size = max(1.0, float(np.abs(finite).max()) if finite.size else 0.0)
        loose = 1e-9 if getattr(x, "dtype", None) == np.float64 else 2e-4
        if not np.allclose(p, q, rtol=loose, atol=loose * size, equal_nan=True):
            return False
    return True


def tame(x: Any) -> bool:
    """Whether a value is no number that leaves nothing of others but rounding, or overflows; nor an
    array of integers with one in it, which `spoil` puts there."""
    if isinstance(x, np.ndarray):
        return x.dtype.kind not in "iu" or not x.size or float(np.abs(x.astype(float)).max()) < 1e6
    number = isinstance(x, (int, float, np.number)) and not isinstance(x, np.uint32)
    return not number or abs(float(x)) < 1e6


def one(seed: int, i: int, tally: Counter[str]) -> str:
    """Make call number i with both sides; what is wrong, if something is."""
    rng = np.random.default_rng((seed, i))
    what, args, options = kernel_call(rng) if rng.random() < 0.5 else op_call(rng)
    for _ in range(int(rng.choice([0, 1, 1, 1, 2]))):
        place = int(rng.integers(len(args) + len(options)))
        if place < len(args):
            args[place] = spoil(args[place], rng)
        else:
            key = list(options)[place - len(args)]
            options[key] = spoil(options[key], rng)
    layout = int(rng.integers(2**31))
    results = []
    for side in ("numpy", "numba"):
        with kernels.using(side), np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results.append(outcome(side, what, args, options, layout))
    tally["refused" if isinstance(results[0], str) else "computed"] += 1
    numbers = arrays_in((tuple(args), tuple(options.values())))
    if alike(*results, values=what not in INEXACT and all(map(tame, numbers))):
        return ""
    name = what if isinstance(what, str) else f"mt.{what.name}"
    told = [r if isinstance(r, str) else [contract.described(x) for x in r] for r in results]
    given = [contract.described(x) for x in arrays_in((tuple(args), tuple(options.items())))]
    return f"call {i} of {name}({', '.join(given)}):\n    numpy {told[0]}\n    numba {told[1]}"


def child(seed: int, first: int, last: int) -> int:
    """Calls from `first` to `last`; says which it is at, so that the parent knows if it dies."""
    tally: Counter[str] = Counter()
    wrong = 0
    for i in range(first, last):
        os.pwrite(1, b"%-20d" % i, 0)
        if text := one(seed, i, tally):
            wrong += 1
            print(text, file=sys.stderr, flush=True)
    os.pwrite(1, b"%-20d%d %d %d" % (last, tally["refused"], tally["computed"], wrong), 0)
    return 0


def run(calls: int, seed: int, first: int = 0) -> dict[str, int]:
    """All calls, in as many child processes as it takes."""
    total = {"refused": 0, "computed": 0, "disagreed": 0, "killed": 0}
    end, size = first + calls, 5000
    while first < end:
        last = min(first + size, end)
        with tempfile.TemporaryFile() as at:
            span = ["--child", str(first), str(last), "--seed", str(seed)]
            done = subprocess.run([sys.executable, str(Path(__file__)), *span], stdout=at)
            at.seek(0)
            text = at.read().decode()
        where = int(text[:20] or first)
        if done.returncode == 0:
            for key, count in zip(total, map(int, text[20:].split()), strict=False):
                total[key] += count
            first = last
        else:
            print(f"call {where} ended its process with status {done.returncode}", file=sys.stderr)
            total["killed"] += 1
            first = where + 1
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first call")
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.seed, *options.child)
    total = run(options.calls, options.seed, options.first)
    print(f"{options.calls} calls:", ", ".join(f"{n} {what}" for what, n in total.items()))
    return 1 if total["disagreed"] or total["killed"] else 0


if __name__ == "__main__":
    sys.exit(main())
