"""The sources of ``tinygpt data prepare``: files cut into pieces, and which split each text is for.

Sources are UTF-8 texts (cut into documents as `tinygpt.data.documents` says), JSON lines
(``.jsonl``, ``.ndjson``: a document a line), and folders of those. They are cut into pieces of at
most 4 MiB, nearly always between documents, so that memory does not grow with the text.

The hash of a document says which split it belongs to, as equal documents then cannot end up on
both sides; with ``--split last`` its place does.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bpe.patterns import scalar
from bpe.untrusted import MAX_JSON, parse_json, shown
from tinygpt import Error, UsageError
from tinygpt.data import documents
from tinygpt.data.documents import SEPARATOR, SEPARATOR_LINE, SPLITS, document_hash

PIECE = 1 << 22  # bytes
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
