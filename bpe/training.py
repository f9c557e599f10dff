"""Learning merges from text.

Byte-pair encoding starts from the 256 bytes and makes a new token of the most frequent pair of
neighbours, again and again (Sennrich, Haddow and Birch, 2016, arXiv:1508.07909). Counting all
pairs anew for every merge is the textbook way (`examples/07_train_a_bpe.py` has it in thirty
lines). Here each merge costs only what it changes:

1. Text is reduced to its distinct chunks and how often each occurs. A merge in a chunk stands
   for all of its occurrences.
2. Pair counts are kept. A merge changes the counts of the pairs beside it and no others.
3. An index from each pair to the places where it stands says where to look.
4. A heap gives the most frequent pair. Its entries are not updated when a count falls: an entry
   is a promise of *at most* this many, which is checked and corrected when it comes up.
"""

from __future__ import annotations

import codecs
import heapq
import os
import warnings
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from bpe.errors import TokenizerError
from bpe.patterns import Splitter, batches, segments
from bpe.tokenizer import GPT2_ORDER, BPETokenizer
from bpe.workers import imap

Source = str | os.PathLike[str] | Iterable["str | os.PathLike[str]"]
BLOCK = 1 << 20
END = -1  # what stands between two chunks, where no token is


def train(
    source: Source,
    vocab_size: int,
    *,
    special_tokens: Iterable[str] = ("<|endoftext|>",),
    pattern: str = "gpt2",
    tie_break: str = "bytes",
    min_frequency: int = 1,
    processes: int = 1,
    progress: bool = False,
) -> BPETokenizer:
    """Train a byte-level BPE tokenizer.

    Args:
        source: the name of a UTF-8 file, several `Path`s, or an iterable of texts.
        vocab_size: ids in all: the 256 bytes, the merges, the special tokens, in this order.
        special_tokens: these divide the text when they occur in it, and get ids of their own.
        pattern: "gpt2", "gpt4", "none", or a regular expression in the syntax of `regex`.
        tie_break: which of several equally frequent pairs is merged: the "bytes" that are
            greatest, compared as pairs of byte strings, or the smallest pair of "ids" in the
            numbering of Hugging Face's trainer.
        min_frequency: a pair that occurs less often is not merged.
        processes: how many count the chunks. The result does not depend on it.
        progress: show progress bars on standard error.

    Training ends early, with a warning, when no pair is left to merge.
    """
    specials = check_specials(special_tokens)
    splitter = Splitter(pattern)
    merges = vocab_size - 256 - len(specials) if isinstance(vocab_size, int) else -1
    if merges < 0:
        raise TokenizerError(
            f"vocab_size: {vocab_size!r} is not a number from {256 + len(specials)} up "
            f"(256 bytes and {len(specials)} special tokens)"
        )
    if tie_break not in ("bytes", "ids"):
        raise TokenizerError(f"tie_break: 'bytes' or 'ids' is expected, not {tie_break!r}")
    if not isinstance(min_frequency, int) or min_frequency < 1:
        raise TokenizerError(f"min_frequency: a number from 1 up is expected, not {min_frequency}")
    counts = count_chunks(source, splitter, specials, processes=processes, progress=progress)
    vocab, pairs, tokens = learn_merges(
        counts, merges, tie_break=tie_break, min_frequency=min_frequency, progress=progress
    )
    if len(vocab) < 256 + merges:
        warnings.warn(
            f"the text ran out of pairs that occur {min_frequency} times or more: "
            f"{len(vocab) + len(specials)} tokens instead of {vocab_size}",
            stacklevel=2,
        )
    return BPETokenizer(
        vocab,
        pairs,
        special_tokens={name: len(vocab) + i for i, name in enumerate(specials)},
        pattern=splitter.name,
        training={
            "tie_break": tie_break,
            "min_frequency": min_frequency,
            "bytes": sum(len(chunk) * count for chunk, count in counts.items()),
            "tokens": tokens,
        },
    )


def check_specials(special_tokens: Iterable[str]) -> list[str]:
    """`special_tokens` as a list of distinct, non-empty strings."""
    names = [special_tokens] if isinstance(special_tokens, str) else list(special_tokens)
    for name in names:
        if not isinstance(name, str) or not name:
            raise TokenizerError(f"special_tokens: non-empty strings are expected, not {name!r}")
        if names.count(name) > 1:
            raise TokenizerError(f"special_tokens: {name!r} is given twice")
    return names


# Counting ---------------------------------------------------------------------------------------


def count_chunks(
    source: Source,
    splitter: Splitter,
    specials: Iterable[str] = (),
    *,
    processes: int = 1,
    progress: bool = False,
) -> Counter[bytes]:
    """How often each chunk occurs in `source`, as UTF-8 bytes."""
    total: Counter[str] = Counter()
    jobs = batches(documents(source, specials, splitter.last_cut, progress=progress))
    for counts in imap(_counter, (splitter.name,), jobs, processes):
        total.update(counts)
    if not total:
        raise TokenizerError("there is no text to train on")
    return Counter({chunk.encode(): count for chunk, count in total.items()})


def _counter(pattern: str) -> Callable[[list[str]], Counter[str]]:
    return Splitter(pattern).count


def documents(
    source: Source,
    specials: Iterable[str],
    last_cut: Callable[[str, int], int],
    *,
    progress: bool = False,
) -> Iterator[str]:
    """The texts of `source`, divided at `specials`, with files read in blocks.

    Long texts come in several parts where `last_cut` (see `Splitter.last_cut`) has a place.
    """
    specials = list(specials)
    items = source_items(source)
    with bar(progress, total_bytes(items), "reading", unit="B", unit_scale=True) as advance:
        for item in items:
            if not isinstance(item, str | os.PathLike):
                raise TokenizerError(
                    f"source: texts or Paths are expected, not {type(item).__name__}"
                )
            parts = [item] if isinstance(item, str) else read_blocks(Path(item), advance)
            for text, is_special in segments(parts, specials, last_cut, block=BLOCK):
                if not is_special:
                    yield text


def source_items(source: Source) -> Iterable[str | os.PathLike[str]]:
    """`source` as an iterable of texts (`str`) and files (`Path`)."""
    if isinstance(source, str) and (len(source) > 1000 or {"\n", "\0"} & set(source)):
        raise TokenizerError("source: a string names a file; to train on a text, pass it in a list")
    if isinstance(source, str | os.PathLike):
        return [Path(source)]
    if isinstance(source, bytes | Mapping) or not isinstance(source, Iterable):
        raise TokenizerError(f"source: files or texts are expected, not {type(source).__name__}")
    if isinstance(source, list | tuple) and source and all(map(_names_a_file, source)):
        raise TokenizerError(  # it would train a tokenizer on the names
            f"source: {source[0]!r} is a file, and strings in a list are texts: "
            "pass Path objects to train on files"
        )
    return source


def _names_a_file(text: Any) -> bool:
    return isinstance(text, str) and len(text) < 256 and "\0" not in text and os.path.isfile(text)


def total_bytes(items: Iterable[str | os.PathLike[str]]) -> int | None:
    """The size of all files in `items`, for a progress bar; None if that is not known."""
    if not isinstance(items, list | tuple):
        return None
    return sum(os.path.getsize(i) for i in items if isinstance(i, Path) and i.is_file()) or None


def read_blocks(path: Path, advance: Callable[[int], Any] = lambda size: None) -> Iterator[str]:
    """The text of a UTF-8 file, in blocks of about a megabyte."""
    try:
        with path.open("rb") as file:
            yield from decode_blocks(file, str(path), advance)
    except OSError as error:
        raise TokenizerError(f"{path}: {error.strerror}") from error


def decode_blocks(
    file: BinaryIO, name: str, advance: Callable[[int], Any] = lambda size: None
) -> Iterator[str]:
    """The text of an open file."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    end = 0
    block = b"..."
    try:
        while block:
            block = file.read(BLOCK)
            end += len(block)
            yield decoder.decode(block, final=not block)
            advance(len(block))
    except UnicodeDecodeError as error:
        at = end - len(error.object) + error.start
        raise TokenizerError(f"{name}: not UTF-8: {error.reason} at byte {at}") from error


@contextmanager
def bar(show: bool, total: int | None, title: str, **options: Any) -> Iterator[Callable]:
    """A progress bar on standard error, as a function that moves it on."""
    if not show:
        yield lambda step: None
        return
    from tqdm import tqdm  # only here: importing it takes longer than importing bpe

    with tqdm(total=total, desc=title, **options) as progress:
        yield progress.update


# Merging ----------------------------------------------------------------------------------------


def learn_merges(
    counts: Mapping[bytes, int],
    merges: int,
    *,
    tie_break: str = "bytes",
    min_frequency: int = 1,
    progress: bool = False,
) -> tuple[list[bytes], list[tuple[int, int]], int]:
    """The vocabulary and the merges that `counts`, occurrences by chunk, lead to.

    The third result is the number of tokens that are then left of the text.

    Up to `merges` new tokens are made. When two different pairs join to the same bytes, the
    second gets the id of the first: it is one more merge, but no new token.
    """
    corpus = Corpus(counts)
    vocab = [bytes([byte]) for byte in range(256)]
    id_of = {token: i for i, token in enumerate(vocab)}
    # The heap gives the smallest entry, so `keys` makes the pair that wins a tie the smallest.
    key = _descending if tie_break == "bytes" else None
    keys: list[Any] = [key(token) for token in vocab] if key else list(GPT2_ORDER)
    heap = [(-n, keys[a], keys[b], a, b) for (a, b), n in corpus.pairs.items()]
    heapq.heapify(heap)
    learned: list[tuple[int, int]] = []
    with bar(progress, merges, "merging", unit=" merges") as advance:
        while heap and len(vocab) < 256 + merges:
            promised, _, _, left, right = heapq.heappop(heap)
            count = corpus.pairs.get((left, right), 0)
            if count != -promised:
                if 0 < count < -promised:  # else a newer entry has the pair already
                    heapq.heappush(heap, (-count, keys[left], keys[right], left, right))
                continue
            if count < min_frequency:
                break
            token = vocab[left] + vocab[right]
            new = id_of.setdefault(token, len(vocab))
            if new == len(vocab):
                vocab.append(token)
                keys.append(key(token) if key else new)
                advance(1)
            learned.append((left, right))
            for a, b in corpus.merge(left, right, new):
                heapq.heappush(heap, (-corpus.pairs[a, b], keys[a], keys[b], a, b))
    return vocab, learned, corpus.tokens


def _descending(token: bytes) -> str:
    """A key that orders byte strings from the greatest to the smallest.

    Each byte turns round, and a last character above all others puts a token before its own
    prefixes.
    """
    return "".join([chr(255 - byte) for byte in token]) + chr(256)


class Corpus:
    """Distinct chunks as one row of tokens, with the counts and the places of all pairs.

    The row has one entry a byte. A token of several bytes writes its id on its first and on its
    last byte, and `END` between them; `END` also stands between chunks. So the right neighbour of
    the token at `i` begins at `i + length`, and the left one ends at `i - 1`: no links are needed,
    and a merge in a chunk of any length costs the same.
    """

    def __init__(self, counts: Mapping[bytes, int]) -> None:
        self.ids = array("q", [END])
        self.chunk = array("q", [0])  # which chunk a position belongs to
        self.counts = list(counts.values())
        self.lengths = [1] * 256  # bytes of each token
        self.tokens = sum(len(chunk) * count for chunk, count in counts.items())
        self.pairs: dict[tuple[int, int], int] = defaultdict(int)
        self.places: dict[tuple[int, int], array[int]] = defaultdict(lambda: array("q"))
        for number, (chunk, count) in enumerate(counts.items()):
            start = len(self.ids)
            self.ids.extend(chunk)
            self.ids.append(END)
            self.chunk.extend([number] * (len(chunk) + 1))
            for place, pair in enumerate(pairwise(chunk), start):
                self.pairs[pair] += count
                self.places[pair].append(place)

    def merge(self, left: int, right: int, new: int) -> set[tuple[int, int]]:
        """Replace every `left, right` by `new`; return the pairs that became more frequent."""
        ids, lengths = self.ids, self.lengths
        if new == len(lengths):
            lengths.append(lengths[left] + lengths[right])
        left_length, right_length = lengths[left], lengths[right]
        change: dict[tuple[int, int], int] = defaultdict(int)
        # From left to right, so that "aaa" becomes "aa" and "a".
        for start in sorted(self.places.pop((left, right))):
            middle = start + left_length
            if ids[start] != left or ids[middle] != right:
                continue  # an earlier merge took one of the two
            count = self.counts[self.chunk[start]]
            self.tokens -= count
            end = middle + right_length
            before, after = ids[start - 1], ids[end]
            if before != END:
                change[before, left] -= count
                change[before, new] += count
                self.places[before, new].append(start - lengths[before])
            if after != END:
                change[right, after] -= count
                change[new, after] += count
                self.places[new, after].append(start)
            ids[middle - 1] = ids[middle] = END
            ids[start] = ids[end - 1] = new
        for pair, difference in change.items():
            self.pairs[pair] += difference
        del self.pairs[left, right]
        return {pair for pair, difference in change.items() if difference > 0}
