"""Every reader of a file from a stranger, on files that are nearly right.

    python benchmarks/bad_files.py --inputs 300000 --keep found/

Sound files of every kind are changed where their structure is: sizes and flags of archives, headers
of arrays, members, JSON of the wrong shape, counts, nesting, numbers beyond all bounds, lines and
rows; and byte by byte. Each is read in a child process that may use so much memory and so much
time. It must load to something that works, or be refused with the project's error, in one short
printable line. Everything else is a finding: another exception, a crash, more than `SECONDS` of
processor time, or more memory than `MEMORY` beyond what the process had.

An input is a function of the reader's name, the seed and its number, so that a finding can be made
again: ``--reader checkpoint --first 1234 --inputs 1``. With ``--coverage``, and atheris installed,
a reader's inputs are chosen by the lines that they reach.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.util
import inspect
import io
import json
import os
import random
import resource
import select
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import bpe
import minitensor as mt
from bpe.untrusted import shown
from tinygpt import Error
from tinygpt.data import corpus, prepare, streams
from tinygpt.formats import checkpoint, exchange
from tinygpt.formats.checkpoint import Saved
from tinygpt.inspection import plot
from tinygpt.inspection.page import page
from tinygpt.model import config
from tinygpt.model.config import Config
from tinygpt.model.transformer import layout
from tinygpt.training import optimizers

SECONDS = 2.0  # of processor time, for one input
MEMORY = 160 << 20  # beyond what the child has when it begins
PATIENCE = 60.0  # seconds without an answer, after which the child is ended
BATCH = 500  # inputs that one child reads
LONGEST = 1200  # characters of a message, path included
TEXT = "Once upon a time there was a hedgehog. été 🐶 123"

Files = dict[str, bytes]  # by name; "" stands for the only one


@dataclass(frozen=True)
class Reader:
    """What is read, from which sound files, changed how."""

    name: str  # of the file or folder
    seeds: Callable[[], list[Files]]
    change: Callable[[random.Random, Files], Files]
    read: Callable[[Path], None]


# ------------------------------------------------------------------------------ changing bytes

INTEGERS = [
    0,
    1,
    2,
    7,
    127,
    128,
    255,
    256,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
]


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    """`data` with a few bits, bytes, numbers or stretches of it changed."""
    new = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at, size = rng.randrange(len(new) + 1), rng.choice([1, 1, 2, 4, 30, 300])
        way = rng.randrange(8)
        if way == 0 and new:
            new[at % len(new)] ^= 1 << rng.randrange(8)
        elif way == 1:
            new[at : at + size] = rng.randbytes(rng.choice([0, 1, size]))
        elif way == 2:
            del new[at : at + size]
        elif way == 3:
            new[at:at] = new[at : at + size] * rng.choice([1, 2, 100])
        elif way == 4:
            del new[at:]
        elif way == 5:
            width = rng.choice([1, 2, 4, 8])
            new[at : at + width] = (rng.choice(INTEGERS) % 256**width).to_bytes(width, "little")
        elif way == 6:
            new[at:at] = rng.choice(
                [b"\0", b"\xff", b"\n", b"\r", b"{", b"[", b'"', b"\\", b"9" * 40]
            )
        else:
            other = rng.randrange(len(new) + 1)
            new[at : at + size] = new[other : other + size]
    return bytes(new)


# ------------------------------------------------------------------------------- changing JSON


class Raw(str):
    """Text that stands in JSON as it is."""


def odd_value(rng: random.Random, old: Any) -> Any:
    """A value that is not what belongs there, or is nearly."""
    return rng.choice(
        [
            None,
            True,
            -1,
            0,
            2.5,
            10**6,
            10**18,
            10**40,
            10**5000 if rng.random() < 0.1 else 30_000_000,
            1e308,
            "",
            "x" * 5000,
            "\x1b[2J\n\0\u202e",
            "\ud800",
            "../../x",
            [],
            {},
            [old],
            [old] * (2 if isinstance(old, (list, dict)) else 50),  # they multiply
            {"": old},
            Raw("NaN"),
            Raw("-Infinity"),
            Raw("1e999"),
            Raw("0x10"),
            Raw("[" * 40 + "]" * 40),
            Raw("[" * rng.choice([70, 2000, 100_000]) + "]" * rng.choice([0, 70, 100_000])),
            Raw('{"a":' * 2000 + "1" + "}" * 2000),
            Raw("[" + "[]," * rng.choice([10, 10_000]) + "1]"),
            Raw("9" * rng.choice([10, 25, 5000])),
            float(old) if isinstance(old, int) and abs(old) < 2**60 else shown(old),
            -old if isinstance(old, (int, float)) else old,
            old + 1 if isinstance(old, (int, float)) else old,
        ]
    )


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values inside of `value` are; of a long list, a few."""
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value))) if len(value) < 40 else [0, 1, 97, 200, len(value) - 1]
    inside = [at] if at else []
    for key in keys:
        if not isinstance(value, list) or key < len(value):
            inside += places(value[key], (*at, key))
    return inside


def change_json(rng: random.Random, data: bytes) -> bytes:
    """JSON with values replaced, left out, moved or there twice."""
    if rng.random() < 0.15:
        return change_bytes(rng, data)
    value = json.loads(data)
    twice: tuple[str, Any] | None = None
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        where = rng.choice(places(value) or [()])
        if not where:
            continue
        inside = value
        for key in where[:-1]:
            inside = inside[key]
        last, way = where[-1], rng.randrange(6)
        if way == 0:
            del inside[last]
        elif way == 1 and isinstance(inside, dict):
            inside[rng.choice(["surprise", "", "\0", "a" * 3000, last + "x"])] = inside[last]
        elif way == 1:
            inside.insert(rng.randrange(len(inside) + 1), inside[last])
        elif way == 2 and isinstance(last, str):
            twice = last, inside[last]
        else:
            inside[last] = odd_value(rng, inside[last])
    text = dump(value)
    if twice and text.startswith("{"):
        text = "{" + json.dumps(twice[0]) + ":" + dump(twice[1]) + "," + text[1:]
    return text.encode("utf-8", "surrogatepass")


def dump(value: Any) -> str:
    """JSON of `value`, in which `Raw` stands as it is, and numbers are as long as they are."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)}: {dump(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dump, value)) + "]"
    if isinstance(value, int) and abs(value) > 1 << 64:
        return "9" * (value.bit_length() * 3 // 10)
    return json.dumps(value, ensure_ascii=isinstance(value, str) and "\ud800" in value)


# ---------------------------------------------------------------------- changing arrays, archives


def change_array(rng: random.Random, data: bytes) -> bytes:
    """A `.npy` with another header, or fewer or more elements."""
    size = int.from_bytes(data[8:10], "little")
    head, body = data[10 : 10 + size].decode("latin-1"), data[10 + size :]
    way = rng.randrange(7)
    if way == 0:
        types = ["|O", "<f8", "<f4", ">f4", "<f2", "<c8", "|b1", "|S4", "<U9", "|V0", "<i8", "|u1"]
        types += ["<u2", "<u4", "m8", "M8[ns]", "f99", "?", "O"]
        head = head.replace(head.split("'")[3], rng.choice(types), 1)
    elif way == 1:
        shapes = [
            "",
            "0,",
            "1,",
            "99999999999,",
            "-1,",
            "2, 2",
            "0, 99999999999",
            "1, " * 40,
            "True,",
        ]
        begin, end = head.index("("), head.index(")")
        head = head[: begin + 1] + rng.choice(shapes) + head[end:]
    elif way == 2:
        head = head.replace("False", rng.choice(["True", "0", "[]", "False" * 3]))
    elif way == 3:
        head = rng.choice(
            ["[" * 3000, "{" * 300, "__import__('os')", "{}", "\n", head[:-10], head * 2]
        )
    elif way == 4:
        body = body[: rng.randrange(len(body) + 1)]
    elif way == 5:
        body += body[: rng.choice([1, 2, 8, 1000])]
    else:
        return change_bytes(rng, data)
    if rng.random() < 0.7:
        head = head.rstrip("\n ").ljust(size - 1) + "\n"
    encoded = head.encode("latin-1")
    length = rng.choice([len(encoded)] * 9 + INTEGERS) % 65536
    version = rng.choice([b"\1\0"] * 9 + [b"\2\0", b"\3\0", b"\x09\0"])
    return b"\x93NUMPY" + version + length.to_bytes(2, "little") + encoded + body


def change_numbers(rng: random.Random, data: bytes) -> bytes:
    """A `.npy` in which some numbers are others: not finite, negative, large, in disorder."""
    size = 10 + int.from_bytes(data[8:10], "little")
    body = bytearray(data[size:])
    width = 2 if b"u2" in data[:size] else 4
    words = [0, 0x7F800000, 0xFFC00000, 0xBF800000, 0x7F7FFFFF, 65535, 80, 1]
    for _ in range(rng.choice([1, 2, 100])):
        at = rng.randrange(max(len(body) // width, 1)) * width
        body[at : at + width] = rng.choice(words).to_bytes(4, "little")[-width:]
    return data[:size] + bytes(body[: len(data) - size])


def change_archive(rng: random.Random, data: bytes) -> bytes:
    """An `.npz` with other members, headers of arrays, sizes and flags."""
    way = rng.randrange(10)
    if way == 0:
        return change_bytes(rng, data)
    if way <= 3:  # a field of the archive's own structures
        new = bytearray(data)
        for _ in range(rng.choice([1, 1, 2])):
            mark = rng.choice([b"PK\3\4", b"PK\1\2", b"PK\5\6"])
            found = [i for i in range(len(new)) if new.startswith(mark, i)]
            if found:
                at, width = rng.choice(found) + rng.randrange(60), rng.choice([1, 2, 4])
                number = rng.choice([*INTEGERS, rng.randrange(len(new))])
                new[at : at + width] = (number % 256**width).to_bytes(width, "little")
        return bytes(new)
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        members = [(name, old.read(name)) for name in old.namelist()]
    at = rng.randrange(len(members)) if way != 4 else 0
    name, content = members[at]
    if way in (4, 5) and members[0][0] == "meta.npy":
        text = change_json(rng, np.load(io.BytesIO(members[0][1])).tobytes())
        members[0] = "meta.npy", to_npy(np.frombuffer(text, np.uint8))
    elif way == 6:
        members[at] = name, change_array(rng, content)
    elif way == 7:
        members[at] = name, change_numbers(rng, content)
    elif rng.random() < 0.5:
        members[at] = (
            rng.choice(["meta.npy", name[:-4], "../x.npy", "\0.npy", "x" * 400 + ".npy"]),
            content,
        )
    else:
        ways = [
            members[:at] + members[at + 1 :],
            [*members, members[at]],
            [*members, ("x.npy", content)],
        ]
        members = rng.choice([*ways, members[::-1], [], members * 50])
    kind = zipfile.ZIP_DEFLATED if rng.random() < 0.05 else zipfile.ZIP_STORED
    return to_zip(members, kind)


def to_npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def to_zip(members: list[tuple[str, bytes]], kind: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, content in members:
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
                member.write(content)
    return file.getvalue()


def change_tensors(rng: random.Random, data: bytes) -> bytes:
    """A safetensors file with another header, or other bytes."""
    size = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + size], data[8 + size :]
    way = rng.randrange(4)
    if way == 0:
        return change_bytes(rng, data)
    if way == 1 and b"__metadata__" in header:  # what is JSON inside of JSON
        value = json.loads(header)
        key = rng.choice(sorted(value["__metadata__"]))
        text = value["__metadata__"][key]
        if text.startswith("{"):
            text = change_json(rng, text.encode()).decode("utf-8", "replace")
        value["__metadata__"][key] = text if rng.random() < 0.9 else "x"
        header = json.dumps(value).encode()
    else:
        header = change_json(rng, header)
    length = rng.choice([len(header)] * 9 + INTEGERS)
    return length.to_bytes(8, "little") + header + body


# ------------------------------------------------------------------------------ changing text


def change_lines(rng: random.Random, data: bytes) -> bytes:
    """Text with lines moved, repeated, cut, or with other words in them."""
    lines = data.split(b"\n")
    words = [
        b"-1",
        b"9" * 30,
        b"!!int ''",
        b"&a [1]",
        b"*a",
        b"[[[[",
        b"{",
        b"\x1b[2J",
        b"\xff",
        b"0x" + b"f" * 99,
    ]
    words += [
        b"1e999",
        b"nan",
        b"'",
        b'"',
        b"\t",
        b"a.b.c.d",
        b"[" * 3000,
        b"- " * 500,
        b"? ",
        b"YQ==",
        b"1" * 5000,
    ]
    for _ in range(rng.choice([1, 1, 2, 5])):
        at, way = rng.randrange(len(lines)), rng.randrange(6)
        line = lines[at]
        if way == 0:
            lines.insert(at, rng.choice(lines))
        elif way == 1 and len(lines) > 1:
            del lines[at]
        elif way == 2:
            parts = line.split(b" ")
            parts[rng.randrange(len(parts))] = rng.choice(words)
            lines[at] = b" ".join(parts)
        elif way == 3:
            lines[at] = change_bytes(rng, line)
        elif way == 4:
            lines[at] = line + rng.choice([b" ", b""]) + rng.choice(words)
        else:
            lines[at:at] = [line] * rng.choice([3, 300])
    return b"\n".join(lines)


def change_rows(rng: random.Random, data: bytes) -> bytes:
    """A tokenizer.bin with other rows, scores and sizes."""
    rows, at = [], 4
    while at + 8 <= len(data):
        score, size = struct.unpack_from("<fI", data, at)
        rows.append((score, size, data[at + 8 : at + 8 + size]))
        at += 8 + size
    for _ in range(rng.choice([1, 1, 3])):
        i, way = rng.randrange(len(rows)), rng.randrange(5)
        score, size, token = rows[i]
        if way == 0:
            rows[i] = rng.choice([float("nan"), float("inf"), -1e30, 0.0]), size, token
        elif way == 1:
            rows[i] = score, rng.choice(INTEGERS) % 2**32, token
        elif way == 2:
            token = rng.choice(
                [b"", b"\xff", b"a" * 3000, token * 2, rows[rng.randrange(len(rows))][2]]
            )
            rows[i] = score, len(token), token
        elif way == 3 and len(rows) > 1:
            del rows[i]
        else:
            rows[i:i] = [rows[i]] * rng.choice([1, 20])
    longest = rng.choice([data[:4]] * 5 + [struct.pack("<I", n % 2**32) for n in INTEGERS])
    return longest + b"".join(struct.pack("<fI", s, n) + t for s, n, t in rows)


def one(change: Callable[[random.Random, bytes], bytes]) -> Callable[[random.Random, Files], Files]:
    """Change one of the files: the only one, or one of a folder."""
    return lambda rng, files: {"": change(rng, files[""])}


def change_folder(rng: random.Random, files: Files) -> Files:
    """Change one file of a folder by its kind, or take it away."""
    name = rng.choice(sorted(files))
    if rng.random() < 0.03:
        return {n: data for n, data in files.items() if n != name}
    kind = name.rpartition(".")[2]
    if name == "tokenizer.bin":
        return files | {name: change_rows(rng, files[name])}
    if kind == "safetensors":
        return files | {name: change_tensors(rng, files[name])}
    if kind == "bin":  # llama2.c's model begins with seven counts
        new, at = bytearray(files[name]), 4 * rng.randrange(9)
        new[at : at + 4] = (rng.choice([*INTEGERS, -8 % 2**32, 8, 9]) % 2**32).to_bytes(4, "little")
        return files | {name: rng.choice([bytes(new), change_bytes(rng, files[name])])}
    ways = {"json": change_json, "txt": change_lines, "jsonl": change_lines}
    if kind == "npy":
        return files | {name: rng.choice([change_array, change_numbers])(rng, files[name])}
    return files | {name: ways[kind](rng, files[name])}


# --------------------------------------------------------------------------------- sound files


def _tokenizers() -> list[bpe.Tokenizer]:
    byte_level = bpe.BPETokenizer.train([TEXT * 3], 270)
    return [
        byte_level,
        bpe.CharTokenizer.train([TEXT]),
        bpe.CharTokenizer.train([TEXT], control_tokens=False),
        bpe.ReducedTokenizer.train(byte_level, [TEXT], 60),
    ]


def _saved(training: bool) -> list[Files]:
    """Model files of two shapes, or checkpoints after a step of each optimiser."""
    files = []
    for tokenizer, optimizer in zip(_tokenizers()[:2], ("adamw", "muon"), strict=True):
        c = Config(
            vocab_size=tokenizer.vocab_size,
            context=8,
            n_layer=1,
            n_head=2,
            d_model=8,
            d_ff=8,
            optimizer=optimizer,
            positions="rope" if training else "learned",
        )
        weights = {n: np.full(shape, 0.5, np.float32) for n, shape in layout(c).items()}
        saved = Saved(c, tokenizer, weights, {"recipe": "x", "step": 1})
        if training:
            named = {n: mt.tensor(p, requires_grad=True) for n, p in saved.params.items()}
            made = optimizers.make_optimizer(c, named)
            parameters = [p for group in made.param_groups for p in group["params"]]
            made.step([np.ones(p.shape, np.float32) for p in parameters], scale=1.0, workers=None)
            saved.optim, state = optimizers.pack_optimizer(made)
            saved.training = {"step": 1, "shown": False, "optimizer": state, "best": 1.5}
            saved.training |= {"seconds": 1.5, "data_sha256": "0", "sizes": {"log.jsonl": 5}}
        files.append({"": _written(lambda path, s=saved: checkpoint.save(path, s))})
    return files


def _written(write: Callable[[Path], Any]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "file")
        return (Path(folder) / "file").read_bytes()


def _folder(write: Callable[[Path], Any]) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "out")
        return {path.name: path.read_bytes() for path in (Path(folder) / "out").iterdir()}


def _prepared() -> list[Files]:
    def write(out: Path) -> None:
        source = out.with_name("text.txt")
        source.write_text("\n<|endoftext|>\n".join(f"{TEXT} {i}" for i in range(30)))
        prepare.prepare([source], out, options=corpus.Options(vocab_size=270))

    return [_folder(write)]


def _bpe_files(format: str, kinds: slice = slice(1)) -> list[Files]:
    return [{"": _written(lambda path, t=t: t.save(path, format))} for t in _tokenizers()[kinds]]


def _exported(format: str, name: str, **fields: Any) -> Files:
    """A model in a foreign format, in a folder."""
    tokenizer = _tokenizers()[0]
    shape = {"n_layer": 1, "n_head": 2, "d_model": 8, "d_ff": 8, "context": 8}
    c = Config(vocab_size=tokenizer.vocab_size, **shape, **fields)
    weights = {n: np.full(s, 0.5, np.float32) for n, s in layout(c).items()}

    def write(out: Path) -> None:
        if name:
            out.mkdir()
        exchange.WRITERS[format][0](Saved(c, tokenizer, weights), out / name)

    return _folder(write)


NEO = {"positions": "learned", "qkv_bias": False, "scale_attention": False, "windows": (4,)}
LLAMA = {"norm": "rms", "positions": "rope", "ffn": "swiglu"}
LLAMA |= dict.fromkeys(("qkv_bias", "out_bias", "ffn_bias", "norm_bias"), False)


def _hf_models() -> list[Files]:
    """A folder of each family, with our configuration beside the foreign one and without."""
    folders = []
    for fields in ({"ffn": "gelu_tanh"}, {"ffn": "gelu_tanh", **NEO}, LLAMA):
        files = _exported("hf", "", **fields)
        values = json.loads(files["config.json"])
        values.pop("tinygpt")
        folders += [files, {**files, "config.json": json.dumps(values).encode()}]
    return folders


def _run() -> list[Files]:
    train = {"loss": 1.5, "lr": 0.1, "grad_norm": 2.5, "tokens": 64, "seconds": 0.5}
    valid = {"valid_loss": 2.5, "valid_perplexity": 9.5, "valid_bits_per_byte": 1.5}
    valid |= {"tokens": 64, "seconds": 0.5}
    lines: list[dict[str, Any]] = [{"event": "start", "step": 0, "recipe": "x", "threads": 2}]
    lines += [{"step": step, **record} for step in range(9) for record in (valid, train)]
    log = "".join(json.dumps(line) + "\n" for line in lines)
    samples = "".join(f"=== step {step} ===\n{TEXT}\n\n" for step in range(3))
    files = {
        "log.jsonl": log,
        "samples.txt": samples,
        "config.json": config.dumps(Config(), ".json"),
        "token_counts.json": json.dumps([0, 5, 2]),
    }
    return [{name: text.encode() for name, text in files.items()}]


def _configs(suffix: str) -> list[Files]:
    return [{"": config.dumps(Config(), suffix).encode()}]


def _json_lines() -> list[Files]:
    return [
        {"": b"\n".join(json.dumps({"id": i, "text": f"{TEXT} {i}"}).encode() for i in range(8))}
    ]


# ------------------------------------------------------------------------------------- reading


def read_model(path: Path) -> None:
    saved = checkpoint.load(path)
    assert {n: a.shape for n, a in saved.params.items()} == layout(saved.config)
    assert all(
        np.isfinite(a).all() and a.dtype == saved.config.dtype for a in saved.params.values()
    )
    assert saved.tokenizer.vocab_size <= saved.config.vocab_size


def read_checkpoint(path: Path) -> None:
    saved = checkpoint.load_latest(path, check=optimizers.check_state)
    assert saved is not None and saved.training["step"] >= 0


def read_foreign(path: Path) -> None:
    found = path / "model.bin"
    saved = exchange.load_any(found if found.exists() else path)
    assert {n: a.shape for n, a in saved.params.items()} == layout(saved.config)
    assert all(np.isfinite(a).all() for a in saved.params.values())
    assert saved.tokenizer.vocab_size <= saved.config.vocab_size


def read_prepared(path: Path) -> None:
    dataset = streams.load_prepared(path)
    for stream in (dataset.train, dataset.valid):
        assert len(stream) == 0 or stream.max() < dataset.tokenizer.vocab_size


def read_tokenizer(path: Path) -> None:
    tokenizer = bpe.load(path)
    ids = tokenizer.encode(TEXT) if tokenizer.kind != "char" else []
    assert all(0 <= id < tokenizer.vocab_size for id in ids)
    assert tokenizer.kind != "bpe" or tokenizer.decode(ids) == TEXT
    assert bpe.from_dict(tokenizer.to_dict()) == tokenizer


def read_run(path: Path) -> None:
    plot.read_log(path)
    page.write(page.read_run(path), None)


def read_source(path: Path) -> None:
    out = path.with_name("out")
    shutil.rmtree(out, ignore_errors=True)
    prepare.prepare([path], out, options=corpus.Options(tokenizer="char"))
    streams.load_prepared(out)


READERS = {
    "model": Reader("m.npz", lambda: _saved(False), one(change_archive), read_model),
    "checkpoint": Reader("c.npz", lambda: _saved(True), one(change_archive), read_checkpoint),
    "prepared": Reader("data", _prepared, change_folder, read_prepared),
    "config.json": Reader("c.json", lambda: _configs(".json"), one(change_json), config.load),
    "config.toml": Reader("c.toml", lambda: _configs(".toml"), one(change_lines), config.load),
    "config.yaml": Reader("c.yaml", lambda: _configs(".yaml"), one(change_lines), config.load),
    "tokenizer": Reader(
        "t.json", lambda: _bpe_files("json", slice(None)), one(change_json), read_tokenizer
    ),
    "huggingface": Reader(
        "tokenizer.json", lambda: _bpe_files("huggingface"), one(change_json), read_tokenizer
    ),
    "gpt2": Reader(
        "folder",
        lambda: [_folder(lambda p: _tokenizers()[0].save(p, "gpt2"))],
        change_folder,
        read_tokenizer,
    ),
    "tiktoken": Reader(
        "r.tiktoken", lambda: _bpe_files("tiktoken"), one(change_lines), read_tokenizer
    ),
    "llama2c": Reader(
        "tokenizer.bin", lambda: _bpe_files("llama2c", slice(2)), one(change_rows), read_tokenizer
    ),
    "run": Reader("run", _run, change_folder, read_run),
    "json lines": Reader("d.jsonl", _json_lines, one(change_lines), read_source),
}


READERS["llama2c model"] = Reader(
    "folder", lambda: [_exported("llama2c", "model.bin", **LLAMA)], change_folder, read_foreign
)
if importlib.util.find_spec("safetensors"):
    READERS["safetensors"] = Reader(
        "m.safetensors",
        lambda: [{"": _exported("safetensors", "m.safetensors")["m.safetensors"]}],
        one(change_tensors),
        read_foreign,
    )
    READERS["hf model"] = Reader("folder", _hf_models, change_folder, read_foreign)


def put(files: Files, path: Path) -> None:
    """Write `files` as `path`: a file, or a folder."""
    if set(files) == {""}:
        path.write_bytes(files[""])
        return
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)


def attempt(reader: Reader, path: Path) -> tuple[str, str]:
    """What reading `path` comes to: "loaded", "refused", or a finding, with what was said."""
    begin = time.process_time()
    try:
        reader.read(path)
        result, message = "loaded", ""
    except (Error, bpe.TokenizerError) as error:
        result, message = "refused", str(error)
        if not message.isprintable() or len(message) > LONGEST or not message:
            result = "message"
    except BaseException as error:
        result, message = type(error).__name__, str(error)[:300]
    if time.process_time() - begin > SECONDS:
        return "slow", f"{time.process_time() - begin:.1f} s, {result}: {message}"
    return result, message


# ---------------------------------------------------------------------------------- the children


def limit_memory(more: int) -> None:
    """Let this process have `more` bytes beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def child(
    name: str, seeds: list[Files], seed: int, numbers: range, folder: Path, answer: int
) -> None:
    """Read the inputs of `numbers`; a line goes to `answer` before each and after it."""
    reader = READERS[name]
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    faulthandler.disable()
    warnings.simplefilter("ignore")  # of zipfile, that a name is there twice
    limit_memory(MEMORY)
    with os.fdopen(answer, "w", buffering=1) as out:
        for number in numbers:
            print(json.dumps([number, "", ""]), file=out)
            put(make(name, seeds, seed, number), folder / reader.name)
            print(json.dumps([number, *attempt(reader, folder / reader.name)]), file=out)


def make(name: str, seeds: list[Files], seed: int, number: int) -> Files:
    """Input `number` of a reader."""
    rng = random.Random(f"{name} {seed} {number}")
    return READERS[name].change(rng, rng.choice(seeds))


def run(name: str, seed: int, numbers: range) -> tuple[Counter[str], list[tuple[int, str, str]]]:
    """How the inputs of `numbers` came out, and the findings among them."""
    seeds, counts, findings = READERS[name].seeds(), Counter[str](), []
    place = numbers.start
    while place < numbers.stop:
        todo = range(place, min(place + BATCH, numbers.stop))
        with tempfile.TemporaryDirectory() as folder:
            receive, send = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(receive)
                try:
                    child(name, seeds, seed, todo, Path(folder), send)
                    os._exit(0)
                except BaseException:  # of this script, not of a reader
                    os.write(2, traceback.format_exc().encode())
                    os._exit(3)
            os.close(send)
            begun, rest = None, b""
            while select.select([receive], [], [], PATIENCE)[0]:
                block = os.read(receive, 1 << 16)
                if not block:
                    break
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    number, result, message = json.loads(line)
                    begun = number
                    if result:
                        place, begun = number + 1, None
                        counts[result] += 1
                        if result not in ("loaded", "refused"):
                            findings.append((number, result, message))
            else:
                os.kill(pid, 9)
            os.close(receive)
            status = os.waitpid(pid, 0)[1]
            if os.waitstatus_to_exitcode(status) == 3:
                raise RuntimeError(f"{name}: input {begun} could not be made")
            if begun is not None:  # it did not live to tell
                counts["died"] += 1
                findings.append((begun, "died", f"status {status}"))
                place = begun + 1
    return counts, findings


# -------------------------------------------------------------------------------------- coverage


def coverage(name: str, seconds: int) -> None:
    """Let atheris look for inputs of a reader that reach new lines; a finding ends it."""
    import atheris

    reader = READERS[name]
    seeds = [files[""] for files in reader.seeds()]
    folder = Path(tempfile.mkdtemp())
    for i, data in enumerate(seeds):
        (folder / f"seed{i}").write_bytes(data)
    path = folder / "input" / reader.name
    path.parent.mkdir()

    def test(data: bytes) -> None:
        path.write_bytes(data)
        result, message = attempt(reader, path)
        if result not in ("loaded", "refused"):
            raise AssertionError(f"{result}: {message}")

    def mutate(data: bytes, size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        try:
            new = reader.change(rng, {"": data})[""] if rng.random() < 0.5 else None
        except Exception:  # too broken to be changed by its structure
            new = None
        return (new or atheris.Mutate(data, size))[:size]

    for module in [m for n, m in sys.modules.items() if n.partition(".")[0] in ("bpe", "tinygpt")]:
        for holder in [module, *(v for v in vars(module).values() if inspect.isclass(v))]:
            for value in list(vars(holder).values()):
                function = getattr(value, "__func__", value)  # of a class method
                if inspect.isfunction(function) and function.__module__ == module.__name__:
                    atheris.instrument_func(function)
    options = [
        sys.argv[0],
        f"-max_total_time={seconds}",
        "-max_len=65536",
        "-rss_limit_mb=500",
        str(folder),
    ]
    atheris.Setup(options, test, custom_mutator=lambda data, size, seed: mutate(data, size, seed))
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=300_000, help="over all readers")
    parser.add_argument("--reader", choices=READERS, action="append", help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--keep", type=Path, help="folder for what was found")
    parser.add_argument("--coverage", type=int, metavar="SECONDS", help="with atheris instead")
    args = parser.parse_args()
    names = args.reader or list(READERS)
    if args.coverage:
        coverage(names[0], args.coverage)
        return 0
    found = 0
    print(f"{'reader':14}{'inputs':>9}{'loaded':>9}{'refused':>9}{'found':>7}{'seconds':>9}")
    for name in names:
        numbers = range(args.first, args.first + -(-args.inputs // len(names)))
        begin = time.monotonic()
        counts, findings = run(name, args.seed, numbers)
        wall = time.monotonic() - begin
        print(
            f"{name:14}{len(numbers):9,}{counts['loaded']:9,}{counts['refused']:9,}"
            f"{len(findings):7,}{wall:9.0f}",
            flush=True,
        )
        found += len(findings)
        seeds = READERS[name].seeds() if findings else []
        for number, result, message in findings[:20]:
            print(f"  {name} {number}: {result}: {message[:200]!r}", flush=True)
            if args.keep:
                args.keep.mkdir(parents=True, exist_ok=True)
                put(
                    make(name, seeds, args.seed, number),
                    args.keep / f"{number}-{READERS[name].name}",
                )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
