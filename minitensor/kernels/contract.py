"""The one door to the kernels: a call is checked against the kernel's declaration, then handed on.

Compiled code does not look before it reads: an array of another shape than it was written for is
read past its end. So every kernel says what it takes, argument by argument, above its formula:

    @kernel("gemm", x="(N, I)", weight="(O, I)", bias="(O) or None")
    def linear(x, weight, bias): ...

| declared as | takes |
| --- | --- |
| `(N, 2*d)` | an array of float32, or of float64; all arrays of a call have one dtype |
| `(N) written` | the same, and the kernel writes to it |
| `(N) in [0, V)` | integers from 0 to V - 1; with `or ignore_index`, that number too |
| `int`, `int >= 1` | a whole number, which is also a size under its own name |
| `float`, `float >= 0`, `float in [0, 1)` | a finite number; `number` is one of the arrays' dtype |
| `bool`, `uint32` | what they say |
| `Linear(O, I)` | a bundle from bundles.py, its sizes named anew |
| `… or None` | the same, or nothing |

Letters are sizes; wherever one stands it must be the same, and any may be 0. `where` is what must
hold besides, of a kernel's sizes and arguments or of a bundle's fields. The two sides of a kernel
(numba and NumPy) stand behind the same door, so they refuse the same calls in the same words:
TypeError for a kind or a dtype, ValueError for a shape or a number, IndexError for an index.

Nearly every call is right as it stands. So a declaration is also written out as one straight
function, `accepts`, which sees that in a few microseconds; where it says no, the checks go through
the arguments one by one, and mend what may be mended or tell what is wrong.

An array that is only read may lie in memory as it likes: unless it is C-contiguous, aligned and
writable (numba would compile again for every other kind), the kernel gets a copy. One that is
written must be all three.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import math
import operator
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

Array = np.ndarray
F = TypeVar("F", bound=Callable[..., Any])
# Dtypes are compared by ==: the arrays of a cached kernel have a dtype object of their own.
FLOATS = np.dtype(np.float32), np.dtype(np.float64)
INT64 = np.dtype(np.int64)


class Call:
    """What is known of a call while its arguments are looked at."""

    __slots__ = ("dtype", "later", "name", "number", "sizes")

    def __init__(self, name: str):
        self.name = name
        self.dtype: np.dtype | None = None  # of all its arrays
        self.number: Any = float  # the type of one of their elements
        self.sizes: dict[str, int] = {}
        self.later: list[tuple[Callable[..., None], Any]] = []  # when all sizes are known

    def wrong(self, kind: type[Exception], expected: str, got: Any) -> Exception:
        return kind(f"{self.name}: expected {expected}, got {got}")


def described(x: Any) -> str:
    """A value in a few words."""
    return f"{x.dtype} of shape {x.shape}" if isinstance(x, np.ndarray) else f"{x!r:.80}"


def formula(text: str, name: str = "of['{}']") -> Callable[[Any], Any]:
    """What is written of names, as a function of a dict, or of whatever has the names."""

    def found(m: re.Match[str]) -> str:
        return m[0] if m[0] in ("is", "or", "and", "not", "None") else name.format(m[0])

    return eval("lambda of: " + re.sub(r"(?<![\w.])[A-Za-z_]+", found, text))  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------- one argument


class ArrayOf:
    """A float array, its sizes given by letters or by sums and products of them."""

    def __init__(self, name: str, text: str, dims: list[str], written: bool):
        self.name, self.text, self.written = name, text, written
        self.dims = dims
        self.letters = [(i, d) for i, d in enumerate(dims) if d.isidentifier()]
        self.formulas = [(i, formula(d)) for i, d in enumerate(dims) if not d.isidentifier()]

    def check(self, x: Any, call: Call) -> Any:
        # While the dtype is not known it is not compared: to NumPy, None is float64.
        known = type(x) is Array and call.dtype is not None and x.dtype == call.dtype
        if not known or not x.flags.carray:
            x = self.plain(x, call)
        self.fit(x.shape, call)
        return x

    def plain(self, x: Any, call: Call) -> Array:
        """The array as kernels like it: a copy, if it must be."""
        if not isinstance(x, np.ndarray):
            raise call.wrong(TypeError, f"{self.name}, an array {self.text}", described(x))
        if call.dtype is None:
            if x.dtype not in FLOATS:
                raise call.wrong(TypeError, f"{self.name} of float32 or float64", described(x))
            call.dtype = FLOATS[x.dtype == FLOATS[1]]
            call.number = call.dtype.type
        if x.dtype != call.dtype:
            raise call.wrong(TypeError, f"{self.name} of {call.dtype} as the rest", described(x))
        if x.flags.carray:
            return x if type(x) is Array else x.view(Array)
        if self.written:
            raise call.wrong(
                ValueError,
                f"{self.name} to be C-contiguous, aligned and writable, since it is written",
                "one that is not",
            )
        return np.array(x, order="C")

    def fit(self, shape: tuple[int, ...], call: Call) -> None:
        """Take the sizes that are new, and compare the others with those known."""
        if len(shape) != len(self.dims):
            raise self.misfit(shape, call)
        sizes = call.sizes
        for i, letter in self.letters:
            if sizes.setdefault(letter, shape[i]) != shape[i]:
                raise self.misfit(shape, call)
        if self.formulas:
            call.later.append((self.fit_formulas, shape))

    def fit_formulas(self, shape: tuple[int, ...], call: Call) -> None:
        for i, size_of in self.formulas:
            if size_of(call.sizes) != shape[i]:
                raise self.misfit(shape, call)

    def misfit(self, shape: tuple[int, ...], call: Call) -> Exception:
        """What was expected, in letters and in the sizes that the arguments before have set."""
        known = {}
        for i, d in enumerate(self.dims):
            try:
                size = formula(d)(call.sizes)
            except KeyError:
                continue
            if len(shape) != len(self.dims) or size != shape[i]:
                known[d] = size
        sizes = ", ".join(f"{d} = {size}" for d, size in known.items())
        return call.wrong(
            ValueError, f"{self.name} {self.text}{' with ' * bool(sizes)}{sizes}", shape
        )


class Indices(ArrayOf):
    """Integers from 0 up to a size, or a number that stands for none."""

    def __init__(self, name: str, text: str, dims: list[str], size: str, other: str | None):
        super().__init__(name, text, dims, False)
        self.size, self.other = size, other

    def check(self, x: Any, call: Call) -> Any:
        if not isinstance(x, np.ndarray) or x.dtype.kind not in "iu":
            raise call.wrong(TypeError, f"{self.name}, an array {self.text}", described(x))
        if type(x) is not Array or x.dtype != INT64 or not x.flags.carray:
            x = np.array(x, np.int64, order="C")
        self.fit(x.shape, call)
        if x.size:
            call.later.append((self.bound, x))
        return x

    def bound(self, x: Array, call: Call) -> None:
        size = call.sizes[self.size]
        if x.min() >= 0 and x.max() < size:
            return
        bad = (x < 0) | (x >= size)
        if self.other is not None:
            bad &= x != call.sizes[self.other]
        if bad.any():
            first = tuple(int(i) for i in np.argwhere(bad)[0])
            place = first[0] if len(first) == 1 else first
            besides = "" if self.other is None else f" or {call.sizes[self.other]}"
            raise call.wrong(
                IndexError, f"{self.name} in 0..{size - 1}{besides}", f"{x[first]} at {place}"
            )


class Integer:
    """A whole number, which is also a size under its own name."""

    def __init__(self, name: str, text: str, low: str | None):
        self.name, self.text, self.low = name, text, -(2**63) if low is None else int(low)
        self.letter = name.rpartition(".")[2]

    def check(self, x: Any, call: Call) -> int:
        if type(x) is not int:
            if isinstance(x, (bool, np.bool_)) or not hasattr(x, "__index__"):
                raise call.wrong(TypeError, f"{self.name}, an {self.text}", described(x))
            x = operator.index(x)
        if not self.low <= x < 2**63:
            raise call.wrong(ValueError, f"{self.name}, an {self.text}", x)
        if call.sizes.setdefault(self.letter, x) != x:
            raise call.wrong(ValueError, f"{self.name} of {call.sizes[self.letter]}", x)
        return x


class Real:
    """A finite number: a Python float, or one of the arrays' dtype."""

    def __init__(self, name: str, text: str, low: str | None, high: str | None):
        self.name, self.text = name, text
        self.low = -sys.float_info.max if low is None else float(low)
        self.high = math.inf if high is None else float(high)
        self.typed = text.startswith("number")

    def check(self, x: Any, call: Call) -> Any:
        kind = call.number if self.typed else float
        if type(x) is not kind:
            if isinstance(x, (bool, np.bool_)) or not isinstance(
                x, (float, int, np.floating, np.integer)
            ):
                raise call.wrong(TypeError, f"{self.name}, a {self.text}", described(x))
            try:
                with np.errstate(over="ignore"):  # refused below
                    x = kind(x)
            except OverflowError:  # an int beyond all floats
                raise call.wrong(ValueError, f"{self.name}, a {self.text}", x) from None
        if not self.low <= float(x) < self.high:  # NaN is not
            raise call.wrong(ValueError, f"{self.name}, a {self.text}", x)
        return x


class Uint32:
    """A uint32."""

    def __init__(self, name: str):
        self.name = name

    def check(self, x: Any, call: Call) -> np.uint32:
        if type(x) is np.uint32:
            return x
        if isinstance(x, (bool, np.bool_)) or not hasattr(x, "__index__"):
            raise call.wrong(TypeError, f"{self.name}, a uint32", described(x))
        if not 0 <= operator.index(x) < 2**32:
            raise call.wrong(ValueError, f"{self.name}, a uint32", x)
        return np.uint32(x)


class Truth:
    """True or False."""

    def __init__(self, name: str):
        self.name = name

    def check(self, x: Any, call: Call) -> bool:
        if not isinstance(x, (bool, np.bool_)):
            raise call.wrong(TypeError, f"{self.name}, True or False", described(x))
        return bool(x)


class Bundle:
    """A NamedTuple, field by field."""

    def __init__(self, name: str, kind: Any, fields: list[Any], where: str):
        self.name, self.kind, self.fields, self.where = name, kind, fields, where
        self.condition = formula(where, "of.{}") if where else None

    def check(self, x: Any, call: Call) -> Any:
        if type(x) is not self.kind:
            fields = f"{self.kind.__name__}({', '.join(self.kind._fields)})"
            raise call.wrong(TypeError, f"{self.name}, a {fields}", described(x))
        x = self.kind._make([field.check(v, call) for field, v in zip(self.fields, x, strict=True)])
        if self.condition is not None and not self.condition(x):
            raise call.wrong(ValueError, f"{self.name} with {self.where}", described(x))
        return x


class Optional:
    """The same, or None."""

    def __init__(self, some: Any):
        self.some = some

    def check(self, x: Any, call: Call) -> Any:
        return None if x is None else self.some.check(x, call)


# -------------------------------------------------------------------------------- declarations

BUNDLES: dict[str, tuple[Any, tuple[str, ...], dict[str, str], str]] = {}
SCALAR = re.compile(r"(int|float|number|bool|uint32)(?: >= (\S+)| in \[(\S+), (\S+)\))?")
INDICES = re.compile(r"(\(.*\)) in \[0, (\w+)\)(?: or (\w+))?")
FLOAT_ARRAY = re.compile(r"(\(.*\))( written)?")
BUNDLE = re.compile(r"(\w+)(?:\((.*)\))?")


def bundle(*letters: str, where: str = "", **fields: str) -> Callable[[type], Any]:
    """Declare the fields of a NamedTuple. `letters` are the sizes that a kernel names anew."""

    def register(kind: Any) -> Any:
        if tuple(fields) != kind._fields:
            raise TypeError(f"{kind.__name__} has the fields {kind._fields}, not {tuple(fields)}")
        BUNDLES[kind.__name__] = kind, letters, fields, where
        return kind

    return register


def parse(name: str, text: str) -> Any:
    """The check that a declaration stands for."""
    if text.endswith(" or None"):
        return Optional(parse(name, text.removesuffix(" or None")))
    if m := SCALAR.fullmatch(text):
        kind, low = m[1], m[2] or m[3]
        if kind in ("bool", "uint32"):
            return Truth(name) if kind == "bool" else Uint32(name)
        return Integer(name, text, low) if kind == "int" else Real(name, text, low, m[4])
    if m := INDICES.fullmatch(text):
        return Indices(name, text, sizes_of(m[1]), m[2], m[3])
    if m := FLOAT_ARRAY.fullmatch(text):
        return ArrayOf(name, m[1], sizes_of(m[1]), bool(m[2]))
    m = BUNDLE.fullmatch(text)
    if m is None or m[1] not in BUNDLES:
        raise TypeError(f"{name} is declared as {text!r}, which is nothing that contract.py knows")
    kind, letters, fields, where = BUNDLES[m[1]]
    anew = dict(zip(letters, [s.strip() for s in (m[2] or "").split(",") if s], strict=True))

    def renamed(text: str) -> str:
        if not text.startswith("(") and "(" not in text:
            return text
        return re.sub(r"(?<![\w.])[A-Za-z]+", lambda m: anew.get(m[0], m[0]), text)

    parts = [parse(f"{name}.{field}", renamed(t)) for field, t in fields.items()]
    return Bundle(name, kind, parts, where)


def sizes_of(text: str) -> list[str]:
    """The sizes in "(N, 2*d)"; commas within parentheses belong to a size."""
    return [s.strip() for s in re.split(r",(?![^(]*\))", text[1:-1]) if s.strip()]


REFUSE = "return wrong(*args)"
CARRAY = 0x0501  # NumPy's bits for C-contiguous, aligned and writable


def unfit(v: str) -> str:
    """``not v.flags.carray``, from the number behind it: twice as fast."""
    return f"{v}.flags.num & {CARRAY} != {CARRAY}"


class Writer:
    """Writes the checks of a kernel's arguments out straight: all are right as they are, or REFUSE.

    Letters that are sizes become variables; what needs a size that comes later is looked at last.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.last: list[str] = []
        self.letters: set[str] = set()
        self.maybe = False  # whether this is about an argument that may be missing
        self.typed = False  # whether `dtype` is known
        self.count = 0

    def new(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def refuse(self, condition: str) -> None:
        self.lines.append(f"if {condition}: {REFUSE}")

    def write(self, check: Any, v: str) -> None:
        """The lines for one argument, or one field, that is in the variable `v`."""
        getattr(self, type(check).__name__.lower())(check, v)

    def arrayof(self, check: ArrayOf, v: str) -> None:
        if self.typed:
            self.refuse(f"type({v}) is not Array or {v}.dtype != dtype or {unfit(v)}")
        else:
            self.refuse(f"type({v}) is not Array or {unfit(v)}")
            self.lines += [f"dtype = {v}.dtype", "number = dtype.type"]
            self.refuse("dtype != F32 and dtype != F64")
            self.typed = True
        self.shape(check, v)

    def indices(self, check: Indices, v: str) -> None:
        self.refuse(f"type({v}) is not Array or {v}.dtype != INT64 or {unfit(v)}")
        self.shape(check, v)
        low, high = f"{v}.min() < 0", f"{v}.max() >= of_{check.size}"
        self.last.append(f"if {v}.size and ({low} or {high}): {REFUSE}")

    def shape(self, check: ArrayOf, v: str) -> None:
        sizes = [re.sub(r"[A-Za-z_]+", r"of_\g<0>", d) for d in check.dims]
        new = {d for _, d in check.letters} - self.letters
        if not new or self.maybe:  # sizes that come from elsewhere: all at once
            lines = self.last if new or check.formulas else self.lines
            lines.append(f"if {v}.shape != ({', '.join(sizes)},): {REFUSE}")
            return
        shape = self.new()
        self.lines.append(f"{shape} = {v}.shape")
        self.refuse(f"len({shape}) != {len(sizes)}")
        for i, letter in check.letters:
            self.size(letter, f"{shape}[{i}]")
        for i, _ in check.formulas:
            self.last.append(f"if {shape}[{i}] != {sizes[i]}: {REFUSE}")

    def size(self, letter: str, value: str) -> None:
        if letter in self.letters:
            self.refuse(f"{value} != of_{letter}")
        else:
            self.letters.add(letter)
            self.lines.append(f"of_{letter} = {value}")

    def integer(self, check: Integer, v: str) -> None:
        self.refuse(f"type({v}) is not int or not {check.low} <= {v} < {2**63}")
        self.size(check.letter, v)

    def real(self, check: Real, v: str) -> None:
        kind = "number" if check.typed else "float"
        high = "INF" if check.high == math.inf else repr(check.high)
        self.refuse(f"type({v}) is not {kind} or not {check.low!r} <= float({v}) < {high}")

    def uint32(self, check: Uint32, v: str) -> None:
        self.refuse(f"type({v}) is not U32")

    def truth(self, check: Truth, v: str) -> None:
        self.refuse(f"{v} is not True and {v} is not False")

    def bundle(self, check: Bundle, v: str) -> None:
        fields = [self.new() for _ in check.fields]
        self.refuse(f"type({v}) is not {check.kind.__name__}")
        self.lines.append(f"{', '.join(fields)}, = {v}")
        for field, name in zip(check.fields, fields, strict=True):
            self.write(field, name)
        if check.where:
            named = dict(zip(check.kind._fields, fields, strict=True))
            condition = re.sub(r"[A-Za-z_]+", lambda m: named.get(m[0], m[0]), check.where)
            self.refuse(f"not ({condition})")

    def optional(self, check: Optional, v: str) -> None:
        """What is written for the argument, behind "if it is there"."""
        inside = copy.copy(self)
        inside.lines, inside.last, inside.maybe = [], [], True
        inside.write(check.some, v)
        for lines, more in ((self.lines, inside.lines), (self.last, inside.last)):
            if more:
                lines += [f"if {v} is not None:", *(f"    {line}" for line in more)]
        self.count = inside.count

    def function(
        self, checks: list[Any], where: str, arguments: list[str]
    ) -> Callable[..., Callable[..., Any]]:
        """``make(right, wrong)``: a function of the arguments that returns ``right(*args)`` if they
        are right as they are, ``wrong(*args)`` if not."""
        values = [self.new() for _ in checks]
        for check, v in zip(checks, values, strict=True):
            self.write(check, v)
        if where:
            named = {**{n: f"of_{n}" for n in self.letters}, **dict(zip(arguments, values))}  # noqa: B905
            condition = re.sub(r"(?<![\w.])[A-Za-z_]+", lambda m: named.get(m[0], m[0]), where)
            self.last.append(f"if not ({condition}): {REFUSE}")
        lines = [f"if len(args) != {len(values)}: {REFUSE}", f"{', '.join(values)}, = args"]
        lines += [*self.lines, *self.last, "return right(*args)"]
        body = "\n".join(f"        {line}" for line in lines)
        kinds = {kind.__name__: kind for kind, *_ in BUNDLES.values()}
        scope = {**kinds, "Array": Array, "F32": FLOATS[0], "F64": FLOATS[1], "INT64": INT64,
                 "U32": np.uint32, "INF": math.inf}  # fmt: skip
        source = f"def make(right, wrong):\n    def guarded(*args):\n{body}\n    return guarded"
        exec(source, scope)
        return scope["make"]  # type: ignore[no-any-return]


class Declaration:
    """A kernel: what it takes, and where its two sides are."""

    def __init__(self, name: str, numba: str, numpy: Any, where: str, arguments: dict[str, str]):
        self.name, self.numba, self.numpy, self.arguments = name, numba, numpy, arguments
        self.checks = [parse(argument, text) for argument, text in arguments.items()]
        self.where = where
        self.condition = formula(where) if where else None

    def __str__(self) -> str:
        where = f" where {self.where}" if self.where else ""
        return f"{self.name}({', '.join(f'{n}: {t}' for n, t in self.arguments.items())}){where}"

    @functools.cached_property
    def guarded(self) -> Callable[..., Callable[..., Any]]:
        """See `Writer.function`. Only the kernels that a program calls have it written."""
        return Writer().function(self.checks, self.where, list(self.arguments))

    def accepts(self, *args: Any) -> bool:
        """Whether the kernel takes these as they are."""
        return bool(self.guarded(lambda *_: True, lambda *_: False)(*args))

    def check(self, args: tuple[Any, ...]) -> list[Any]:
        """The arguments, fit for the kernel; or an error that names what does not fit."""
        if len(args) != len(self.checks):
            raise TypeError(f"{self.name}: expected {len(self.checks)} arguments, got {len(args)}")
        call = Call(self.name)
        out = [c.check(x, call) for c, x in zip(self.checks, args, strict=True)]
        for check, x in call.later:
            check(x, call)
        if self.condition is not None:
            known = {**dict(zip(self.arguments, out, strict=True)), **call.sizes}
            if not self.condition(known):
                named = {n: x for n, x in known.items() if re.search(rf"\b{n}\b", self.where)}
                got = ", ".join(f"{n} = {described(x)}" for n, x in named.items())
                raise call.wrong(ValueError, self.where, got)
        return out

    def side(self, which: str) -> Callable[..., Any]:
        """The kernel of one side, "numba" or "numpy", behind the door."""
        if which == "numba":
            kernel = getattr(importlib.import_module(self.numba), self.name)
        else:
            kernel = self.numpy

        guarded = self.guarded(kernel, lambda *args: kernel(*self.check(args)))
        guarded.__name__ = guarded.__qualname__ = self.name
        guarded.__doc__ = f"{self}\n\n{inspect.getdoc(self.numpy) or ''}"
        return guarded


KERNELS: dict[str, Declaration] = {}


def kernel(file: str, where: str = "", **arguments: str) -> Callable[[F], F]:
    """Declare a kernel by its NumPy side; the numba side has the same name in `file`, beside it."""

    def register(fn: F) -> F:
        parameters = list(inspect.signature(fn).parameters)
        if parameters != list(arguments):
            raise TypeError(f"{fn.__name__} takes {parameters}, but declares {list(arguments)}")
        folder = fn.__module__.rpartition(".")[0]
        KERNELS[fn.__name__] = Declaration(fn.__name__, f"{folder}.{file}", fn, where, arguments)
        return fn

    return register
