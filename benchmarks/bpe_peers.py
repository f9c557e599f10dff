"""Compare `bpe` with Hugging Face tokenizers and tiktoken: the same merges, the same ids.

    pip install regex tqdm tokenizers==0.23.3 tiktoken==0.14.0     # in an environment of its own
    PYTHONPATH=. python benchmarks/bpe_peers.py DATA [--freeze]

DATA is a folder with `tinystories-train.txt`, `tinystories-valid.txt` and `gpt2/vocab.json` and
`gpt2/merges.txt`. Each line says what is compared and whether all of it is equal; the exit status
is 1 if anything is not. `--freeze` writes the peers' results on a small text to the tests.
"""

import argparse
import json
import sys
import tempfile
import warnings
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import tiktoken
from tiktoken.load import load_tiktoken_bpe
from tokenizers import ByteLevelBPETokenizer, Tokenizer, decoders, models, pre_tokenizers, trainers

import bpe
from bpe.alphabet import printable
from bpe.patterns import Splitter
from bpe.training import count_chunks

SEPARATOR = "<|endoftext|>"
SIZES = (361, 3000, 8000)
TESTS = Path(__file__).parents[1] / "tests" / "bpe" / "data"
failures = 0


def report(what, equal):
    global failures
    failures += not equal
    print(f"{what:<74} {'equal' if equal else 'DIFFERENT'}", flush=True)


def train_hugging_face(texts, size):
    """A byte-level BPE of Hugging Face's trainer, with all 256 bytes and one special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def merges_of(tokenizer):
    """The merges of a tokenizer of Hugging Face, as they stand in its file."""
    return [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def our_merges(tokenizer):
    vocab = [None if token is None else printable(token) for token in tokenizer.vocab]
    return [f"{vocab[left]} {vocab[right]}" for left, right in tokenizer.merges]


def greatest_pairs(counts, merges):
    """The rule of Stanford's CS336, by a plain search: `max` over (count, pair of byte strings).

    Slow, and written without anything of `bpe`, to check it.
    """
    words = [([bytes([byte]) for byte in chunk], count) for chunk, count in counts.items()]
    pairs, where = defaultdict(int), defaultdict(set)
    for index, (word, count) in enumerate(words):
        for pair in pairwise(word):
            pairs[pair] += count
            where[pair].add(index)
    learned = []
    for _ in range(merges):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        learned.append(best)
        for index in where.pop(best):
            word, count = words[index]
            for pair in pairwise(word):
                pairs[pair] -= count
            joined, i = [], 0
            while i < len(word):
                both = tuple(word[i : i + 2]) == best
                joined.append(word[i] + word[i + 1] if both else word[i])
                i += 1 + both
            words[index] = joined, count
            for pair in pairwise(joined):
                pairs[pair] += count
                where[pair].add(index)
    return learned


def compare_training(path):
    texts = path.read_text(encoding="utf-8").split(SEPARATOR)
    for size in SIZES:
        ours = bpe.train(path, size, tie_break="ids")
        report(
            f"{size - 257} merges, ties by ids, Hugging Face's trainer",
            our_merges(ours) == merges_of(train_hugging_face(texts, size)),
        )
    ours = [bpe.train(path, size) for size in SIZES]
    learned = greatest_pairs(count_chunks(path, Splitter("gpt2"), [SEPARATOR]), SIZES[-1] - 257)
    for size, tokenizer in zip(SIZES, ours, strict=True):
        pairs = [(tokenizer.vocab[a], tokenizer.vocab[b]) for a, b in tokenizer.merges]
        report(f"{size - 257} merges, ties by bytes, CS336's rule", pairs == learned[: size - 257])


def compare_encoding(name, tokenizer, texts):
    """The ids of every text, by the peers, with the files that `bpe` writes for them."""
    expected = tokenizer.encode_batch(texts)
    whole = SEPARATOR.join(texts)
    special = tokenizer.encode(whole, allowed_special="all")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        tokenizer.save(path / "tokenizer.json", "huggingface")
        theirs = Tokenizer.from_file(str(path / "tokenizer.json"))
        report(
            f"{name}: ids, Hugging Face with our tokenizer.json",
            [encoding.ids for encoding in theirs.encode_batch(texts)] == expected
            and theirs.encode(whole).ids == special
            and theirs.decode(special, skip_special_tokens=False) == whole,
        )
        report(f"{name}: our tokenizer.json read back", same(path / "tokenizer.json", tokenizer))
        if tokenizer.pattern == "gpt2":
            tokenizer.save(path / "two", "gpt2")
            theirs = read_two_files(path / "two")
            ids = [encoding.ids for encoding in theirs.encode_batch(texts)]
            report(f"{name}: ids, Hugging Face with our vocab.json, merges.txt", ids == expected)
            report(f"{name}: our vocab.json, merges.txt read back", same(path / "two", tokenizer))
        tokenizer.save(path / "ranks", "tiktoken")
        encoding = tiktoken.Encoding(
            name,
            pat_str=bpe.PATTERNS[tokenizer.pattern],
            mergeable_ranks=load_tiktoken_bpe(str(path / "ranks")),
            special_tokens=tokenizer.special_tokens,
        )
        report(
            f"{name}: ids, tiktoken with our ranks",
            encoding.encode_ordinary_batch(texts) == expected
            and encoding.encode(whole, allowed_special="all") == special
            and encoding.decode(special) == whole
            and encoding.decode_with_offsets(special) == tokenizer.decode_with_offsets(special),
        )
        options = {"pattern": tokenizer.pattern, "special_tokens": tokenizer.special_tokens}
        again = bpe.load(path / "ranks", **options)
        report(f"{name}: ids with our ranks read back", again.encode_batch(texts) == expected)


def read_two_files(folder):
    return ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def same(path, tokenizer):
    again = bpe.load(path)
    return (again.vocab, again.merges, again.special_tokens, again.pattern) == (
        tokenizer.vocab,
        tokenizer.merges,
        tokenizer.special_tokens,
        tokenizer.pattern,
    )


def compare_published(folder, texts):
    """GPT-2's own files, read by each, and ranks that its merges give."""
    ours = bpe.load(folder)
    expected = [encoding.ids for encoding in read_two_files(folder).encode_batch(texts)]
    report("GPT-2's files: ids, Hugging Face with them", ours.encode_batch(texts) == expected)
    compare_encoding("GPT-2's files", ours, texts)


def freeze():
    """What the peers make of the tests' sample, for tests without them."""
    text = (TESTS / "sample.txt").read_text(encoding="utf-8")
    texts = text.split(SEPARATOR)
    merges = {str(n): merges_of(train_hugging_face(texts, n)) for n in (361, 700)}
    ids = {}
    for pattern in ("gpt2", "gpt4"):
        tokenizer = bpe.train([text], 700, pattern=pattern)
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save(Path(folder) / "tokenizer.json", "huggingface")
            theirs = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
            tokenizer.save(Path(folder) / "ranks", "tiktoken")
            ranks = load_tiktoken_bpe(str(Path(folder) / "ranks"))
        encoding = tiktoken.Encoding(
            pattern,
            pat_str=bpe.PATTERNS[pattern],
            mergeable_ranks=ranks,
            special_tokens=tokenizer.special_tokens,
        )
        ids[pattern] = encoding.encode(text, allowed_special="all")
        report(f"frozen ids, {pattern}: the peers agree", theirs.encode(text).ids == ids[pattern])
    data = json.dumps({"merges": merges, "ids": ids}, ensure_ascii=False)
    (TESTS / "peers.json").write_text(data + "\n", encoding="utf-8", newline="")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--freeze", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("error")  # a format that cannot hold a tokenizer warns
    if options.freeze:
        freeze()
    train, valid = options.data / "tinystories-train.txt", options.data / "tinystories-valid.txt"
    texts = valid.read_text(encoding="utf-8").split(SEPARATOR)
    compare_training(train)
    for size in SIZES:
        compare_encoding(f"BPE of {size}", bpe.train(train, size), texts)
    compare_encoding("BPE of 3000, GPT-4's pattern", bpe.train(train, 3000, pattern="gpt4"), texts)
    compare_published(options.data / "gpt2", texts)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
