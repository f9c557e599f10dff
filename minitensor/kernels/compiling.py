"""How kernels are compiled: serial, without the GIL, vectorised, and kept on disk.

The cache lives in a user folder whose name holds a hash of every kernel's source and of the
versions and processor it was compiled for: an edited, upgraded or moved kernel can never meet an
old binary, and kernels may share helpers across files (numba's own cache looks at one file only).
A kernel may be written elsewhere: its file's name then holds the hash of that source, too, so its
helpers are to be in that source or in this folder.

What lies in the cache is unpickled and run. So it is used only where nobody but this user can
write, and every entry opens with its checksum: a flipped bit would end the process by a signal.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import inspect
import io
import math
import os
import pickle
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import llvmlite.binding as llvm
import numba
import numpy as np
from numba import types
from numba.core import caching, cgutils, environment
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, CompileResult
from numba.core.runtime import _nrt_python as memory
from numba.extending import intrinsic, overload

from minitensor.files import replacing

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

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
PATIENCE = 60.0  # seconds that another process may take to compile a function


def _fingerprint() -> str:
    digest = hashlib.sha256()
    here: Any = HERE
    if not here.is_dir():  # imported from a zip
        import importlib.resources

        here = importlib.resources.files(__package__)
    sources = {path.name: path for path in here.iterdir() if path.name.endswith(".py")}
    for name in sorted(sources):
        digest.update(sources[name].read_bytes())
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


def cache_folder() -> Path | None:
    """The folder of this version's compiled kernels, made; None, and a line that says so, where
    there is none that this user alone can write.
    """
    try:
        base = _base_folder()
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = base / f"kernels-{_fingerprint()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        doubt = _doubt(folder)
        if not doubt:
            with tempfile.TemporaryFile(dir=folder):
                return folder
    except (OSError, RuntimeError) as error:  # not writable, or no home folder
        doubt = str(error)
    with contextlib.suppress(OSError, AttributeError):  # standard error may be full, or closed
        sys.stderr.write(
            f"minitensor: compiled kernels are not kept ({doubt}); set MINITENSOR_CACHE to a "
            "folder of your own\n"
        )
    return None


def _doubt(folder: Path) -> str:
    """Why others could put files into `folder`, which lies in the folder to be named; "" if not.

    Both are to be this user's or root's, and closed to others. A folder above them that is open to
    all, where not sticky as /tmp is, would let anybody put others in their place.
    """
    if not hasattr(os, "geteuid"):  # Windows: the cache is in the user's profile
        return ""
    if folder.is_symlink():
        return f"{folder} is a link"
    for path in (folder, folder.parent):
        status = path.stat()
        if status.st_uid not in (0, os.geteuid()):
            return f"{path} belongs to another user"
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"{path} can be written by others"
    for path in folder.resolve().parents[1:]:
        mode = path.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return f"{path} can be written by others"
    return ""


FOLDER = cache_folder()


def cached(names: str) -> bool:
    """Whether any kernel of such a name, with wildcards, is compiled already."""
    return FOLDER is not None and any(FOLDER.glob(f"{names}.nbc"))


def _source_hash(fn: Callable[..., Any]) -> str | None:
    """The hash of the module that `fn` was written in, by name and source; None if that was typed
    at a prompt, or is in no `sys.modules`, where what is loaded would look for it by its name.
    """
    if fn.__module__ not in sys.modules:
        return None
    try:
        source = fn.__globals__["__loader__"].get_data(fn.__code__.co_filename)
    except (KeyError, AttributeError, OSError):
        return None
    return hashlib.sha256(fn.__module__.encode() + b"\n" + source).hexdigest()


class Wait:
    """What a wait is for and how long it takes, told in a line; and again where something else has
    to be compiled after half a minute without."""

    AGAIN = 30.0  # seconds
    PATIENT = 1.0  # seconds that another process is waited for without a word

    def __init__(self) -> None:
        self.parts: dict[str, float] = {"*": 15.0}  # as `expect` has them
        self.last = -math.inf  # when there was something to tell

    def expect(self, parts: dict[str, float]) -> None:
        """Say what the command needs: patterns of kernels' names, each with the seconds that
        compiling takes on one core of a machine of today. One counts as long as the cache has no
        kernel of such a name.
        """
        self.parts = parts

    def tell(self, doing: str) -> None:
        """Announce the wait."""
        before, self.last = self.last, time.monotonic()
        if self.last - before < self.AGAIN:
            return
        seconds = sum(seconds for names, seconds in self.parts.items() if not cached(names))
        once = ", once" if FOLDER else ""
        long = f"about {seconds:.0f} s" if seconds else "some seconds"
        with contextlib.suppress(OSError, AttributeError):  # standard error may be full, or closed
            sys.stderr.write(f"minitensor: {doing}{once}: {long}…\n")
            sys.stderr.flush()


WAIT = Wait()


@functools.cache
def _name_memory() -> None:
    """Tell LLVM where the functions are with which compiled code allocates and frees arrays.

    It is what numba begins its own `rtsys.initialize` with, which goes on to compile what new code
    is linked with: 60 ms and 30 MB that a process does not need whose kernels are all in the cache.
    """
    for name, address in memory.c_helpers.items():
        llvm.add_symbol(name if name.startswith("_") else f"NRT_{name}", address)


class _Unpickler(pickle.Unpickler):
    """Reads what the cache keeps, without importing what only compiling needs."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_rebuild_env":
            return _environment
        return super().find_class(module, name)


def _environment(module: str, consts: list[Any], name: str) -> Any:
    """numba's `_rebuild_env`, which imports the module of every function that was compiled into
    another: 40 ms and 5 MB for names that compiled code, other than interpreted code, never asks
    for."""
    found = environment.lookup_environment(name)
    if found is None:
        known = sys.modules.get(module)
        found = environment.Environment(vars(known) if known else {"__name__": module})
        found.consts[:] = consts
        found.env_name = name
        environment.Environment._memo[name] = found
    return found


class _Entries(caching.FunctionCache):
    """numba's cache for one function, with a file for each signature and no index beside them.

    A file is the checksum of the rest, then, pickled, the names of the shared functions that are
    called, and what numba keeps.
    """

    DIGEST = 32  # bytes

    def __init__(self, fn: Callable[..., Any]):
        self._py_func = fn
        self._claims: dict[Path, int] = {}
        path = Path(fn.__code__.co_filename)
        self.name = f"{path.stem}.{fn.__name__}-{fn.__code__.co_firstlineno}"
        self.elsewhere = "" if path.parent == HERE else _source_hash(fn)

    def _path(self, signature: Any, codegen: Any) -> Path | None:
        if FOLDER is None or self.elsewhere is None:
            return None
        key = repr((self.elsewhere, self._index_key(signature, codegen))).encode()
        return FOLDER / f"{self.name}.{hashlib.sha256(key).hexdigest()[:16]}.nbc"

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function; None where there is none, or not the one that was written.

        If another process is compiling it, what that one keeps is waited for.
        """
        _name_memory()  # what else numba loads, only compiling needs
        path = self._path(sig, target_context.codegen())
        found = self._load(path, target_context)
        if found is None and path:
            self._claim(path)
            found = self._load(path, target_context)
        if found is None:
            WAIT.tell("compiling kernels")
        else:
            self._release(path)
        return found

    def _claim(self, path: Path) -> None:
        """Wait until no other process compiles a function, and keep others from it.

        The lock goes with the process, however it ends. Where it cannot be had, in time or at all,
        both compile: the same code, of which the later is kept.
        """
        if fcntl is None or path in self._claims:
            return
        begin = time.monotonic()
        with contextlib.suppress(OSError):
            claim = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
            self._claims[path] = claim
            while (waited := time.monotonic() - begin) < PATIENCE:
                try:
                    return fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if waited > WAIT.PATIENT:
                        WAIT.tell("another process is compiling kernels")
                    time.sleep(0.02)

    def _release(self, path: Path | None) -> None:
        """Let others look for a function that is there now, or that is not to be kept."""
        claim = self._claims.pop(path, None) if path else None
        if path and claim is not None:
            with contextlib.suppress(OSError):
                path.with_suffix(".lock").unlink()
            os.close(claim)

    def _load(self, path: Path | None, target_context: Any) -> Any:
        try:
            data = path.read_bytes() if path else b""
        except OSError:
            data = b""
        digest, rest = data[: self.DIGEST], data[self.DIGEST :]
        if hashlib.sha256(rest).digest() != digest:
            return None
        try:
            calls, compiled = _Unpickler(io.BytesIO(rest)).load()
            for name in calls:
                SHARED[name]()
            return CompileResult._rebuild(target_context, *compiled)
        except (ImportError, KeyError):  # it calls what cannot be imported by its module's name
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled function; where that fails, it is compiled again the next time."""
        path = self._path(sig, data.codegen)
        if path is not None and not data.library.has_dynamic_globals:
            self._write(path, data)
        self._release(path)

    def _write(self, path: Path, data: Any) -> None:
        """Machine code, without what numba would need to compile it into others, or to show it."""
        module, defined = data.library._final_module, data.library.get_defined_functions()
        names = "\n".join(f'define void @"{f.name}"() {{ ret void }}' for f in defined)
        data.library._shared_module = llvm.parse_assembly(names)
        calls = [f.name for f in module.functions if f.is_declaration and f.name in SHARED]
        kept = data._replace(type_annotation="")._reduce()
        rest = numba.core.serialize.dumps((calls, kept))
        with contextlib.suppress(OSError), replacing(path, durable=False) as temporary:
            temporary.write_bytes(hashlib.sha256(rest).digest() + rest)


class Kernel:
    """A compiled function."""

    def __init__(self, fn: Callable[..., Any]):
        self.fn = fn
        self.__doc__ = fn.__doc__
        self.__name__ = fn.__name__
        self.call = numba.njit(fastmath=FASTMATH, nogil=True, error_model="numpy")(fn)
        self.call._cache = self.entries = _Entries(fn)

    def files(self) -> list[Path]:
        """What the cache has of this kernel; nothing, if it is still to be compiled."""
        return [] if FOLDER is None else list(FOLDER.glob(f"{self.entries.name}.*.nbc"))

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)


def jit(fn: Callable[..., Any]) -> Kernel:
    """Compile `fn` on its first call, for the dtypes it is called with."""
    return Kernel(fn)


# What compiles, or loads, a shared function and tells LLVM where it is; by the name it has there.
SHARED: dict[str, Callable[[], Any]] = {}


def shared(*arguments: types.Type) -> Callable[[Kernel], Any]:
    """Let other kernels call a kernel, for arguments of these types, where it lies.

    What a kernel calls is compiled into it, and so once for each caller. The large parts are better
    compiled once: LLVM gets their name only, and their address when the caller is loaded.
    """

    def share(kernel: Kernel) -> Any:
        name = f"{kernel.fn.__module__}.{kernel.__name__}"

        @functools.cache
        def compiled() -> Any:
            kernel.call.compile(arguments)
            result = kernel.call.overloads[arguments]
            address = result.library.get_pointer_to_function(result.fndesc.llvm_func_name)
            llvm.add_symbol(name, address)
            return result

        SHARED[name] = compiled

        def typing(typingctx: Any, *rest: Any) -> Any:
            returns = compiled().signature.return_type

            def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                convention = context.call_conv
                kind = convention.get_function_type(returns, arguments)
                callee = cgutils.get_or_insert_function(builder.module, kind, name)
                status, result = convention.call_function(builder, callee, returns, arguments, args)
                with cgutils.if_unlikely(builder, status.is_error):
                    convention.return_status_propagate(builder, status)
                return result

            return returns(*arguments), codegen

        parameters = inspect.signature(kernel.fn).parameters.values()
        context = inspect.Parameter("typingctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        typing.__signature__ = inspect.Signature([context, *parameters])  # type: ignore[attr-defined]
        typing.__name__, typing.__doc__ = kernel.__name__, kernel.__doc__
        return intrinsic(typing)

    return share


def compile_shared() -> None:
    """Compile, or load, all that kernels of this package share."""
    importlib.import_module("minitensor.kernels.sublayer")  # imports all that share
    for name, compiled in SHARED.items():
        if name.startswith(str(__package__)):
            compiled()


class _Within(JITCodeLibrary):
    """The code of a function that only kernels call. It is linked into theirs: machine code of its
    own, a third of all that would be emitted, would never run.
    """

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True

    @property
    def codegen(self) -> Any:
        """Asked for when machine code is told its environment, of which there is none here."""
        return self

    def set_env(self, name: str, environment: Any) -> None:
        """Nothing, see `codegen`."""


class _Compiler(Compiler):
    """Compiles a function for kernels to call."""

    def compile_extra(self, func: Callable[..., Any]) -> Any:
        self.state.library = _Within(self.state.targetctx.codegen(), func.__qualname__)
        return super().compile_extra(func)


# LLVM must inline these for the loops around them to be vectorised.
INLINE = {
    "pipeline_class": _Compiler,
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
