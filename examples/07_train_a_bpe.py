"""Train a byte-level BPE tokenizer twice: the naive way, whole, and the incremental way of `bpe`.

Run it with `python examples/07_train_a_bpe.py`. It trains on the source code of `bpe`, shows that
both ways learn the same merges, and how long each takes. docs/tokenizer.md explains the second.

Exercises (solutions in tests/exercises/test_07.py):

1. Encode a text with the merges: apply them, in the order they were learned, to each of its chunks.
   Do the tokens agree with those of `bpe`?
2. How many tokens is the training text after 0, 100, 200, … merges? Can it ever become more?
"""

import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import regex

import bpe


def naive_bpe(texts, vocab_size, pattern=bpe.PATTERNS["gpt2"]):
    """The merges of byte-pair encoding, as pairs of byte strings, in the order they are learned."""
    # Merges stay inside chunks, so equal chunks are worked on once and counted.
    counts = Counter(chunk.encode() for text in texts for chunk in regex.findall(pattern, text))
    tokens = {chunk: [bytes([byte]) for byte in chunk] for chunk in counts}
    vocab = {bytes([byte]) for byte in range(256)}
    merges = []
    while len(vocab) < vocab_size:
        # Count all pairs of neighbours, again from the beginning after every merge.
        pairs = Counter()
        for chunk, count in counts.items():
            for pair in pairwise(tokens[chunk]):
                pairs[pair] += count
        if not pairs:
            break
        # The most frequent pair; of equally frequent ones, that of the greatest byte strings.
        left, right = max(pairs, key=lambda pair: (pairs[pair], pair))
        for chunk in counts:
            tokens[chunk] = replace(tokens[chunk], left, right)
        merges.append((left, right))
        vocab.add(left + right)
    return merges


def replace(tokens, left, right):
    """`tokens` with every `left` that `right` follows, from the left, joined to one."""
    joined = []
    for token in tokens:
        if token == right and joined and joined[-1] == left:
            joined[-1] = left + right
        else:
            joined.append(token)
    return joined


def main():
    texts = [file.read_text(encoding="utf-8") for file in Path(bpe.__file__).parent.glob("*.py")]
    vocab_size = 1000

    start = time.perf_counter()
    naive = naive_bpe(texts, vocab_size)
    middle = time.perf_counter()
    tokenizer = bpe.train(texts, vocab_size, special_tokens=())
    end = time.perf_counter()

    vocab = tokenizer.vocab
    incremental = [(vocab[left], vocab[right]) for left, right in tokenizer.merges]
    print(f"{len(''.join(texts)):,} characters, {len(naive)} merges")
    print(f"naive        {middle - start:.2f} s")
    print(f"incremental  {end - middle:.2f} s; the same merges: {naive == incremental}")
    print("first merges:", *(repr((left + right).decode()) for left, right in naive[:12]))


if __name__ == "__main__":
    main()
