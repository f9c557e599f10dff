"""The project's side: a training step, the sgemm peak, or decoding, each on request.

Started by the programs beside it:
    step CONFIG THREADS · peak THREADS · decode MODEL SEQUENCES TOKENS [plain] · prompt MODEL TOKENS
"""

import itertools
import json
import sys

import numpy as np
from workers import serve

import minitensor as mt
from tinygpt.formats import checkpoint
from tinygpt.model import drawing, sample
from tinygpt.model.config import Config
from tinygpt.model.decode import Decoder
from tinygpt.training import bench
from tinygpt.training.train import Trainer


def step(config, threads):
    """Whole steps as in a run: draw a batch, forward, backward, clip, update."""
    c = Config(**json.loads(config))
    with mt.Workers(int(threads)) as workers:
        trainer = Trainer(c, bench.random_dataset(c), workers)
        numbers = itertools.count()
        loss, _ = trainer.step(next(numbers))
        trainer.step(next(numbers))
        parameters = sum(p.data.size for p in trainer.parameters)
        serve(
            lambda: trainer.step(next(numbers))[0],
            parameters=parameters,
            loss=loss,
            flops=bench.flops_per_token(c) * c.tokens_per_step,
            tokens=c.tokens_per_step,
        )


def peak(threads):
    """GFLOP/s of matrix products."""
    with mt.Workers(int(threads)) as workers:
        serve(lambda: bench.sgemm_peak(workers, 10) / 1e9)


def opening(saved):
    """How a text begins."""
    return sample.prompt_ids(saved.tokenizer, "")


def decode(model, sequences, tokens, guessing="guessing"):
    """`tokens` tokens of each of `sequences` texts, as `tinygpt generate` draws them."""
    saved = checkpoint.load(model)
    prompts = [opening(saved)] * int(sequences)
    options = {
        "max_new_tokens": int(tokens),
        "vocab_size": saved.tokenizer.vocab_size,
        "guessing": guessing == "guessing",
    }

    def work():
        return sum(1 for _ in sample.generate_many(saved, prompts, **options))

    sample.sample_text(saved, saved.tokenizer, max_new_tokens=40)
    serve(work)


def prompt(model, tokens):
    """A prompt of so many tokens to the first token after it, 20 times."""
    saved = checkpoint.load(model)
    ids = [*opening(saved), *range(int(tokens))][: int(tokens)]
    decoder = Decoder(saved, threads=1)
    u = np.array([0.5])

    def work():
        for _ in range(20):
            decoder.window[0] = []
            drawing.choose(decoder.feed([ids]), 0.8, 200, 1.0, u)

    work()
    serve(work)


if __name__ == "__main__":
    {"step": step, "peak": peak, "decode": decode, "prompt": prompt}[sys.argv[1]](*sys.argv[2:])
