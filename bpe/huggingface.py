"""Files of Hugging Face's tokenizers: `tokenizer.json`, and `vocab.json` with `merges.txt`.

Both write tokens in GPT-2's alphabet, a visible character for each byte, and rank pairs. Characters
are a BPE there too, one without merges whose tokens are the characters themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bpe.alphabet import printable, unprintable
from bpe.base import MAX_ID, Tokenizer
from bpe.bytelevel import BPETokenizer
from bpe.char import CONTROL_TOKENS, CharTokenizer
from bpe.checks import field, name_of, special_ids, warn
from bpe.errors import TokenizerError
from bpe.files import write_file
from bpe.patterns import PATTERNS
from bpe.untrusted import shown


def from_huggingface(data: dict[str, Any]) -> Tokenizer:
    """A `tokenizer.json`. What is neither byte-level BPE nor characters as `write_huggingface`
    writes them, or would change text, is refused."""
    model = field(data, "model", dict)
    if model.get("type", "BPE") != "BPE":
        raise TokenizerError(f"model.type: only BPE is known, not {shown(model['type'])}")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "dropout"):
        if model.get(key):
            raise TokenizerError(f"model.{key}: {shown(model[key])} is not supported")
    if data.get("normalizer") not in (None, {"type": "Sequence", "normalizers": []}):
        raise TokenizerError("normalizer: changing the text is not supported")
    if data.get("pre_tokenizer") is None and model.get("merges") == []:
        return _characters(field(model, "vocab", dict, where="model."))
    pattern = _pre_tokenizer(field(data, "pre_tokenizer", dict))
    specials: dict[str, int] = {}
    for index, token in enumerate(field(data, "added_tokens", list, default=[])):
        where = f"added_tokens[{index}]"
        if type(token) is not dict:
            raise TokenizerError(f"{where}: expected an object, got {name_of(token)}")
        for key in ("single_word", "lstrip", "rstrip"):
            if token.get(key):
                raise TokenizerError(f"{where}.{key}: not supported")
        name = field(token, "content", str, where=where + ".")
        if name in specials:
            raise TokenizerError(f"{where}: {shown(name)} has been added before")
        specials[name] = field(token, "id", int, where=where + ".")
    vocab = field(model, "vocab", dict, where="model.")
    merges = field(model, "merges", list, where="model.")
    return _from_vocab(
        vocab,
        ((f"model.merges[{i}]", merge) for i, merge in enumerate(merges)),
        specials,
        pattern=pattern,
        whole_chunks=bool(field(model, "ignore_merges", bool, default=False)),
    )


def _characters(vocab: dict[str, Any]) -> CharTokenizer:
    """Characters in the order of their ids, after the control tokens if there are any."""
    if any(type(id) is not int for id in vocab.values()):
        raise TokenizerError("model.vocab: expected integers as ids")
    names = sorted(vocab, key=lambda name: vocab[name])
    controlled = names[:3] == list(CONTROL_TOKENS)
    characters = names[3:] if controlled else names
    first = 3 if controlled else 0
    padding = [name for name in characters if len(name) != 1]
    kept = characters[: len(characters) - len(padding)]
    wanted = {name: id for id, name in enumerate([*names[:first], *kept, *padding])}
    if vocab != wanted or any(not _UNUSED.fullmatch(name) for name in padding):
        raise TokenizerError(
            "model.vocab: without pre_tokenizer and merges, expected characters numbered one after "
            "the other"
        )
    return CharTokenizer("".join(kept), control_tokens=controlled, vocab_size=len(vocab))


_UNUSED = re.compile(r"<unused \d+>")


def _pre_tokenizer(data: dict[str, Any]) -> str:
    """The splitting pattern that `data` amounts to: ByteLevel, or Split and then ByteLevel."""
    steps = [data]
    if data.get("type") == "Sequence":
        steps = field(data, "pretokenizers", list, where="pre_tokenizer.")
    if not all(type(step) is dict for step in steps):
        raise TokenizerError("pre_tokenizer.pretokenizers: expected objects")
    types = [step.get("type") for step in steps]
    if types not in (["ByteLevel"], ["Split", "ByteLevel"]):
        raise TokenizerError(
            f"pre_tokenizer: expected ByteLevel, or Split and ByteLevel, got {shown(types)}"
        )
    last = steps[-1]
    if last.get("add_prefix_space", True):
        raise TokenizerError("pre_tokenizer: add_prefix_space is not supported: it changes text")
    uses_regex = last.get("use_regex", True)
    if types == ["ByteLevel"]:
        return "gpt2" if uses_regex else "none"
    split = steps[0]
    ways = (("Isolated", False), ("Removed", True))  # the same where every character is matched
    if uses_regex or (split.get("behavior"), split.get("invert")) not in ways:
        raise TokenizerError("pre_tokenizer: expected a Split that isolates what it matches")
    pattern = field(split, "pattern", dict, where="pre_tokenizer.Split.")
    if list(pattern) == ["String"]:
        return re.escape(field(pattern, "String", str))
    return field(pattern, "Regex", str, where="pre_tokenizer.Split.pattern.")


def _from_vocab(
    ids: dict[str, Any],
    merges: Iterable[tuple[str, Any]],
    specials: dict[str, int] | None,
    **options: Any,
) -> BPETokenizer:
    """A tokenizer from tokens and merges in GPT-2's alphabet.

    With `specials` of None, what is neither a byte nor made by a merge is a special token.
    """
    pairs: list[tuple[str, str]] = []
    for where, merge in merges:
        parts = merge.split(" ") if type(merge) is str else merge
        if type(parts) is not list or len(parts) != 2 or {type(p) for p in parts} != {str}:
            raise TokenizerError(f"{where}: expected two tokens, got {shown(merge)}")
        for part in parts:
            if part not in ids:
                raise TokenizerError(f"{where}: {shown(part)} is not in the vocabulary")
        pairs.append((parts[0], parts[1]))
    if specials is None:
        made = {left + right for left, right in pairs}
        specials = {name: id for name, id in ids.items() if len(name) > 1 and name not in made}
    vocab: list[bytes | None] = []
    for name, id in ids.items():
        if type(id) is not int or not 0 <= id < MAX_ID:
            raise TokenizerError(f"vocab: {shown(name)} has the impossible id {shown(id)}")
        if name in specials:
            if specials[name] != id:
                raise TokenizerError(
                    f"vocab: {shown(name)} has the ids {id} and {shown(specials[name])}"
                )
            continue
        vocab += [None] * (id + 1 - len(vocab))
        if (other := vocab[id]) is not None:
            raise TokenizerError(
                f"vocab: {shown(name)} and {shown(printable(other))} have the id {id}"
            )
        vocab[id] = unprintable(name, "vocab")
    numbers = ((ids[left], ids[right]) for left, right in pairs)
    return BPETokenizer(vocab, numbers, special_tokens=specials, **options)


def from_gpt2(
    vocab: dict[str, Any],
    merges: bytes,
    *,
    pattern: str = "gpt2",
    special_tokens: Mapping[str, int] | None = None,
) -> BPETokenizer:
    """A `vocab.json` and the `merges.txt` beside it."""
    try:
        lines = [line.rstrip("\r") for line in merges.decode("utf-8").split("\n")]
    except UnicodeDecodeError as error:
        raise TokenizerError(f"merges.txt: not UTF-8 at byte {error.start}") from error
    numbered = ((f"merges.txt, line {n}", line) for n, line in enumerate(lines, 1))
    kept = ((w, line) for w, line in numbered if line and not line.startswith("#version"))
    specials = None if special_tokens is None else special_ids(special_tokens)
    return _from_vocab(vocab, kept, specials, pattern=pattern)


def write_huggingface(tokenizer: BPETokenizer | CharTokenizer, path: Path) -> None:
    """Write a `tokenizer.json`.

    Of characters without control tokens, those that are not in the list are dropped by its
    readers, where encoding them here is an error.
    """
    if isinstance(tokenizer, CharTokenizer):
        ids = range(tokenizer.vocab_size)
        control = {id: name for name, id in tokenizer.special_tokens.items()}
        rows = [control.get(id) or tokenizer.token_bytes(id).decode() for id in ids]
        vocab = {name or f"<unused {id}>": id for id, name in enumerate(rows)}
        settings: dict[str, Any] = {
            "unk_token": "<unk>" if tokenizer.control_tokens else None,
            "vocab": vocab,
            "merges": [],
        }
        _write_tokenizer_json(tokenizer, path, None, {"type": "Fuse"}, settings)
        return
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": tokenizer.pattern == "gpt2",
    }
    pre_tokenizer: dict[str, Any] = byte_level
    if tokenizer.pattern not in ("gpt2", "none"):
        expression = PATTERNS.get(tokenizer.pattern, tokenizer.pattern)
        split = {
            "type": "Split",
            "pattern": {"Regex": expression},
            "behavior": "Isolated",
            "invert": False,
        }
        pre_tokenizer = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    settings = {
        "unk_token": None,
        "ignore_merges": tokenizer.whole_chunks,
        "vocab": _vocab_json(tokenizer),
        "merges": [list(pair) for pair in _merge_names(tokenizer)],
    }
    decoder = {**byte_level, "use_regex": True}
    _write_tokenizer_json(tokenizer, path, pre_tokenizer, decoder, settings)


def _write_tokenizer_json(
    tokenizer: Tokenizer, path: Path, pre_tokenizer: Any, decoder: Any, settings: dict[str, Any]
) -> None:
    """A `tokenizer.json` whose model is a BPE with some `settings`."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id, "content": name, **flags, "special": True}
            for name, id in sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": {
            "type": "BPE",
            **dict.fromkeys(("dropout", "continuing_subword_prefix", "end_of_word_suffix")),
            "fuse_unk": False,
            "byte_fallback": False,
            **settings,
        },
    }
    write_file(path, _json_bytes(data))


def write_gpt2(tokenizer: BPETokenizer, path: Path) -> None:
    if tokenizer.pattern != "gpt2":
        warn(f"the format does not hold the pattern {tokenizer.pattern!r}; readers take GPT-2's")
    path.mkdir(parents=True, exist_ok=True)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in _merge_names(tokenizer)), ""]
    write_file(path / "vocab.json", _json_bytes(_vocab_json(tokenizer)))
    write_file(path / "merges.txt", "\n".join(lines).encode("utf-8"))


def _vocab_json(tokenizer: BPETokenizer) -> dict[str, int]:
    names = {printable(t): id for id, t in enumerate(tokenizer.vocab) if t is not None}
    for name, id in tokenizer.special_tokens.items():
        if names.setdefault(name, id) != id:
            raise TokenizerError(
                f"{shown(name)} is both a special token and, in this format, another"
            )
    return dict(sorted(names.items(), key=lambda item: item[1]))


def _merge_names(tokenizer: BPETokenizer) -> Iterable[tuple[str, str]]:
    names = [None if token is None else printable(token) for token in tokenizer.vocab]
    return ((names[left], names[right]) for left, right in tokenizer.merges)  # type: ignore[misc]


def _json_bytes(data: Any) -> bytes:
    return (json.dumps(data, ensure_ascii=False, indent=1) + "\n").encode("utf-8")
