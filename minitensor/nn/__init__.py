"""Modules: parameters with a forward, nested and named as in PyTorch.

module.py has what a module is and the containers; layers.py the layers, activations and losses;
`nn.init` is minitensor/init.py.
"""

from typing import Any

from minitensor import init
from minitensor.nn.layers import (
    GELU,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    Dropout,
    Embedding,
    Flatten,
    Identity,
    LayerNorm,
    Linear,
    LogSoftmax,
    MSELoss,
    ReLU,
    RMSNorm,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from minitensor.nn.module import Module, ModuleDict, ModuleList, Parameter, Sequential

# fmt: off
__all__ = [
    "GELU", "BCEWithLogitsLoss", "CrossEntropyLoss", "Dropout", "Embedding", "Flatten", "Identity",
    "LayerNorm", "Linear", "LogSoftmax", "MSELoss", "Module", "ModuleDict", "ModuleList",
    "Parameter", "RMSNorm", "ReLU", "Sequential", "SiLU", "Sigmoid", "Softmax", "Softplus", "Tanh",
    "init",
]
# fmt: on


def __getattr__(name: str) -> Any:
    from minitensor.hints import MODULE, missing

    raise missing("minitensor.nn", name, MODULE)
