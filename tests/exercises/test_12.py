"""Solutions to the exercises of examples/12_lesson.ipynb, on the lesson's own code."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

import bpe
import minitensor as mt
from tinygpt.data import stories

NOTEBOOK = Path(__file__).parents[2] / "examples" / "12_lesson.ipynb"


@pytest.fixture
def example():
    """What the lesson's cells with the given definitions define, as a function of these."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]

    def defined(*definitions):
        names = {"math": math, "np": np, "mt": mt, "rng": np.random.default_rng(0)}
        for definition in definitions:
            (source,) = [source for source in sources if definition in source]
            exec(source, names)
        return names

    return defined


def test_1_relu(example):
    names = example("class Value", "def backward")
    Value, backward = names["Value"], names["backward"]

    def relu(self):
        return Value(max(self.number, 0.0), [(self, 1.0 if self.number > 0 else 0.0)])

    Value.relu = relu
    for x, expected in ((2.0, 3.0), (-2.0, 0.0)):
        value = Value(x)
        backward(value.relu() * Value(3.0))
        assert value.grad == expected
    # At 0 the slope is 0 from the left and 1 from the right: any number between them will do, and
    # whoever takes one must take the same each time. Here, as in minitensor, it is 0.
    zero = mt.Tensor(0.0, requires_grad=True)
    mt.relu(zero).backward()
    value = Value(0.0)
    backward(value.relu())
    assert zero.grad == value.grad == 0


@pytest.mark.slow
@pytest.mark.parametrize(("size", "learned"), [(1.0, True), (0.0, False)])
def test_2_a_hidden_layer(size, learned):
    inputs = mt.Tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    answers = [0.0, 1.0, 1.0, 0.0]
    rng = np.random.default_rng(0)
    W, b = (mt.Tensor(size * rng.normal(size=s), requires_grad=True) for s in ((2, 4), 4))
    w, c = (mt.Tensor(size * rng.normal(size=s), requires_grad=True) for s in (4, 1))
    for _ in range(500):
        logits = mt.tanh(inputs @ W + b) @ w + c  # (4,)
        loss = mt.binary_cross_entropy_with_logits(logits, answers)
        for p in (W, b, w, c):
            p.grad = None
        loss.backward()
        with mt.no_grad():
            for p in (W, b, w, c):
                p -= 0.5 * p.grad
    right = ((logits.data > 0) == np.array(answers)).all()
    assert bool(right and loss.item() < 0.1) == learned
    # From zeros nothing moves: each gradient is a product with a weight or an activation of 0.
    assert learned or (not W.data.any() and not w.data.any())


def test_3_surprise():
    half = -math.log(1 / 2)
    assert math.isclose(half, math.log(2))
    certain = 0.999 * -math.log(1) + 0.001 * -math.log(1e-9)
    assert round(certain, 4) == 0.0207  # a thousandth of 20.7: being sure and wrong is dear
    logits = np.full((1, 1024), -math.log(1023.0))
    logits[0, 7] = 0.0  # the right one weighs as much as all the others together
    assert math.isclose(mt.cross_entropy(logits, [7]).item(), half, rel_tol=1e-6)


def test_4_an_induction_head(example):
    names = example("def attention")
    text = "abracadabra"
    letters = sorted(set(text))
    one_hot = 6.0 * np.eye(len(letters))[[letters.index(ch) for ch in text]]
    keys = np.zeros_like(one_hot)
    keys[1:] = one_hot[:-1]  # a token is found by the letter before it
    _, weights = names["attention"](mt.Tensor(one_hot), mt.Tensor(keys), mt.Tensor(one_hot))
    last = weights.data[-1]
    after = [j + 1 for j, ch in enumerate(text[:-1]) if ch == "a"]
    assert [text[j] for j in after] == ["b", "c", "d", "b"]
    assert np.allclose(last[after], 0.25, atol=1e-3)
    assert last[after].sum() > 0.999


@pytest.mark.slow
def test_5_bytes_per_token():
    tales = list(stories.corpus(400))
    unseen = "\n".join(stories.corpus(50, seed=1, split="valid"))
    sizes = []
    for vocab_size in (256, 300, 512, 1024):
        tokenizer = bpe.train(tales, vocab_size, special_tokens=())
        sizes.append(len(unseen.encode()) / len(tokenizer.encode(unseen)))
    assert np.allclose(sizes, [1, 1.51, 2.47, 3.60], atol=0.01)
    # What is paid: a row of the embedding and one of the head for each token, each seen less often.
