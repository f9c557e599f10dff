"""Guessing ahead changes no bit of a text, and what it gains: the long form of tests/test_guess.py.

    python benchmarks/guessing.py [--seeds 200] [MODEL.npz …]

For every recipe's architecture (small, random weights), every seed and temperatures from 0 to 2:
texts past the context, alone and in batches of 2, 5 and 12, with guesses and without, which have to
be the same. For each MODEL: the same at one seed and 4,000 tokens, then how many tokens a pass over
the weights gives, how many rows it has, and how often a guess comes true, by temperature.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

import minitensor as mt
from tinygpt.formats import checkpoint
from tinygpt.model import recipes, sample
from tinygpt.model.decode import Decoder
from tinygpt.model.transformer import GPT

TEMPERATURES = (0.0, 0.3, 0.8, 1.0, 1.5, 2.0)


def small(c):
    """A recipe's architecture with a few thousand weights, large enough that texts wander."""
    model = GPT(
        c.replace(
            vocab_size=60, context=24, n_layer=2, d_ff=37, reduced_from=0, tokenizer="char",
            windows=tuple(min(w, 5) for w in c.windows),
            d_model=c.n_head * (2 if c.n_head > 8 else 6),
        )
    )  # fmt: skip
    rng = np.random.default_rng(0)
    with mt.no_grad():
        for p in model.parameters():
            p[...] = rng.normal(p.data.mean(), 0.3, p.shape).astype(p.dtype)
    return model.eval()


def texts(model, prompts, **options):
    """The continuation of each prompt."""
    out = [[] for _ in prompts]
    for n, token in sample.generate_many(model, prompts, **options):
        out[n].append(token)
    return out


def equal(seeds):
    """Compare all recipes' architectures; the number of pairs of texts that were the same."""
    done = 0
    for name, recipe in recipes.RECIPES.items():
        model = small(recipe)
        for seed in range(seeds):
            together = (1, 2, 5, 12)[seed % 4]
            options = {
                "temperature": TEMPERATURES[seed % len(TEMPERATURES)],
                "top_k": (200, 0, 7)[seed % 3],
                "top_p": (1.0, 1.0, 0.9, 0.5)[seed // 5 % 4],
                "past_context": ("drop", "exact")[seed % 10 == 9],
                "seed": seed,
                "stop": (5,) if seed % 2 else (),
                "max_new_tokens": 60,
            }
            prompts = [[1 + n] * (1 + (seed + n) % 30) for n in range(together)]
            with_guesses, without = (texts(model, prompts, **options, guessing=g) for g in (1, 0))
            if with_guesses != without:
                sys.exit(f"{name}, seed {seed}: a guess changed a text")
            done += together
        print(f"{name}: {seeds} seeds, the same", flush=True)
    return done


def watched(monkey):
    """Let `Decoder` keep every decoder it makes in a list, to read its counts afterwards."""
    made, start = [], Decoder.__init__

    def init(self, *args, **kwargs):
        start(self, *args, **kwargs)
        made.append(self)

    monkey.__init__ = init
    return made


def gain(path, made):
    """A line for each temperature."""
    saved = checkpoint.load(path)
    ids = sample.prompt_ids(saved.tokenizer, "")
    print(f"{saved.config.name} ({path.parent.name}), 4,000 tokens")
    for temperature in (0.0, 0.5, 0.8, 1.0, 1.5, 2.0):
        options = {
            "temperature": temperature,
            "max_new_tokens": 4000,
            "vocab_size": saved.tokenizer.vocab_size,
            "seed": 1,
        }
        seconds, written = {}, {}
        for guessing in (True, False, True, False):
            begin = time.perf_counter()
            written[guessing] = texts(saved, [ids], **options, guessing=guessing)
            seconds[guessing] = min(seconds.get(guessing, 1e9), time.perf_counter() - begin)
            if guessing:
                passes, rows, tokens = made[-1].memories[0].counts
        if written[True] != written[False]:
            sys.exit(f"{path}, temperature {temperature}: a guess changed the text")
        true = (tokens - passes) / max(1, rows - passes)
        print(
            f"  temperature {temperature}: {tokens / passes:.2f} tokens a pass of "
            f"{rows / passes:.2f} rows, {true:.0%} of the guesses came true, "
            f"{seconds[False] / seconds[True]:.2f} times as fast",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL")
    parser.add_argument("--seeds", type=int, default=200)
    options = parser.parse_args()
    if options.seeds:
        print(f"{equal(options.seeds):,} texts with guesses and without: all the same")
    made = watched(Decoder)
    for path in options.models:
        gain(path, made)


if __name__ == "__main__":
    main()
