"""The modules to build from: layers with parameters, dropout, activations, losses.

Each keeps the parameters and options of one op. Where weights are drawn, `rng` is the generator;
without one they come from a fresh generator that the system seeds, so no two runs agree.
There is no global seed: give ``rng=np.random.default_rng(seed)`` to draw the same weights again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitensor import ops
from minitensor.nn.module import Module, Parameter
from minitensor.random import fold
from minitensor.tape import mode
from minitensor.tensor import Tensor


def generator(rng: np.random.Generator | None) -> np.random.Generator:
    """`rng`, or a fresh generator whose numbers cannot be drawn again."""
    return np.random.default_rng() if rng is None else rng


class Linear(Module):
    """x Wᵀ + b: (..., in) -> (..., out). W is (out, in).

    Weight and bias start uniform within 1 / sqrt(in), as in PyTorch.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        rng: np.random.Generator | None = None,
        dtype: Any = np.float32,
    ):
        bound, rng = in_features**-0.5 if in_features else 0.0, generator(rng)
        shape = (out_features, in_features)
        self.weight = Parameter(rng.uniform(-bound, bound, shape), dtype=dtype)
        self.bias = Parameter(rng.uniform(-bound, bound, shape[0]), dtype=dtype) if bias else None

    def forward(self, x: Any) -> Tensor:
        """See `minitensor.linear`."""
        return ops.linear(x, self.weight, self.bias)


class Embedding(Module):
    """A row of the weight (num_embeddings, embedding_dim) for each integer; starts as N(0, 1)."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        rng: np.random.Generator | None = None,
        dtype: Any = np.float32,
    ):
        self.weight = Parameter(
            generator(rng).normal(size=(num_embeddings, embedding_dim)), dtype=dtype
        )

    def forward(self, ids: Any) -> Tensor:
        """See `minitensor.embedding`."""
        return ops.embedding(self.weight, ids)


class LayerNorm(Module):
    """Normalise the last axis to mean 0 and variance 1, then scale and shift."""

    def __init__(
        self, features: int, eps: float = 1e-5, bias: bool = True, dtype: Any = np.float32
    ):
        self.weight = Parameter(np.ones(features), dtype=dtype)
        self.bias = Parameter(np.zeros(features), dtype=dtype) if bias else None
        self.eps = eps

    def forward(self, x: Any) -> Tensor:
        """See `minitensor.layer_norm`."""
        return ops.layer_norm(x, self.weight, self.bias, eps=self.eps)


class RMSNorm(Module):
    """Normalise the last axis to mean square 1, then scale."""

    def __init__(self, features: int, eps: float = 1e-5, dtype: Any = np.float32):
        self.weight = Parameter(np.ones(features), dtype=dtype)
        self.eps = eps

    def forward(self, x: Any) -> Tensor:
        """See `minitensor.rms_norm`."""
        return ops.rms_norm(x, self.weight, eps=self.eps)


class Dropout(Module):
    """Zero each element with probability p while training, and scale the others by 1 / (1 - p).

    The mask is a function of `key` (see `minitensor.fold`); without one the module counts its own
    calls, from a seed drawn at the start. A checkpointed block draws the same keys again when it
    is computed again.
    """

    def __init__(self, p: float = 0.5, *, rng: np.random.Generator | None = None):
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p={p} must be at least 0 and below 1")
        self.p, self.seed, self.calls = p, int(generator(rng).integers(2**63)), 0

    def forward(self, x: Any, key: int | None = None) -> Any:
        """See `minitensor.dropout`; x itself in evaluation."""
        if not self.training or not self.p:
            return x
        return ops.dropout(x, self.p, self._draw() if key is None else key)

    def _draw(self) -> int:
        if mode.replayed is not None:
            key = next(mode.replayed)
        else:
            self.calls += 1
            key = fold(self.seed, self.calls)
        if mode.drawn is not None:
            mode.drawn.append(key)
        return key

    def __repr__(self) -> str:
        return f"Dropout(p={self.p})"


class Identity(Module):
    """x itself: takes the place of a layer you want to leave out."""

    def forward(self, x: Any) -> Any:
        """x."""
        return x


class Flatten(Module):
    """Merge all axes from `start` on into one: (B, ...) -> (B, n)."""

    def __init__(self, start: int = 1):
        self.start = start

    def forward(self, x: Any) -> Tensor:
        """See `minitensor.reshape`."""
        shape = np.shape(x)[: self.start]
        size = int(np.prod(np.shape(x)[self.start :]))  # not -1, which an empty batch leaves open
        return ops.reshape(x, (*shape, size))


# ------------------------------------------------------------------------------------- activations


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Any) -> Tensor:
        """See `minitensor.relu`."""
        return ops.relu(x)


class GELU(Module):
    """x Φ(x); with ``approximate="tanh"``, the formula of GPT-2."""

    def __init__(self, approximate: str = "none"):
        self.approximate = approximate

    def forward(self, x: Any) -> Tensor:
        """See `minitensor.gelu`."""
        return ops.gelu(x, self.approximate)


class SiLU(Module):
    """x σ(x)."""

    def forward(self, x: Any) -> Tensor:
        """See `minitensor.silu`."""
        return ops.silu(x)


class Tanh(Module):
    """tanh x."""

    def forward(self, x: Any) -> Tensor:
        """See `minitensor.tanh`."""
        return ops.tanh(x)


class Sigmoid(Module):
    """σ(x) = 1 / (1 + e^-x)."""

    def forward(self, x: Any) -> Tensor:
        """See `minitensor.sigmoid`."""
        return ops.sigmoid(x)


class Softplus(Module):
    """log(1 + e^x)."""

    def forward(self, x: Any) -> Tensor:
        """See `minitensor.softplus`."""
        return ops.softplus(x)


class Softmax(Module):
    """Probabilities along an axis."""

    def __init__(self, axis: int = -1):
        self.axis = axis

    def forward(self, x: Any) -> Tensor:
        """See `minitensor.softmax`."""
        return ops.softmax(x, self.axis)


class LogSoftmax(Softmax):
    """Logarithms of probabilities along an axis."""

    def forward(self, x: Any) -> Tensor:
        """See `minitensor.log_softmax`."""
        return ops.log_softmax(x, self.axis)


# ------------------------------------------------------------------------------------------ losses


class MSELoss(Module):
    """Mean square of the difference; `reduction` is "mean", "sum" or "none"."""

    def __init__(self, reduction: str = "mean"):
        self.reduction = reduction

    def forward(self, x: Any, target: Any) -> Tensor:
        """See `minitensor.mse_loss`."""
        return ops.mse_loss(x, target, self.reduction)


class BCEWithLogitsLoss(MSELoss):
    """Binary cross-entropy, from logits."""

    def forward(self, x: Any, target: Any) -> Tensor:
        """See `minitensor.binary_cross_entropy_with_logits`."""
        return ops.binary_cross_entropy_with_logits(x, target, self.reduction)


class CrossEntropyLoss(Module):
    """-log softmax of the right class: logits (N, classes), targets (N,); the options are those
    of `minitensor.cross_entropy`."""

    def __init__(self, **options: Any):
        self.options = options

    def forward(self, logits: Any, targets: Any) -> Tensor:
        """See `minitensor.cross_entropy`."""
        return ops.cross_entropy(logits, targets, **self.options)
