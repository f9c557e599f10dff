"""One flat, frozen configuration for a model, its tokenizer, its data and its training.

A configuration is read from and written to JSON, TOML and YAML (extra ``yaml``); every field
survives the round trip. Values are checked when a configuration is made, so a `Config` that exists
is one that can be built.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpe.untrusted import parse_json, shown
from tinygpt import UsageError

CHOICES = {
    "norm": ("layer", "rms"),
    "positions": ("learned", "sinusoidal", "rope", "alibi"),
    "ffn": ("gelu", "gelu_tanh", "swiglu"),
    "head": ("tied", "untied", "pinv"),
    "init": ("gpt2", "llama2c", "unit"),
    "optimizer": ("adamw", "muon"),
    "schedule": ("cosine", "linear", "constant", "wsd"),
    "dtype": ("float32", "float64"),
}
FLOAT_RANGE = {  # the smallest normal number and the largest
    "float32": (2.0**-126, (2 - 2.0**-23) * 2.0**127),
    "float64": (2.0**-1022, (2 - 2.0**-52) * 2.0**1023),
}
# A configuration may come from a stranger's file, whose size says nothing about what it asks for.
# So every count has a bound, far above what this program is for, and what grows with the product
# of several has one, too.
MAX_FILE = 1 << 14  # bytes of a configuration file: ten times what all fields take
MAX_TEXT = 4096  # bytes of a name or path
MAX_TABLE = 1 << 22  # numbers in a table of fixed positions: 16 MB in float32
MAX_CACHE = 1 << 28  # numbers in the keys and values of one full context: 1 GB
_COUNT = 1 << 20
BOUNDS: dict[str, tuple[float, float]] = {  # from, to
    "vocab_size": (1, _COUNT),
    "context": (1, 1 << 16),
    "n_layer": (1, 1 << 10),
    "n_head": (1, 1 << 10),
    "n_kv_head": (0, 1 << 10),
    "d_model": (1, 1 << 16),
    "d_ff": (1, 1 << 18),
    "reduced_from": (0, _COUNT),
    "max_iters": (1, 1 << 40),
    "warmup": (0, 1 << 40),
    "warmup_copy": (0, 1 << 40),
    "batch_size": (1, _COUNT),
    "accumulation": (1, _COUNT),
    "shard_tokens": (1, 1 << 30),
    "replicas": (1, 1 << 20),
    "local_steps": (0, 1 << 40),
    "eval_interval": (0, 1 << 40),
    "eval_batches": (1, 1 << 40),
    "sample_interval": (0, 1 << 40),
    "checkpoint_interval": (0, 1 << 40),
    "log_interval": (1, 1 << 40),
    "max_documents": (0, 1 << 40),
    "seed": (0, (1 << 64) - 1),
    **dict.fromkeys(
        ("lr", "embedding_lr", "min_lr", "weight_decay", "grad_clip", "norm_eps", "eps"),
        (0, math.inf),
    ),
}
TOKENIZERS = ("bpe", "char", "char-plain", "reduced")  # anything else is a tokenizer's file


@dataclass(frozen=True)
class Config:
    """Everything that decides a run except the machine it runs on. `MEANING` says what each field
    is, recipes.py has examples."""

    name: str = "custom"

    # shape
    vocab_size: int = 1024
    context: int = 128
    n_layer: int = 4
    n_head: int = 4
    n_kv_head: int = 0
    d_model: int = 128
    d_ff: int = 512

    # block
    norm: str = "layer"
    norm_eps: float = 1e-5
    norm_bias: bool = True
    positions: str = "learned"
    rope_theta: float = 10000.0
    ffn: str = "gelu"
    gate_bias: bool = False
    qkv_bias: bool = True
    out_bias: bool = True
    ffn_bias: bool = True
    windows: tuple[int, ...] = (0,)
    scale_attention: bool = True
    head: str = "tied"
    dropout: float = 0.0
    init: str = "gpt2"

    # tokenizer
    tokenizer: str = "bpe"
    reduced_from: int = 0

    # optimisation
    optimizer: str = "adamw"
    lr: float = 1e-3
    embedding_lr: float = 1.0
    min_lr: float = 0.0
    warmup: int = 100
    warmup_copy: int = 0
    schedule: str = "cosine"
    max_iters: int = 1000
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    batch_size: int = 32
    accumulation: int = 1
    shard_tokens: int = 512
    replicas: int = 1
    local_steps: int = 0

    # data
    data: str = "stories"
    valid_fraction: float = 0.1
    max_documents: int = 0

    # what is shown and kept
    eval_interval: int = 250
    eval_batches: int = 20
    sample_interval: int = 500
    checkpoint_interval: int = 250
    log_interval: int = 1

    seed: int = 1337
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, coerce(field.name, getattr(self, field.name)))
        _check(self)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_head

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads."""
        return self.n_kv_head or self.n_head

    @property
    def qkv_cuts(self) -> list[int]:
        """Where k and v begin in the rows of the packed projection: q is above the first cut."""
        return [self.d_model, self.d_model + self.kv_heads * self.head_dim]

    @property
    def sequences_per_step(self) -> int:
        """Sequences whose gradients one update adds up."""
        return self.batch_size * self.accumulation

    @property
    def tokens_per_step(self) -> int:
        """Tokens predicted between two updates."""
        return self.sequences_per_step * self.context

    def window(self, layer: int) -> int:
        """How many keys a query of this layer sees; 0 means all before it."""
        return self.windows[layer % len(self.windows)]

    def replace(self, **changes: Any) -> Config:
        """A copy with some fields changed; an unknown one is an error naming the nearest."""
        return from_dict(changes, self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON, TOML or YAML."""
        plain = dataclasses.asdict(self)
        plain["windows"] = list(self.windows)
        return plain


MEANING = {
    "name": "of the recipe; runs/NAME is the run folder",
    "vocab_size": "ids of the tokenizer",
    "context": "tokens that the model sees at most",
    "n_layer": "blocks, one after the other",
    "n_head": "attention heads of a layer",
    "n_kv_head": "key/value heads, shared by queries; 0: n_head",
    "d_model": "width of the residual stream",
    "d_ff": "width inside the feed-forward part",
    "norm": "layer: LayerNorm; rms: RMSNorm",
    "norm_eps": "added to the variance before its root",
    "norm_bias": "LayerNorm has a bias",
    "positions": "of tokens: vectors (first two), turns, or biases",
    "rope_theta": "base of rope's wavelengths",
    "ffn": "of the feed-forward part; gelu_tanh is GPT-2's",
    "gate_bias": "swiglu: a bias on the gate w1 alone",
    "qkv_bias": "queries, keys and values have a bias",
    "out_bias": "attention's output projection has a bias",
    "ffn_bias": "the feed-forward matrices have a bias",
    "windows": "by layer, cycled: keys that a query sees; 0: all",
    "scale_attention": "divide scores by the root of the head width",
    "head": "the embedding again, a matrix, or a pseudo-inverse",
    "dropout": "share of values set to zero while training",
    "init": "of weights; unit: an embedding of N(0, 1)",
    "tokenizer": "bpe, char, char-plain, reduced, or a file",
    "reduced_from": "size of the BPE that 'reduced' is taken from",
    "optimizer": "adamw, or muon with adamw for what is no matrix",
    "lr": "learning rate after the warmup",
    "embedding_lr": "times lr: that of embedding and head",
    "min_lr": "learning rate at the end",
    "warmup": "steps in which lr rises from 0",
    "warmup_copy": "steps before them, on random tokens that repeat",
    "schedule": "how it falls afterwards; wsd: late and linearly",
    "max_iters": "steps",
    "beta1": "decay of the mean of gradients",
    "beta2": "decay of the mean of their squares",
    "eps": "added to the root of that mean",
    "weight_decay": "of tensors of two dimensions or more",
    "grad_clip": "largest norm of all gradients; 0: off",
    "batch_size": "sequences that are drawn at a time",
    "accumulation": "batches that one step adds up",
    "shard_tokens": "tokens that one thread takes at a time",
    "replicas": "with local steps: models side by side, one a rank",
    "local_steps": "updates between meetings (DiLoCo); 0: add gradients",
    "data": "'stories', a text, or a prepared folder",
    "valid_fraction": "share of the text that is held out",
    "max_documents": "the first; 0: all (of the embedded stories 20,000)",
    "eval_interval": "steps between validations; 0: only at the end",
    "eval_batches": "batches of a validation",
    "sample_interval": "steps between samples; 0: only at the end",
    "checkpoint_interval": "steps between checkpoints; 0: only at the end",
    "log_interval": "steps between lines of log.jsonl",
    "seed": "of the weights, the batches and the dropout",
    "dtype": "of weights and arithmetic",
}
TYPES: dict[str, str] = {f.name: str(f.type) for f in dataclasses.fields(Config)}


def coerce(key: str, value: Any) -> Any:
    """`value` as the type of field `key`; text is parsed, as `--set` and YAML give it.

    Raises UsageError where that cannot be done without loss.
    """
    kind = TYPES[key]
    wanted = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "str": "text",
        "tuple[int, ...]": "whole numbers, as 0,256",
    }[kind]
    wrong = UsageError(f"{key}: expected {wanted}, got {shown(value)}")
    if kind == "str":
        if not isinstance(value, str):
            raise wrong
        return value
    if kind == "tuple[int, ...]":
        if isinstance(value, str):
            value = [part for part in value.strip("()[] ").split(",") if part.strip()]
        elif isinstance(value, int) and not isinstance(value, bool):
            value = [value]
        if not isinstance(value, (list, tuple)):
            raise wrong
        return tuple(_number(int, item, wrong) for item in value)
    if kind == "bool":
        word = value.strip().lower() if isinstance(value, str) else value
        if word in ("true", "yes", "on", "1"):
            return True
        if word in ("false", "no", "off", "0"):
            return False
        if not isinstance(value, bool):
            raise wrong
        return value
    return _number(int if kind == "int" else float, value, wrong)


def _number(kind: type, value: Any, wrong: UsageError) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise wrong
    try:
        if kind is float:
            number: float = float(value)
        elif isinstance(value, str):
            text = value.strip().replace("_", "")
            number = int(text) if text.lstrip("+-").isdigit() else float(text)
        else:
            number = value
        if not math.isfinite(number) or number != kind(number):
            raise wrong
    except (ValueError, OverflowError):  # a whole number may be too large for a float
        raise wrong from None
    return kind(number)


def _check(c: Config) -> None:
    """Raise UsageError, in one line, for a configuration that cannot be built or trained."""
    _check_fields(c)
    _check_text(c)
    _check_shapes(c)


def _check_fields(c: Config) -> None:
    """What must hold for each field on its own."""
    for key, choices in CHOICES.items():
        if getattr(c, key) not in choices:
            raise UsageError(
                f"{key}: expected one of {', '.join(choices)}, got "
                f"{shown(getattr(c, key))}{_nearest(getattr(c, key), choices)}"
            )
    for key, (least, most) in BOUNDS.items():
        value = getattr(c, key)
        if value < least:
            floor = f"at least {least}" if least else "0 or more"
            raise UsageError(f"{key}: expected {floor}, got {value}")
        if value > most:
            raise UsageError(f"{key}: expected at most {most:,}, got {shown(value)}")
    for key in ("dropout", "beta1", "beta2", "valid_fraction"):
        if not 0 <= getattr(c, key) < 1:
            raise UsageError(f"{key}: expected 0 <= {key} < 1, got {getattr(c, key)}")
    least_number, most = FLOAT_RANGE[c.dtype]
    for key, kind in TYPES.items():
        if kind == "float" and getattr(c, key) > most:
            raise UsageError(
                f"{key}: expected a number that {c.dtype} holds, got {getattr(c, key)}"
            )
    if c.eps < least_number:  # a gradient of 0 would be divided by 0
        raise UsageError(f"eps: expected a number that {c.dtype} holds above 0, got {c.eps:g}")


def _check_shapes(c: Config) -> None:
    """What must hold for several fields together."""
    for key in ("max_iters", "eval_interval", "sample_interval", "checkpoint_interval"):
        if c.local_steps and getattr(c, key) % c.local_steps:
            raise UsageError(
                f"local_steps: expected a number that divides {key}, {getattr(c, key)}, as the "
                f"replicas have one model then only; got {c.local_steps}"
            )
    if (c.replicas > 1) != (c.local_steps > 0):
        raise UsageError(
            f"replicas: {c.replicas} with local_steps {c.local_steps}; local steps need at least "
            "two replicas, and replicas need local steps"
        )
    if c.d_model % c.n_head:
        raise UsageError(f"d_model: {c.d_model} is not a multiple of n_head, {c.n_head}")
    if c.n_head % c.kv_heads:
        raise UsageError(f"n_kv_head: {c.n_kv_head} does not divide n_head, {c.n_head}")
    if c.positions == "rope" and (c.head_dim % 2 or c.rope_theta <= 0):
        raise UsageError(
            f"positions: rope needs an even head width and a rope_theta above 0, got "
            f"d_model / n_head = {c.head_dim} and {c.rope_theta}"
        )
    if c.positions == "sinusoidal" and c.d_model % 2:
        raise UsageError(f"positions: sinusoidal needs an even d_model, got {c.d_model}")
    if (
        not 0 < len(c.windows) <= BOUNDS["n_layer"][1]
        or not 0 <= min(c.windows) <= max(c.windows) <= 1 << 30
    ):
        raise UsageError(
            f"windows: expected numbers from 0 to {1 << 30:,}, at most one a layer, got "
            f"{shown(c.windows)}"
        )
    tables = {"rope": c.context * c.head_dim, "sinusoidal": c.context * c.d_model}
    if tables.get(c.positions, 0) > MAX_TABLE:
        raise UsageError(
            f"context: a table of {c.context:,} {c.positions} positions exceeds the bound of "
            f"{MAX_TABLE:,} numbers"
        )
    cache = 2 * c.n_layer * c.context * c.kv_heads * c.head_dim
    if cache > MAX_CACHE:
        raise UsageError(
            f"context: the keys and values of {c.context:,} tokens in {c.n_layer} layers are "
            f"{cache:,} numbers; expected at most {MAX_CACHE:,}"
        )
    if c.head == "pinv" and c.vocab_size < c.d_model:
        raise UsageError(
            f"head: pinv needs a vocab_size of at least d_model, got {c.vocab_size} < {c.d_model}"
        )
    if c.init == "unit" and c.head != "untied":
        raise UsageError(
            "init: unit starts the embedding at N(0, 1), far too large for a head "
            f"made of it; it needs head=untied, got {c.head}"
        )
    if c.tokenizer == "reduced" and c.reduced_from < c.vocab_size:
        raise UsageError(
            f"reduced_from: expected at least vocab_size ({c.vocab_size}) for the "
            f"tokenizer 'reduced', got {c.reduced_from}"
        )


def _check_text(c: Config) -> None:
    """Raise UsageError for text that no file could hold, or a name that leaves its folder."""
    for key in ("name", "data", "tokenizer"):
        text = getattr(c, key)
        try:
            sound = len(text.encode("utf-8")) <= MAX_TEXT and "\0" not in text
        except UnicodeEncodeError:  # half of a surrogate pair
            sound = False
        if not sound:
            raise UsageError(f"{key}: expected at most {MAX_TEXT} bytes of text, got {shown(text)}")
    if not c.name.isprintable() or set(c.name) & set("/\\:") or c.name.strip(". ") != c.name:
        raise UsageError(f"name: expected one that a folder can have, got {shown(c.name)}")


# What nanoGPT and others call a setting or an option, and what it is called here.
ELSEWHERE = {
    "block_size": "context",
    "compile": None,
    "dataset": "data",
    "device": None,
    "eval_iters": "eval_batches",
    "gradient_accumulation_steps": "accumulation",
    "hidden_size": "d_model",
    "init_from": "from",
    "learning_rate": "lr",
    "lr_decay_iters": "max_iters",
    "max_steps": "max_iters",
    "n_embd": "d_model",
    "out_dir": "out",
    "seq_len": "context",
    "warmup_iters": "warmup",
    "warmup_steps": "warmup",
}


def called_here(word: str, known: Iterable[str]) -> str | None:
    """Which of the names `known` here is what other programs call `word`; "" if there is nothing to
    choose here, None if no other program is known to use the word."""
    name = ELSEWHERE.get(word.lstrip("-").replace("-", "_"), word)
    if name is None:
        return ""
    return name if name != word and name in known else None


def _nearest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    there = called_here(word, known)
    if there is not None:
        return f"; it is called {there!r} here" if there else "; there is nothing to choose here"
    match = difflib.get_close_matches(word[:100], known, n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def unknown(what: str, word: str, known: Iterable[str]) -> UsageError:
    """The error for a name that does not exist, with the nearest one that does."""
    known = list(known)
    hint = _nearest(word, known)
    return UsageError(f"unknown {what} {shown(word)}{hint or '; known: ' + ', '.join(known)}")


def from_dict(values: Mapping[str, Any], base: Config | None = None) -> Config:
    """`base` (or the defaults) with `values` over it. Raises UsageError for an unknown key."""
    return dataclasses.replace(base or Config(), **fields_of(values))


def fields_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` under the names of fields. Raises UsageError for an unknown key."""
    changes = {}
    for key, value in values.items():
        field = str(key).replace("-", "_")
        if field not in TYPES:
            raise unknown("configuration key", str(key), TYPES)
        changes[field] = value
    return changes


def assigned(assignments: Iterable[str]) -> dict[str, str]:
    """The keys and values of ``key=value`` texts, as given to ``--set``."""
    values = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set: expected key=value, got {shown(text)}")
        values[key.strip()] = value.strip()
    return values


# --------------------------------------------------------------------------------------- files


def explained(config: Config) -> str:
    """`config` as TOML with a comment on every field."""
    lines = dumps(config, ".toml").splitlines()
    width = max(map(len, lines))
    return "".join(
        f"{line:{width}}  # {meaning}\n"
        for line, meaning in zip(lines, MEANING.values(), strict=True)
    )


def dumps(config: Config, suffix: str) -> str:
    """`config` as the text of a file ending in `suffix`: .json, .toml, .yaml or .yml."""
    values = config.to_dict()
    if suffix == ".json":
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    if suffix == ".toml":  # a JSON scalar or list is a TOML one, but for a raw DEL in a string
        lines = (f"{key} = {json.dumps(v, ensure_ascii=False)}" for key, v in values.items())
        return "\n".join(lines).replace("\x7f", "\\u007f") + "\n"
    if suffix in (".yaml", ".yml"):
        return str(_yaml().safe_dump(values, sort_keys=False))
    raise UsageError(f"a configuration is .json, .toml, .yaml or .yml, not {suffix or 'bare'!r}")


def loads(text: str, suffix: str, base: Config | None = None) -> Config:
    """The configuration in `text`, laid over `base`. Raises UsageError for what is not one."""
    return from_dict(_values(text, suffix), base)


def _values(text: str, suffix: str) -> dict[str, Any]:
    try:
        if len(text) > MAX_FILE:
            raise UsageError(f"expected a configuration of at most {MAX_FILE:,} bytes, got more")
        if suffix == ".json":
            values = parse_json(text.encode("utf-8", "surrogatepass"))
        elif suffix == ".toml":
            values = _parse_toml(text)
        elif suffix in (".yaml", ".yml"):
            values = _parse_yaml(text)
        else:
            raise UsageError(
                f"a configuration is .json, .toml, .yaml or .yml, not {suffix or 'bare'!r}"
            )
    except ValueError as error:  # both JSON's and TOML's errors are ValueErrors
        raise UsageError(f"not valid {suffix[1:].upper()}: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"expected keys with values, got {shown(values)}")
    return values


def load(path: str | Path, base: Config | None = None) -> Config:
    """Read a configuration file, laid over `base`."""
    with blaming(path):
        return from_dict(read(path), base)


@contextmanager
def blaming(path: str | Path) -> Iterator[None]:
    """Name the file in whose values an error lies."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def read(path: str | Path) -> dict[str, Any]:
    """The keys and values of a configuration file; it may have only a few, not checked yet."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE + 1)
        if len(raw) > MAX_FILE:
            raise UsageError(f"expected a configuration of at most {MAX_FILE:,} bytes, got more")
        return _values(raw.decode("utf-8"), path.suffix.lower())
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8 text (byte {error.start})") from error


def save(config: Config, path: str | Path) -> None:
    """Write a configuration file; the suffix decides the format."""
    path = Path(path)
    path.write_text(dumps(config, path.suffix.lower()), encoding="utf-8", newline="\n")


def _yaml() -> Any:
    try:
        import yaml
    except ImportError:
        raise UsageError(
            "YAML needs the extra 'yaml': pip install 'tinygpt[yaml]', or use .json or .toml"
        ) from None
    return yaml


def _parse_yaml(text: str) -> Any:
    """The text's keys and values as text, lists and dicts; `coerce` knows the types of fields.

    YAML can do far more, and a stranger's file could ask for it: aliases make ten lines a billion
    values, tags make objects. So the events are looked at before anything is made of them.
    """
    yaml = _yaml()
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.BaseLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
                line = event.start_mark.line + 1
                raise ValueError(f"line {line}: a configuration has no aliases and no tags")
            if depth > 4:
                raise ValueError(f"line {event.start_mark.line + 1}: nested too deeply")
        return yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _parse_toml(text: str) -> dict[str, Any]:
    try:
        import tomllib  # type: ignore[import-not-found]
    except ImportError:  # Python 3.10
        try:
            import tomli as tomllib
        except ImportError:
            raise UsageError(
                "TOML needs Python 3.11 or the extra 'toml': pip install "
                "'tinygpt[toml]', or use .json"
            ) from None
    try:
        return dict(tomllib.loads(text))
    except RecursionError:
        raise ValueError("nested too deeply") from None
