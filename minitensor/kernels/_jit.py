"""How kernels are compiled: serial, without the GIL, vectorised, and kept on disk.

The cache lives in a user folder whose name holds a hash of every kernel's source and of the
versions and processor it was compiled for: an edited, upgraded or moved kernel can never meet an
old binary, and kernels may share helpers across files (numba's own cache looks at one file only).
A kernel may be written elsewhere: its folder's name then holds the hash of that file, too, so its
helpers are to be in that file or in this folder.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import llvmlite.binding as llvm
import numba
import numpy as np
from numba import types
from numba.extending import overload

F = TypeVar("F", bound=Callable[..., Any])

# All that LLVM needs to vectorise sums and fuse multiply-adds; nnan and ninf are left out, so that
# a NaN or an infinity in the data stays visible.
FASTMATH = {"reassoc", "contract", "arcp", "nsz", "afn"}


def _prefer_wide_vectors() -> None:
    """LLVM keeps to 256-bit vectors on AVX-512 machines; these kernels gain a quarter with 512."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f") and not numba.config.CPU_FEATURES:
        numba.config.CPU_NAME = llvm.get_host_cpu_name()
        numba.config.CPU_FEATURES = features.flatten() + ",-prefer-256-bit"


_prefer_wide_vectors()


HERE = Path(__file__).parent


def _fingerprint(elsewhere: Path | None) -> str:
    digest = hashlib.sha256()
    for path in [*sorted(HERE.glob("*.py")), *([elsewhere] if elsewhere else [])]:
        digest.update(path.read_bytes())
    digest.update(
        f"{numba.__version__} {np.__version__} {sys.version} {llvm.get_host_cpu_name()} "
        f"{llvm.get_host_cpu_features().flatten()}".encode()
    )
    return digest.hexdigest()[:16]


def _base_folder() -> Path:
    if os.environ.get("MINITENSOR_CACHE"):
        return Path(os.environ["MINITENSOR_CACHE"])
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "minitensor"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "minitensor"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minitensor"


@functools.cache
def cache_folder(elsewhere: Path | None = None) -> Path:
    """The folder of this version's compiled kernels, made; a temporary one as the last resort.

    `elsewhere` is the source of kernels that are not in this folder.
    """
    for base in (_base_folder, lambda: Path(tempfile.gettempdir()) / f"minitensor-{os.getpid()}"):
        try:
            folder = base() / f"kernels-{_fingerprint(elsewhere)}"
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except (OSError, RuntimeError):  # not writable, or no home folder
            continue
    raise OSError(
        "no folder for compiled kernels can be written; set MINITENSOR_CACHE to one, or "
        "MINITENSOR_KERNELS=numpy to do without them"
    )


FOLDER = cache_folder()


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(folder)
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


class Kernel:
    """A compiled function; a corrupt cache entry is dropped and compiled again."""

    def __init__(self, fn: Callable[..., Any]):
        self.fn = fn
        self.__doc__ = fn.__doc__
        self.__name__ = fn.__name__
        source = Path(fn.__code__.co_filename)
        self.folder = FOLDER if source.parent == HERE else cache_folder(source)
        self.call = self._compile()

    def _compile(self) -> Callable[..., Any]:
        with _cache_in(self.folder):
            return numba.njit(fastmath=FASTMATH, nogil=True, cache=True, error_model="numpy")(
                self.fn
            )

    def files(self) -> list[Path]:
        """What the cache has of this kernel; nothing, if it is still to be compiled."""
        return list(self.folder.rglob(f"*.{self.__name__}-*.nb*"))

    def __call__(self, *args: Any) -> Any:
        try:
            return self.call(*args)
        except Exception as error:
            # A broken cache file can surface as nearly any exception of pickle or LLVM. Drop this
            # kernel's files and compile once more: a real fault then shows itself again. The
            # folders stay, since other kernels have looked them up already.
            files = self.files()
            if not files or isinstance(error, numba.core.errors.TypingError):
                raise
            for file in files:
                file.unlink(missing_ok=True)
            self.call = self._compile()
            return self.call(*args)


def jit(fn: Callable[..., Any]) -> Kernel:
    """Compile `fn` on its first call, for the dtypes it is called with."""
    return Kernel(fn)


# LLVM must inline these for the loops around them to be vectorised.
INLINE = {
    "fastmath": FASTMATH,
    "nogil": True,
    "error_model": "numpy",
    "forceinline": True,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}  # Python never calls them
inline = numba.njit(**INLINE)
# And must not inline these: rarely run code would take registers from the loops around it.
outlined = numba.njit(**{**INLINE, "forceinline": False})


# ------------------------------------------------------------------------------- shared arithmetic


def exp(x: Any) -> Any:
    """e**x; for float32 a polynomial that LLVM can vectorise (libm's cannot be), within 2 ulp."""
    return math.exp(x)


f32, i32, u32 = np.float32, np.int32, np.uint32


@overload(exp, jit_options=INLINE)
def _exp(x):  # type: ignore[no-untyped-def]
    if x != types.float32:
        return lambda x: math.exp(x)

    def impl(x):  # type: ignore[no-untyped-def]
        # Cephes: e**x = 2**n e**r with |r| <= ln(2)/2, ln 2 split in two for exactness. The
        # comparisons are written so that NaN passes through.
        y = f32(-87.3) if x < f32(-87.3) else x
        y = f32(88.7) if y > f32(88.7) else y
        n = np.floor(y * f32(1.44269504088896341) + f32(0.5))
        r = y - n * f32(0.693359375) + n * f32(2.12194440e-4)
        p = f32(1.9875691500e-4)
        p = p * r + f32(1.3981999507e-3)
        p = p * r + f32(8.3334519073e-3)
        p = p * r + f32(4.1665795894e-2)
        p = p * r + f32(1.6666665459e-1)
        p = p * r + f32(5.0000001201e-1)
        p = p * (r * r) + r + f32(1)
        # 2**n in two factors, since 2**128 does not fit: its exponent is built by hand.
        half = i32(n) >> i32(1)
        a = i32((half + i32(127)) << i32(23)).view(np.float32)
        b = i32((i32(n) - half + i32(127)) << i32(23)).view(np.float32)
        return f32(0) if x < f32(-87.3) else (f32(np.inf) if x > f32(88.7) else p * a * b)

    return impl


def bell(z: Any) -> Any:
    """e**(−z²/2); for float32 within 2e-7 absolute."""
    return math.exp(-z * z / 2)


@overload(bell, jit_options=INLINE)
def _bell(z):  # type: ignore[no-untyped-def]
    if z != types.float32:
        return lambda z: math.exp(-z * z / 2)

    def impl(z):  # type: ignore[no-untyped-def]
        # 2**t for t ≤ 0 with the polynomial of simd.py, half the work of `exp`. NaN
        # passes through the comparison.
        t = z * z * f32(-0.5 / math.log(2))
        t = f32(-126) if t < f32(-126) else t
        n = np.floor(t + f32(0.5))
        r = t - n
        p = f32(0.000153458075)
        p = p * r + f32(0.00133999312)
        p = p * r + f32(0.00961848897)
        p = p * r + f32(0.0555032878)
        p = p * r + f32(0.240226469)
        p = p * r + f32(0.693147206)
        p = p * r + f32(1)
        return p * i32((i32(n) + i32(127)) << i32(23)).view(np.float32)

    return impl


def typed(like: Any, value: float) -> Any:
    """The number `value` in the type of `like`: a float64 constant would widen float32."""
    return type(like)(value)


@overload(typed, jit_options=INLINE)
def _typed(like, value):  # type: ignore[no-untyped-def]
    number = np.float32 if like == types.float32 else np.float64
    return lambda like, value: number(value)


@inline
def hash32(c, k0, k1):  # type: ignore[no-untyped-def]
    """32 well-mixed bits of a counter and a 64-bit key given in halves (see random.py)."""
    x = u32(c + k0)
    x = u32(u32(x ^ u32(x >> u32(16))) * u32(0x7FEB352D))
    x = u32(x + k1)
    x = u32(u32(x ^ u32(x >> u32(15))) * u32(0x846CA68B))
    return u32(x ^ u32(x >> u32(16)))


def erf(x: Any) -> Any:
    """The error function; for float32 a quotient of polynomials, within 3.6e-7 absolute."""
    return math.erf(x)


@overload(erf, jit_options=INLINE)
def _erf(x):  # type: ignore[no-untyped-def]
    if x != types.float32:
        return lambda x: math.erf(x)

    def impl(x):  # type: ignore[no-untyped-def]
        # erf(x) = x P(x²) / Q(x²) up to 4, from where it is 1 in float32; P and Q were fitted to
        # minimise the largest relative error (2.5e-8; the rest is rounding).
        t = min(max(x, f32(-4)), f32(4))
        s = t * t
        p = f32(1.98676492e-06)
        p = p * s + f32(2.84564614e-04)
        p = p * s + f32(3.88334523e-03)
        p = p * s + f32(5.31017496e-02)
        p = p * s + f32(1.93545294e-01)
        p = p * s + f32(1.12837914)
        q = f32(3.7419923e-05)
        q = q * s + f32(1.18556886e-03)
        q = q * s + f32(1.52072562e-02)
        q = q * s + f32(1.15350071e-01)
        q = q * s + f32(5.04857607e-01)
        q = q * s + f32(1)
        return np.copysign(f32(1), x) if abs(x) >= f32(4) else t * p / q

    return impl
