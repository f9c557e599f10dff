"""A module and its optimiser as one `.npz` file, from which training continues bit for bit.

The file holds arrays ("module/NAME", "optimizer/NUMBER/MOMENT") and a text in JSON ("meta"); NumPy
reads it without pickle, so loading a stranger's file runs nothing. A file is written under a
temporary name, flushed and renamed, so a reader finds the old file or the new one, never half of
one.
"""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from minitensor.files import replacing, write_npz
from minitensor.nn import Dropout, Module
from minitensor.optim import Optimizer
from minitensor.tape import Array

FORMAT = 1
DAMAGE = (  # what reading a file that is no archive, or a damaged one, may raise
    *(ValueError, EOFError, KeyError, RuntimeError, MemoryError, TypeError, AttributeError),
    *(zipfile.BadZipFile, struct.error, OverflowError, OSError),
)


def save(path: str | Path, module: Module, optimizer: Optimizer | None = None) -> None:
    """Write the parameters, the buffers and the state of dropout of `module`, and the options and
    moments of `optimizer`. OSError that names the file if it cannot be written."""
    _check("save", path, module, optimizer)
    meta: dict[str, Any] = {"format": FORMAT, "dropout": _draws(module)}
    arrays = {f"module/{name}": values for name, values in module.state_dict().items()}
    if optimizer is not None:
        state = optimizer.state_dict()
        meta["optimizer"] = type(optimizer).__name__
        meta["param_groups"] = state["param_groups"]
        meta["steps"] = {str(i): entry["step"] for i, entry in state["state"].items()}
        for i, entry in state["state"].items():
            arrays |= {f"optimizer/{i}/{name}": entry[name] for name in optimizer.moments}
    text = json.dumps(meta, default=_number).encode()
    arrays["meta"] = np.frombuffer(text, np.uint8)
    path = Path(path)
    try:
        with replacing(path) as temporary, temporary.open("xb") as handle:
            write_npz(handle, arrays)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def load(path: str | Path, module: Module, optimizer: Optimizer | None = None) -> None:
    """Restore `module`, and `optimizer` if given, to their state when `save` wrote the file.

    Both must have been constructed in the same way. ValueError in one line if the file is damaged
    or belongs to another module; then nothing has been changed.
    """
    _check("load", path, module, optimizer)
    kind = None if optimizer is None else type(optimizer).__name__
    before = module.state_dict()
    with Path(path).open("rb") as handle:
        try:
            arrays, meta = _read(handle)
            draws = {name: (int(seed), int(n)) for name, (seed, n) in meta["dropout"].items()}
            if list(draws) != list(_draws(module)):
                raise ValueError(f"dropout is at {list(draws)}, expected {list(_draws(module))}")
            if optimizer is not None and meta.get("optimizer") != kind:
                raise ValueError(f"the optimiser is {meta.get('optimizer')}, expected {kind}")
            module.load_state_dict(
                {n[len("module/") :]: a for n, a in arrays.items() if n.startswith("module/")}
            )
            if optimizer is not None:
                optimizer.load_state_dict(_optimizer_state(optimizer, arrays, meta))
        except DAMAGE as error:
            module.load_state_dict(before)
            text = " ".join(str(error).split())[:300]
            raise ValueError(
                f"load: {path} is damaged, or was not saved from such a module: {text}"
            ) from error
    for name, part in module.named_modules():
        if isinstance(part, Dropout):
            part.seed, part.calls = draws[name]


def _check(name: str, path: Any, module: Any, optimizer: Any) -> None:
    if (
        not isinstance(path, str | Path)
        or not isinstance(module, Module)
        or not isinstance(optimizer, Optimizer | None)
    ):
        kinds = ", ".join(type(x).__name__ for x in (path, module, optimizer))
        raise TypeError(f"{name}: expected {name}(path, module, optimizer=None), got {kinds}")


def _draws(module: Module) -> dict[str, list[int]]:
    """Seed and calls of each dropout: the only state that is neither a parameter nor a buffer."""
    return {n: [m.seed, m.calls] for n, m in module.named_modules() if isinstance(m, Dropout)}


def _number(x: Any) -> Any:
    """NumPy's numbers, as options of an optimiser, for JSON."""
    if isinstance(x, np.generic):
        return x.item()
    raise TypeError(f"save: an option of the optimiser is {type(x).__name__}, expected a number")


def _read(handle: IO[bytes]) -> tuple[dict[str, Array], dict[str, Any]]:
    """All arrays and the text. Members are stored, so none is larger than the file."""
    with np.load(handle, allow_pickle=False) as archive:
        for member in archive.zip.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename[:80]!r} is compressed")
        arrays = {name: archive[name] for name in archive.files}
    meta = json.loads(arrays.pop("meta").tobytes())
    if meta["format"] != FORMAT:
        raise ValueError(f"its format is {meta['format']!r}, expected {FORMAT}")
    return arrays, meta


def _optimizer_state(
    optimizer: Optimizer, arrays: dict[str, Array], meta: dict[str, Any]
) -> dict[str, Any]:
    """The file's state as the optimiser's `load_state_dict` takes it."""
    groups = [
        {key: tuple(v) if isinstance(v, list) and key != "params" else v for key, v in g.items()}
        for g in meta["param_groups"]
    ]
    state = {
        int(i): {
            "step": int(step),
            **{name: arrays[f"optimizer/{i}/{name}"] for name in optimizer.moments},
        }
        for i, step in meta["steps"].items()
    }
    return {"state": state, "param_groups": groups}
