"""Generating: tokens a second, the time to the first token, and compiling from nothing.

    python benchmarks/decode.py [one many prompt cold compile] [--rounds N] [--run-c PATH]
                                [--model FILE]

PATH is llama2.c's run.c, compiled by you: gcc -Ofast -march=native -o run run.c -lm. It then takes
turns with the project on a model of the same shape (random weights, one core): run.c writes as many
tokens as its context has and tells its own rate; the project writes 10,240 tokens, past its
context, with its default sampling (temperature 0.8, top-k 200; run.c: temperature 0.8 alone).

FILE is the model to write with; without it, random weights in the shape of `pinv-0.8m`. What is not
a llama block runs against one of as many parameters: with a feed-forward network two thirds as
wide, which has three matrices instead of two.

    one       one sequence, with and without guessing ahead
    many      64 sequences together against one; nothing is guessed on either side
    prompt    a prompt as long as the context, at most 128, to the first token
    cold      from starting `tinygpt generate` to the first character, kernels cached
    compile   training and generating with the kernels of all recipes, in two processes as a run
              does it, first with an empty MINITENSOR_CACHE, then again: the difference is what
              compiling takes
"""

import argparse
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from workers import Worker, spread, times

import bpe
from tinygpt.data import stories
from tinygpt.formats import checkpoint
from tinygpt.model import recipes
from tinygpt.model.transformer import GPT

SHAPE = recipes.get("pinv-0.8m")
COMPILE = """
import minitensor as mt
from tinygpt.model import recipes, sample
from tinygpt.training import bench, compiling
from tinygpt.model.transformer import GPT
for name in ("pinv-0.8m", "neo-41m", "mini-1m"):
    c = recipes.get(name).replace(n_layer=1, d_model=64, n_head=4, d_ff=64, vocab_size=128,
                                  tokenizer="char", reduced_from=0, dropout=0.1, context=32)
    with compiling.helper(bench.one_batch(c), 2), mt.Workers(2) as workers:
        bench.step_seconds(bench.one_batch(c), workers, 1)
        list(sample.generate(GPT(c).eval(), [1], max_new_tokens=40))
"""


def write_model(path):
    """A model file of the shape with random weights and a tokenizer of characters."""
    tokenizer = bpe.CharTokenizer.train(stories.corpus(200), SHAPE.vocab_size)
    model = GPT(SHAPE)
    params = {name: p.data for name, p in model.named_parameters()}
    checkpoint.save(path, checkpoint.Saved(SHAPE, tokenizer, params))


def write_llama(folder, c):
    """The same shape for run.c: (model.bin version 0, tokenizer.bin), random weights.

    run.c ends a text at token 1, so that its row of the classifier is made the least likely.
    """
    rng, F = np.random.default_rng(0), c.d_ff if c.ffn == "swiglu" else c.d_ff * 2 // 3
    D, L, V, T, half = c.d_model, c.n_layer, c.vocab_size, c.context, c.head_dim // 2

    def normal(*shape):
        return rng.normal(0, 0.02, shape)

    embedding, classifier = normal(V, D), normal(V, D)
    embedding[:, 0], classifier[1, 0] = 1, -50
    parts = [
        embedding,
        np.ones((L, D)),
        *(normal(L, D, D) for _ in range(4)),
        np.ones((L, D)),
        normal(L, F, D),
        normal(L, D, F),
        normal(L, F, D),
        np.ones(D),
        np.ones((T, half)),
        np.zeros((T, half)),
        classifier,
    ]
    with (folder / "model.bin").open("wb") as file:
        file.write(struct.pack("<7i", D, F, L, c.n_head, c.n_head, -V, T))
        for part in parts:
            file.write(part.astype("<f4").tobytes())
    with (folder / "tokenizer.bin").open("wb") as file:
        file.write(struct.pack("<i", 8))
        for token in range(V):
            text = f"{token:03} ".encode()
            file.write(struct.pack("<fi", 0.0, len(text)) + text)
    return folder / "model.bin", folder / "tokenizer.bin"


def run_c(program, model, tokenizer, tokens):
    """The tokens a second that run.c tells of one text."""
    done = subprocess.run(
        [program, model, "-z", tokenizer, "-n", str(tokens), "-t", "0.8", "-p", "1", "-s", "1"],
        capture_output=True,
        check=True,
    )
    return float(re.search(rb"tok/s: ([\d.]+)", done.stderr)[1])


def rate(worker):
    """Tokens a second of one request."""
    answer = worker.ask()
    return answer["result"] / answer["seconds"][0]


def show(name, rates):
    s = spread(rates)
    print(f"  {name:24}{s['median']:9,.0f} tokens/s ({s['min']:,.0f} to {s['max']:,.0f})")


def peer(options, folder, model):
    """What measures run.c's rate once, in the shape of a model; None without a run.c."""
    if not options.run_c:
        return None
    c = checkpoint.load(model).config
    files, tokens = write_llama(folder, c), min(c.context, 128)

    def measure():  # it tells time in milliseconds: several runs are one measurement
        speeds = [run_c(options.run_c, *files, tokens) for _ in range(20)]
        return len(speeds) / sum(1 / s for s in speeds)

    return measure


def measure_one(options, folder, model):
    print("one sequence of 10,240 tokens, one thread")
    names = "guessing", "not guessing", "run.c"
    theirs, taken = peer(options, folder, model), []
    arguments = "tinygpt_worker.py", "decode", model, 1, 10_240
    with (
        Worker(sys.executable, *arguments) as ours,
        Worker(sys.executable, *arguments, "plain") as plain,
    ):
        for _ in range(options.rounds):
            taken.append((rate(ours), rate(plain), *([theirs()] if theirs else [])))
    for name, rates in zip(names, zip(*taken, strict=True), strict=False):
        show(name, rates)
    print(f"  guessing: {times(spread([row[0] / row[1] for row in taken]))} as fast", flush=True)
    if theirs:
        for n in (0, 1):
            ratios = spread([row[n] / row[2] for row in taken])
            print(f"  {names[n]}, against run.c: {times(ratios)}", flush=True)


def measure_prompt(options, folder, model):
    c = checkpoint.load(model).config
    tokens = min(c.context, 128)
    print(f"a prompt of {tokens} tokens to its first token, one core")
    theirs, taken = peer(options, folder, model), []
    with Worker(sys.executable, "tinygpt_worker.py", "prompt", model, tokens) as ours:
        for _ in range(options.rounds):
            seconds = ours.ask()["seconds"][0] / 20
            taken.append((seconds, *([tokens / theirs()] if theirs else [])))
    for name, seconds in zip(("tinygpt", "run.c"), zip(*taken, strict=True), strict=False):
        s = spread([1000 * n for n in seconds])
        print(f"  {name:24}{s['median']:9.2f} ms ({s['min']:.2f} to {s['max']:.2f})")
    if theirs:
        print(f"  tinygpt is as fast by {times(spread([b / a for a, b in taken]))}", flush=True)


def measure_many(options, folder, model):
    print("64 sequences of 1,024 tokens together, against one of them")
    with (
        Worker(sys.executable, "tinygpt_worker.py", "decode", model, 1, 1024, "plain") as one,
        Worker(sys.executable, "tinygpt_worker.py", "decode", model, 64, 1024, "plain") as many,
    ):
        taken = [(rate(one), rate(many)) for _ in range(options.rounds)]
    for name, rates in zip(("one", "64, all together"), zip(*taken, strict=True), strict=True):
        show(name, rates)
    print(f"  {times(spread([b / a for a, b in taken]))} as many tokens", flush=True)


def measure_cold(options, folder, model):
    call = [sys.executable, "-m", "tinygpt", "generate", str(model), "--ignore-eot"]
    taken = []
    for _ in range(options.rounds + 1):
        begin = time.perf_counter()
        with subprocess.Popen(call, stdout=subprocess.PIPE) as process:
            process.stdout.read(1)
            taken.append(time.perf_counter() - begin)
            process.kill()
    s = spread(taken[1:])
    print(
        f"cold start to the first character: {s['median']:.2f} s "
        f"({s['min']:.2f} to {s['max']:.2f})",
        flush=True,
    )


def measure_compile(options, folder, model):
    environment = {**os.environ, "MINITENSOR_CACHE": str(folder / "cache")}
    taken = []
    for _ in range(2):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", COMPILE], check=True, env=environment)
        taken.append(time.perf_counter() - begin)
    print(
        f"all kernels: {taken[0]:.1f} s from nothing, {taken[1]:.1f} s with the cache: compiling "
        f"takes {taken[0] - taken[1]:.1f} s",
        flush=True,
    )


def main():
    parts = {
        "one": measure_one,
        "many": measure_many,
        "prompt": measure_prompt,
        "cold": measure_cold,
        "compile": measure_compile,
    }
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: " + " ".join(parts))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--run-c", type=Path, metavar="PATH", help="a compiled run.c of llama2.c")
    parser.add_argument("--model", type=Path, metavar="FILE", help="a model file of your own")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or Path(folder) / "model.npz"
        if not options.model:
            write_model(model)
        for name in options.parts or parts:
            parts[name](options, Path(folder), model)


if __name__ == "__main__":
    main()
