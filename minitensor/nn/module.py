"""What a module is: parameters, buffers and modules as attributes, named by their paths.

Only buffers are registered; parameters and modules are found among the attributes. There are no
hooks on modules, and a plain list of modules is not searched (use `ModuleList`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from minitensor.tape import Array, no_grad
from minitensor.tensor import Tensor


class Parameter(Tensor):
    """A tensor that a module learns: a leaf that requires a gradient."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True, dtype: Any = None):
        super().__init__(data, requires_grad, dtype)


class Module:
    """Base of everything with parameters. Define `forward`, and call the module.

    Attributes that are `Parameter`s are parameters, those named by `register_buffer` are buffers
    (saved, not learned), those that are modules are children; a name is the path to it with dots.
    Assigning a plain tensor or array over a parameter or a buffer is a TypeError.
    """

    training = True
    _buffers: tuple[str, ...] = ()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes; each module has its own."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        held, where = vars(self).get(name), f"{type(self).__name__}.{name}"
        if name in self._buffers:
            if value is not None and (
                not isinstance(value, Tensor) or isinstance(value, Parameter)
            ):
                raise TypeError(
                    f"{where} is a buffer: expected a Tensor or None, got {type(value).__name__}"
                )
        elif isinstance(held, Parameter) and not isinstance(value, Parameter | Module | None):
            raise TypeError(
                f"{where} is a parameter: expected a Parameter or None, got "
                f"{type(value).__name__}; for other values write .copy_(values) or -= inside "
                "no_grad(), for another parameter assign nn.Parameter(values)"
            )
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        if name in self._buffers:
            self._buffers = tuple(other for other in self._buffers if other != name)

    def register_buffer(self, name: str, values: Any) -> None:
        """Keep a tensor in the state without learning it; it becomes the attribute `name`."""
        if isinstance(vars(self).get(name), Parameter) or isinstance(values, Parameter):
            raise TypeError(f"register_buffer: {name!r} is a parameter; give p.detach(), or delete")
        if name not in self._buffers:
            self._buffers = (*self._buffers, name)
        setattr(self, name, values if isinstance(values, Tensor | None) else Tensor(values))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all below it, in the order of their attributes."""
        yield prefix, self
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield from value.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator[Module]:
        """This module and all below it."""
        return (module for _, module in self.named_modules())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules that are attributes of this one, each once, by name."""
        seen: set[Module] = set()
        for name, value in vars(self).items():
            if isinstance(value, Module) and value not in seen:
                seen.add(value)
                yield name, value

    def children(self) -> Iterator[Module]:
        """The modules that are attributes of this one."""
        return (module for _, module in self.named_children())

    def apply(self, fn: Callable[[Module], Any]) -> Any:
        """Call `fn` on every module below and then on this one, which it returns."""
        for module in self.children():
            module.apply(fn)
        fn(self)
        return self

    def _named(self, buffers: bool) -> Iterator[tuple[str, Tensor]]:
        for prefix, module in self.named_modules():
            for name, value in vars(module).items():
                wanted = name in module._buffers if buffers else isinstance(value, Parameter)
                if wanted and value is not None:
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

    def buffers(self) -> list[Tensor]:
        """Every buffer."""
        return [values for _, values in self.named_buffers()]

    def requires_grad_(self, value: bool = True) -> Any:
        """Set `requires_grad` of every parameter: False freezes the module; returns it."""
        for p in self.parameters():
            p.requires_grad = value
        return self

    def train(self, training: bool = True) -> Any:
        """Set `training` here and below (dropout acts only then); returns the module."""
        for module in self.modules():
            module.training = training
        return self

    def eval(self) -> Any:
        """The opposite of `train`."""
        return self.train(False)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set every `.grad` to None, or, where there is one, to zeros."""
        for p in self.parameters():
            p.grad = None if set_to_none or p.grad is None else np.zeros_like(p.grad)

    def astype(self, dtype: Any) -> Any:
        """Convert every floating parameter and buffer to another precision, in place."""
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
        """Add one at the end. TypeError for what is no module."""
        if not isinstance(module, Module):
            raise TypeError(
                f"{type(self).__name__}: expected modules, got {type(module).__name__}; "
                "give them one by one to Sequential, in a list to ModuleList"
            )
        setattr(self, str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> ModuleList:
        """Add some at the end."""
        for module in modules:
            self.append(module)
        return self

    def __len__(self) -> int:
        return sum(isinstance(value, Module) for value in vars(self).values())

    def __iter__(self) -> Iterator[Any]:
        return (value for value in vars(self).values() if isinstance(value, Module))

    def __getitem__(self, i: int | slice) -> Any:
        """A module; for a slice, a list of the same kind that shares its modules."""
        if not isinstance(i, slice):
            return list(self)[i]
        part = ModuleList.__new__(type(self))
        return part.extend(list(self)[i])


class ModuleDict(Module):
    """Modules by name."""

    def __init__(self, modules: Mapping[str, Module] | None = None):
        for name, module in (modules or {}).items():
            self[name] = module

    def __setitem__(self, name: str, module: Module) -> None:
        if not isinstance(module, Module):
            raise TypeError(f"ModuleDict: {name!r} is {type(module).__name__}, expected a Module")
        if not name or "." in name or (hasattr(self, name) and name not in self):
            raise ValueError(f"ModuleDict: {name!r} cannot be a name: no dots, no method's name")
        setattr(self, name, module)

    def __getitem__(self, name: str) -> Any:
        return dict(self.items())[name]

    def __delitem__(self, name: str) -> None:
        delattr(self, name)

    def __contains__(self, name: str) -> bool:
        return isinstance(vars(self).get(name), Module)

    def __len__(self) -> int:
        return len(self.items())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> list[str]:
        """The names."""
        return [name for name, _ in self.items()]

    def values(self) -> list[Module]:
        """The modules."""
        return [module for _, module in self.items()]

    def items(self) -> list[tuple[str, Module]]:
        """Names and modules."""
        return [(name, value) for name, value in vars(self).items() if isinstance(value, Module)]


class Sequential(ModuleList):
    """Modules (or functions) one after the other."""

    def __init__(self, *modules: Any):
        super().__init__(modules)

    def append(self, module: Any) -> ModuleList:
        """Add a module or a function at the end."""
        plain = callable(module) and not isinstance(module, Module)
        return super().append(Function(module) if plain else module)

    def forward(self, x: Any) -> Any:
        """Apply the modules in order, each to the result of the one before it."""
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
