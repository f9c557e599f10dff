"""The hot loops. Every kernel has a NumPy side, the formula to read, and a numba side, its twin.

``kernels.rms_norm(...)`` is the numba side, or the NumPy one where the environment says
``MINITENSOR_KERNELS=numpy``. The NumPy sides are in reference.py, and in composed.py those that are
made of other kernels; each with its declaration, against which contract.py checks every call. There
is no other way into these: ops, optimisers and tests call ``kernels.NAME``. (The compiled decoder
of a whole GPT is a kernel too, but tinygpt's: tinygpt/model/decode_kernels.py.) numba is imported
when a kernel is first called, not before. ``help(kernels.linear)`` shows what a kernel takes.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from minitensor.kernels.contract import KERNELS


def backend() -> str:
    """Which twins are in use: "numba" or "numpy"."""
    name = os.environ.get("MINITENSOR_KERNELS", "numba")
    if name not in ("numba", "numpy"):
        raise ValueError(f"MINITENSOR_KERNELS is {name!r}; it must be 'numba' or 'numpy'")
    return name


@functools.cache
def twin(name: str, which: str) -> Any:
    """One kernel from the side named: "numba" or "numpy"."""
    return KERNELS[name].side(which)


def forget() -> None:
    """Look at the environment again: kernels are looked up once and kept."""
    for name in KERNELS:
        globals().pop(name, None)


@contextmanager
def using(which: str) -> Iterator[None]:
    """All kernels from one side, to compare the two. Not for several threads at a time."""
    before = os.environ.get("MINITENSOR_KERNELS")
    os.environ["MINITENSOR_KERNELS"] = which
    forget()
    try:
        yield
    finally:
        os.environ.pop("MINITENSOR_KERNELS")
        if before is not None:
            os.environ["MINITENSOR_KERNELS"] = before
        forget()


def __getattr__(name: str) -> Any:
    if name not in KERNELS:
        raise AttributeError(f"module 'minitensor.kernels' has no attribute {name!r}")
    globals()[name] = kernel = twin(name, backend())
    return kernel


for file in ("reference", "composed"):  # where the kernels are declared
    importlib.import_module(f"minitensor.kernels.{file}")
