"""A tiny GPT from text to stories, with the library's own parts: what `tinygpt train` does, in the
open.

Text becomes tokens, tokens become batches; a step cuts its batch into shards, which threads take,
and adds up their gradients in an order that does not depend on the threads; AdamW follows them.
Then the model is saved, loaded again, and writes. You will see the loss fall from ln(vocabulary),
and that one thread and two give the same weights to the last bit.

Run it with `python examples/10_train_and_generate.py`; `--steps 600` gives a model that tells more
than this one; `--out DIR` keeps it (`tinygpt generate DIR/model.npz` reads it).

Exercises (solutions in tests/exercises/test_10.py):

1. Turn the loss per token into bits per byte of text. What is it if every token is equally likely?
2. Compute the gradient of a batch in two halves and add them up. Is it the gradient of the whole?
"""

import argparse
import math
import tempfile
import time
from pathlib import Path

import numpy as np

import bpe
import minitensor as mt
from tinygpt.data import documents, stories, streams
from tinygpt.formats import checkpoint
from tinygpt.model.config import Config
from tinygpt.model.sample import sample_text
from tinygpt.model.transformer import GPT, count

CONFIG = Config(
    name="example",
    vocab_size=400,
    context=64,
    n_layer=2,
    n_head=4,
    d_model=64,
    d_ff=160,
    norm="rms",
    norm_bias=False,
    positions="rope",
    ffn="swiglu",
    qkv_bias=False,
    out_bias=False,
    ffn_bias=False,
    head="untied",
    lr=8e-3,
    min_lr=4e-4,
    warmup=10,
    batch_size=16,
    beta2=0.98,
)
SHARD = 4  # sequences that a thread takes at a time


def train(c, stream, steps, threads):
    """Fit a new model to a stream of tokens; returns it and the loss of every step."""
    model, losses = GPT(c), []
    parameters = model.parameters()
    optimizer = mt.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": c.weight_decay},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=c.lr,
        betas=(c.beta1, c.beta2),
        eps=c.eps,
    )
    parameters = optimizer.parameters  # in the order of the groups

    def loss(shard, index):
        """The share of one shard in the mean loss; `index` would be part of a dropout key."""
        return model.loss(shard[:, :-1], shard[:, 1:]) * (1 / c.tokens_per_step)

    with mt.Workers(threads) as workers:
        for step in range(steps):
            # Where the sequences begin is a function of (seed, step): a run can be resumed.
            begin = streams.starts(c.seed, step, c.batch_size, len(stream), c.context)
            batch = streams.rows(stream, begin, c.context + 1)  # (16, 65): inputs, and one more
            shards = [batch[i : i + SHARD] for i in range(0, len(batch), SHARD)]
            value, grads = mt.value_and_grad(loss, parameters, shards, workers=workers)
            norm = mt.optim.grad_norm(grads)
            for group in optimizer.param_groups:
                group["lr"] = mt.optim.cosine(
                    step, lr=c.lr, min_lr=c.min_lr, warmup=c.warmup, total=steps
                )
            optimizer.step(grads, scale=min(1.0, c.grad_clip / norm), workers=workers)
            losses.append(value)
    return model, losses


def validation_loss(model, stream):
    """Mean loss over the whole of a stream, in windows of one context that do not overlap."""
    c = model.config
    begin = streams.even_starts(64, len(stream), c.context)
    rows = streams.rows(stream, begin, c.context + 1)
    with mt.no_grad():
        return model.loss(rows[:, :-1], rows[:, 1:]).item() / (len(rows) * c.context)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120, help="training steps (default: 120)")
    parser.add_argument("--out", type=Path, help="folder for the model (default: temporary)")
    args = parser.parse_args()

    # Text to tokens: stories, a vocabulary learned from them, one stream for each split.
    docs = {
        split: list(stories.corpus(n, split=split)) for split, n in (("train", 600), ("valid", 60))
    }
    tokenizer = bpe.train(docs["train"], CONFIG.vocab_size)
    stream = {split: documents.encode_documents(tokenizer, docs[split]) for split in docs}
    c = CONFIG.replace(max_iters=args.steps)
    print(
        f"{len(docs['train'])} stories are {len(stream['train']):,} tokens; for example "
        f"{[tokenizer.decode([i]) for i in stream['train'][1:9]]}"
    )
    print(f"{sum(count(c)):,} parameters, {c.tokens_per_step:,} tokens a step")

    start = time.perf_counter()
    model, losses = train(c, stream["train"], args.steps, threads=2)
    seconds = time.perf_counter() - start
    print(f"{args.steps} steps in {seconds:.1f} s")
    print(
        f"loss {losses[0]:.3f} at first (ln {c.vocab_size} = {math.log(c.vocab_size):.3f}), "
        f"{np.mean(losses[-10:]):.3f} at the end"
    )
    print(f"loss {validation_loss(model, stream['valid']):.3f} on stories it has not seen")
    assert abs(losses[0] - math.log(c.vocab_size)) < 0.3 and np.mean(losses[-10:]) < 2.6

    # The first steps again, with one thread: the same sums in the same order.
    again, _ = train(c.replace(max_iters=5), stream["train"], 5, threads=1)
    twice, _ = train(c.replace(max_iters=5), stream["train"], 5, threads=2)
    same = all(
        np.array_equal(a, b)
        for a, b in zip(again.state_dict().values(), twice.state_dict().values(), strict=True)
    )
    print(f"one thread and two give the same bits: {same}")
    assert same

    # A model file is whole: weights, configuration, tokenizer. Load it and write.
    out = args.out or Path(tempfile.mkdtemp(prefix="minitensor-"))
    out.mkdir(parents=True, exist_ok=True)
    checkpoint.save(
        out / "model.npz",
        checkpoint.Saved(
            c,
            tokenizer,
            model.state_dict(),
            checkpoint.provenance(c, tokenizer, args.steps, "none"),
        ),
    )
    loaded = checkpoint.load(out / "model.npz")
    print(f"saved to {out / 'model.npz'}; it writes:\n")
    text = sample_text(loaded, loaded.tokenizer, "Once upon a time", max_new_tokens=120, seed=1)
    print(text)
    assert text.startswith("Once upon a time")


if __name__ == "__main__":
    main()
