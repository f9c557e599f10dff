"""Model files and training checkpoints: `.npz`, readable with ``numpy.load`` and no pickle.

Entries: ``param/<name>`` arrays; ``meta``, a JSON object as UTF-8 bytes, with the configuration,
the tokenizer and where the weights come from. A checkpoint adds ``optim/<name>`` arrays and
``meta["training"]``. So one file is enough to generate, evaluate or go on.
"""

from __future__ import annotations

import contextlib
import json
import platform
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinygpt import Error, UsageError, __version__
from tinygpt.files import backup, replacing
from tinygpt.model import config
from tinygpt.model.config import Config

if TYPE_CHECKING:
    from bpe import Tokenizer
    from tinygpt.model.transformer import GPT

Array = np.ndarray
FORMAT, VERSION = "tinygpt-model", 1


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


def save(path: str | Path, saved: Saved, keep: bool = False) -> None:
    """Write a model file atomically; `keep` leaves the previous one beside it as ``.bak``."""
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
    arrays |= {f"param/{name}": value for name, value in saved.params.items()}
    arrays |= {f"optim/{name}": value for name, value in saved.optim.items()}
    with replacing(path, keep) as handle:
        np.savez(handle, **arrays)  # type: ignore[arg-type]


def load(path: str | Path) -> Saved:
    """Read a model file. Raises Error, in one line, for what is missing, damaged or foreign."""
    import bpe

    path = Path(path)
    arrays, meta = _read(path)
    try:
        c = config.from_dict(meta["config"])
        tokenizer = bpe.from_dict(meta["tokenizer"])
    except (UsageError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise Error(
            f"{path}: a model file whose configuration or tokenizer cannot be read: {error}"
        ) from error
    params = _strip(arrays, "param/")
    _check_shapes(path, c, params)
    return Saved(
        c,
        tokenizer,
        params,
        meta.get("provenance", {}),
        _strip(arrays, "optim/"),
        meta.get("training", {}),
    )


def load_model(path: str | Path) -> tuple[GPT, Tokenizer, Saved]:
    """A model ready to evaluate, its tokenizer, and the rest of the file."""
    saved = load(path)
    return saved.model(), saved.tokenizer, saved


def load_latest(path: Path, say: Callable[[str], None] = lambda line: None) -> Saved | None:
    """The checkpoint at `path`, or the one kept beside it if that is damaged; None if neither."""
    for candidate in (path, backup(path)):
        if candidate.is_file():
            try:
                return load(candidate)
            except Error as error:
                if candidate == backup(path) or not backup(path).is_file():
                    raise
                say(f"{error}; taking the one before it")
    return None


def latest_step(path: Path) -> int | None:
    """The step of the checkpoint that `load_latest` would give, if there is one."""
    try:
        saved = load_latest(path)
    except Error:
        return None
    return None if saved is None else int(saved.training["step"])


def _read(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    if path.is_dir():
        raise Error(f"{path}: a folder; give a model file, such as {path / 'model.npz'}")
    if not path.is_file():
        raise Error(f"{path}: no such model file")
    try:
        with contextlib.ExitStack() as stack:
            handle = stack.enter_context(path.open("rb"))
            if handle.read(2) != b"PK":
                raise Error(f"{path}: not a tinygpt model file, which is an .npz archive")
            handle.seek(0)
            archive = stack.enter_context(np.load(handle, allow_pickle=False))
            if "meta" not in archive:
                raise Error(f"{path}: not a tinygpt model: an archive without 'meta'")
            meta = json.loads(archive["meta"].tobytes().decode("utf-8"))
            if not isinstance(meta, dict) or meta.get("format") != FORMAT:
                raise Error(f"{path}: not a tinygpt model: its 'meta' is of another kind")
            if meta.get("version") != VERSION:
                raise Error(
                    f"{path}: model format {meta.get('version')}, but this program reads "
                    f"{VERSION}; upgrade tinygpt"
                )
            return {name: archive[name] for name in archive.files if name != "meta"}, meta
    except PermissionError as error:
        raise Error(f"{path}: cannot be read: {error.strerror}") from error
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        NotImplementedError,
    ) as error:
        reason = " ".join(str(error).split())[:100]
        raise Error(f"{path}: a truncated or damaged model file ({reason})") from error


def _strip(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name[len(prefix) :]: a for name, a in arrays.items() if name.startswith(prefix)}


def _check_shapes(path: Path, c: Config, params: Mapping[str, Array]) -> None:
    from tinygpt.model.transformer import layout

    wanted = layout(c)
    for name, shape in wanted.items():
        if name not in params:
            raise Error(f"{path}: the model file lacks {name!r}")
        if params[name].shape != shape:
            raise Error(
                f"{path}: {name!r} has shape {params[name].shape}, the configuration says {shape}"
            )
    extra = sorted(set(params) - set(wanted))
    if extra:
        raise Error(f"{path}: the model file holds {extra[0]!r}, which the configuration does not")
