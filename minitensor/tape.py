"""The tape: what was done to get a result, and the walk back along it.

Each recorded application of an op is a `Node` that points at the nodes of its inputs; the chain
of nodes is the tape. The walk visits them from the newest to the oldest. A node is always newer
than its inputs' nodes, so when its turn comes, every gradient it will ever get has arrived: no
sorting, no recursion, and a graph of a million nodes is no harder than one of ten.

What this file is not: a compiler, and there is no gradient of a gradient.
"""

from __future__ import annotations

import heapq
import inspect
import itertools
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ContextDecorator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from minitensor.tensor import Tensor

Array = np.ndarray
Vjp = Callable[[Array], Array]
Backward = Callable[[Array], Any] | tuple[Vjp | None, ...]
Observer = Callable[[str, str, float, Sequence[Array], Array], None]

# ------------------------------------------------------------------------------------------ modes


class Mode(threading.local):
    """What the current thread is doing; each thread has its own."""

    grad = True  # record operations on tensors that require a gradient
    recording = False  # the op running now will be asked for its gradient
    anomaly = False  # look for the first non-finite value
    observer: Observer | None = None
    drawn: list[int] | None = None  # keys that modules drew within a checkpoint
    replayed: Iterator[int] | None = None  # the same keys, while it is computed again


mode = Mode()


def recording() -> bool:
    """True inside an op whose gradient will be wanted: a fused op skips what only that needs."""
    return mode.recording


class set_mode(ContextDecorator):  # a function's name: it is called as one
    """Context, or decorator, in which some modes of the thread have other values. It may be entered
    again."""

    def __init__(self, **values: Any):
        self.values = values
        self.before: list[dict[str, Any]] = []

    def __enter__(self) -> None:
        self.before.append({name: getattr(mode, name) for name in self.values})
        for name, value in self.values.items():
            setattr(mode, name, value)

    def __exit__(self, *error: object) -> None:
        for name, value in self.before.pop().items():
            setattr(mode, name, value)

    def __call__(self, function: Any) -> Any:
        if inspect.isgeneratorfunction(function):
            raise TypeError(
                f"a mode cannot decorate the generator {function.__name__}, whose body runs later; "
                "write with no_grad(): inside it"
            )
        return super().__call__(function)

    def _recreate_cm(self) -> set_mode:
        return set_mode(**self.values)  # each call of a decorated function, in whatever thread


def no_grad() -> Any:
    """Context (or decorator) in which nothing is recorded."""
    return set_mode(grad=False)


def enable_grad() -> Any:
    """Context (or decorator) that records again inside `no_grad`."""
    return set_mode(grad=True)


def is_grad_enabled() -> bool:
    """Whether operations of the current thread are being recorded."""
    return mode.grad


def detect_anomaly() -> Any:
    """Context that stops at the first non-finite value and names the op and the line that made it.

    Raises FloatingPointError, in the forward when an op turns finite inputs into a non-finite
    output, and in the backward when a vjp returns a non-finite gradient.
    """
    return set_mode(anomaly=True)


def observe(observer: Observer) -> Any:
    """Context that calls ``observer(op, phase, seconds, arrays, array)`` for every op.

    In phase "forward" the arrays are the inputs and the last one the output; in "backward" they
    are the gradients of the inputs and the last one is the output's. Only the current thread.
    """
    return set_mode(observer=observer)


# -------------------------------------------------------------------------------------- the nodes


class Part(NamedTuple):
    """What a vjp may return instead of an array: the gradient of ``x[index]``, zero elsewhere."""

    index: Any  # takes no element twice
    grad: Array


_ids = itertools.count()


class Node:
    """One recorded application of an op, or a leaf (``op == "leaf"``).

    It knows its parents' nodes and how to send a gradient to them, and never its own tensor
    (but by weak reference): so a graph has no cycle and frees itself by reference count.
    """

    __slots__ = (
        "__weakref__",
        "backward",
        "dtype",
        "hooks",
        "id",
        "op",
        "parents",
        "saved",
        "shape",
        "stamp",
        "tensor",
        "where",
    )

    def __init__(
        self,
        op: str,
        out: Array,
        parents: tuple[Node | None, ...] = (),
        backward: Backward | None = None,
        saved: Sequence[list[int]] = (),
    ):
        self.id = next(_ids)
        self.op = op
        self.shape = out.shape
        self.dtype = out.dtype
        self.parents = parents
        self.backward = backward
        self.saved = saved  # version counters of the arrays in use, and their sum when recorded:
        self.stamp = sum([counter[0] for counter in saved])  # they only grow, so it tells a change
        self.hooks: list[Hook] | None = None
        self.tensor: weakref.ref[Tensor] | None = None  # who gets `.grad`: leaves, retain_grad()
        self.where: str | None = None  # source line, kept in anomaly mode

    def __repr__(self) -> str:
        return f"Node({self.op}, shape={self.shape})"


class Hook:
    """A function that sees the gradient of a node, and the handle that removes it."""

    def __init__(self, fn: Callable[[Array], Array | None], node: Node):
        self.fn, self.node = fn, weakref.ref(node)  # weak, as the node holds the hook
        node.hooks = [*(node.hooks or ()), self]

    def remove(self) -> None:
        """Take the hook away; a second time does nothing."""
        node = self.node()
        if node is not None:
            node.hooks = [hook for hook in node.hooks or () if hook is not self]

    __call__ = remove

    def run(self, g: Array, node: Node) -> Array:
        """The gradient that goes on: `g`, or what the function returned for it."""
        seen = g.view()
        seen.flags.writeable = False  # other nodes may hold the same array
        changed = self.fn(seen)
        if changed is None:
            return g
        changed = np.asarray(changed, dtype=node.dtype)
        if changed.shape != g.shape:
            raise ValueError(
                f"hook of '{node.op}': expected a gradient of shape {g.shape}, got {changed.shape}"
            )
        return changed


# --------------------------------------------------------------------------------------- the walk


def unbroadcast(g: Array, shape: tuple[int, ...]) -> Array:
    """Add up `g` over the axes along which an array of `shape` was repeated to fit."""
    extra = g.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(i + extra for i, n in enumerate(shape) if n == 1)
    return g.sum(axis=axes, keepdims=True).reshape(shape)


def walk(
    outputs: Sequence[tuple[Node, Array]],
    wanted: set[Node] | None,
    retain_graph: bool,
    ready: Callable[[Node, Array], None] | None = None,
) -> dict[Node, Array]:
    """Send gradients from `outputs` back to the leaves (or to the `wanted` nodes), newest first.

    Returns the gradient of each leaf or wanted node. Nodes are freed as they are passed unless
    `retain_graph`. With `ready`, a wanted leaf does not wait for its turn, which comes last: as
    soon as the oldest node that uses it is passed, its gradient is given to `ready`, as an array
    of its own.
    """
    grads: dict[Node, Array] = {}
    owned: set[Node] = set()  # nodes whose gradient is a sum we made, so may be added to in place
    heap: list[tuple[int, Node]] = []  # (-id, node) of those in `grads`: the newest comes first;
    # leaves are not in it: nothing lies behind them, and the last to be complete is no hurry
    found: dict[Node, Array] = {}

    def begin(node: Node, g: Array) -> None:
        grads[node] = g
        if node.op != "leaf":
            heapq.heappush(heap, (-node.id, node))

    def send(node: Node, g: Array | Part) -> None:
        if isinstance(g, Part):
            if node not in owned:
                if node not in grads:
                    begin(node, np.zeros(node.shape, node.dtype))
                else:
                    grads[node] = np.array(grads[node])
                owned.add(node)
            grads[node][g.index] += g.grad
        elif node not in grads:
            begin(node, g)
        elif node in owned:
            grads[node] += g
        else:
            grads[node] = np.asarray(grads[node] + g)
            owned.add(node)

    def arrive(node: Node) -> Array:
        """The gradient of a node, which is complete, after its hooks."""
        g = grads.pop(node)
        owned.discard(node)
        for hook in node.hooks or ():
            g = hook.run(g, node)
        if wanted is None:
            if node.op == "leaf" or node.tensor is not None:
                found[node] = g
        elif node in wanted:
            if ready:
                needed = node.op != "leaf" or any(np.may_share_memory(g, a) for a in grads.values())
                ready(node, g.copy() if needed else g)
            found[node] = g
        return g

    for node, g in outputs:
        send(node, g)
    oldest = min(node.id for node in wanted) if wanted else -1
    complete = _last_uses([node for node, _ in outputs], wanted) if ready and wanted else []
    while heap and -heap[0][0] >= oldest:
        while complete and complete[-1][0] > -heap[0][0]:
            leaf = complete.pop()[1]
            if leaf in grads:  # and not without a gradient
                arrive(leaf)
        node = heapq.heappop(heap)[1]
        g = arrive(node)
        if node.id == oldest and wanted is not None:
            break  # all that is asked for is known: leave what lies before
        if node.backward is None or sum([counter[0] for counter in node.saved]) != node.stamp:
            raise _spoilt(node)
        sent = _input_grads(node, g)
        if isinstance(sent, Node):  # a replayed block: its tape takes the gradient from here
            send(sent, g)
            sent = ()
        for parent, grad in zip(node.parents, sent, strict=False):
            if parent is None or grad is None:
                continue
            if isinstance(grad, Part):
                send(parent, grad)
                continue
            if (  # as nearly always; a cached kernel's arrays have a dtype object of their own
                type(grad) is np.ndarray
                and grad.shape == parent.shape
                and grad.dtype == parent.dtype
            ):
                send(parent, grad)
            else:
                send(parent, _fitted(grad, parent))
        if not retain_graph:
            node.backward, node.parents, node.saved = None, (), ()
    for leaf in [*(leaf for _, leaf in reversed(complete)), *grads]:
        if leaf in grads and leaf.op == "leaf" and leaf.id >= oldest:
            arrive(leaf)
    return found


def _last_uses(outputs: Iterable[Node], wanted: set[Node]) -> list[tuple[int, Node]]:
    """(id of the oldest node that uses it, leaf) of the wanted leaves, the first to be complete
    last. What a checkpointed block uses is known when it is replayed: until then it may be all."""
    uses: dict[Node, int] = {}
    seen = set(outputs)
    stack, hidden = list(seen), math.inf
    while stack:
        node = stack.pop()
        if node.op == "checkpoint":
            hidden = min(hidden, node.id)
        for parent in node.parents:
            if parent is None:
                continue
            if parent in wanted and parent.op == "leaf":
                uses[parent] = min(uses.get(parent, node.id), node.id)
            elif parent not in seen:
                seen.add(parent)
                stack.append(parent)
    last = [(int(min(use, hidden)), leaf) for leaf, use in uses.items()]
    return sorted(last, key=lambda pair: (pair[0], -pair[1].id))


def _spoilt(node: Node) -> RuntimeError:
    """Why the node cannot send a gradient any more."""
    if node.backward is None:
        return RuntimeError(
            f"backward: the graph of '{node.op}' was already freed by an earlier backward; "
            "pass retain_graph=True to that call, or compute the result again"
        )
    return RuntimeError(
        f"backward: an array that '{node.op}' needs was changed in place after it was "
        "used; change a copy, or change it after backward"
    )


def _fitted(g: Any, parent: Node) -> Array:
    """What a vjp returned, in the shape and dtype of the node that it is for."""
    g = np.asarray(g)
    if g.shape != parent.shape:
        g = unbroadcast(g, parent.shape)
    return g.astype(parent.dtype, copy=False)


def _input_grads(node: Node, g: Array) -> Sequence[Array | Part | None] | Node:
    """The gradients of a node's inputs: vjp by vjp, or all at once."""
    backward, observer = node.backward, mode.observer
    start = time.perf_counter() if observer else 0.0
    grads: Any
    if isinstance(backward, tuple):
        grads = [
            vjp(g) if vjp is not None and parent is not None else None
            for vjp, parent in zip(backward, node.parents, strict=False)
        ]
    else:
        assert backward is not None
        grads = backward(g)
        if isinstance(grads, Node):
            return grads
        if not isinstance(grads, tuple):
            grads = (grads,)
    if observer or mode.anomaly:
        _watch(node, grads, g, time.perf_counter() - start)
    return grads


def _watch(node: Node, grads: Sequence[Any], g: Array, seconds: float) -> None:
    """Tell the observer of a backward, and in anomaly mode look at what it made."""
    arrays = [a.grad if isinstance(a, Part) else a for a in grads]
    if mode.observer:
        mode.observer(node.op, "backward", seconds, [a for a in arrays if a is not None], g)
    for i, a in enumerate(arrays):
        if mode.anomaly and a is not None and not np.isfinite(a).all():
            cause = "" if np.isfinite(g).all() else " from a non-finite gradient of its output"
            where = f" (called at {node.where})" if node.where else ""
            raise FloatingPointError(
                f"anomaly: backward of '{node.op}' made a non-finite gradient "
                f"for its input {i}{cause}{where}"
            )
