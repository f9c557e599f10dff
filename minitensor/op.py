"""What an op is, and how calling one runs it and puts it on the tape.

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
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minitensor.dtypes import PLAIN, alike, describe, operand, promote
from minitensor.tape import Array, Backward, Node, mode
from minitensor.tensor import Tensor, owner

_PACKAGE = str(Path(__file__).parent)
NO_TENSORS = frozenset({float, int, bool, str, tuple, np.ndarray, type(None)})  # usual options
registry: dict[str, Op] = {}


class Op:
    """A registered operation: a callable on tensors, with the cases on which it is checked.

    `cases(rng)` yields ``(inputs, options)``: a tuple of arrays (float64 ones are differentiated)
    and a dict of keyword arguments. The leading parameters annotated ``Array`` (or
    ``np.ndarray``) are the inputs, and those annotated ``IndexArray`` choose among them; all others
    are options, which take no tensors on the tape. TypeError where an annotation is missing, or
    none says that there is an input.

    All inputs of a call get one dtype first, by the rule of dtypes.py.
    """

    def __init__(
        self,
        fn: Callable[..., tuple[Array, Backward]],
        cases: Callable[..., Any],
        name: str | None = None,
        integers: bool = False,
    ):
        self.fn = fn
        self.name = name or fn.__name__
        self.cases = cases
        self.integers = integers
        functools.update_wrapper(self, fn)
        params = inspect.signature(fn).parameters.values()
        inputs = list(
            itertools.takewhile(
                lambda p: "rray" in str(p.annotation) and p.kind is not p.KEYWORD_ONLY, params
            )
        )
        self.names = [p.name for p in inputs]
        self.defaults = {p.name: p.default for p in inputs if p.default is not p.empty}
        self.chooses = {i for i, p in enumerate(inputs) if "IndexArray" in str(p.annotation)}
        self.variadic = bool(inputs) and inputs[0].kind is inspect.Parameter.VAR_POSITIONAL
        bare = [p.name for p in params if p.annotation is p.empty]
        if bare or not inputs:
            what = f"parameter {bare[0]!r} has no annotation" if bare else "no input stands first"
            raise TypeError(
                f"op {self.name}: {what}; write x: Array for what may have a gradient, "
                "and the type of an option (p: float)"
            )

    def __repr__(self) -> str:
        return f"<op {self.name}>"

    def __reduce__(self) -> str:
        return self.fn.__qualname__  # copied and pickled as a function is: by its name

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Apply the op to tensors, arrays and numbers. This is the cost of every operation, so
        the common path is written out straight."""
        inputs, options, kwargs = self._split(args, kwargs)
        arrays: list[Any] = []
        parents: list[Node | None] = []
        saved: list[list[int]] = []
        record, given, grad = False, False, mode.grad
        for x in inputs:
            if isinstance(x, Tensor):
                arrays.append(x._array)
                saved.append(x._version)
                node = x._node if grad else None
                parents.append(node)
                record = record or node is not None
            else:
                arrays.append(x if type(x) in PLAIN else operand(x, _dtypes(inputs)))
                parents.append(None)
                given = given or isinstance(x, np.ndarray)
        if kwargs and not NO_TENSORS.issuperset(map(type, kwargs.values())):
            self._check_options(kwargs.values())
        if options and not NO_TENSORS.issuperset(map(type, options)):
            self._check_options(options)
        if record and given:
            arrays = [  # tensors are watched, arrays are not: keep what they hold now
                np.array(a) if isinstance(a, np.ndarray) and not isinstance(x, Tensor) else a
                for a, x in zip(arrays, inputs, strict=True)
            ]
        if not saved and not any(isinstance(a, np.ndarray) for a in arrays):
            arrays = [a if a is None else Tensor(a)._array for a in arrays]
        if not alike(arrays, self.chooses):
            promote(arrays, self.name, self.names, self.chooses, self.integers)
        outer, mode.recording = mode.recording, record
        start = time.perf_counter() if mode.observer else 0.0
        try:
            out, backward = self.fn(*arrays, *options, **kwargs)
        except (ValueError, IndexError, TypeError, OverflowError) as error:
            raise self._told(error, arrays) from error
        finally:
            mode.recording = outer
        if type(out) is not np.ndarray:
            out = np.asarray(out)
        for a in arrays:
            if a is out:  # an op that had nothing to do
                out = out.view()
        result = Tensor._wrap(out)
        if isinstance(out.base, np.ndarray):  # a view shares the version counter of its array
            memory = owner(out)
            for x in inputs:
                if isinstance(x, Tensor) and owner(x._array) is memory:
                    result._version = x._shared()
                    break
        if record and backward is not None:
            saved.append(result._version)
            result._node = Node(self.name, out, tuple(parents), backward, saved)
        if mode.observer:
            mode.observer(
                self.name,
                "forward",
                time.perf_counter() - start,
                [a for a in arrays if isinstance(a, np.ndarray)],
                out,
            )
        if mode.anomaly:
            _check_finite(self.name, arrays, out, result._node)
        return result

    def _check_options(self, options: Iterable[Any]) -> None:
        """TypeError for an option whose gradient would be lost."""
        for option in options:
            if isinstance(option, Tensor) and option._node is not None and mode.grad:
                raise TypeError(
                    f"{self.name}: an option is a tensor that requires a gradient, which would be "
                    f"lost; only {', '.join(self.names)} may have one, so give option.detach()"
                )

    def _told(self, error: Exception, arrays: Sequence[Any]) -> Exception:
        """An error of the op's function, with the op's name and its inputs."""
        text = str(error)
        for theirs, ours in (("'dim'", "axis"), ("'keepdim'", "keepdims")):
            if "unexpected keyword" in text and theirs in text:
                text = f"the option is called {ours}, as in NumPy, not {theirs}"
        if not text.startswith(f"{self.name}: "):
            text = f"{self.name}: {text}; got {', '.join(map(describe, arrays))}"
        kinds = (IndexError, TypeError, ValueError)
        return next((k for k in kinds if isinstance(error, k)), ValueError)(text)

    def _split(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Sequence[Any], Sequence[Any], dict[str, Any]]:
        """What is an input of a call, and what an option, by place and by name."""
        inputs: Sequence[Any] = args
        options: Sequence[Any] = ()
        if self.variadic:
            if inputs and isinstance(inputs[0], (list, tuple)):  # concat([a, b], axis)
                inputs, options = tuple(args[0]), args[1:]
                if options:  # after *xs, options can only be given by name
                    names = list(inspect.signature(self.fn).parameters)[1:]
                    kwargs, options = {**dict(zip(names, options, strict=False)), **kwargs}, ()
        elif len(args) > len(self.names):
            inputs, options = args[: len(self.names)], args[len(self.names) :]
        elif kwargs:
            left = self.names[len(args) :]
            while left and left[-1] not in kwargs:
                left.pop()
            for name in left:  # layer_norm(x, bias=b): the weight is the default
                if name not in kwargs and name not in self.defaults:
                    break
                inputs = (*inputs, kwargs.pop(name, self.defaults.get(name)))
        return inputs, options, kwargs


def op(
    fn: None = None,
    /,
    *,
    cases: Callable[..., Any] | None = None,
    name: str | None = None,
    integers: bool = False,
    replace: bool = False,
) -> Callable[[Callable[..., Any]], Op]:
    """Turn an array function that returns ``(result, backward)`` into a registered op on tensors.

    `backward` is a tuple with one vjp per input (``None`` where there is no gradient), of which
    only those needed are called; or one function of the gradient that returns all of them; or
    ``None`` for a result without a gradient. A vjp may return a gradient of the broadcast shape
    (the walk adds up over the broadcast axes), or a `Part`. `name` is the function's if not given;
    a name is taken once, unless `replace`. `integers` says that the op keeps integers; without it
    they come as floats (see `Op`).
    """
    if fn is not None or cases is None:
        raise TypeError(
            "op: write @op(cases=...), where cases(rng) yields (inputs, options) on which "
            "the gradient is checked"
        )
    checked = cases

    def register(fn: Callable[..., Any]) -> Op:
        operation = Op(fn, checked, name, integers)
        if operation.name in registry and not replace:
            raise ValueError(
                f"op: there is one called {operation.name!r}; choose another name, "
                "or pass replace=True"
            )
        registry[operation.name] = operation
        return operation

    return register


def _check_finite(name: str, arrays: Sequence[Any], out: Array, node: Node | None) -> None:
    """Anomaly mode: remember the calling line, and stop at the first non-finite value."""
    frames = [f for f in traceback.extract_stack() if not f.filename.startswith(_PACKAGE)]
    where = f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else "?"
    if node is not None:
        node.where = where
    if out.dtype.kind == "f" and not np.isfinite(out).all():
        bad = [
            i
            for i, a in enumerate(arrays)
            if isinstance(a, np.ndarray) and a.dtype.kind == "f" and not np.isfinite(a).all()
        ]
        cause = f"from a non-finite input {bad[0]}" if bad else "from finite inputs"
        raise FloatingPointError(f"anomaly: '{name}' made a non-finite value {cause} at {where}")


def _dtypes(inputs: Sequence[Any]) -> list[np.dtype[Any]]:
    return [x.dtype for x in inputs if isinstance(x, (Tensor, np.ndarray))]
