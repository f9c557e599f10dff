"""Modules: parameters with a forward, nested and named as in PyTorch.

A module is an object whose attributes are parameters, buffers and modules; nothing is registered,
the attributes are looked at. Randomness is an explicit generator.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from minitensor import init, ops
from minitensor.random import fold
from minitensor.tape import Array, mode, no_grad
from minitensor.tensor import Tensor

__all__ = [
    "Dropout",
    "Embedding",
    "LayerNorm",
    "Linear",
    "Module",
    "ModuleList",
    "Parameter",
    "RMSNorm",
    "Sequential",
    "init",
]


class Parameter(Tensor):
    """A tensor that a module learns: a leaf that requires a gradient."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True, dtype: Any = None):
        super().__init__(data, requires_grad, dtype)


class Module:
    """Base of everything with parameters. Define `forward`; call the module.

    Attributes that are `Parameter`s are parameters, those named by `register_buffer` are buffers
    (saved, not learned), those that are modules are children; a name is the path to it with dots.
    """

    training = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes; each module has its own."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def register_buffer(self, name: str, values: Any) -> None:
        """Keep a tensor in the state without learning it; it becomes the attribute `name`."""
        setattr(self, name, values if isinstance(values, Tensor) else Tensor(values))
        self.__dict__.setdefault("_buffers", []).append(name)

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all below it, in the order of their attributes."""
        yield prefix, self
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield from value.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator[Module]:
        """This module and all below it."""
        return (module for _, module in self.named_modules())

    def _named(self, buffers: bool) -> Iterator[tuple[str, Tensor]]:
        for prefix, module in self.named_modules():
            names = vars(module).get("_buffers", ())
            for name, value in vars(module).items():
                if name in names if buffers else isinstance(value, Parameter):
                    yield f"{prefix}.{name}" if prefix else name, value

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor of every parameter; one that is shared comes once, by its first name."""
        seen: set[Tensor] = set()
        for name, p in self._named(buffers=False):
            if p not in seen:
                seen.add(p)
                yield name, p

    def parameters(self) -> list[Tensor]:
        """Every parameter once."""
        return [p for _, p in self.named_parameters()]

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor of every buffer."""
        return self._named(buffers=True)

    def train(self, training: bool = True) -> Any:
        """Set `training` here and below (dropout acts only then); returns the module."""
        for module in self.modules():
            module.training = training
        return self

    def eval(self) -> Any:
        """The opposite of `train`."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Set every `.grad` to None."""
        for p in self.parameters():
            p.grad = None

    def astype(self, dtype: Any) -> Any:
        """Turn every floating parameter and buffer into another precision, in place."""
        for tensors in (self._named(False), self._named(True)):
            for _, p in tensors:
                if p.dtype.kind == "f":
                    learned = p.requires_grad
                    p.requires_grad = False
                    p._array, p.grad = p._array.astype(dtype), None
                    p.requires_grad = learned
        return self

    def state_dict(self) -> dict[str, Array]:
        """A copy of every parameter and buffer by name."""
        return {
            name: np.array(p._array)
            for named in (self._named(False), self._named(True))
            for name, p in named
        }

    def load_state_dict(
        self, state: Mapping[str, Any], strict: bool = True
    ) -> tuple[list[str], list[str]]:
        """Copy values in by name; returns the names that were missing and those not expected.

        ValueError that lists them if `strict`, and in any case if shapes differ; then nothing has
        been changed.
        """
        mine = {**dict(self._named(False)), **dict(self._named(True))}
        missing = [name for name in mine if name not in state]
        unexpected = [name for name in state if name not in mine]
        wrong = [
            f"{name} {np.shape(state[name])} instead of {p.shape}"
            for name, p in mine.items()
            if name in state and np.shape(state[name]) != p.shape
        ]
        problems = [
            f"{what}: {', '.join(names)}"
            for what, names in (("missing", missing), ("unexpected", unexpected))
            if names and strict
        ]
        if wrong:
            problems.append(f"misshapen: {', '.join(wrong)}")
        if problems:
            raise ValueError(f"load_state_dict of {type(self).__name__}: {'; '.join(problems)}")
        with no_grad():
            for name, p in mine.items():
                if name in state:
                    p.copy_(state[name])
        return missing, unexpected

    def __repr__(self) -> str:
        lines = [
            f"  ({name}): " + repr(value).replace("\n", "\n  ")
            for name, value in vars(self).items()
            if isinstance(value, Module)
        ]
        own = ", ".join(
            f"{name}{list(value.shape)}"
            for name, value in vars(self).items()
            if isinstance(value, Parameter)
        )
        body = f"({own})" if not lines else f"({own}\n" + "\n".join(lines) + "\n)"
        return type(self).__name__ + body


class ModuleList(Module):
    """Modules in a list, named by their positions."""

    def __init__(self, modules: Iterable[Module] = ()):
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> ModuleList:
        """Add one at the end."""
        setattr(self, str(len(self)), module)
        return self

    def __len__(self) -> int:
        return sum(isinstance(value, Module) for value in vars(self).values())

    def __iter__(self) -> Iterator[Any]:
        return (value for value in vars(self).values() if isinstance(value, Module))

    def __getitem__(self, i: int) -> Any:
        return list(self)[i]


class Sequential(ModuleList):
    """Modules (or functions) one after the other."""

    def __init__(self, *modules: Any):
        super().__init__(m if isinstance(m, Module) else Function(m) for m in modules)

    def forward(self, x: Any) -> Any:
        """The last of the modules, of the one before it, of ... x."""
        for module in self:
            x = module(x)
        return x


class Function(Module):
    """A function without parameters, such as `minitensor.relu`, as a module."""

    def __init__(self, fn: Any):
        self.fn = fn

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """fn(...)."""
        return self.fn(*args, **kwargs)

    def __repr__(self) -> str:
        return str(getattr(self.fn, "__name__", self.fn))


class Linear(Module):
    """x Wᵀ + b: (..., in) -> (..., out). W is (out, in).

    Both start uniform within 1 / sqrt(in), as in PyTorch.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        rng: np.random.Generator,
        dtype: Any = np.float32,
    ):
        bound = in_features**-0.5 if in_features else 0.0
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
        rng: np.random.Generator,
        dtype: Any = np.float32,
    ):
        self.weight = Parameter(rng.normal(size=(num_embeddings, embedding_dim)), dtype=dtype)

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

    def __init__(self, p: float = 0.5, *, rng: np.random.Generator):
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p={p} must be at least 0 and below 1")
        self.p, self.seed, self.calls = p, int(rng.integers(2**63)), 0

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
