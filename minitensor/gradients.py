"""Gradients as arrays, and checkpoints: what is asked of the tape besides `Tensor.backward`.

`grad` is the walk of tape.py for tensors of one's choice; `checkpoint` drops the tape of a block
and lets the walk rebuild it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minitensor.tape import Array, Node, mode, set_mode, walk
from minitensor.tensor import Tensor, seed


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None,
    *,
    retain_graph: bool = False,
    allow_unused: bool = False,
    materialize_grads: bool = False,
    ready: Callable[[int, Array], None] | None = None,
) -> list[Array]:
    """Gradients of `outputs` (a scalar, or tensors weighted by `grad_outputs`) for `inputs`.

    Returns a list of one array per input (of one for a single tensor, as in PyTorch), of its shape
    and dtype, to which nothing else refers. Writes to no ``.grad``, so several threads may do this
    with shared parameters. An input that has no part in the outputs is an error, or gets None with
    `allow_unused`, zeros with `materialize_grads`. Frees the graph from the outputs down to the
    oldest input; what was computed before that stays, for another backward.

    ``ready(i, array)`` is called with what will be in place `i` of the list, if it is an array, as
    soon as that is complete: in a network the last layer's gradients come first. It may do with
    the array as it likes, while the walk goes on.
    """
    outs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    wanted = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if grad_outputs is None:
        weights: list[Any] = [None] * len(outs)
    else:
        weights = [grad_outputs] if isinstance(outputs, Tensor) else list(grad_outputs)
    if len(weights) != len(outs):
        raise ValueError(f"grad: {len(outs)} outputs but {len(weights)} grad_outputs")
    nodes = _nodes(outs, wanted)
    starts = [(o._node, seed(o, w)) for o, w in zip(outs, weights, strict=True) if o._node]
    result: list[Any] = [None] * len(wanted)
    seen: set[int] = set()

    def give(i: int, g: Array) -> None:
        if isinstance(g.base, np.ndarray) or not g.flags.c_contiguous or id(g) in seen:
            g = np.array(g, order="C")  # never hand out a view of an array or the same one twice
        seen.add(id(g))
        result[i] = g
        if ready:
            ready(i, g)

    places: dict[Node, list[int]] = {}
    for i, node in enumerate(nodes):
        places.setdefault(node, []).append(i)

    def complete(node: Node, g: Array) -> None:
        for i in places[node]:
            give(i, g)

    found = walk(starts, set(nodes), retain_graph, complete if ready else None)
    for i, (x, node) in enumerate(zip(wanted, nodes, strict=True)):
        if node in found:
            if not ready:
                give(i, found[node])
        elif materialize_grads:
            give(i, np.zeros(x.shape, x.dtype))
        elif not allow_unused:
            raise ValueError(
                f"grad: input {i} (shape {x.shape}) has no part in the outputs; pass "
                "allow_unused=True for None, or materialize_grads=True for zeros"
            )
    return result


def _nodes(outs: list[Any], wanted: list[Any]) -> list[Node]:
    """The nodes of the wanted tensors. TypeError for what is no tensor, ValueError for one that
    requires no gradient."""
    for kind, tensors in (("output", outs), ("input", wanted)):
        for i, x in enumerate(tensors):
            if not isinstance(x, Tensor):
                raise TypeError(f"grad: {kind} {i} is {type(x).__name__}, expected a tensor")
    for i, x in enumerate(wanted):
        if x._node is None:
            raise ValueError(
                f"grad: input {i} (shape {x.shape}) does not require a gradient; "
                "create it with requires_grad=True"
            )
    return [x._node for x in wanted]


def checkpoint(block: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """``block(*args, **kwargs)``, whose tape is dropped at once and rebuilt in the backward.

    Time for memory (Chen et al., 2016, arXiv:1604.06174): of all that the block computes only its
    result is kept. Gradients reach everything that the block uses, arguments or not; it must
    compute the same the second time, so give dropout its key, or use `nn.Dropout`. Returns one
    tensor; TypeError if the block does not.
    """
    args = tuple(np.array(x) if isinstance(x, np.ndarray) else x for x in args)  # for the replay
    start, outer = Node("leaf", np.empty(0)).id, mode.drawn
    drawn: list[int] = []
    with set_mode(drawn=drawn):
        out = block(*args, **kwargs)
    if outer is not None:
        outer += drawn
    if not isinstance(out, Tensor):
        raise TypeError(f"checkpoint: the block returned {type(out).__name__}, not one tensor")
    if out._node is None or out._node.id < start:
        return out

    def replay(g: Array) -> Node | None:
        with set_mode(grad=True, drawn=None, replayed=iter(drawn)):
            return block(*args, **kwargs)._node  # the walk goes on from there

    counters: dict[int, list[int]] = {}
    stack, seen = [out._node], {out._node}
    while stack:
        node = stack.pop()
        counters.update((id(counter), counter) for counter in node.saved)
        new = {p for p in node.parents if p is not None and p.id > start} - seen
        seen |= new
        stack += new
    parents = tuple(x._node if isinstance(x, Tensor) else None for x in args)
    result = Tensor._wrap(out._array)
    result._version = out._shared()
    result._node = Node("checkpoint", out._array, parents, replay, list(counters.values()))
    return result
