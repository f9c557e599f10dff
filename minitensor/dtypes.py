"""The rule of dtypes, one for all ops.

A tensor holds booleans, integers, float32 or float64; anything else is a TypeError. All inputs of a
call get one dtype before the op's function sees them:

- with a floating one among them, the widest of these (float32 beside float64 is float64);
- if all are integers or booleans, float32; an op with `integers` (one that makes sense
  for them, such as a sum or indexing) keeps them, unless another argument is a Python float;
- Python numbers, and lists of them, widen nothing; an input that selects (`IndexArray`: ids,
  targets, conditions) stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Annotated, Any

import numpy as np

Array = np.ndarray
IndexArray = Annotated[np.ndarray, "IndexArray"]  # an input that chooses: integers or booleans
FLOATS = frozenset({np.dtype(np.float32), np.dtype(np.float64)})


def accept(dtype: np.dtype[Any], what: str) -> None:
    """TypeError for a dtype that no tensor has."""
    if dtype.kind not in "biu" and dtype not in FLOATS:
        raise TypeError(
            f"{what}: cannot hold {dtype}; expected booleans, integers, float32 or float64: "
            "convert it first, for instance to float32"
        )


PLAIN = {float, int, bool, np.ndarray, type(None)}


def operand(x: Any, beside: Iterable[np.dtype[Any]]) -> Any:
    """An argument given beside tensors of these dtypes: numbers stay Python numbers, and a list of
    numbers takes the widest of the dtypes, so that neither widens a float32 tensor."""
    if isinstance(x, (float, np.floating)):
        return float(x)
    if isinstance(x, (bool, np.bool_)):
        return bool(x)
    if isinstance(x, (int, np.integer)):
        return int(x)
    array = np.asarray(x)
    if array.dtype == np.float64 and not isinstance(x, np.ndarray):
        floats = [d for d in beside if d.kind == "f"]
        array = array.astype(np.result_type(*floats) if floats else np.float32)
    if array.dtype.kind not in "fiubc":
        raise TypeError(f"cannot make a tensor of {type(x).__name__}; give numbers or booleans")
    return array


def alike(arrays: Sequence[Any], chooses: Collection[int]) -> bool:
    """Whether all arrays have one floating dtype, and those in `chooses` integers or booleans, as
    nearly always: then there is nothing to do."""
    dtype = None
    for i, a in enumerate(arrays):
        if type(a) is np.ndarray:
            if i in chooses:
                if a.dtype.kind not in "biu":
                    return False
            elif dtype is None:
                dtype = a.dtype
            elif a.dtype != dtype:
                return False
    return dtype in FLOATS


def promote(
    arrays: list[Any], op: str, names: Sequence[str], chooses: Collection[int], integers: bool
) -> None:
    """Give the inputs of `op` their common dtype, in this list; those in `chooses` keep theirs."""
    found: list[np.dtype[Any]] = []
    number = False
    for i, a in enumerate(arrays):
        if not isinstance(a, np.ndarray):
            number = number or type(a) is float
            continue
        accept(a.dtype, op)
        if i not in chooses:
            found.append(a.dtype)
        elif a.dtype.kind == "f":
            if a.size:
                raise TypeError(
                    f"{op}: expected integers or booleans as {names[i]}, got {describe(a)}"
                )
            arrays[i] = a.astype(np.int64)  # an empty list has no dtype of its own
    floats = [d for d in found if d.kind == "f"]
    if integers and not floats and not number:
        if found and np.result_type(*found).kind == "f":
            raise TypeError(
                f"{op}: {' and '.join(map(str, found))} have no common integer dtype; "
                "convert one of them with astype"
            )
        return
    dtype = np.result_type(*floats) if floats else np.dtype(np.float32)
    for i, a in enumerate(arrays):
        if isinstance(a, np.ndarray) and i not in chooses:
            arrays[i] = a.astype(dtype, copy=False)


def describe(x: Any) -> str:
    """An array by its dtype and shape, anything else by its repr."""
    return f"{x.dtype}{list(x.shape)}" if isinstance(x, np.ndarray) else repr(x)
