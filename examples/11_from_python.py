"""tinygpt from Python: train a run, look at its log, load its model, write, and look inside.

What the commands do, as functions: `tinygpt.train` makes a run folder, shows its progress, and
gives each record of the log to a callback; `tinygpt.load` reads a run folder, a model file, or a
folder of Hugging Face. The model takes text and gives text, or arrays: scores of the next token,
final states, attention. You will see a loss fall, the likeliest next tokens, and which token each
head looks at.

Run it with `python examples/11_from_python.py`; `--steps 2000` gives a model that tells more than
this one; `--out DIR` keeps the run (`tinygpt generate DIR` reads it).

Exercises (solutions in tests/exercises/test_11.py):

1. From `logits`, compute how surprising each token of a text is, in nats. Is the mean the model's
   `loss` of this text?
2. Write a callback that stops a run once the validation loss has not fallen for two validations.
3. Which head looks most at the token just before? Measure it with `attention`.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

import tinygpt

# The default recipe, made small enough for a few seconds.
SMALL = {
    "vocab_size": 400,
    "context": 64,
    "n_layer": 2,
    "d_model": 64,
    "d_ff": 128,
    "batch_size": 12,
    "max_documents": 600,
    "eval_interval": 75,
    "sample_interval": 0,
}
PROMPT = "Once upon a time, there was a little"


def train(out, steps, callback=None, **settings):
    """A small run in the folder `out`."""
    return tinygpt.train("quick", out=out, max_iters=steps, callback=callback, **SMALL, **settings)


def likeliest(model, text, count=5):
    """The `count` likeliest tokens after `text`, with their probabilities."""
    scores = model.logits(text)[-1].astype(np.float64)  # (V,), of what comes after the last token
    p = np.exp(scores - scores.max())
    p /= p.sum()
    return [(model.tokenizer.decode([int(i)]), p[i]) for i in np.argsort(-p)[:count]]


def strongest(model, text):
    """For each layer and head: what the last token looks at most, and with which weight."""
    weights, tokens = model.attention(text), model.tokens(text)  # (L, H, T, T); T texts
    last = weights[:, :, -1]  # (L, H, T)
    return [[(tokens[int(np.argmax(head))], float(head.max())) for head in layer] for layer in last]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="training steps (default: 300)")
    parser.add_argument("--out", type=Path, help="folder of the run (default: temporary)")
    args = parser.parse_args()
    out = args.out or Path(tempfile.mkdtemp(prefix="tinygpt-")) / "run"

    # A callback sees each record of the log while the run goes on.
    seen = []
    run = train(out, args.steps, callback=lambda record: seen.append(record.get("valid_loss")))
    print(run)
    print(f"the callback saw {sum(loss is not None for loss in seen)} validations")

    # The log as arrays, for a plot or a table.
    log = run.log
    for step, loss, bits in zip(
        log.valid_steps, log.valid_loss, log.valid_bits_per_byte, strict=True
    ):
        print(f"step {step:4.0f}: validation loss {loss:.3f}, {bits:.3f} bits per byte")
    assert log.valid_loss[-1] < log.valid_loss[0] - 1

    # The model: text in, text out. The same seed gives the same text.
    model = tinygpt.load(out)
    print(model)
    text = model.generate(PROMPT, max_new_tokens=60, temperature=0.7, seed=1)
    print(f"it writes:\n\n{text}\n")
    assert text == model.generate(PROMPT, max_new_tokens=60, temperature=0.7, seed=1)

    # And arrays: what it expects next, and what it looks at to tell.
    expected = ", ".join(f"{token!r} {p:.0%}" for token, p in likeliest(model, PROMPT))
    print(f"after {PROMPT!r} it expects {expected}")
    for i, heads in enumerate(strongest(model, PROMPT)):
        seen_most = ", ".join(f"{token!r} {weight:.0%}" for token, weight in heads)
        print(f"layer {i}: the heads look most at {seen_most}")
    weights = model.attention(PROMPT)
    print(f"attention {weights.shape}: every row sums to 1: {np.allclose(weights.sum(-1), 1)}")
    assert np.allclose(weights.sum(-1), 1, atol=1e-5)

    # A file that is whole: weights, configuration, tokenizer.
    model.save(out / "copy.npz")
    print(f"saved to {out / 'copy.npz'}")


if __name__ == "__main__":
    main()
