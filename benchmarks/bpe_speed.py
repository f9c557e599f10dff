"""Time and memory of `bpe`, side by side with Hugging Face tokenizers and a textbook trainer.

    pip install regex tqdm tokenizers==0.23.3      # in an environment of its own
    PYTHONPATH=. python benchmarks/bpe_speed.py DATA [--only PART ...] [--rounds N]

DATA is a folder with `tinystories-train.txt` and `tinyshakespeare.txt`. Rounds alternate between
the two, and medians are printed: on a shared machine the ratio says more than the seconds. Give
both the same cores, for example with `taskset -c 0,1`.

Parts: train, encode, shakespeare, textbook (some minutes), memory (some minutes, 1 GB of disk).
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import regex

import bpe

SEPARATOR = "<|endoftext|>"


def race(rounds, **runners):
    """Median seconds, and median processor seconds, of each of `runners`, called in turn."""
    taken = {name: [] for name in runners}
    used = {name: [] for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            start, before = time.perf_counter(), processor_seconds()
            run()
            taken[name].append(time.perf_counter() - start)
            used[name].append(processor_seconds() - before)
    return {n: (statistics.median(taken[n]), statistics.median(used[n])) for n in runners}


def processor_seconds():
    """Of all threads, and of worker processes that have ended."""
    return sum(os.times()[:4])


def show(what, times, base):
    parts = [f"{name} {wall:.2f} s ({used:.2f} s used)" for name, (wall, used) in times.items()]
    wall, used = times[base]
    best = min((pair for name, pair in times.items() if name != base))
    # All of the processor time, spread perfectly over two cores, is the least it can take.
    ratios = f"{wall / best[0]:.1f} times; on two idle cores at least {used / 2 / best[1]:.1f}"
    print(f"{what}: {', '.join(parts)}: {ratios}", flush=True)


def hugging_face_trainer(size):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return tokenizer, trainer


def measure_train(data, rounds):
    path = data / "tinystories-train.txt"

    def theirs_from_file(size):
        tokenizer, trainer = hugging_face_trainer(size)
        tokenizer.train([str(path)], trainer)

    def theirs_from_texts(size):
        tokenizer, trainer = hugging_face_trainer(size)
        texts = path.read_text(encoding="utf-8").split(SEPARATOR)
        tokenizer.train_from_iterator(texts, trainer)

    for size in (361, 3000, 8000):
        times = race(
            rounds,
            file=lambda size=size: theirs_from_file(size),
            texts=lambda size=size: theirs_from_texts(size),
            bpe=lambda size=size: bpe.train(path, size),
            bpe2=lambda size=size: bpe.train(path, size, processes=2),
        )
        theirs = min(times.pop("file"), times.pop("texts"))
        show(f"train {size}", {"Hugging Face": theirs, **times}, "Hugging Face")


def measure_encode(data, rounds):
    from tokenizers import Tokenizer

    path = data / "tinystories-train.txt"
    texts = path.read_text(encoding="utf-8").split(SEPARATOR)
    size = path.stat().st_size / 1e6
    for vocab_size in (361, 3000, 8000):
        ours = bpe.train(path, vocab_size)
        with tempfile.TemporaryDirectory() as folder:
            ours.save(Path(folder) / "tokenizer.json", "huggingface")
            theirs = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        described = ours.to_dict()
        times = race(
            rounds,
            hugging_face=lambda theirs=theirs: theirs.encode_batch(texts, add_special_tokens=False),
            # A new object each time: nothing is in its cache yet.
            bpe=lambda data=described: bpe.from_dict(data).encode_batch(texts),
            bpe2=lambda data=described: bpe.from_dict(data).encode_batch(texts, processes=2),
        )
        show(f"encode_batch, {vocab_size}", times, "hugging_face")
        print(
            "   ", ", ".join(f"{name} {size / wall:.1f} MB/s" for name, (wall, _) in times.items())
        )


def measure_shakespeare(data, rounds):
    path = data / "tinyshakespeare.txt"
    times = race(rounds, bpe=lambda: bpe.train(path, 512, special_tokens=()))
    print("tinyshakespeare, 512: {:.2f} s ({:.2f} s used)".format(*times["bpe"]))


def textbook(text, vocab_size, pattern=bpe.PATTERNS["gpt2"]):
    """BPE as textbooks have it: every pair of the text is counted again after each merge."""
    chunks = [list(chunk.encode()) for chunk in regex.findall(pattern, text)]
    vocab = {byte: bytes([byte]) for byte in range(256)}
    for new in range(256, vocab_size):
        pairs = Counter(pair for ids in chunks for pair in pairwise(ids))
        left, right = max(pairs, key=lambda pair: (pairs[pair], vocab[pair[0]], vocab[pair[1]]))
        for index, ids in enumerate(chunks):
            joined, i = [], 0
            while i < len(ids):
                both = i + 1 < len(ids) and ids[i] == left and ids[i + 1] == right
                joined.append(new if both else ids[i])
                i += 1 + both
            chunks[index] = joined
        vocab[new] = vocab[left] + vocab[right]
    return list(vocab.values())


def measure_textbook(data, rounds):
    """In processor time, as the textbook takes minutes: other work hardly disturbs that."""
    text = (data / "tinyshakespeare.txt").read_text(encoding="utf-8")
    for size in (200_000, len(text)):
        part = text[:size]
        start = time.process_time()
        expected = textbook(part, 1000)
        middle = time.process_time()
        tokenizer = bpe.train([part], 1000, special_tokens=())
        slow, fast = middle - start, time.process_time() - middle
        print(
            f"{size:,} characters, 1,000 tokens: textbook {slow:.1f} s, bpe {fast:.2f} s:", end=""
        )
        print(f" {slow / fast:.0f} times; the same: {tokenizer.vocab == expected}", flush=True)


MEASURED = """
import sys, time, bpe
def peak():  # not ru_maxrss, which begins with the peak of the process that started this one
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
start = time.perf_counter()
if sys.argv[1] == "encode":
    tokenizer = bpe.load(sys.argv[2])
    before = peak()
    with open(sys.argv[3], encoding="utf-8", newline="") as file:
        count = sum(1 for id in tokenizer.encode_iterable(file))
else:
    before = peak()
    count = bpe.train(sys.argv[3], 8000).training["tokens"]
print(f"{sys.argv[1]}: {count:,} tokens, {time.perf_counter() - start:.0f} s, "
      f"peak {peak():.1f} MB ({before:.1f} MB before the text)")
"""


def measure_memory(data, rounds):
    """Peak memory over 1 GB: real stories in random order, with a new word every ten or so."""
    stories = (data / "tinystories-train.txt").read_text(encoding="utf-8").split(SEPARATOR)
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        text, tokenizer = Path(folder) / "text.txt", Path(folder) / "tokenizer.json"
        bpe.train(data / "tinystories-train.txt", 8000).save(tokenizer)
        with text.open("w", encoding="utf-8", newline="") as file:
            size = 0
            while size < 10**9:
                words = rng.choice(stories).split(" ")
                for i in range(0, len(words), 10):
                    words[i] = str(rng.randrange(10**6))
                size += file.write(" ".join(words))
        for part in ("encode", "train"):
            call = [sys.executable, "-c", MEASURED, part, str(tokenizer), str(text)]
            subprocess.run(call, check=True)


def main():
    parts = {
        "train": measure_train,
        "encode": measure_encode,
        "shakespeare": measure_shakespeare,
        "textbook": measure_textbook,
        "memory": measure_memory,
    }
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for name in options.only:
        parts[name](options.data, options.rounds)


if __name__ == "__main__":
    main()
