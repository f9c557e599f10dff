"""A character model of the embedded stories: from counting to a network that beats counting.

A language model gives every possible next character a probability; its loss is the mean of
−ln(probability of the one that came), and e to the loss is the number of equally likely characters
that it hesitates between. You will measure three: how often each character comes at all, how often
it comes after the one before it (both by counting), and a small network that looks at the last
eight (Bengio et al., 2003). Then the network writes.

Run it with `python examples/06_character_model.py`.

Exercises (solutions in tests/exercises/test_06.py):

1. Count triples: how often each character came after the two before it. How far does that get?
2. Give `write` a temperature: probabilities proportional to p to the power 1 / temperature. What
   does it write near 0?
"""

import math

import numpy as np

import minitensor as mt
from minitensor import nn
from tinygpt.data import stories

CONTEXT = 8  # characters that the network sees


def windows(ids):
    """Every CONTEXT characters (n, CONTEXT) and the one that follows (n,)."""
    view = np.lib.stride_tricks.sliding_window_view(ids, CONTEXT + 1)
    return view[:, :-1], view[:, -1]


def counted(train, valid, size):
    """Losses on `valid` of the models that count: single characters, and pairs."""
    single = np.bincount(train, minlength=size) + 1.0  # one more: nothing is impossible
    pairs = np.ones((size, size))
    np.add.at(pairs, (train[:-1], train[1:]), 1)  # pairs[a, b]: how often b came after a
    single /= single.sum()
    pairs /= pairs.sum(axis=1, keepdims=True)
    return -np.log(single[valid]).mean(), -np.log(pairs[valid[:-1], valid[1:]]).mean()


class Network(nn.Module):
    """Eight characters as vectors, side by side, through one hidden layer to a score for each."""

    def __init__(self, size, width, hidden, rng):
        self.embedding = nn.Embedding(size, width, rng=rng)
        self.hidden = nn.Linear(CONTEXT * width, hidden, rng=rng)
        self.out = nn.Linear(hidden, size, rng=rng)

    def forward(self, ids):  # (n, CONTEXT)
        x = self.embedding(ids)  # (n, CONTEXT, width)
        x = x.reshape(len(ids), -1)  # (n, CONTEXT · width)
        return self.out(mt.relu(self.hidden(x)))  # (n, size): scores, "logits"


def train_network(network, x, y, rng, steps=1200):
    """Draw 256 places a step, and go down the gradient of their mean loss."""
    optimizer = mt.optim.AdamW(network.parameters(), lr=0)
    for step in range(steps):
        chosen = rng.integers(len(x), size=256)
        loss = mt.cross_entropy(network(x[chosen]), y[chosen])
        network.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = mt.optim.cosine(step, lr=1e-2, warmup=50, total=steps)
        optimizer.step()
        if step % 300 == 0:
            print(f"step {step:4}: loss {loss.item():.3f}")


def write(network, characters, start, length, rng):
    """Draw one character after the other, each from the probabilities that the network gives."""
    ids = [characters.index(c) for c in start]
    with mt.no_grad():
        for _ in range(length):
            p = mt.softmax(network(np.array([ids[-CONTEXT:]]))).data[0].astype(float)
            ids.append(rng.choice(len(p), p=p / p.sum()))
    return "".join(characters[i] for i in ids)


def main():
    rng = np.random.default_rng(0)
    text = {
        split: "\n\n".join(stories.corpus(n, split=split))
        for split, n in (("train", 400), ("valid", 40))
    }
    characters = sorted(set(text["train"] + text["valid"]))
    size, number = len(characters), {c: i for i, c in enumerate(characters)}
    train, valid = (np.array([number[c] for c in text[split]]) for split in ("train", "valid"))
    print(f"{len(train):,} characters to learn from, {size} different ones")

    losses = {"a guess": math.log(size)}
    losses["single"], losses["pairs"] = counted(train, valid, size)

    network = Network(size, width=16, hidden=256, rng=rng)
    x, y = windows(train)
    x_valid, y_valid = windows(valid)
    with mt.Workers(1):  # products as small as these are done sooner by one thread than by many
        train_network(network, x, y, rng)
    with mt.no_grad():
        losses["network"] = mt.cross_entropy(network(x_valid), y_valid).item()

    print("\nloss on stories not seen before, and e to the loss")
    for name, loss in losses.items():
        print(f"{name:8} {loss:.3f} {math.exp(loss):6.1f}")
    assert losses["network"] < 0.4 * losses["pairs"] < losses["single"] < losses["a guess"]
    print("\nit writes:\n" + write(network, characters, "Once upon a time", 300, rng))


if __name__ == "__main__":
    main()
