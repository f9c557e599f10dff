"""Tensors: arrays that remember how they were made, so that a gradient can find its way back.

There is no arithmetic in this file: a method only names its op (see op.py and ops/).
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterator, Sequence
from sys import getrefcount
from typing import Any

import numpy as np

from minitensor.dtypes import accept, describe
from minitensor.hints import TENSOR, missing
from minitensor.tape import Array, Hook, Node, mode, set_mode, walk

Axis = int | tuple[int, ...] | None


def owner(x: Array) -> Array:
    """The array that a view, or a view of a view, looks at."""
    while isinstance(x.base, np.ndarray):
        x = x.base
    return x


class Size(int):
    """The number of elements; calling it gives the shape, as ``x.size()`` does in PyTorch."""

    shape: tuple[int, ...]

    def __call__(self, axis: int | None = None) -> Any:
        """The shape, or the length of one axis."""
        if axis is None:
            return self.shape
        if not -len(self.shape) <= axis < len(self.shape):
            raise IndexError(f"size: axis {axis} of a tensor of shape {self.shape}")
        return self.shape[axis]


class Tensor:
    """An n-dimensional array that remembers how it was made.

    `data` is anything NumPy makes an array of; it is copied. Python floats become float32; arrays
    keep their dtype: booleans, integers, float32 or float64 (TypeError for others; dtypes.py has
    the rule for mixing them). Arithmetic, comparison and indexing follow NumPy; `requires_grad`,
    `grad`, `backward`, `detach` mean what they mean in PyTorch, except that `grad` is an array.
    Leaves can be copied and pickled, with their gradient.
    """

    __slots__ = ("__weakref__", "_array", "_node", "_version", "grad")
    __array_priority__ = 1000.0  # array + tensor is the tensor's business
    __array_ufunc__ = None

    _array: Array
    _node: Node | None
    _version: list[int]  # how often the array was changed, and 1 once another tensor shares it
    grad: Array | None

    def __init__(self, data: Any, requires_grad: bool = False, dtype: Any = None):
        source = data._array if isinstance(data, Tensor) else data
        array = np.array(source, dtype=dtype)
        if (
            dtype is None
            and array.dtype == np.float64
            and not isinstance(source, (np.ndarray, np.generic))
        ):
            array = array.astype(np.float32)
        accept(array.dtype, "Tensor")
        self._array, self._node, self._version, self.grad = array, None, [0, 0], None
        self.requires_grad = requires_grad

    @classmethod
    def _wrap(cls, array: Array) -> Tensor:
        """A tensor around an array that nobody else will write to; no copy."""
        self = object.__new__(cls)
        self._array, self._node, self._version, self.grad = array, None, [0, 0], None
        return self

    def __getattr__(self, name: str) -> Any:  # only called for names that do not exist
        raise missing("a Tensor", name, TENSOR)

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
                raise TypeError(
                    f"requires_grad: only floating tensors have gradients, not {self._array.dtype}"
                )
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
        """The array, read-only: change a tensor by ``x[...] = values``, `copy_` or ``x -= step``.

        One exception, for PyTorch's ``p.data -= lr * p.grad``: the array of a leaf that requires a
        gradient may be written while no graph and no other tensor uses it. Assigning copies values
        in, needs no `no_grad`, and is noticed by a backward that needs the old ones.
        """
        view = self._array.view()
        if not (self._node is not None and self.is_leaf and getrefcount(self._version) <= 2):
            view.flags.writeable = False
        return view

    @data.setter
    def data(self, values: Any) -> None:
        if np.shape(values) != self.shape:
            raise ValueError(f"data: expected shape {self.shape}, got {np.shape(values)}")
        with set_mode(grad=False):
            self[...] = values

    def numpy(self) -> Array:
        """The array, read-only. RuntimeError for a tensor that requires a gradient, as in PyTorch;
        `data` works for those too."""
        if self._node is not None:
            raise RuntimeError(
                "this tensor requires a gradient, which NumPy would lose in silence; use an op of "
                "minitensor, or x.detach().numpy() if that is what you want"
            )
        view = self._array.view()
        view.flags.writeable = False
        return view

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        array = self.numpy()
        return np.array(array, dtype=dtype) if copy or dtype else array

    def __dlpack__(self, **options: Any) -> Any:
        """The memory itself, for ``from_dlpack`` of NumPy, PyTorch or JAX."""
        if self._node is not None:
            raise RuntimeError("dlpack: this tensor requires a gradient; give x.detach()")
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()

    def item(self) -> Any:
        """The value of a tensor with one element, as a Python number."""
        if self._array.size != 1:
            raise ValueError(
                f"expected a tensor of one element, got shape {self.shape}; index it, reduce it, "
                "or use any() or all() for truth"
            )
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
    def size(self) -> Size:
        """Number of elements, as in NumPy; called, the shape, or the length of an axis, as in
        PyTorch: ``x.size()``, ``x.size(0)``."""
        size = Size(self._array.size)
        size.shape = self._array.shape
        return size

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy dtype."""
        return self._array.dtype

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len, iteration: this tensor has no axes")
        return len(self._array)

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.__getitem__, range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype.kind not in "iu":
            raise TypeError(f"index: expected an integer tensor, got {self.dtype}")
        return int(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec or not self.ndim else repr(self)

    def __reduce__(self) -> Any:  # what deepcopy and pickle ask for
        if not self.is_leaf:
            raise RuntimeError(
                f"copy, pickle: this tensor is a result of '{self._node.op}' on the tape, which "  # type: ignore[union-attr]
                "is not copied; copy x.detach(), or go on from x itself"
            )
        return _restore, (type(self), self._array, self.requires_grad, self.grad)

    def __copy__(self) -> Tensor:
        restore, parts = self.__reduce__()
        out: Tensor = restore(*parts)
        out._version = self._shared()
        return out

    def __repr__(self) -> str:
        name = type(self).__name__
        text = np.array2string(self._array, separator=", ", prefix=f"{name}(", threshold=20)
        made = f", op={self._node.op}" if self._node is not None and not self.is_leaf else ""
        grad = ", requires_grad=True" if self.requires_grad and not made else made
        return f"{name}({text}, {self.dtype}{grad})"

    # ------------------------------------------------------------------ gradients

    def backward(self, gradient: Any = None, *, retain_graph: bool = False) -> None:
        """Add to `.grad` of every leaf the derivative of this tensor with respect to it.

        `gradient` weights the elements of this tensor; a scalar needs none. The graph is freed
        unless `retain_graph`. Raises RuntimeError on a freed graph, or where an array that is
        still needed was changed in place.
        """
        if self._node is None:
            raise RuntimeError(
                "backward: this tensor does not depend on any that requires a gradient"
            )
        for node, g in walk([(self._node, seed(self, gradient))], None, retain_graph).items():
            tensor = node.tensor() if node.tensor is not None else None
            if tensor is not None:
                tensor.grad = np.array(g) if tensor.grad is None else np.asarray(tensor.grad + g)

    def retain_grad(self) -> Tensor:
        """Keep the gradient of this intermediate result in `.grad` too."""
        if self._node is None:
            raise RuntimeError("retain_grad: this tensor does not require a gradient")
        self._node.tensor = weakref.ref(self)
        return self

    def register_hook(self, hook: Callable[[Array], Array | None]) -> Hook:
        """Call `hook(gradient)` in the backward; what it returns, if anything, replaces it.

        The gradient is read-only, and its replacement has its shape (ValueError). Returns a handle:
        ``handle.remove()`` takes the hook away.
        """
        if self._node is None:
            raise RuntimeError("register_hook: this tensor does not require a gradient")
        return Hook(hook, self._node)

    def detach(self) -> Tensor:
        """The same values without the history; shares memory."""
        out = Tensor._wrap(self._array)
        out._version = self._shared()
        return out

    def _shared(self) -> list[int]:
        """The version counter, for another tensor that shares this array."""
        self._version[1] = 1
        return self._version

    # ------------------------------------------------------------------ changes in place

    def copy_(self, values: Any) -> Tensor:
        """Overwrite the values in place (same shape, cast to this dtype)."""
        self[...] = values
        return self

    def __setitem__(self, index: Any, values: Any) -> None:
        """Write in place. Only outside the tape: a leaf that requires a gradient needs no_grad, and
        so do values with one."""
        if self._node is not None and (mode.grad or self._node.op != "leaf"):
            raise RuntimeError(
                "in-place change of a tensor that is on the tape; use where() or "
                "concat(), or change a leaf inside no_grad()"
            )
        if mode.grad and isinstance(values, Tensor) and values._node is not None:
            raise RuntimeError(
                "in-place change: the new values require a gradient, which would be lost; use "
                "stack(), concat() or where(), or write values.detach()"
            )
        if not self._array.flags.writeable:
            raise RuntimeError("in-place change of a broadcast view; copy it first")
        index = index._array if isinstance(index, Tensor) else index
        self._array[index] = values._array if isinstance(values, Tensor) else values
        self._version[0] += 1

    def _change(self, how: Callable[[Any, Any], Any], other: Any) -> Tensor:
        """``self how= other``, as in PyTorch: the values change, the object stays.

        Off the tape the array is overwritten. On the tape the arrays that a backward needs must not
        change, so this tensor becomes the op's result instead. That is equivalent as long as no
        other tensor shares its array (RuntimeError if one does).
        """
        if self._node is not None and self.is_leaf and mode.grad:
            raise RuntimeError(
                f"in-place {how.__name__} on a leaf that requires a gradient: change it inside "
                "no_grad() for a step of learning, or give the result a name of its own"
            )
        result = how(self, other)
        if result.shape != self.shape or not np.can_cast(result.dtype, self.dtype, "same_kind"):
            raise ValueError(
                f"in-place {how.__name__}: the result is {result.dtype}{list(result.shape)}, "
                f"expected {self.dtype}{list(self.shape)}; write x = x ... instead"
            )
        if result._node is None:
            self[...] = result
            return self
        if self._version[1]:
            raise RuntimeError(
                f"in-place {how.__name__} on the tape of a tensor whose array another one looks "
                "at (a view, or detach()); write x = x ... instead"
            )
        if result.dtype != self.dtype:
            result = result.astype(self.dtype)
        before = self._node
        self._array, self._node, self._version = result._array, result._node, result._version
        if before is not None and before.tensor is not None:  # retain_grad() goes along
            before.tensor, self._node.tensor = None, before.tensor
        return self

    # fmt: off
    def __iadd__(self, other: Any) -> Tensor: return self._change(operator.add, other)
    def __isub__(self, other: Any) -> Tensor: return self._change(operator.sub, other)
    def __imul__(self, other: Any) -> Tensor: return self._change(operator.mul, other)
    def __itruediv__(self, other: Any) -> Tensor: return self._change(operator.truediv, other)
    def __ifloordiv__(self, other: Any) -> Tensor: return self._change(operator.floordiv, other)
    def __imod__(self, other: Any) -> Tensor: return self._change(operator.mod, other)
    def __ipow__(self, other: Any) -> Tensor: return self._change(operator.pow, other)
    def __imatmul__(self, other: Any) -> Tensor: return self._change(operator.matmul, other)
    def __iand__(self, other: Any) -> Tensor: return self._change(operator.and_, other)
    def __ior__(self, other: Any) -> Tensor: return self._change(operator.or_, other)
    def __ixor__(self, other: Any) -> Tensor: return self._change(operator.xor, other)
    # fmt: on

    # ------------------------------------------------------------------ operations
    # One line each: the op of that name has the formula, and its docstring is the method's.

    # fmt: off
    def __add__(self, other: Any) -> Tensor: return ops.add(self, other)
    def __radd__(self, other: Any) -> Tensor: return ops.add(other, self)
    def __sub__(self, other: Any) -> Tensor: return ops.sub(self, other)
    def __rsub__(self, other: Any) -> Tensor: return ops.sub(other, self)
    def __mul__(self, other: Any) -> Tensor: return ops.mul(self, other)
    def __rmul__(self, other: Any) -> Tensor: return ops.mul(other, self)
    def __truediv__(self, other: Any) -> Tensor: return ops.div(self, other)
    def __rtruediv__(self, other: Any) -> Tensor: return ops.div(other, self)
    def __floordiv__(self, other: Any) -> Tensor: return ops.floor_divide(self, other)
    def __rfloordiv__(self, other: Any) -> Tensor: return ops.floor_divide(other, self)
    def __mod__(self, other: Any) -> Tensor: return ops.remainder(self, other)
    def __rmod__(self, other: Any) -> Tensor: return ops.remainder(other, self)
    def __pow__(self, other: Any) -> Tensor: return ops.pow(self, other)
    def __rpow__(self, other: Any) -> Tensor: return ops.pow(other, self)
    def __matmul__(self, other: Any) -> Tensor: return ops.matmul(self, other)
    def __rmatmul__(self, other: Any) -> Tensor: return ops.matmul(other, self)
    def __neg__(self) -> Tensor: return ops.neg(self)
    def __abs__(self) -> Tensor: return ops.abs(self)
    def __getitem__(self, index: Any) -> Tensor: return ops.getitem(self, index)
    def __invert__(self) -> Tensor: return _plainly("~", np.invert, self)
    def __and__(self, other: Any) -> Tensor: return _plainly("&", np.bitwise_and, self, other)
    def __rand__(self, other: Any) -> Tensor: return _plainly("&", np.bitwise_and, other, self)
    def __or__(self, other: Any) -> Tensor: return _plainly("|", np.bitwise_or, self, other)
    def __ror__(self, other: Any) -> Tensor: return _plainly("|", np.bitwise_or, other, self)
    def __xor__(self, other: Any) -> Tensor: return _plainly("^", np.bitwise_xor, self, other)
    def __rxor__(self, other: Any) -> Tensor: return _plainly("^", np.bitwise_xor, other, self)
    def __lt__(self, other: Any) -> Tensor: return _plainly("<", np.less, self, other)
    def __le__(self, other: Any) -> Tensor: return _plainly("<=", np.less_equal, self, other)
    def __gt__(self, other: Any) -> Tensor: return _plainly(">", np.greater, self, other)
    def __ge__(self, other: Any) -> Tensor: return _plainly(">=", np.greater_equal, self, other)
    def __eq__(self, other: Any) -> Tensor: return _plainly("==", np.equal, self, other)  # type: ignore[override]
    def __ne__(self, other: Any) -> Tensor: return _plainly("!=", np.not_equal, self, other)  # type: ignore[override]

    __hash__ = object.__hash__  # by identity, as a key of dicts and sets

    def abs(self) -> Tensor: return ops.abs(self)
    def exp(self) -> Tensor: return ops.exp(self)
    def expm1(self) -> Tensor: return ops.expm1(self)
    def log(self) -> Tensor: return ops.log(self)
    def log1p(self) -> Tensor: return ops.log1p(self)
    def sqrt(self) -> Tensor: return ops.sqrt(self)
    def rsqrt(self) -> Tensor: return ops.rsqrt(self)
    def sin(self) -> Tensor: return ops.sin(self)
    def cos(self) -> Tensor: return ops.cos(self)
    def tanh(self) -> Tensor: return ops.tanh(self)
    def sigmoid(self) -> Tensor: return ops.sigmoid(self)
    def relu(self) -> Tensor: return ops.relu(self)
    def softmax(self, axis: int = -1) -> Tensor: return ops.softmax(self, axis)
    def log_softmax(self, axis: int = -1) -> Tensor: return ops.log_softmax(self, axis)
    def cumsum(self, axis: int) -> Tensor: return ops.cumsum(self, axis)
    def squeeze(self, axis: Axis = None) -> Tensor: return ops.squeeze(self, axis)
    def unsqueeze(self, axis: Any) -> Tensor: return ops.unsqueeze(self, axis)
    def astype(self, dtype: Any) -> Tensor: return ops.astype(self, dtype)
    def clone(self) -> Tensor: return ops.clone(self)
    def transpose(self, *axes: int) -> Tensor: return ops.transpose(self, *axes)
    def swapaxes(self, axis1: int, axis2: int) -> Tensor: return ops.transpose(self, axis1, axis2)
    def permute(self, *axes: Any) -> Tensor: return ops.permute(self, _listed(axes))
    def reshape(self, *shape: Any) -> Tensor: return ops.reshape(self, _listed(shape))
    def view(self, *shape: Any) -> Tensor: return ops.reshape(self, _listed(shape))
    def flatten(self, start: int = 0, end: int = -1) -> Tensor: return ops.flatten(self, start, end)
    def expand(self, *shape: Any) -> Tensor: return ops.expand(self, _listed(shape))
    def repeat(self, *times: Any) -> Tensor: return ops.repeat(self, _listed(times))
    def flip(self, *axes: Any) -> Tensor: return ops.flip(self, _listed(axes))
    def tril(self, k: int = 0) -> Tensor: return ops.tril(self, k)
    def triu(self, k: int = 0) -> Tensor: return ops.triu(self, k)
    def gather(self, axis: int, index: Any) -> Tensor: return ops.gather(self, axis, index)
    # fmt: on

    def masked_fill(self, mask: Any, value: Any) -> Tensor:
        return ops.masked_fill(self, mask, value)

    def sum(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        return ops.sum(self, axis, keepdims)

    def mean(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        return ops.mean(self, axis, keepdims)

    def prod(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        return ops.prod(self, axis, keepdims)

    def max(self, axis: int | None = None, keepdims: bool = False) -> Any:
        return ops.max(self, axis, keepdims)

    def min(self, axis: int | None = None, keepdims: bool = False) -> Any:
        return ops.min(self, axis, keepdims)

    def amax(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        return ops.amax(self, axis, keepdims)

    def amin(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        return ops.amin(self, axis, keepdims)

    def logsumexp(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        return ops.logsumexp(self, axis, keepdims)

    def argmax(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        return ops.argmax(self, axis, keepdims)

    def argmin(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        return ops.argmin(self, axis, keepdims)

    def any(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        return ops.any(self, axis, keepdims)

    def all(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        return ops.all(self, axis, keepdims)

    def var(self, axis: Axis = None, *, correction: int = 1, keepdims: bool = False) -> Tensor:
        return ops.var(self, axis, correction=correction, keepdims=keepdims)

    def std(self, axis: Axis = None, *, correction: int = 1, keepdims: bool = False) -> Tensor:
        return ops.std(self, axis, correction=correction, keepdims=keepdims)

    def clip(self, low: float | None = None, high: float | None = None) -> Tensor:
        return ops.clip(self, low, high)

    def split(self, size: int | Sequence[int], axis: int = 0) -> list[Tensor]:
        return ops.split(self, size, axis)

    def chunk(self, chunks: int, axis: int = 0) -> list[Tensor]:
        return ops.chunk(self, chunks, axis)

    @property
    def T(self) -> Tensor:
        """All axes reversed."""
        return ops.permute(self, range(self.ndim)[::-1])


def _listed(values: tuple[Any, ...]) -> Any:
    """The arguments of ``x.reshape(2, 3)``, or the one list of ``x.reshape([2, 3])``."""
    return values[0] if len(values) == 1 and not isinstance(values[0], int) else values


def _plainly(symbol: str, how: Callable[..., Any], *operands: Any) -> Tensor:
    """A comparison or a logical operation, element by element: without a gradient."""
    arrays = [x._array if isinstance(x, Tensor) else x for x in operands]
    try:
        return Tensor._wrap(np.asarray(how(*arrays)))
    except (TypeError, ValueError) as error:
        what = ", ".join(map(describe, arrays))
        if isinstance(error, TypeError):
            raise TypeError(f"{symbol}: expected booleans or integers, got {what}") from error
        raise ValueError(f"{symbol}: {error}; got {what}") from error


def _restore(kind: type[Tensor], array: Array, learned: bool, grad: Array | None) -> Tensor:
    """A new leaf from the parts of another one."""
    out = kind._wrap(array)
    out.requires_grad, out.grad = learned, grad
    return out


def tensor(data: Any, requires_grad: bool = False, dtype: Any = None) -> Tensor:
    """The same as `Tensor(data, requires_grad, dtype)`."""
    return Tensor(data, requires_grad, dtype)


def from_dlpack(x: Any) -> Tensor:
    """A tensor of the values of another library's array (PyTorch's, JAX's): copied, so that nothing
    changes behind the tape. The other way: ``torch.from_dlpack(tensor)``, which shares memory."""
    return Tensor(np.from_dlpack(x))


def seed(out: Tensor, g: Any) -> Array:
    """The gradient with which the walk starts at `out`: `g`, or 1 for a scalar."""
    if g is None:
        if out._array.size != 1:
            raise ValueError(
                f"backward: the output has shape {out.shape}; only a scalar has an "
                "implicit gradient of 1, so give one of the output's shape"
            )
        return np.ones(out.shape, out.dtype)
    g = np.array(g, dtype=out.dtype)
    if g.shape != out.shape:
        raise ValueError(f"backward: the gradient has shape {g.shape}, the output {out.shape}")
    return g


from minitensor import ops  # noqa: E402  (the ops need `Tensor` from above)

for _name, _op in vars(ops).items():
    if _name in vars(Tensor) and callable(_op):
        vars(Tensor)[_name].__doc__ = _op.__doc__
