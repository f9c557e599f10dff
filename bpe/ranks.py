"""Files that rank tokens instead of pairs: tiktoken's, and llama2.c's `tokenizer.bin`.

Their encoders merge the neighbours whose joined bytes are the best token, whichever pair they
are. So every way to divide a token into two tokens is a merge, and all of these rank alike.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from bpe.base import MAX_ID, Tokenizer
from bpe.bytelevel import BPETokenizer
from bpe.char import CharTokenizer
from bpe.checks import special_ids, warn
from bpe.errors import TokenizerError
from bpe.files import write_file
from bpe.untrusted import shown

MAX_SPLITS = 1 << 26  # bytes looked at to find the merges of a rank file; GPT-4's has 8 million
UNKNOWN = "not a tokenizer file of a known format"
CONTROL = (b"<unk>", b"<s>", b"</s>")
_BYTE_ROW = b"<0x%02X>"


def _all_splits(tokens: Iterable[bytes], ids: Mapping[bytes, int]) -> list[tuple[int, int]]:
    """Every pair of `ids` that joins to one of `tokens`, in their order.

    Where a format ranks tokens and not pairs, each of these is a merge.
    """
    merges: list[tuple[int, int]] = []
    work = 0
    for token in tokens:
        work += len(token) ** 2
        if work > MAX_SPLITS:
            raise TokenizerError(f"tokens too long, the one at fault of {len(token)} bytes")
        for middle in range(1, len(token)):
            left, right = ids.get(token[:middle]), ids.get(token[middle:])
            if left is not None and right is not None:
                merges.append((left, right))
    return merges


def from_tiktoken(
    data: bytes, *, pattern: str = "gpt2", special_tokens: Mapping[str, int] | None = None
) -> BPETokenizer:
    """tiktoken's lines of a token in base64 and its rank, which is its id."""
    ids: dict[bytes, int] = {}
    vocab: list[bytes | None] = []
    lines = data.count(b"\n")
    if lines > 2 * MAX_ID:
        raise TokenizerError(f"{lines:,} lines; {MAX_ID:,} tokens are allowed")
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            encoded, digits = line.split()
            token = base64.b64decode(encoded, validate=True)
            rank = int(digits) if len(digits) < 20 else MAX_ID
        except (ValueError, binascii.Error):
            raise TokenizerError(
                f"line {number}: expected a token in base64 and its rank"
            ) from None
        if not 0 <= rank < MAX_ID:
            raise TokenizerError(
                f"line {number}: the rank {digits[:20].decode('latin-1')} is impossible"
            )
        vocab += [None] * (rank + 1 - len(vocab))
        if not token or token in ids or vocab[rank] is not None:
            raise TokenizerError(
                f"line {number}: the token {shown(token)} or its rank {rank} is twice"
            )
        ids[token] = rank
        vocab[rank] = token
    merges = _all_splits((token for token in vocab if token), ids)
    specials = special_ids(special_tokens or {})
    return BPETokenizer(
        vocab, merges, special_tokens=specials, pattern=pattern, by_token=True, whole_chunks=True
    )


def write_tiktoken(tokenizer: BPETokenizer, path: Path) -> None:
    order = _token_order(tokenizer)
    if order != sorted(order):
        raise TokenizerError("tiktoken merges by id, and the ids here do not follow the merges")
    lines = [
        base64.b64encode(token) + b" %d\n" % id
        for id, token in enumerate(tokenizer.vocab)
        if token is not None
    ]
    write_file(path, b"".join(lines))


def _token_order(tokenizer: BPETokenizer) -> list[int]:
    """The ids that merges make, in order, for formats that rank tokens.

    One rank per token says less than one rank per pair. That matters for a token that two pairs
    join to, and for one that no pair does: those give a warning.
    """
    made = Counter(tokenizer.ranks[pair][1] for pair in tokenizer.merges)
    if not tokenizer.by_token:
        odd = [tokenizer.vocab[id] for id, pairs in made.items() if pairs > 1]
        odd += [t for id, t in enumerate(tokenizer.vocab) if t and len(t) > 1 and id not in made]
        if odd:
            warn(f"text with {odd[0]!r} may be encoded differently: the format ranks tokens only")
    return list(made)


# llama2.c ---------------------------------------------------------------------------------------


def from_llama2c(
    data: bytes, *, pattern: str = "none", special_tokens: Mapping[str, int] | None = None
) -> Tokenizer:
    """llama2.c's `tokenizer.bin`: characters if every row is one, else BPE with ranked tokens.

    The ids of BPE are those of llama2.c's `encode` without its begin token, for text with a space
    in front: its `encode` adds that space.
    """
    rows, scores = _llama2c_rows(data)
    specials = {
        row.strip().decode("utf-8", "replace") or name.decode(): id
        for id, (row, name) in enumerate(zip(rows, CONTROL, strict=False))
    }
    if special_tokens is not None:
        specials = special_ids(special_tokens)
    if rows[3:4] != [b"<0x00>"]:
        return _char_rows(rows)
    vocab: list[bytes | None] = [None, None, None]
    letters: dict[bytes, int] = {}
    for id, row in enumerate(rows[3:], 3):
        if id < 259 and row == _BYTE_ROW % (id - 3):
            vocab.append(bytes([id - 3]))
        else:
            vocab.append(row or None)
            letters.setdefault(row, id)
    by_score = sorted(letters.values(), key=lambda id: -scores[id])
    merges = _all_splits((rows[id] for id in by_score), letters)
    return BPETokenizer(
        vocab, merges, special_tokens=specials, pattern=pattern, by_token=True, characters=True
    )


def _llama2c_rows(data: bytes) -> tuple[list[bytes], list[float]]:
    """The tokens and scores of a `tokenizer.bin`."""
    rows: list[bytes] = []
    scores: list[float] = []
    longest = struct.unpack_from("<I", data)[0] if len(data) >= 4 else 0
    position = 4
    while position < len(data):
        if position + 8 > len(data) or len(rows) == MAX_ID:
            raise TokenizerError(f"{UNKNOWN} (as a tokenizer.bin, it is cut in row {len(rows)})")
        score, size = struct.unpack_from("<fI", data, position)
        position += 8 + size
        if size > longest or position > len(data) or not math.isfinite(score):
            raise TokenizerError(f"{UNKNOWN} (as a tokenizer.bin, row {len(rows)} is broken)")
        rows.append(data[position - size : position])
        scores.append(score)
    if len(rows) < 4:
        raise TokenizerError(UNKNOWN)
    return rows, scores


def _char_rows(rows: list[bytes]) -> CharTokenizer:
    size = len(rows)
    while len(rows) > 3 and rows[-1] == b"":
        rows.pop()
    if len(rows) == 3:
        raise TokenizerError(f"{UNKNOWN} (as a tokenizer.bin, no row is a character)")
    characters = [row.decode("utf-8", "replace") for row in rows[3:]]
    for id, character in enumerate(characters, 3):
        if len(character) != 1 or character == "\ufffd" != rows[id].decode("utf-8", "ignore"):
            raise TokenizerError(f"{UNKNOWN} (as a tokenizer.bin, row {id} is no character)")
    return CharTokenizer("".join(characters), vocab_size=size)


def llama2c_rows(tokenizer: Tokenizer) -> list[int | None]:
    """The id of `tokenizer` for each row of the `tokenizer.bin` that `save` writes.

    Rows 0, 1 and 2 are unknown, begin and end, 3 to 258 the bytes, then the merges in order. Rows
    without an id here are None. A model is exported with its rows in this order.
    """
    if isinstance(tokenizer, CharTokenizer) and tokenizer.control_tokens:
        return list(range(tokenizer.vocab_size))
    if not isinstance(tokenizer, BPETokenizer):
        raise TokenizerError("tokenizer.bin holds BPE, or characters with control tokens, only")
    if tokenizer.characters:
        return list(range(tokenizer.vocab_size))
    specials = dict(tokenizer.special_tokens)
    begin = specials.pop("<s>" if "<s>" in specials else "<|endoftext|>", None)
    unknown, end = specials.pop("<unk>", None), specials.pop("</s>", None)
    if specials:
        name = next(iter(specials))
        raise TokenizerError(f"tokenizer.bin has no place for the special token {name!r}")
    return [unknown, begin, end, *tokenizer.byte_ids, *_token_order(tokenizer)]


def write_llama2c(tokenizer: Tokenizer, path: Path) -> None:
    """Write `tokenizer.bin`.

    A byte that merges use is written as itself and not as `<0xNN>`: llama2.c joins what is
    written, so it could not merge it otherwise.
    """
    ids = llama2c_rows(tokenizer)
    names = {id: name.encode() for name, id in tokenizer.special_tokens.items()}
    rows = [tokenizer.token_bytes(id) if id is not None else b"" for id in ids]
    rows[:3] = [name if id is None else names[id] for id, name in zip(ids, CONTROL, strict=False)]
    if isinstance(tokenizer, BPETokenizer):
        used = {id for pair in tokenizer.merges for id in pair}
        for row in range(3, 259):
            byte = row - 3
            if byte == 0 or ids[row] not in used:
                rows[row] = _BYTE_ROW % byte
    body = [
        struct.pack("<fI", -float(row) if row >= 259 else 0.0, len(token)) + token
        for row, token in enumerate(rows)
    ]
    write_file(path, struct.pack("<I", max(map(len, rows))) + b"".join(body))
