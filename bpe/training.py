"""Learning merges from text.

Byte-pair encoding starts from the 256 bytes and makes a new token of the most frequent pair of
neighbours, again and again (Sennrich, Haddow and Birch, 2016, arXiv:1508.07909). Counting all
pairs again for every merge is the textbook way (`examples/07_train_a_bpe.py` has it in thirty
lines). Here each merge costs only what it changes:

1. Text is reduced to its distinct chunks and how often each occurs. A merge in a chunk stands
   for all of its occurrences.
2. Pair counts are kept. A merge changes the counts of the pairs beside it and no others.
3. An index from each pair to the places where it stands says where to look.
4. A heap gives the most frequent pair. Its entries are not updated when a count falls: an entry
   is a promise of *at most* this many, which is checked and corrected when it comes up.
"""

from __future__ import annotations

import heapq
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

from bpe.alphabet import GPT2_ORDER
from bpe.patterns import Splitter
from bpe.sources import Source, bar, batches, documents
from bpe.workers import imap

END = -1  # what stands between two chunks, where no token is


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
    for counts in imap(chunk_counter, (splitter.name,), jobs, processes):
        total.update(counts)
    return Counter({chunk.encode(): count for chunk, count in total.items()})


def chunk_counter(pattern: str) -> Callable[[list[str]], Counter[str]]:
    """What a worker of `count_chunks` does: texts to the counts of their chunks."""
    return Splitter(pattern).count


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

    Each byte is complemented, and a last character above all others puts a token before its own
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
