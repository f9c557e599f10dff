"""Tensors, and what an op is.

An *op* is a plain function on arrays that returns its result and how to send a gradient back (its
vector-Jacobian products, "vjps")::

    @op(cases=...)
    def mul(a: Array, b: Array):
        return a * b, (lambda g: g * b, lambda g: g * a)

Calling ``mul(x, y)`` on tensors runs the function on their arrays; if an input requires a gradient,
the vjps are kept on the tape (see tape.py). A vjp takes the gradient as its argument and may hold
arrays, never tensors, so a graph frees itself by reference count.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minitensor.tape import Array, Backward, Node, mode, walk

_PACKAGE = str(Path(__file__).parent)
registry: dict[str, Op] = {}


class Op:
    """A registered operation: a callable on tensors, with the cases on which it is checked.

    `cases(rng)` yields ``(inputs, options)``: a tuple of arrays (float64 ones are differentiated)
    and a dict of keyword arguments. The leading parameters annotated ``Array`` (or
    ``np.ndarray``) are the inputs.
    """

    def __init__(self, fn: Callable[..., tuple[Array, Backward]], cases: Callable[..., Any]):
        self.fn = fn
        self.name = fn.__name__
        self.cases = cases
        functools.update_wrapper(self, fn)
        params = inspect.signature(fn).parameters.values()
        inputs = list(itertools.takewhile(lambda p: "rray" in str(p.annotation), params))
        self.names = [p.name for p in inputs]
        self.variadic = bool(inputs) and inputs[0].kind is inspect.Parameter.VAR_POSITIONAL

    def __repr__(self) -> str:
        return f"<op {self.name}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Apply the op to tensors, arrays and numbers."""
        n = len(args) if self.variadic else len(self.names)
        inputs, options = args[:n], args[n:]
        for name in self.names[len(inputs):] if not self.variadic else ():
            if name not in kwargs:
                break
            inputs += (kwargs.pop(name),)
        arrays: list[Any] = []
        parents: list[Node | None] = []
        saved: list[tuple[list[int], int]] = []
        for x in inputs:
            if isinstance(x, Tensor):
                arrays.append(x._array)
                parents.append(x._node if mode.grad else None)
                saved.append((x._version, x._version[0]))
            else:
                arrays.append(_as_operand(x))
                parents.append(None)
        record = any(parents)
        out, backward = self._run(arrays, options, kwargs, record)
        result = Tensor._wrap(out)
        if out.base is not None:  # a view shares the version counter of what it looks at
            for x in inputs:
                if isinstance(x, Tensor) and np.may_share_memory(out, x._array):
                    result._version = x._version
                    break
        if record:
            saved.append((result._version, result._version[0]))
            result._node = Node(self.name, out, tuple(parents), backward, tuple(saved))
        if mode.anomaly:
            _check_finite(self.name, arrays, out, result._node)
        return result

    def _run(self, arrays: list[Any], options: tuple[Any, ...], kwargs: dict[str, Any],
             record: bool) -> tuple[Array, Backward]:
        """The array function itself, timed if someone observes, with errors that name the op."""
        outer, mode.recording = mode.recording, record
        start = time.perf_counter() if mode.observer else 0.0
        try:
            out, backward = self.fn(*arrays, *options, **kwargs)
        except (ValueError, IndexError) as error:
            text = str(error)
            if not text.startswith(f"{self.name}: "):
                text = f"{self.name}: {text}; got {', '.join(map(_describe, arrays))}"
            kind = IndexError if type(error) is IndexError else ValueError
            raise kind(text) from error
        finally:
            mode.recording = outer
        out = np.asarray(out)
        if mode.observer:
            mode.observer(self.name, "forward", time.perf_counter() - start,
                          [a for a in arrays if isinstance(a, np.ndarray)], out)
        return out, backward


def op(*, cases: Callable[..., Any]) -> Callable[[Callable[..., Any]], Op]:
    """Turn an array function that returns ``(result, backward)`` into a registered op on tensors.

    `backward` is a tuple with one vjp per input (``None`` where there is no gradient), of which
    only those needed are called; or one function of the gradient that returns all of them. A vjp
    may return a gradient of the broadcast shape: the walk adds up over the broadcast axes.
    """

    def register(fn: Callable[..., Any]) -> Op:
        registry[fn.__name__] = operation = Op(fn, cases)
        return operation

    return register


def _as_operand(x: Any) -> Any:
    """Numbers stay Python numbers, so that they never widen a float32 array (NEP 50)."""
    if x is None or isinstance(x, (bool, int, np.ndarray)):
        return x
    if isinstance(x, (float, np.floating)):
        return float(x)
    return np.asarray(x)


def _describe(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}" if isinstance(x, np.ndarray) else repr(x)


def _check_finite(name: str, arrays: Sequence[Any], out: Array, node: Node | None) -> None:
    """Anomaly mode: remember the calling line, and stop at the first non-finite value."""
    frames = [f for f in traceback.extract_stack() if not f.filename.startswith(_PACKAGE)]
    where = f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else "?"
    if node is not None:
        node.where = where
    if out.dtype.kind == "f" and not np.isfinite(out).all():
        bad = [i for i, a in enumerate(arrays)
               if isinstance(a, np.ndarray) and a.dtype.kind == "f" and not np.isfinite(a).all()]
        cause = f"from a non-finite input {bad[0]}" if bad else "from finite inputs"
        raise FloatingPointError(f"anomaly: '{name}' made a non-finite value {cause} at {where}")


class Tensor:
    """An n-dimensional array that remembers how it was made.

    `data` is anything NumPy makes an array of; it is copied. Python floats become float32; arrays
    keep their dtype. Arithmetic, comparison and indexing follow NumPy; `requires_grad`, `grad`,
    `backward`, `detach` mean what they mean in PyTorch, except that `grad` is a NumPy array.
    """

    __slots__ = ("_array", "_node", "_version", "grad", "__weakref__")
    __array_priority__ = 1000.0  # array + tensor is the tensor's business
    __array_ufunc__ = None

    _array: Array
    _node: Node | None
    _version: list[int]
    grad: Array | None

    def __init__(self, data: Any, requires_grad: bool = False, dtype: Any = None):
        source = data._array if isinstance(data, Tensor) else data
        array = np.array(source, dtype=dtype)
        if dtype is None and array.dtype == np.float64 and not isinstance(
                source, (np.ndarray, np.generic)):
            array = array.astype(np.float32)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"Tensor: cannot hold {array.dtype}; give numbers or booleans")
        self._array, self._node, self._version, self.grad = array, None, [0], None
        self.requires_grad = requires_grad

    @classmethod
    def _wrap(cls, array: Array) -> Tensor:
        """A tensor around an array that nobody else will write to; no copy."""
        self = object.__new__(cls)
        self._array, self._node, self._version, self.grad = array, None, [0], None
        return self

    # ------------------------------------------------------------------ what it is

    @property
    def requires_grad(self) -> bool:
        """Whether gradients flow to this tensor. Settable on leaves of a floating dtype."""
        return self._node is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if self._node is not None and self._node.op != "leaf":
            raise ValueError("requires_grad: only a leaf can be changed; use detach()")
        if not value:
            self._node = None
        elif self._node is None:
            if self._array.dtype.kind != "f":
                raise TypeError(f"requires_grad: only floating tensors have gradients, not "
                                f"{self._array.dtype}")
            self._node = Node("leaf", self._array)
            self._node.tensor = weakref.ref(self)

    def requires_grad_(self, value: bool = True) -> Tensor:
        """Set `requires_grad` and return the tensor."""
        self.requires_grad = value
        return self

    @property
    def is_leaf(self) -> bool:
        """Made by the user, not by an op that is on the tape."""
        return self._node is None or self._node.op == "leaf"

    @property
    def data(self) -> Array:
        """The array, read-only: change a tensor by ``x[...] = values`` or `copy_`."""
        view = self._array.view()
        view.flags.writeable = False
        return view

    def numpy(self) -> Array:
        """The array, read-only, as `data`."""
        return self.data

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self._array, dtype=dtype) if copy or dtype else self.data

    def item(self) -> float:
        """The value of a tensor with one element, as a Python number."""
        return self._array.item()

    def tolist(self) -> Any:
        """The values as nested lists."""
        return self._array.tolist()

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        return self._array.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self._array.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self._array.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy dtype."""
        return self._array.dtype

    def __len__(self) -> int:
        return len(self._array)

    def __bool__(self) -> bool:
        return bool(self._array)

    def __float__(self) -> float:
        return float(self._array)

    def __repr__(self) -> str:
        text = np.array2string(self._array, separator=", ", prefix="Tensor(", threshold=20)
        made = f", op={self._node.op}" if self._node is not None and not self.is_leaf else ""
        grad = ", requires_grad=True" if self.requires_grad and not made else made
        return f"Tensor({text}, {self.dtype}{grad})"

    # ------------------------------------------------------------------ gradients

    def backward(self, gradient: Any = None, *, retain_graph: bool = False) -> None:
        """Add to `.grad` of every leaf the derivative of this tensor with respect to it.

        `gradient` weighs the elements of this tensor; a scalar needs none. The graph is freed
        unless `retain_graph`. Raises RuntimeError on a freed graph, or where an array that is
        still needed was changed in place.
        """
        if self._node is None:
            raise RuntimeError("backward: this tensor does not depend on any that requires a "
                               "gradient")
        for node, g in walk([(self._node, seed(self, gradient))], None, retain_graph).items():
            tensor = node.tensor() if node.tensor is not None else None
            if tensor is not None:
                tensor.grad = np.array(g) if tensor.grad is None else tensor.grad + g

    def retain_grad(self) -> Tensor:
        """Keep the gradient of this intermediate result in `.grad` too."""
        if self._node is None:
            raise RuntimeError("retain_grad: this tensor does not require a gradient")
        self._node.tensor = weakref.ref(self)
        return self

    def register_hook(self, hook: Callable[[Array], Array | None]) -> Callable[[], None]:
        """Call `hook(gradient)` in the backward; what it returns, if anything, replaces it.

        Returns a function that removes the hook.
        """
        if self._node is None:
            raise RuntimeError("register_hook: this tensor does not require a gradient")
        hooks = self._node.hooks = self._node.hooks or []
        hooks.append(hook)
        return lambda: hooks.remove(hook) if hook in hooks else None

    def detach(self) -> Tensor:
        """The same values without the history; shares memory."""
        out = Tensor._wrap(self._array)
        out._version = self._version
        return out

    # ------------------------------------------------------------------ changes in place

    def copy_(self, values: Any) -> Tensor:
        """Overwrite the values in place (same shape, cast to this dtype)."""
        self[...] = values
        return self

    def __setitem__(self, index: Any, values: Any) -> None:
        """Write in place. Only outside the tape: a leaf that requires a gradient needs no_grad."""
        if self._node is not None and (mode.grad or self._node.op != "leaf"):
            raise RuntimeError("in-place change of a tensor that is on the tape; use where() or "
                               "concat(), or change a leaf inside no_grad()")
        if not self._array.flags.writeable:
            raise RuntimeError("in-place change of a broadcast view; copy it first")
        index = index._array if isinstance(index, Tensor) else index
        self._array[index] = values._array if isinstance(values, Tensor) else values
        self._version[0] += 1


def tensor(data: Any, requires_grad: bool = False, dtype: Any = None) -> Tensor:
    """The same as `Tensor(data, requires_grad, dtype)`."""
    return Tensor(data, requires_grad, dtype)


def seed(out: Tensor, g: Any) -> Array:
    """The gradient with which the walk starts at `out`: `g`, or 1 for a scalar."""
    if g is None:
        if out._array.size != 1:
            raise ValueError(f"backward: the output has shape {out.shape}; only a scalar has an "
                             "implicit gradient of 1, so give one of the output's shape")
        return np.ones(out.shape, out.dtype)
    g = np.array(g, dtype=out.dtype)
    if g.shape != out.shape:
        raise ValueError(f"backward: the gradient has shape {g.shape}, the output {out.shape}")
    return g


def grad(outputs: Tensor | Sequence[Tensor], inputs: Sequence[Tensor], grad_outputs: Any = None,
         *, retain_graph: bool = False, allow_unused: bool = False) -> list[Array]:
    """Gradients of `outputs` (a scalar, or tensors weighted by `grad_outputs`) for `inputs`.

    Returns one array per input, of its shape and dtype, to which nothing else refers. Writes to
    no ``.grad``, so several threads may do this with shared parameters. An input that has no part
    in the outputs is an error, or gets zeros with `allow_unused`.
    """
    outs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    if grad_outputs is None:
        weights: list[Any] = [None] * len(outs)
    else:
        weights = [grad_outputs] if isinstance(outputs, Tensor) else list(grad_outputs)
    if len(weights) != len(outs):
        raise ValueError(f"grad: {len(outs)} outputs but {len(weights)} grad_outputs")
    nodes = []
    for i, x in enumerate(inputs):
        if x._node is None:
            raise ValueError(f"grad: input {i} (shape {x.shape}) does not require a gradient; "
                             "create it with requires_grad=True")
        nodes.append(x._node)
    starts = [(o._node, seed(o, w)) for o, w in zip(outs, weights, strict=True) if o._node]
    found = walk(starts, set(nodes), retain_graph)
    result: list[Array] = []
    seen: set[int] = set()
    for i, (x, node) in enumerate(zip(inputs, nodes, strict=True)):
        g = found.get(node)
        if g is None:
            if not allow_unused:
                raise ValueError(f"grad: input {i} (shape {x.shape}) has no part in the outputs; "
                                 "pass allow_unused=True for a gradient of zeros")
            g = np.zeros(x.shape, x.dtype)
        elif not (g.flags.owndata and g.flags.c_contiguous) or id(g) in seen:
            g = np.array(g, order="C")  # never hand out a view or the same array twice
        seen.add(id(g))
        result.append(g)
    return result
