"""The hot loops. `reference.py` is the plain NumPy formula of each; the others are numba twins.

``kernels.rms_norm(...)`` takes the numba twin, or the NumPy one where the environment says
``MINITENSOR_KERNELS=numpy``. numba is imported when a kernel is first called, not before.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

NAMES = {  # kernel -> the file that holds its numba twin
    "linear": "gemm",
    "linear_dx": "gemm",
    "attention": "flash",
    "attention_backward": "flash",
    "rms_norm": "norm",
    "rms_norm_backward": "norm",
    "layer_norm": "norm",
    "layer_norm_backward": "norm",
    "gelu": "elementwise",
    "gelu_backward": "elementwise",
    "swiglu": "elementwise",
    "swiglu_backward": "elementwise",
    "dropout": "elementwise",
    "dropout_add": "elementwise",
    "cross_entropy": "loss",
    "embedding_backward": "loss",
    "attention_sublayer": "sublayer",
    "attention_sublayer_backward": "sublayer",
    "feed_forward_sublayer": "sublayer",
    "feed_forward_sublayer_backward": "sublayer",
    "linear_cross_entropy": "sublayer",
    "adamw": "optimizer",
    "sum_of_squares": "optimizer",
    "decode": "decode",
    "choose": "decode",  # their NumPy twins are in tinygpt
}


def backend() -> str:
    """Which twins are in use: "numba" or "numpy"."""
    name = os.environ.get("MINITENSOR_KERNELS", "numba")
    if name not in ("numba", "numpy"):
        raise ValueError(f"MINITENSOR_KERNELS is {name!r}; it must be 'numba' or 'numpy'")
    return name


def twin(name: str, which: str) -> Any:
    """One kernel from the side named: "numba" or "numpy"."""
    file = NAMES[name] if which == "numba" else "reference"
    return getattr(importlib.import_module(f"minitensor.kernels.{file}"), name)


def __getattr__(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"module 'minitensor.kernels' has no attribute {name!r}")
    globals()[name] = kernel = twin(name, backend())
    return kernel
