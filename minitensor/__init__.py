"""An autograd engine on NumPy arrays, exact enough to trust; its core is an afternoon's reading.

    >>> import minitensor as mt
    >>> x = mt.Tensor([1.0, 2.0, 3.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    array([2., 4., 6.], dtype=float32)

Read tape.py, op.py, tensor.py and ops/elementwise.py, in this order: that is how it works.
"""

from typing import Any

from minitensor import nn, ops, optim
from minitensor.draw import draw
from minitensor.dtypes import IndexArray
from minitensor.gradcheck import GradcheckError, gradcheck
from minitensor.gradients import checkpoint, grad
from minitensor.op import Op, op, registry
from minitensor.ops import *  # noqa: F403
from minitensor.parallel import Workers, value_and_grad
from minitensor.random import fold
from minitensor.saving import load, save
from minitensor.tape import (
    Array,
    Part,
    detect_anomaly,
    enable_grad,
    is_grad_enabled,
    no_grad,
    observe,
    recording,
)
from minitensor.tensor import Tensor, from_dlpack, tensor

# fmt: off
__all__ = [
    *ops.__all__, "Array", "GradcheckError", "IndexArray", "Op", "Part", "Tensor", "Workers",
    "checkpoint", "detect_anomaly", "draw", "enable_grad", "fold", "from_dlpack", "grad",
    "gradcheck", "is_grad_enabled", "load", "nn", "no_grad", "observe", "op", "ops", "optim",
    "recording", "registry", "save", "tensor", "value_and_grad",
]
# fmt: on


def __getattr__(name: str) -> Any:
    from minitensor.hints import MODULE, missing

    raise missing("minitensor", name, MODULE)
