"""Tokenizer files: the package's own JSON, those of others, and the tokenizers inside models.

Nothing in a file is believed. Everything that does not add up is a `TokenizerError` that names
the file, the place and the reason in one line; sizes are checked before memory is spent on them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from bpe.base import WRITERS, Tokenizer, from_dict
from bpe.bytelevel import BPETokenizer
from bpe.char import CharTokenizer
from bpe.checks import json_object
from bpe.errors import TokenizerError
from bpe.files import read_file, write_file
from bpe.huggingface import from_gpt2, from_huggingface, write_gpt2, write_huggingface
from bpe.modelfile import is_model, tokenizer_fields
from bpe.ranks import from_llama2c, from_tiktoken, write_llama2c, write_tiktoken
from bpe.terminal import counted
from bpe.untrusted import shown


def load(
    path: str | os.PathLike[str],
    *,
    pattern: str | None = None,
    special_tokens: Mapping[str, int] | None = None,
) -> Tokenizer:
    """Read a tokenizer: a file of any known format, told by its content, or a folder with one.

    Known are this package's JSON, Hugging Face's `tokenizer.json`, `vocab.json` with `merges.txt`
    beside it, tiktoken's ranks, llama2.c's `tokenizer.bin`, and the tokenizer inside a model file
    (`.npz`). `pattern` and `special_tokens` complete the formats that do not hold them:
    `vocab.json` and tiktoken's (GPT-2's pattern is assumed), and `tokenizer.bin` (no splitting is).
    """
    path = Path(path)
    if path.is_dir():
        names = ("tokenizer.json", "vocab.json", "tokenizer.bin")
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise TokenizerError(f"{path}: a folder without {', '.join(names)}")
        path = found[0]
    model = path.is_file() and is_model(path)  # a pipe could not be read twice
    data = b"" if model else read_file(path)  # of a model, only the beginning will be read
    given = {"pattern": pattern, "special_tokens": special_tokens}
    options = {key: value for key, value in given.items() if value is not None}
    try:
        return from_dict(tokenizer_fields(path)) if model else _reader(path, data)(**options)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error


def _reader(path: Path, data: bytes) -> Callable[..., Tokenizer]:
    """What makes a tokenizer of `data`, the content of `path`."""
    start = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n")
    if not start:
        raise TokenizerError("the file begins with nothing but white space" if data else "empty")
    if start.startswith(b"{"):
        content = json_object(data)
        if {type(value) for value in content.values()} == {int}:  # "model" is a word of GPT-2
            merges = read_file(path.with_name("merges.txt"), named=False)
            return lambda **options: from_gpt2(content, merges, **options)
        if "model" in content:
            return lambda: from_huggingface(content)
        return lambda: from_dict(content)
    if start.startswith(b"#version"):
        vocab = json_object(read_file(path.with_name("vocab.json"), named=False))
        return lambda **options: from_gpt2(vocab, data, **options)
    if re.match(rb"[A-Za-z0-9+/=]+ [0-9]+\r?(\n|$)", data):
        return lambda **options: from_tiktoken(data, **options)
    return lambda **options: from_llama2c(data, **options)


def _write_json(tokenizer: Tokenizer, path: Path) -> None:
    """The package's own format: a line for each field."""
    items = tokenizer.to_dict().items()
    lines = [f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in items]
    write_file(path, ("{" + ",\n ".join(lines) + "}\n").encode("utf-8"))


def _write_huggingface(tokenizer: Tokenizer, path: Path) -> None:
    """A tokenizer.json: byte-level BPE or characters."""
    if isinstance(tokenizer, CharTokenizer):
        write_huggingface(tokenizer, path)
    else:
        _write_bpe("huggingface", write_huggingface, tokenizer, path)


def _write_bpe(
    format: str, write: Callable[[BPETokenizer, Path], None], tokenizer: Tokenizer, path: Path
) -> None:
    """`write` in a format that holds byte-level BPE and nothing else."""
    if not isinstance(tokenizer, BPETokenizer):
        raise TokenizerError(f"format: {format!r} holds BPE only, not {tokenizer.kind!r}")
    if tokenizer.characters:
        raise TokenizerError(f"format: {format!r} cannot hold llama2.c's encoding by character")
    write(tokenizer, path)


def losses(tokenizer: Tokenizer, format: str, written: Tokenizer) -> Iterator[str]:
    """What a file of `format` does not keep of `tokenizer`, in sentences; `written` is what is read
    from that file. (A pattern that `vocab.json` cannot hold is a warning of writing it.)
    """
    if lost := [name for name in tokenizer.special_tokens if name not in written.special_tokens]:
        names = ", ".join(map(shown, lost[:3])) + (", …" if len(lost) > 3 else "")
        yield f"the file has no special tokens, so {names} must be given to whoever reads it"
    kept = {tokenizer.special_tokens[name] for name in tokenizer.special_tokens.keys() - set(lost)}
    moved = sum(
        written.bytes_of.get(id) != text
        for id, text in tokenizer.bytes_of.items()
        if text and (id in kept or id not in tokenizer.special_tokens.values())
    )
    if moved:
        yield f"{counted(moved, 'token')} of it {'has' if moved == 1 else 'have'} another id there"
    pattern = getattr(tokenizer, "pattern", "none")
    if format == "llama2c" and pattern != "none":
        yield f"the file has no splitting pattern ({shown(pattern)}): its tokens may cross words"
    if format == "tiktoken":
        yield f"the file has no splitting pattern: whoever reads it must be given {shown(pattern)}"
    characters = isinstance(tokenizer, CharTokenizer) and not tokenizer.control_tokens
    if format == "huggingface" and characters:
        yield "characters that it does not know are an error here, its readers drop them"


WRITERS["json"] = _write_json
WRITERS["huggingface"] = _write_huggingface
WRITERS["gpt2"] = partial(_write_bpe, "gpt2", write_gpt2)
WRITERS["tiktoken"] = partial(_write_bpe, "tiktoken", write_tiktoken)
WRITERS["llama2c"] = write_llama2c
