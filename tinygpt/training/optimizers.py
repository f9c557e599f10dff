"""The optimiser of a configuration, and its state as arrays that a file can hold."""

from __future__ import annotations

from typing import Any

import numpy as np

import minitensor as mt
from bpe.untrusted import shown
from minitensor import optim
from minitensor.parallel import Ranks, sum_of_ranks
from tinygpt import Error
from tinygpt.formats.checkpoint import Saved
from tinygpt.model.config import Config

Array = np.ndarray
OUTER_LR, OUTER_MOMENTUM = 0.7, 0.9
MUON = 10.0  # the matrices that Muon takes learn at this times the rate of AdamW's tensors


def make_optimizer(c: Config, named: dict[str, mt.Tensor]) -> Any:
    """The optimiser of a configuration: decay for matrices, none for vectors.

    With "muon", the matrices inside the blocks go to Muon and all else to AdamW. The embeddings (of
    tokens and positions) and the head learn at `embedding_lr` times the rate.
    """
    muon = [
        p
        for name, p in named.items()
        if c.optimizer == "muon" and p.ndim == 2 and name.startswith("blocks.")
    ]
    taken = set(map(id, muon))
    matrices = {name: p for name, p in named.items() if p.ndim > 1 and id(p) not in taken}
    groups: list[dict[str, Any]] = [
        {"params": list(matrices.values()), "weight_decay": c.weight_decay},
        {"params": [p for p in named.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if c.embedding_lr != 1:
        inner = [p for name, p in matrices.items() if name.startswith("blocks.")]
        groups[0]["params"] = [p for p in matrices.values() if not any(p is q for q in inner)]
        groups[0]["lr_scale"] = c.embedding_lr
        if inner:
            groups.insert(1, {"params": inner, "weight_decay": c.weight_decay})
    parts: list[optim.Optimizer] = [
        optim.AdamW(groups, lr=c.lr, betas=(c.beta1, c.beta2), eps=c.eps)
    ]
    if muon:
        group = {"params": muon, "lr_scale": MUON}
        parts.insert(0, optim.Muon([group], lr=c.lr, weight_decay=c.weight_decay / MUON))
    if c.local_steps:
        return WithOuter(*parts)
    return Together(*parts) if muon else parts[0]


class Together:
    """Two optimisers as one, each for its own parameters."""

    def __init__(self, *parts: optim.Optimizer):
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]

    def step(self, grads: list[Array], *, scale: float, workers: Any) -> None:
        """One update; the gradients come in the order of the groups' parameters."""
        for part in self.parts:
            mine, grads = grads[: len(part.parameters)], grads[len(part.parameters) :]
            part.step(mine, scale=scale, workers=workers)

    def state_dict(self) -> dict[str, Any]:
        """The parts' states."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        for part, state in zip(self.parts, saved["parts"], strict=True):
            part.load_state_dict(state)


class WithOuter(Together):
    """The optimiser of the local steps, and one that moves the weights between them:
    Nesterov's momentum on the replicas' mean change (DiLoCo: Douillard et al., 2023,
    arXiv:2311.08105, whose rate and momentum these are)."""

    def __init__(self, *parts: optim.Optimizer):
        self.inner = Together(*parts)
        self.local = [p for group in self.inner.param_groups for p in group["params"]]
        self.outer = optim.SGD(self.local, lr=OUTER_LR, momentum=OUTER_MOMENTUM, nesterov=True)
        super().__init__(*parts, self.outer)
        self.param_groups = self.inner.param_groups  # whose rate the schedule sets

    def step(self, grads: list[Array], *, scale: float, workers: Any) -> None:
        """One local update."""
        self.inner.step(grads, scale=scale, workers=workers)

    def moments(self) -> list[Array]:
        """The moments of the local steps' optimisers."""
        states = [state for part in self.inner.parts for state in part.state]
        return [v for state in states for v in state.values() if isinstance(v, np.ndarray)]

    def meet(self, start: list[Array], ranks: Ranks, workers: Any) -> None:
        """The step between local ones, on all ranks: `start` are the weights before them.

        The momenta of the local steps are replaced by their means, so that nothing tells the
        replicas apart. (The paper leaves each its own, to send less.)
        """
        moments = self.moments()
        sums = sum_of_ranks([a.copy() for a in (*(p.data for p in self.local), *moments)], ranks)
        means = [np.divide(a, ranks.size, out=a) for a in sums]
        for moment, mean in zip(moments, means[len(start) :], strict=True):
            moment[...] = mean
        with mt.no_grad():
            for p, before in zip(self.local, start, strict=True):
                p[...] = before
        way = [before - mean for before, mean in zip(start, means, strict=False)]
        self.outer.step(way, workers=workers)


def pack_optimizer(optimizer: Any) -> tuple[dict[str, Array], Any]:
    """The optimiser's state as arrays by name, and a JSON value that refers to them."""
    arrays: dict[str, Array] = {}

    def pack(value: Any, name: str) -> Any:
        if isinstance(value, np.ndarray):
            arrays[name] = value
            return {"array": name}
        if isinstance(value, dict):
            return {"dict": [[key, pack(v, f"{name}/{key}")] for key, v in value.items()]}
        if isinstance(value, (list, tuple)):
            return [pack(v, f"{name}/{i}") for i, v in enumerate(value)]
        return value

    return arrays, pack(optimizer.state_dict(), "state")


def unpack_optimizer(optimizer: Any, arrays: dict[str, Array], state: Any) -> None:
    """Undo `pack_optimizer`. Raises Error unless `state` is that of such an optimiser.

    The options of its groups come from the configuration, and all but the rate, which every step
    sets, must be those of `optimizer`.
    """

    def unpack(value: Any) -> Any:
        if isinstance(value, dict):
            if "array" in value:
                return arrays[value["array"]]
            return {key: unpack(v) for key, v in value["dict"]}
        return [unpack(v) for v in value] if isinstance(value, list) else value

    try:
        loaded = unpack(state)
        parts = [(optimizer, loaded)]
        if isinstance(optimizer, Together):
            parts = list(zip(optimizer.parts, loaded["parts"], strict=True))
        for part, theirs in parts:
            _check_part(part, theirs)
        optimizer.load_state_dict(loaded)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Error(
            f"the training state is not one of this configuration's optimiser: {error}"
        ) from error


def _check_part(part: optim.Optimizer, saved: Any) -> None:
    """Raise ValueError, or what a value of another type raises, unless `saved` fits `part`."""
    groups = part.state_dict()["param_groups"]
    for mine, theirs in zip(groups, saved["param_groups"], strict=True):
        if mine.keys() != theirs.keys() or type(theirs["lr"]) not in (int, float):
            raise ValueError(f"expected groups with {', '.join(mine)}, got {shown(list(theirs))}")
        for key, value in mine.items():
            value = list(value) if isinstance(value, tuple) else value
            if theirs[key] != value and key != "lr":
                raise ValueError(f"{key}: expected {shown(value)}, got {shown(theirs[key])}")
    state = saved["state"]
    if len(state) not in (0, len(part.parameters)) or set(state) - set(range(len(state))):
        raise ValueError(f"expected moments of {len(part.parameters)} parameters or of none")
    for entry in state.values():
        if entry.keys() != {"step", *part.moments} or type(entry["step"]) is not int:
            raise ValueError(f"expected step, {', '.join(part.moments)}, got {shown(list(entry))}")
        if not all(isinstance(entry[name], np.ndarray) for name in part.moments):
            raise ValueError(f"expected arrays as {', '.join(part.moments)}")
        if entry["step"] < 1 or (entry.get("exp_avg_sq", np.zeros(1)) < 0).any():
            raise ValueError("expected a step of at least 1 and squares of at least 0")


def check_state(saved: Saved) -> None:
    """Raise Error unless training can go on from the optimiser's state in a checkpoint."""
    named = {name: mt.Tensor(value) for name, value in saved.params.items()}
    state = saved.training.get("optimizer")
    unpack_optimizer(make_optimizer(saved.config, named), saved.optim, state)
