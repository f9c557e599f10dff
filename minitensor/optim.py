"""Optimisers, gradient clipping and learning-rate schedules.

Names and meanings are PyTorch's: parameter groups, `param_groups[i]["lr"]`, `state_dict`. A step
takes the gradients from `.grad`, or as a list of arrays in the order of the parameters, as
`minitensor.grad` returns them. Parameters and moments are changed in place, in pieces of fixed
size, so that threads may share the work and no number of threads changes a bit of the result.

What this file is not: there are no closures, no sparse gradients, no AMSGrad.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from minitensor import kernels
from minitensor.tape import Array
from minitensor.tensor import Tensor

PIECE = 1 << 16  # elements handled at once; depends on nothing, so neither does the rounding

# ------------------------------------------------------------------------------------- optimisers


class Optimizer:
    """What the optimisers share: groups, state, and the walk over parameters and gradients.

    `params` is a list of tensors, or of dicts with "params" and options of their own, which go
    before the defaults. A subclass names its `moments` and defines `update`.
    """

    moments: ClassVar[tuple[str, ...]] = ()
    light: ClassVar[int] = 2**19  # elements below which threads are not worth waking

    def __init__(self, params: Iterable[Any], **defaults: Any):
        name = type(self).__name__
        if isinstance(params, Tensor):
            raise TypeError(f"{name}: expected a list of tensors, got one; give [p]")
        groups = list(params)
        if not groups:
            raise ValueError(f"{name}: got no parameters")
        self.defaults = defaults
        self.param_groups: list[dict[str, Any]] = []
        self.parameters: list[Tensor] = []
        self.state: list[dict[str, Any]] = []
        for group in groups if isinstance(groups[0], dict) else [{"params": groups}]:
            self.add_param_group(group)

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Learn more tensors, with options of their own. Keys that are no option are kept, but not
        those that look like one (ValueError)."""
        name = type(self).__name__
        if not isinstance(group, dict) or "params" not in group:
            raise TypeError(f"{name}: expected a dict with 'params', got {type(group).__name__}")
        for key in set(group) - {*self.defaults, "params"}:
            meant = {"learning_rate": ["lr"]}.get(key) or difflib.get_close_matches(
                key, self.defaults
            )
            if meant:
                raise ValueError(f"{name}: no option is called {key!r}; did you mean {meant[0]!r}?")
        listed = group["params"]
        params = [listed] if isinstance(listed, Tensor) else list(listed)
        seen = set(self.parameters)
        for i, p in enumerate(params, len(self.parameters)):
            if not isinstance(p, Tensor) or not p.is_leaf:
                raise TypeError(f"{name}: parameter {i} is not a leaf tensor")
            if p in seen:
                raise ValueError(f"{name}: parameter {i} (shape {p.shape}) is there twice")
            seen.add(p)
        whole = {**self.defaults, **group, "params": params}
        self.check(whole)
        self.param_groups.append(whole)
        self.parameters += params
        self.state += [{} for _ in params]

    def check(self, group: dict[str, Any]) -> None:
        """ValueError for an option that cannot work. A subclass adds its own."""
        name = type(self).__name__
        for key in ("lr", "weight_decay", "momentum", "eps"):
            value = group.get(key, 0.0)
            if not isinstance(value, float | int | np.number) or not 0 <= value < math.inf:
                raise ValueError(
                    f"{name}: {key} cannot be negative, infinite or no number, got {value!r}"
                )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set every `.grad` to None, or, where there is one, to zeros."""
        for p in self.parameters:
            p.grad = None if set_to_none or p.grad is None else np.zeros_like(p.grad)

    def step(
        self,
        grads: Sequence[Array | None] | None = None,
        *,
        scale: float = 1.0,
        workers: Any = None,
    ) -> None:
        """One update. `scale` multiplies every gradient (the clipping factor); `workers` shares the
        pieces out to threads. A parameter without a gradient is left alone.
        """
        grads = [p.grad for p in self.parameters] if grads is None else list(grads)
        if len(grads) != len(self.parameters):
            raise ValueError(
                f"{type(self).__name__}: {len(self.parameters)} parameters but "
                f"{len(grads)} gradients"
            )
        jobs: list[tuple[Any, ...]] = []
        i = 0
        for group in self.param_groups:
            for p in group["params"]:
                g, state = grads[i], self.state[i]
                i += 1
                if g is None:
                    continue
                if g.shape != p.shape:
                    raise ValueError(
                        f"{type(self).__name__}: parameter {i - 1} has shape "
                        f"{p.shape}, its gradient {g.shape}"
                    )
                if not p._array.flags.c_contiguous:
                    p._array = np.ascontiguousarray(p._array)
                if not state:
                    state["step"] = 0
                    state.update((name, np.zeros(p.shape, p.dtype)) for name in self.moments)
                state["step"] += 1
                p._version[0] += 1
                arrays = [
                    p._array,
                    np.ascontiguousarray(g, p.dtype),
                    *(state[name] for name in self.moments),
                ]
                jobs += ((group, state["step"], scale, piece) for piece in self.pieces(arrays))
        _spread(
            workers, lambda job: self.update(*job), jobs, lambda job: job[3][0].size, self.light
        )

    def pieces(self, arrays: list[Array]) -> Iterator[list[Array]]:
        """Equal pieces of the flattened arrays; a subclass that needs the whole says so here."""
        flat = [a.reshape(-1) for a in arrays]
        if 0 < flat[0].size <= PIECE:
            yield flat
            return
        for start in range(0, flat[0].size, PIECE):
            yield [a[start : start + PIECE] for a in flat]

    def update(self, group: dict[str, Any], step: int, scale: float, arrays: list[Array]) -> None:
        """Change a piece of a parameter, its gradient and its moments in `arrays`, in place."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Groups (with parameters by number) and a copy of the state, as PyTorch lays them out."""
        numbers = {id(p): i for i, p in enumerate(self.parameters)}
        return {
            "state": {
                i: {k: np.array(v) if isinstance(v, np.ndarray) else v for k, v in s.items()}
                for i, s in enumerate(self.state)
                if s
            },
            "param_groups": [
                {**group, "params": [numbers[id(p)] for p in group["params"]]}
                for group in self.param_groups
            ],
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a `state_dict`. ValueError if it is not one of such an optimiser; then nothing
        has been changed."""
        name = type(self).__name__
        if not isinstance(saved, dict) or not {"state", "param_groups"} <= set(saved):
            raise ValueError(f"{name}: a saved state has 'state' and 'param_groups', this has not")
        mine = [len(group["params"]) for group in self.param_groups]
        theirs = [len(group["params"]) for group in saved["param_groups"]]
        if mine != theirs:
            raise ValueError(
                f"{name}: this optimiser has groups of {mine} parameters, the saved state of "
                f"{theirs}"
            )
        unknown = [i for i in saved["state"] if i not in range(len(self.parameters))]
        if unknown:
            raise ValueError(f"{name}: the saved state has no parameter {unknown[0]!r} to be for")
        groups = [
            {**group, **other, "params": group["params"]}
            for group, other in zip(self.param_groups, saved["param_groups"], strict=True)
        ]
        for group in groups:
            self.check(group)
        state: list[dict[str, Any]] = []
        for i, p in enumerate(self.parameters):
            entry = dict(saved["state"].get(i, {}))
            if entry and set(entry) != {"step", *self.moments}:
                raise ValueError(
                    f"{name}: the state of parameter {i} has {', '.join(sorted(entry))}; "
                    f"expected step, {', '.join(self.moments)}"
                )
            for key in self.moments if entry else ():
                moment = np.array(entry[key], p.dtype, order="C")
                if moment.shape != p.shape:
                    raise ValueError(
                        f"{name}: '{key}' of parameter {i} has shape {moment.shape}, "
                        f"the parameter {p.shape}"
                    )
                entry[key] = moment
            state.append(entry)
        self.state = state
        for group, other in zip(self.param_groups, groups, strict=True):
            group.update(other)


class SGD(Optimizer):
    """g += weight_decay p;  b = momentum b + g (b = g at first);  p -= lr b.

    With `nesterov`, p -= lr (g + momentum b) (Sutskever et al., 2013, in PyTorch's form).
    """

    moments = ("momentum_buffer",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        super().__init__(
            params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov
        )

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        if group["nesterov"] and not group["momentum"]:
            raise ValueError("SGD: nesterov needs a momentum above 0")

    def update(self, group: dict[str, Any], step: int, scale: float, arrays: list[Array]) -> None:
        p, g, b = arrays
        momentum = group["momentum"]
        g = g * scale + group["weight_decay"] * p
        if momentum:
            b *= momentum  # zeros at the first step, so b = g
            b += g
            g = g + momentum * b if group["nesterov"] else b
        p -= group["lr"] * g


class Adam(Optimizer):
    """m and v are running means of g and g²; p -= lr m̂ / (sqrt(v̂) + eps), with m̂ = m / (1 - β1^t)
    and v̂ = v / (1 - β2^t) (Kingma and Ba, 2015, arXiv:1412.6980).

    `weight_decay` adds weight_decay p to the gradient; `AdamW` takes it from p directly.
    """

    moments = ("exp_avg", "exp_avg_sq")
    decoupled = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        betas = group["betas"]
        if np.shape(betas) != (2,) or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"{type(self).__name__}: betas {betas} must be in [0, 1), and two")

    def update(self, group: dict[str, Any], step: int, scale: float, arrays: list[Array]) -> None:
        p, g, m, v = arrays
        decay = group["weight_decay"]
        if decay and not self.decoupled:
            g, scale, decay = g * scale + decay * p, 1.0, 0.0
        beta1, beta2 = group["betas"]
        kernels.adamw(
            p,
            g,
            m,
            v,
            float(group["lr"]),
            beta1,
            beta2,
            group["eps"],
            float(decay),
            step,
            float(scale),
        )


class AdamW(Adam):
    """Adam with p -= lr weight_decay p beside it, so that the decay is not divided by sqrt(v)
    (Loshchilov and Hutter, 2019, arXiv:1711.05101)."""

    decoupled = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        super().__init__(params, lr, betas, eps, weight_decay)


class Muon(Optimizer):
    """Momentum, made orthogonal, for matrices (Jordan et al., 2024; as `torch.optim.Muon`).

    b = momentum b + (1 - momentum) g; u = g + momentum (b - g) with `nesterov`, else b;
    p -= lr weight_decay p; p -= lr sqrt(max(1, rows / columns)) orthogonal(u). Embeddings, heads
    and vectors are for AdamW. Computed in the parameter's dtype (PyTorch: bfloat16).
    """

    moments = ("momentum_buffer",)
    light = 0

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
    ):
        super().__init__(
            params,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            ns_steps=ns_steps,
        )

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        if not isinstance(group["ns_steps"], int) or not 1 <= group["ns_steps"] <= 100:
            raise ValueError(f"Muon: ns_steps is {group['ns_steps']!r}; expected 1 to 100")
        for p in group["params"]:
            if p.ndim != 2:
                raise ValueError(
                    f"Muon: a parameter has shape {p.shape}; only matrices can be "
                    "made orthogonal, give the others to AdamW"
                )

    def pieces(self, arrays: list[Array]) -> Iterator[list[Array]]:
        yield arrays

    def update(self, group: dict[str, Any], step: int, scale: float, arrays: list[Array]) -> None:
        p, g, b = arrays
        momentum, lr = group["momentum"], group["lr"]
        b += (g * scale - b) * (1 - momentum)
        u = g * (scale * (1 - momentum)) + momentum * b if group["nesterov"] else b
        p *= 1 - lr * group["weight_decay"]
        u = orthogonal(u, group["ns_steps"])
        u *= lr * math.sqrt(max(1.0, p.shape[0] / p.shape[1]))
        p -= u


def orthogonal(u: Array, steps: int = 5) -> Array:
    """Bring the singular values of a matrix near 1, keeping its singular vectors, by Newton-Schulz;
    the formula is in kernels/reference.py."""
    return np.asarray(kernels.orthogonal(np.ascontiguousarray(u), steps))


# --------------------------------------------------------------------------------------- clipping


def _spread(
    workers: Any,
    fn: Callable[[Any], Any],
    items: Sequence[Any],
    size: Callable[[Any], int],
    light: int,
) -> list[Any]:
    """`workers.map` where there are workers."""
    if workers is None:
        return [fn(item) for item in items]
    return workers.map(fn, items, size, light)  # type: ignore[no-any-return]


def grad_norm(grads: Iterable[Array], workers: Any = None) -> float:
    """The 2-norm of all gradients as one vector, added up in float64."""
    pieces = [
        flat[i : i + PIECE]
        for flat in (g.reshape(-1) for g in grads)
        for i in range(0, flat.size, PIECE)
    ]
    pieces.reverse()  # the last ones are still in cache, and an exact sum has no order
    return math.sqrt(math.fsum(_spread(workers, kernels.sum_of_squares, pieces, np.size, 2**22)))


def clip_grad_norm_(params: Iterable[Tensor], max_norm: float) -> float:
    """Scale every `.grad` in place by max_norm / norm if their common norm is larger; return the
    norm."""
    grads = _grads(params)
    norm = grad_norm(grads)
    scale = max_norm / (norm + 1e-6)
    for g in grads if not scale >= 1 else ():
        g *= scale
    return norm


def clip_grad_value_(params: Iterable[Tensor], clip_value: float) -> None:
    """Limit every element of every `.grad`, in place, to [-clip_value, clip_value]."""
    for g in _grads(params):
        np.clip(g, -clip_value, clip_value, out=g)


def _grads(params: Iterable[Tensor]) -> list[Array]:
    """The gradients that are there, of parameters or of a single one."""
    listed = [params] if isinstance(params, Tensor) else params
    return [p.grad for p in listed if p.grad is not None]


# -------------------------------------------------------------------------------------- schedules
# Each is the learning rate of a step, counted from 0: linear from 0 to `lr` over `warmup` steps,
# then its own shape down to `min_lr` at step `total`, where it stays.


def _progress(step: int, warmup: int, total: int) -> float:
    """How much of the way from the end of the warm-up to `total` is done, from 0 to 1."""
    return min(1.0, max(0.0, (step - warmup) / max(1, total - warmup)))


def constant(
    step: int, *, lr: float, warmup: int = 0, min_lr: float = 0.0, total: int = 0
) -> float:
    """`lr` after the warm-up; `min_lr` and `total` are taken so that all schedules look alike."""
    return lr * step / warmup if step < warmup else lr


def linear(step: int, *, lr: float, total: int, warmup: int = 0, min_lr: float = 0.0) -> float:
    """A straight line from `lr` to `min_lr`."""
    if step < warmup:
        return lr * step / warmup
    return lr + (min_lr - lr) * _progress(step, warmup, total)


def cosine(step: int, *, lr: float, total: int, warmup: int = 0, min_lr: float = 0.0) -> float:
    """Half a cosine from `lr` to `min_lr` (Loshchilov and Hutter, 2017, arXiv:1608.03983)."""
    if step < warmup:
        return lr * step / warmup
    half = 0.5 * (1 + math.cos(math.pi * _progress(step, warmup, total)))
    return min_lr + (lr - min_lr) * half


def wsd(
    step: int, *, lr: float, total: int, warmup: int = 0, min_lr: float = 0.0, decay: float = 0.2
) -> float:
    """Warm-up, stable, decay: `lr` until the last part `decay` of the steps, then a straight line
    to `min_lr` (Hu et al., 2024, arXiv:2404.06395)."""
    if step < warmup:
        return lr * step / warmup
    return lr + (min_lr - lr) * _progress(step, max(warmup, round(total * (1 - decay))), total)


def __getattr__(name: str) -> Any:
    from minitensor.hints import MODULE, missing

    raise missing("minitensor.optim", name, MODULE)
