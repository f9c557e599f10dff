"""Generating from the formula to guesses, a rung at a time: the figures of docs/generating.md.

    python benchmarks/generating_ladder.py [--model FILE] [--rounds N]

Every rung writes the same text of one context, alone on one thread, and is checked against the
first: (nearly) the same logits, and from the third rung on the same tokens. FILE: a trained model;
without it, the small one that comes with tinygpt.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import numpy as np

import minitensor as mt
from tinygpt.formats import box, checkpoint
from tinygpt.model import drawing, sample
from tinygpt.model.decode import Decoder

CHOICE = drawing.Choice(temperature=0.8, top_k=200, top_p=1.0)


def begin_again(model, ids, u):
    """Rung 1: the formula. The whole text goes through the model for every token."""
    ids = list(ids)
    with mt.no_grad():
        for x in u:
            logits = model(np.array([ids])).numpy()[0, -1]
            ids.append(drawing.draw(drawing.probabilities(logits, *CHOICE), x))
    return ids


def one_by_one(decoder, ids, u):
    """Rungs 2 and 3: a cache; what came before is not computed again."""
    ids, new = list(ids), list(ids)
    for x in u:
        new = drawing.choose(decoder.feed([new]), *CHOICE, np.array([x]))
        ids += new
    return ids


def together(decoder, ids, u, vocab_size):
    """Rungs 4 and 5: many tokens in a call, with or without guesses."""
    ids = one_by_one(decoder, ids, u[:1])
    for n in range(1, len(u), sample.STEPS):
        steps = np.array(u[n : n + sample.STEPS])[:, None]
        ids += [row[0] for row in decoder.write(ids[-1:], [0], steps, vocab_size, CHOICE)]
    return ids


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, metavar="FILE")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    saved = checkpoint.load(options.model) if options.model else box.load()
    c, model, V = saved.config, saved.model(), saved.tokenizer.vocab_size
    ids = sample.prompt_ids(saved.tokenizer, "")
    u = [drawing.uniform(1, 0, n) for n in range(c.context - len(ids))]

    def numpy(work):
        os.environ["MINITENSOR_KERNELS"] = "numpy"
        try:
            return work()
        finally:
            del os.environ["MINITENSOR_KERNELS"]

    def rung(guessing):
        return together(Decoder(saved, threads=1, guessing=guessing), ids, u, V)

    rungs = {
        "1 the formula, NumPy": lambda: numpy(lambda: begin_again(model, ids, u)),
        "1 the formula, compiled": lambda: begin_again(model, ids, u),
        "2 a cache, NumPy": lambda: numpy(
            lambda: one_by_one(Decoder(saved, threads=1, guessing=False), ids, u)
        ),
        "2 and guesses, NumPy": lambda: numpy(lambda: rung(True)),
        "3 panels": lambda: one_by_one(Decoder(saved, threads=1), ids, u),
        "4 many tokens a call": lambda: rung(False),
        "5 guesses": lambda: rung(True),
    }
    print(f"{c.name}: {len(u)} tokens, one thread; {options.rounds} rounds")
    expected, before = None, None
    for name, work in rungs.items():
        taken, text = [], None
        for _ in range(options.rounds + 1):
            begin = time.perf_counter()
            text = work()
            taken.append(time.perf_counter() - begin)
        expected = expected or text
        same = sum(a == b for a, b in zip(text, expected, strict=True)) / len(text)
        median = 1e6 * statistics.median(taken[1:]) / len(u)
        gain = f"{before / median:6.1f} times" if before else ""
        print(f"  {name:26}{median:9,.0f} µs a token {gain:14} {same:.0%} the same", flush=True)
        before = median


if __name__ == "__main__":
    main()
