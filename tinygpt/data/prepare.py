"""Turn text into token files: ``tinygpt data prepare SOURCE... --out FOLDER``.

Sources are UTF-8 texts (cut into documents as `tinygpt.data.documents` says), JSON lines
(``.jsonl``, ``.ndjson``: a document a line), and folders of those. The folder gets ``train.npy``
and ``valid.npy``, one flat array of ids each that `numpy.load(..., mmap_mode="r")` opens without
reading it, ``tokenizer.json`` and ``meta.json``.

Sources are cut into pieces of at most 4 MiB, nearly always between documents, and worker processes
encode one piece at a time: memory does not grow with the text. Each finished piece is a file of
its own, so a killed run goes on where it was.

The hash of a document says which split it belongs to, as equal documents then cannot end up on
both sides. With ``--split last`` the tokens are those of ``tinygpt train --data TEXT``, and
``--recipe NAME`` takes all that decides them from a recipe.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import bpe
from bpe import Tokenizer
from bpe.patterns import scalar
from bpe.untrusted import MAX_JSON, parse_json, shown
from bpe.workers import imap
from minitensor.files import sweep, sync_folder
from tinygpt import Error, UsageError
from tinygpt.data import documents
from tinygpt.data.documents import RULES, SEPARATOR, SEPARATOR_LINE, SPLITS, document_hash
from tinygpt.data.fetch import sha256_of
from tinygpt.data.streams import read_meta
from tinygpt.files import alone, replacing
from tinygpt.machine import threads
from tinygpt.model.config import TOKENIZERS, Config
from tinygpt.progress import bar

PIECE = 1 << 22  # bytes
LEARN = 1 << 27  # bytes of text that a BPE learns from
JSON_SUFFIXES = (".jsonl", ".ndjson")
SUFFIXES = (".txt", ".text", ".md", *JSON_SUFFIXES)
FEW = 1000  # up to so many documents the validation share is met exactly, not on average

_SEPARATOR = SEPARATOR.encode()
_SEPARATOR_LINE = re.compile(SEPARATOR_LINE.encode())
_WHOLE_LINE = re.compile(SEPARATOR_LINE.encode() + rb"\n")
_INSIDE = bytes(range(0x80, 0xC0))  # bytes of UTF-8 that begin no character
# No tokenizer here joins what stands left of a space that follows a visible character with what
# stands right of it; where a text has no spaces, neither does the border of two lines.
_CUTS = (re.compile(rb".*[0-9A-Za-z.,;:!?](?= )", re.S), re.compile(rb".*[^\s]\n(?=[^\s])", re.S))


@dataclass(frozen=True)
class Options:
    """What decides the result, besides the sources."""

    tokenizer: str = "bpe"
    vocab_size: int | None = None  # of characters: as many as there are; of others: 4,096
    reduced_from: int = 0  # of a reduced vocabulary: the size of the BPE that it is taken from
    split: str = "hash"  # one of `documents.RULES`
    valid_fraction: float = 0.05
    max_documents: int = 0
    field: str = "text"
    repair: bool = False


@dataclass(frozen=True)
class Piece:
    """A stretch of a source file that is encoded in one go."""

    file: int
    start: int
    end: int
    line: int = 1  # number of its first line, for messages
    inside: bool = False  # it begins inside a document, which the piece before it began
    open: bool = False  # it ends inside a document, which the next piece goes on with
    key: int = 0  # the hash of that document's beginning
    split: str = ""  # where all of it belongs, if that is not for the rule to say
    number: int = 0  # of the documents that begin before it


# ------------------------------------------------------------------------------------ documents

# Bytes of UTF-8 that were read as cp1252, as the characters they were taken for. Only leads that
# make characters of Western text are looked at: "Spaß–" and "É»" are good German and French.
_CP1252 = {b: bytes([b]).decode("cp1252", "ignore") or chr(b) for b in range(0x80, 0x100)}
_BYTE = {char: byte for byte, char in _CP1252.items()}
_TRAIL = "".join(_CP1252[b] for b in range(0x80, 0xC0))
_MOJIBAKE = re.compile(f"[ÂÃÅÆË][{_TRAIL}]|[âï][{_TRAIL}]{{2}}|ð[{_TRAIL}]{{3}}")


def repair_mojibake(text: str) -> str:
    """Undo UTF-8 that was decoded as cp1252: ``â€œ`` becomes an opening quotation mark.

    Covers the characters of cp1252 itself, punctuation and signs from U+2000 on, and emoji, also
    when it happened twice. A bare ``â€``, a closing quotation mark whose last byte was lost because
    cp1252 does not have it, is repaired as well. What does not decode is left as it is.
    """
    for _ in range(2):
        before, text = text, _MOJIBAKE.sub(_repaired, text)
        if text == before:
            break
    return text.replace("â€", "\u201d")


def _repaired(match: re.Match[str]) -> str:
    try:
        char = bytes(_BYTE[char] for char in match[0]).decode("utf-8")
    except UnicodeDecodeError:
        return match[0]
    return char if char in _BYTE or char >= "\u2000" else match[0]


def _spans(data: bytes, json_lines: bool) -> list[tuple[int, int]]:
    """Start and end of each document in a piece."""
    spans, start = [], 0
    if json_lines:
        for line in data.splitlines(keepends=True):
            spans.append((start, start + len(line)))
            start += len(line)
        return spans
    for match in _SEPARATOR_LINE.finditer(data):
        spans.append((start, match.start()))
        start = match.end()
    return [*spans, (start, len(data))]


def _read(data: bytes, where: str, offset: int, line: int, field: str | None) -> str:
    """The text of one document: decoded, and taken from JSON if `field` is given."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Error(
            f"{where}: byte 0x{data[error.start]:02x} at offset {offset + error.start} is "
            "not UTF-8; convert the file, for example with iconv -t utf-8"
        ) from None
    if field is not None and text.strip():
        try:
            record = parse_json(data)
        except ValueError as error:
            raise Error(f"{where}, line {line}: {error}") from None
        value = record.get(field) if isinstance(record, dict) else None
        if not isinstance(value, str):
            found = shown(sorted(record) if isinstance(record, dict) else record)
            raise Error(f"{where}, line {line}: no text in field {field!r}; it has {found}")
        return scalar(value)
    return text


class Corpus:
    """The sources: their files, the pieces these are cut into, and who decides on the split."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.files: list[dict[str, Any]] = []
        self.pieces: list[Piece] = []
        self.total = 0  # documents, as far as they have been counted
        # For validation is a smaller hash, or the document of this number and those behind it.
        self.threshold = int(options.valid_fraction * documents.ALL_HASHES)
        self.first_valid = 0
        self.held_out: set[int] = set()  # hashes of the documents of a validation text

    def to_json(self) -> str:
        """Everything, as JSON that is equal for equal sources and options."""
        state = vars(self) | {
            "options": asdict(self.options),
            "pieces": [list(vars(piece).values()) for piece in self.pieces],
            "held_out": sorted(self.held_out),
        }
        return json.dumps(state)

    @classmethod
    def from_json(cls, text: str) -> Corpus:
        """The way back from `to_json`."""
        state = json.loads(text)
        corpus = cls(Options(**state.pop("options")))
        corpus.pieces = [Piece(*values) for values in state.pop("pieces")]
        corpus.held_out = set(state.pop("held_out"))
        vars(corpus).update(state)
        return corpus

    def read(self, piece: Piece) -> bytes:
        """The bytes of a piece."""
        with open(self.files[piece.file]["path"], "rb") as file:
            file.seek(piece.start)
            return file.read(piece.end - piece.start)

    def documents(self, piece: Piece, data: bytes) -> Iterator[tuple[str, bool, int]]:
        """Each document: its text ("" if blank), whether it was repaired, its end in `data`."""
        info = self.files[piece.file]
        field = self.options.field if info["json"] else None
        spans = _spans(data, info["json"])
        for number, (start, end) in enumerate(spans):
            where = info["path"], piece.start + start, piece.line + number
            text = _read(data[start:end], *where, field)
            original = text
            if self.options.repair:
                text = repair_mojibake(text)
            repaired = text != original
            if not info["single"]:  # of a file that is one document nothing is taken away
                if number > 0 or not piece.inside:
                    text = text.lstrip()
                if number < len(spans) - 1 or not piece.open:
                    text = text.rstrip()
            yield "" if text.isspace() else text, repaired, end

    def routed(self, piece: Piece, seen: Counter[str]) -> Iterator[tuple[str, str, bool]]:
        """The texts of a piece, the split of each, and whether it begins a document.

        `seen` counts what was met on the way: documents and bytes by split, repairs, omissions.
        """
        before = piece.number - 1
        for number, (text, repaired, _) in enumerate(self.documents(piece, self.read(piece))):
            begins = number > 0 or not piece.inside
            if not text:
                continue
            before += begins
            split, hash = piece.split, 0
            if not split and self.options.split == "last":
                split = "valid" if before >= self.first_valid else "train"
            elif not split or self.held_out:
                hash = document_hash(text) if begins else piece.key
                split = split or ("valid" if hash < self.threshold else "train")
            if split == "train" and hash in self.held_out:
                seen["duplicates"] += begins
                continue
            seen["repaired"] += repaired
            seen[f"{split} documents"] += begins
            seen[f"{split} bytes"] += len(text) if text.isascii() else len(text.encode())
            yield text, split, begins


# --------------------------------------------------------------------------------- the sources


def _source_files(sources: list[Path]) -> Iterator[Path]:
    """The files that `sources` name: folders are searched, in the order of names."""
    for source in sources:
        if source.is_dir():
            inside = sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise Error(f"{source}: no file in this folder ends in {', '.join(SUFFIXES)}")
            yield from inside
        elif source.is_file():
            yield source
        else:
            raise UsageError(f"{source}: no such file or folder")


def _cut(block: bytes, json_lines: bool) -> tuple[int, bool]:
    """Where to cut a block after which the file goes on, and whether that is inside a document.

    0 asks for a longer block: a line of JSON is never cut.
    """
    if json_lines:
        return block.rfind(b"\n") + 1, False
    mark = len(block)
    while (mark := block.rfind(b"\n" + _SEPARATOR, 0, mark)) >= 0:
        if line := _WHOLE_LINE.match(block, mark + 1):
            return line.end(), False
    for pattern in _CUTS:
        if match := pattern.match(block):
            return match.end(), True
    end = len(block) - 1
    while end > 1 and block[end] & 0xC0 == 0x80:  # back to where a character begins
        end -= 1
    return end, True


def _scan(info: dict[str, Any], number: int) -> Iterator[tuple[Piece, bytes]]:
    """Cut a file into pieces, in one pass that also fills in its size and checksum.

    Where the caller has had enough, they are those of the part that was read.
    """
    digest = hashlib.sha256()
    size, start, line, inside, block = 0, 0, 1, False, b""
    info["single"] = not info["json"]
    with open(info["path"], "rb") as file:
        while True:
            wanted = max(PIECE - len(block), PIECE // 2)
            new = file.read(wanted)
            digest.update(new)
            size += len(new)
            info["bytes"], info["sha256"] = size, digest.hexdigest()
            block += new
            if start == 0 and block.startswith(b"\xef\xbb\xbf"):  # a byte order mark is no text
                block, start = block[3:], 3
            cut, goes_on = _cut(block, info["json"]) if len(new) == wanted else (len(block), False)
            if not cut and len(block) > MAX_JSON:  # a line without an end is not read to its end
                raise Error(f"{info['path']}, line {line}: more than {MAX_JSON >> 20} MB in a line")
            if cut:
                data, block = block[:cut], block[cut:]
                info["single"] = info["single"] and not _SEPARATOR_LINE.search(data)
                yield Piece(number, start, start + cut, line, inside, goes_on), data
                start, inside = start + cut, goes_on
                line += data.count(b"\n") if info["json"] else 0
            if len(new) < wanted:
                break


def scan(sources: list[Path], valid: list[Path], options: Options) -> Corpus:
    """Read all sources once, cut them into pieces and settle how documents are divided.

    With `valid`, that text is the validation split and `sources`, less the documents they share,
    the training split. Else the rule of the options decides. By ``hash``, exactly the fraction
    asked for is for validation if documents are few, those below a threshold if they are many. A
    single document is divided by position, its end being for validation.
    """
    corpus = Corpus(options)
    for path in _source_files(valid):
        _add(corpus, path, "valid", corpus.held_out, 0)
    few: set[int] = set()
    room = options.max_documents or documents.ALL_HASHES
    for path in _source_files(sources):
        if room:
            room = _add(corpus, path, "train" if valid else "", few, room)
    if valid:
        return corpus
    last = options.split == "last"
    if (corpus.total if last else len(few)) == 1:
        _split_by_position(corpus)
    elif last:
        corpus.first_valid = corpus.total - documents.held_out(corpus.total, options.valid_fraction)
    elif 1 < len(few) <= FEW:
        share = min(documents.held_out(len(few), options.valid_fraction), len(few) - 1)
        corpus.threshold = sorted(few)[share]
    return corpus


def _add(corpus: Corpus, path: Path, split: str, hashes: set[int], room: int) -> int:
    """Add the pieces of a file, up to `room` documents; return how much room is left.

    `hashes` gets those of all documents of a validation text, and those of the first few else:
    to hash every document here would take as long as to encode it in the workers. By the rule
    ``last`` they are counted instead.
    """
    last = split == "" and corpus.options.split == "last"
    info: dict[str, Any] = {"path": str(path), "json": path.suffix.lower() in JSON_SUFFIXES}
    corpus.files.append(info)
    key = 0
    for piece, data in _scan(info, len(corpus.files) - 1):
        every = split == "valid" or (split == "" and not last and len(hashes) <= FEW)
        piece = replace(piece, number=corpus.total)
        if every or last or piece.open or corpus.options.max_documents:
            end = 0
            for number, (text, _, after) in enumerate(corpus.documents(piece, data)):
                if text and (number > 0 or not piece.inside):
                    if room == 0 and split != "valid":
                        piece = replace(piece, end=piece.start + end, open=False)
                        break
                    room -= 1
                    corpus.total += 1
                    if every or piece.open:
                        key = document_hash(text)
                    if every:
                        hashes.add(key)
                end = after
        corpus.pieces.append(replace(piece, key=key, split=split))
        if room == 0 and split != "valid" and not piece.open:
            break
    return room


def _split_by_position(corpus: Corpus) -> None:
    """Divide the only document there is, at the character that `documents.border` says."""
    if len(corpus.files) > 1 or corpus.files[0]["json"] or corpus.total > 1:
        raise Error("there is one distinct document only, which cannot be split; give --valid TEXT")
    if not corpus.files[0]["single"]:
        _trim(corpus)
    texts = (corpus.read(piece) for piece in corpus.pieces)
    sizes = [len(text.translate(None, _INSIDE)) for text in texts]  # in characters
    left = documents.border(sum(sizes), corpus.options.valid_fraction)
    divided: dict[str, list[Piece]] = {split: [] for split in SPLITS}
    for piece, size in zip(corpus.pieces, sizes, strict=True):
        taken = min(left, size)
        left -= taken
        middle = piece.start + len(corpus.read(piece).decode()[:taken].encode())
        if taken:
            divided["train"].append(replace(piece, end=middle, split="train"))
        if taken < size:
            inside = bool(divided["valid"])
            divided["valid"].append(replace(piece, start=middle, inside=inside, split="valid"))
    corpus.pieces = divided["train"] + divided["valid"]


def _trim(corpus: Corpus) -> None:
    """Reduce a file with separators but one document to that document, without white space."""
    kept = []
    for piece in corpus.pieces:
        data = corpus.read(piece)
        for start, end in _spans(data, False):
            if data[start:end].decode().strip():
                kept.append(replace(piece, start=piece.start + start, end=piece.start + end))
    text = corpus.read(kept[0]).decode()
    kept[0] = replace(kept[0], start=kept[0].end - len(text.lstrip().encode()))
    text = corpus.read(kept[-1]).decode()
    kept[-1] = replace(kept[-1], end=kept[-1].start + len(text.rstrip().encode()))
    corpus.pieces, corpus.files[0]["single"] = kept, True


# --------------------------------------------------------------------------------- the tokenizer


def _tokenizer(corpus: Corpus, processes: int) -> Tokenizer:
    """The tokenizer that the options name: read from its file, or trained on the corpus.

    Of a large corpus, a BPE learns from evenly spread pieces: the memory that it takes grows with
    the number of distinct words.
    """
    options = corpus.options
    total = sum(piece.end - piece.start for piece in corpus.pieces)
    if not total:
        raise Error("the sources are empty; there is nothing to prepare")

    def texts(*splits: str) -> Iterator[str]:
        stride = -(-total // LEARN) if splits == ("train",) else 1
        pieces = corpus.pieces[::stride]
        with bar(len(pieces), "pieces", desc="reading for the tokenizer") as read:
            for piece in pieces:
                for text, split, _ in corpus.routed(piece, Counter()):
                    if split in splits:
                        yield text
                read.update()

    say = partial(tqdm.write, file=sys.stderr)
    sizes = options.vocab_size, options.reduced_from
    return documents.make_tokenizer(options.tokenizer, *sizes, texts, say, processes)


# ------------------------------------------------------------------------------------- encoding


def _encoder(work: str) -> Callable[[int], dict[str, Any]]:
    """What a worker process runs: a function that encodes the piece with a given number."""
    corpus = Corpus.from_json((Path(work) / "plan.json").read_text(encoding="utf-8"))
    tokenizer = bpe.load(Path(work) / "tokenizer.json")
    return partial(_encode_piece, corpus, tokenizer, Path(work))


def _encode_piece(corpus: Corpus, tokenizer: Tokenizer, work: Path, number: int) -> dict[str, Any]:
    """Encode one piece into `work`, unless an earlier run did; return its counts."""
    done = work / f"{number}.json"
    dtype = documents.dtype_of(tokenizer)
    if counts := _done(work, number, dtype):
        return {**counts, "resumed": 1}
    seen: Counter[str] = Counter()
    streams: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    try:
        for text, split, begins in corpus.routed(corpus.pieces[number], seen):
            streams[split].append(documents.encode(tokenizer, text, begins))
    except (Error, OSError) as error:  # as a value: a worker hands back no such exceptions
        return {"error": str(error)}
    for split, arrays in streams.items():
        seen[f"{split} tokens"] = sum(map(len, arrays))
        with replacing(work / f"{number}.{split}") as file:
            file.writelines(array.tobytes() for array in arrays)
    with replacing(done) as file:  # last: it says that the others are whole
        file.write(json.dumps(seen).encode())
    return dict(seen)


_COUNTS = {f"{split} {kind}" for split in SPLITS for kind in ("documents", "tokens", "bytes")}


def _done(work: Path, number: int, dtype: np.dtype) -> dict[str, int] | None:
    """The counts of a piece that an earlier run encoded; None if it did not, or they are bad."""
    try:
        with (work / f"{number}.json").open("rb") as file:
            counts = parse_json(file.read(MAX_JSON + 1))
        for key, count in counts.items():
            if key not in _COUNTS | {"duplicates", "repaired"} or type(count) is not int:
                return None
        sizes = {split: (work / f"{number}.{split}").stat().st_size for split in SPLITS}
        fits = all(sizes[s] == counts[f"{s} tokens"] * dtype.itemsize for s in SPLITS)
        return counts if fits and min(counts.values()) >= 0 else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _merge(work: Path, out: Path, pieces: int, split: str, tokens: int, dtype: np.dtype) -> int:
    """Write the parts of a split, one after the other, as one array into a .npy file.

    Returns the checksum of the tokens, by which a reader knows that they are these.
    """
    crc = 0
    with replacing(out / f"{split}.npy") as file:
        header = {"descr": dtype.str, "fortran_order": False, "shape": (tokens,)}
        np.lib.format.write_array_header_1_0(file, header)
        for number in range(pieces):
            part = (work / f"{number}.{split}").read_bytes()
            crc = zlib.crc32(part, crc)
            file.write(part)
    return crc


# ---------------------------------------------------------------------------------- the command


def prepare(
    sources: list[Path],
    out: Path,
    *,
    valid: list[Path] | None = None,
    options: Options | None = None,
    processes: int = 1,
) -> dict[str, Any]:
    """Write the token files of `sources` into the folder `out` and return its meta.json.

    Args:
        sources: UTF-8 texts, JSON lines, folders of them.
        out: gets train.npy, valid.npy, tokenizer.json and, last of all, meta.json.
        valid: sources of the validation split; documents of it are dropped from the others.
        options: what else decides the result.
        processes: worker processes; the result does not depend on them.

    A call that was killed is continued by the same call. One that has nothing left to do returns
    at once. Raises Error, or bpe.TokenizerError, in one line; also while another process works on
    the same folder.
    """
    options = options or Options()
    documents.check_tokenizer(options.tokenizer, options.vocab_size, options.reduced_from)
    if options.split not in RULES:
        raise UsageError(f"split: expected one of {', '.join(RULES)}, got {options.split!r}")
    if not 0 < options.valid_fraction < 1:
        raise UsageError(f"valid-fraction: {options.valid_fraction} is not between 0 and 1")
    if options.max_documents < 0:
        raise UsageError(f"max-documents: expected 0 (all) or more, got {options.max_documents}")
    corpus = scan(sources, valid or [], options)
    out.mkdir(parents=True, exist_ok=True)
    with alone(out, "preparing data"):
        sweep(out)
        return _prepare(corpus, out, processes)


def _prepare(corpus: Corpus, out: Path, processes: int) -> dict[str, Any]:
    options = corpus.options
    plan = corpus.to_json()
    if os.path.isfile(options.tokenizer):
        plan += sha256_of(Path(options.tokenizer))
    plan_id = hashlib.sha256(plan.encode()).hexdigest()
    meta_file, work = out / "meta.json", out / f".prepare-{plan_id[:16]}"
    before = _finished(meta_file) if meta_file.exists() else {}
    done = before.get("sha256") == plan_id
    for other in out.glob(".prepare-*"):  # of a call with other sources or options, or finished
        if done or other != work:
            shutil.rmtree(other)
    if done:
        return {**before, "resumed": len(corpus.pieces)}
    if meta_file.exists():
        meta_file.unlink()  # what it describes is about to be replaced
        sync_folder(out)
    work.mkdir(exist_ok=True)
    with replacing(work / "plan.json") as file:
        file.write(corpus.to_json().encode())
    try:
        bpe.load(work / "tokenizer.json")
    except bpe.TokenizerError:  # not there, or damaged
        _tokenizer(corpus, processes).save(work / "tokenizer.json")
    meta = _encode(corpus, work, out, processes, plan_id)
    with replacing(meta_file) as file:
        file.write(json.dumps({k: v for k, v in meta.items() if k != "resumed"}, indent=1).encode())
    shutil.rmtree(work)
    return meta


def _finished(path: Path) -> dict[str, Any]:
    """The meta.json of a finished call; empty if it is none."""
    try:
        return read_meta(path)
    except (OSError, ValueError):
        return {}


def _encode(corpus: Corpus, work: Path, out: Path, processes: int, plan_id: str) -> dict[str, Any]:
    """Encode all pieces, join them, and return what meta.json is to hold."""
    total: Counter[str] = Counter()
    numbers = range(len(corpus.pieces))
    size = sum(p.end - p.start for p in corpus.pieces)
    with bar(size, "B", unit_scale=True, desc="encoding") as encoded:
        results = imap(_encoder, (str(work),), numbers, processes)
        for piece, counts in zip(corpus.pieces, results, strict=True):
            if "error" in counts:
                raise Error(counts["error"])
            total.update(counts)
            encoded.update(piece.end - piece.start)
    tokenizer = bpe.load(work / "tokenizer.json")
    crc = {}
    for split in SPLITS:
        if not total[f"{split} tokens"]:
            raise Error(f"no text is left for {split}; give more documents, or another --valid")
        tokens = total[f"{split} tokens"]
        crc[split] = _merge(work, out, len(numbers), split, tokens, documents.dtype_of(tokenizer))
    with replacing(out / "tokenizer.json") as file:
        file.write((work / "tokenizer.json").read_bytes())
    kinds = ("documents", "tokens", "bytes")
    splits = {
        split: {kind: total[f"{split} {kind}"] for kind in kinds} | {"crc32": crc[split]}
        for split in SPLITS
    }
    return {
        "format": "tinygpt-data",
        "version": 1,
        **splits,
        "duplicates": total["duplicates"],
        "repaired": total["repaired"],
        "resumed": total["resumed"],
        "tokenizer_sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "source": ", ".join(f["path"] for f in corpus.files),
        "files": corpus.files,
        "options": asdict(corpus.options),
        "sha256": plan_id,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``tinygpt data prepare``."""
    add = parser.add_argument
    add("sources", nargs="+", type=Path, metavar="SOURCE", help="text, JSON lines, or folder")
    add("--out", type=Path, required=True, help="folder for the token files")
    add(
        "--valid",
        nargs="+",
        type=Path,
        default=[],
        metavar="SOURCE",
        help="validation text (default: a share of the sources)",
    )
    add("--recipe", help="tokenizer, validation share and --split last of a recipe, by default")
    add("--split", choices=RULES, help="for validation: by hash (default), or the last documents")
    add("--valid-fraction", type=float, help="their share (default: 0.05)")
    kinds = ", ".join(TOKENIZERS)
    add("--tokenizer", help=f"{kinds}, or a tokenizer's file (default: bpe)")
    add("--vocab-size", type=int, help="ids in all (default: 4096; of characters: all)")
    add("--reduced-from", type=int, help="of reduced: the size of the BPE it is taken from")
    add("--max-documents", type=int, help="only the first N documents")
    add("--field", help="JSON field that holds the text (default: text)")
    add(
        "--repair-mojibake",
        dest="repair",
        action="store_true",
        help="undo UTF-8 that was read as cp1252",
    )
    add(
        "--processes",
        type=int,
        default=min(os.cpu_count() or 1, 4),
        help="worker processes of about 150 MB each (default: one a core, at most 4)",
    )


def of_recipe(c: Config) -> Options:
    """The options that give the tokens on which `tinygpt train --data TEXT` trains a recipe."""
    return Options(
        tokenizer=c.tokenizer,
        vocab_size=documents.size_asked_for(c),
        reduced_from=c.reduced_from,
        split="last",
        valid_fraction=c.valid_fraction,
        max_documents=c.max_documents,
    )


def main(args: argparse.Namespace) -> int:
    """Run ``tinygpt data prepare`` and print what it did."""
    start = time.perf_counter()
    from tinygpt.model import recipes  # which workers do without

    options = Options()
    if args.recipe:
        options = of_recipe(recipes.lay(recipes.get(args.recipe), {"data": str(args.sources[0])}))
    given = {name: getattr(args, name) for name in vars(options)}
    options = replace(options, **{k: value for k, value in given.items() if value is not None})
    meta = prepare(
        args.sources,
        args.out,
        valid=args.valid,
        options=options,
        processes=threads(args.processes, "--processes"),
    )
    size = sum(file["bytes"] for file in meta["files"])
    print(f"read     {len(meta['files'])} files, {size:,} bytes")
    print(f"tokens   {options.tokenizer}, {meta['vocab_size']:,} ids")
    for split in SPLITS:
        n = meta[split]
        print(
            f"{split:8} {n['documents']:,} documents, {n['tokens']:,} tokens, "
            f"{n['bytes']:,} bytes ({n['bytes'] / n['tokens']:.2f} a token)"
        )
    print(f"dropped  {meta['duplicates']:,} training documents that are in the validation text")
    if options.repair:
        print(f"repaired {meta['repaired']:,} documents")
    if meta["resumed"]:
        print(f"resumed  {meta['resumed']:,} pieces were there from an earlier call")
    print(f"wrote    {args.out} in {time.perf_counter() - start:.1f} s")
    return 0
