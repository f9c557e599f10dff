"""Model files and training checkpoints: `.npz`, readable with ``numpy.load`` and no pickle.

Entries: ``param/<name>`` arrays, of the configuration's type or float16; ``meta``, a JSON object as
UTF-8 bytes, with the configuration, the tokenizer and where the weights come from. A checkpoint
adds ``optim/<name>`` arrays and ``meta["training"]``. So one file is enough to generate, evaluate
or go on.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from bpe.files import open_ordinary
from bpe.untrusted import one_line, parse_json, shown
from minitensor.files import write_npz
from tinygpt import Error, UsageError, __version__, archive
from tinygpt.archive import Stored, shape_of
from tinygpt.files import backup, replacing
from tinygpt.model import config
from tinygpt.model.config import Config

if TYPE_CHECKING:
    from bpe import Tokenizer
    from tinygpt.model.transformer import GPT

Array = np.ndarray
FORMAT, VERSION = "tinygpt-model", 1
MAX_META = 64 << 20  # bytes: the tokenizer is most of it


@dataclass
class Saved:
    """What a model file holds."""

    config: Config
    tokenizer: Tokenizer
    params: dict[str, Array]
    provenance: dict[str, Any] = field(default_factory=dict)
    optim: dict[str, Array] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    def model(self) -> GPT:
        """The model with these weights, in evaluation mode."""
        from tinygpt.model.transformer import GPT

        model = GPT(self.config)
        model.load_state_dict(self.params)
        model.eval()
        return model


def provenance(c: Config, tokenizer: Tokenizer, step: int, data_sha256: str) -> dict[str, Any]:
    """Where weights come from. No times and no paths: the same run gives the same bytes."""
    return {
        "recipe": c.name,
        "step": step,
        "seed": c.seed,
        "data_sha256": data_sha256,
        "tokenizer_sha256": tokenizer.sha256,
        "versions": {
            "tinygpt": __version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def save(path: str | Path, saved: Saved, keep: bool = False, dtype: str | None = None) -> None:
    """Write a model file atomically; `keep` leaves the previous one beside it as ``.bak``.

    `dtype` "float16" stores the weights in half the room; read, they are of the configuration's.
    """
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "config": saved.config.to_dict(),
        "tokenizer": saved.tokenizer.to_dict(),
        "provenance": saved.provenance,
    }
    if saved.training:
        meta["training"] = saved.training
    text = json.dumps(meta, ensure_ascii=False).encode("utf-8")
    arrays = {"meta": np.frombuffer(text, dtype=np.uint8)}
    arrays |= {  # not copied: a large model is here once
        f"param/{name}": v.astype(dtype or v.dtype, copy=False) for name, v in saved.params.items()
    }
    arrays |= {f"optim/{name}": value for name, value in saved.optim.items()}
    with replacing(path, keep) as handle:
        write_npz(handle, arrays)


def load(path: str | Path) -> Saved:
    """Read a model file. Raises Error, in one line, for what is missing, damaged or foreign.

    Every member must be one that the configuration or the training state asks for, of the type
    and shape that they say; all of that is known before memory is set aside for any of them.
    """
    path = Path(path)
    if path.is_dir():
        raise Error(f"{path}: a folder; give a model file, such as {path / 'model.npz'}")
    try:
        with open_ordinary(path) as file:
            if file.read(2) != b"PK":
                raise Error(f"{path}: not a tinygpt model file, which is an .npz archive")
            return _read(file, str(path))
    except FileNotFoundError:
        raise Error(f"{path}: no such model file") from None
    except OSError as error:
        raise Error(f"{path}: cannot be read: {error.strerror or error}") from error
    except archive.BadFile as error:
        raise Error(f"{path}: a truncated or damaged model file ({error})") from error


def _read(file: IO[bytes], path: str) -> Saved:
    import bpe

    members = archive.members(file)
    meta = _meta(file, path, members)
    try:
        c = config.from_dict(_object(meta, "config"))
        tokenizer = bpe.from_dict(_object(meta, "tokenizer"))
        provenance = checked_provenance(_object(meta, "provenance", {}))
        training = _object(meta, "training", {})
        _check_training(training, c)
    except (UsageError, ValueError) as error:
        raise Error(f"{path}: a model file of which a part cannot be read: {error}") from error
    if tokenizer.vocab_size > c.vocab_size:
        raise Error(
            f"{path}: its tokenizer has {tokenizer.vocab_size:,} ids, its model only "
            f"{c.vocab_size:,}"
        )
    _check_members(path, c, members, array_names(training.get("optimizer")))
    arrays = {name: _numbers(file, path, m, c.dtype) for name, m in members.items()}
    params, optim = (_strip(arrays, prefix) for prefix in ("param/", "optim/"))
    return Saved(c, tokenizer, params, provenance, optim, training)


def _meta(file: IO[bytes], path: str, members: dict[str, Stored]) -> dict[str, Any]:
    """The member `meta`, taken out of `members`."""
    stored = members.pop("meta", None)
    if stored is None:
        raise Error(f"{path}: not a tinygpt model: an archive without 'meta'")
    if stored.dtype != np.uint8 or len(stored.shape) != 1 or stored.nbytes > MAX_META:
        raise Error(
            f"{path}: 'meta': expected at most {MAX_META >> 20} MB of text, got "
            f"{stored.nbytes:,} bytes as {stored.dtype} {shape_of(stored.shape)}"
        )
    try:
        meta = parse_json(archive.read(file, stored).tobytes())
    except archive.BadFile:
        raise
    except ValueError as error:
        raise Error(f"{path}: a truncated or damaged model file (meta: {error})") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise Error(f"{path}: not a tinygpt model: its 'meta' is of another kind")
    if meta.get("version") != VERSION:
        raise Error(
            f"{path}: model format {shown(meta.get('version'))}, but this program reads "
            f"{VERSION}; upgrade tinygpt"
        )
    return meta


def _object(meta: Mapping[str, Any], key: str, default: Any = None) -> dict[str, Any]:
    value = meta.get(key, default)
    if not isinstance(value, dict):
        raise ValueError(f"{key}: expected an object, got {shown(value)}")
    return value


def checked_provenance(given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` if it is what `provenance` writes; its text printable, as it is shown to people.

    Raises ValueError for a step or a seed that is no whole number."""
    for key in {"step", "seed"} & given.keys():
        if type(given[key]) is not int:
            raise ValueError(f"provenance: {key}: expected a number, got {shown(given[key])}")
    return {k: one_line(v) if isinstance(v, str) else v for k, v in given.items()}


_TRAINING: dict[str, Callable[[Any], bool]] = {
    "step": lambda v: type(v) is int and abs(v) < 1 << 53,
    "shown": lambda v: type(v) is bool,
    "optimizer": lambda v: type(v) is dict,
    "best": lambda v: v is None or (type(v) in (int, float) and math.isfinite(v)),
    "seconds": lambda v: type(v) in (int, float) and 0 <= v < math.inf,
    "data_sha256": lambda v: type(v) is str,
    "sizes": lambda v: type(v) is dict and all(type(n) is int and n >= 0 for n in v.values()),
}


def _check_training(training: Mapping[str, Any], c: Config) -> None:
    """Raise ValueError unless a run can go on from `training`, or there is none."""
    for key, fits in _TRAINING.items() if training else ():
        known = key in training and fits(training[key])
        if not known or (key == "step" and training[key] < -c.warmup_copy):  # before its first
            raise ValueError(f"training: {key}: {shown(training.get(key))} cannot be")


def array_names(state: Any) -> set[str]:
    """The arrays to which an optimiser's state refers, as `pack_optimizer` writes it."""
    if isinstance(state, list):
        return set().union(*map(array_names, state))
    if isinstance(state, dict):
        name = state.get("array")
        return {name} if isinstance(name, str) else array_names(state.get("dict"))
    return set()


def _check_members(path: str, c: Config, members: Mapping[str, Stored], moments: set[str]) -> None:
    """Raise Error unless `members` are the weights of `c` and the moments of that name."""
    from tinygpt.model.transformer import layout

    params = layout(c)
    for name, shape in params.items():
        stored = members.get(f"param/{name}")
        if stored is None:
            raise Error(f"{path}: the model file lacks {name!r}")
        if stored.shape != shape:
            raise Error(
                f"{path}: {name!r} has shape {shape_of(stored.shape)}, the configuration says "
                f"{shape}"
            )
    for name in sorted(moments):
        if f"optim/{name}" not in members:
            raise Error(f"{path}: the training state lacks {shown(name)}")
    known = {f"param/{name}" for name in params} | {f"optim/{name}" for name in moments}
    for name, stored in members.items():
        if name not in known:
            raise Error(f"{path}: the model file holds {shown(name)}, for which nothing in it asks")
        half = name.startswith("param/") and stored.dtype == np.float16
        if stored.dtype.newbyteorder("=") != np.dtype(c.dtype) and not half:
            raise Error(f"{path}: {name!r}: expected numbers of {c.dtype}, got {stored.dtype}")


def _numbers(file: IO[bytes], path: str, stored: Stored, dtype: str) -> Array:
    """The array of a member as `dtype`. Error if a number is not finite."""
    array = archive.read(file, stored)
    if not np.isfinite(array).all():
        raise Error(
            f"{path}: {stored.name!r} holds numbers that are not finite: the run had diverged; "
            "take an earlier checkpoint of it"
        )
    return np.require(array, dtype, "C")


def load_latest(
    path: Path,
    say: Callable[[str], None] = lambda line: None,
    check: Callable[[Saved], None] = lambda saved: None,
) -> Saved | None:
    """The checkpoint at `path`, or the one kept beside it if that is damaged; None if neither.

    `check` raises Error for what `load` cannot see, so that this leads to the one before, too.
    """
    candidates = [p for p in (path, backup(path)) if p.exists()]
    for candidate in candidates:
        try:
            saved = load(candidate)
            check(saved)
            return saved
        except Error as error:
            if candidate == candidates[-1]:
                raise
            say(f"{error}; taking the one before it")
    return None


def latest_step(path: Path) -> int | None:
    """The step of the checkpoint that `load_latest` would give, if there is one."""
    try:
        saved = load_latest(path)
    except Error:
        return None
    return None if saved is None else int(saved.training.get("step", 0))


def _strip(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name[len(prefix) :]: a for name, a in arrays.items() if name.startswith(prefix)}
