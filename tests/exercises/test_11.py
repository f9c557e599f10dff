"""Solutions to the exercises of examples/11_from_python.py."""

import numpy as np
import pytest

import tinygpt


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYGPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def run(example, tmp_path_factory):
    """A run of a few steps."""
    return example.train(tmp_path_factory.mktemp("run"), 2, threads=1, eval_batches=1)


def surprise(model, text):
    """-ln p of each token of `text` but the first, given those before: (T - 1,)."""
    ids = model.ids(text)[0]
    scores = model.logits(text)[:-1].astype(np.float64)  # what each position says of the next
    scores -= scores.max(axis=1, keepdims=True)
    log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return -log_p[np.arange(len(ids) - 1), ids[1:]]


@pytest.mark.slow
def test_1_surprise(run):
    text = "Once upon a time there was a cat."
    model = run.model
    assert len(surprise(model, text)) == len(model.tokens(text)) - 1
    assert surprise(model, text).mean() == pytest.approx(model.loss(text)["loss"], rel=1e-5)


def patience(most):
    """A callback that stops once the validation loss has not fallen `most` times running."""
    best, waited = np.inf, 0

    def callback(record):
        nonlocal best, waited
        if "valid_loss" in record:
            waited = 0 if record["valid_loss"] < best else waited + 1
            best = min(best, record["valid_loss"])
        return waited >= most

    return callback


@pytest.mark.slow
def test_2_stop_early(example, tmp_path):
    stop = patience(2)
    assert [stop({"valid_loss": loss}) for loss in (3.0, 2.0, 2.1, 1.9, 1.9, 2.5)] == [
        False, False, False, False, False, True,
    ]  # fmt: skip
    # A rate of 0 changes nothing, so no validation is better than the first.
    settings = {"threads": 1, "lr": 0.0, "weight_decay": 0.0, "eval_batches": 1}
    small = {**example.SMALL, "eval_interval": 1}
    run = tinygpt.train(
        "quick", out=tmp_path, max_iters=50, callback=patience(2), **small, **settings
    )
    assert len(run.log.valid_loss) == 3 and len(run.log.loss) == 3


def looks_back(weights):
    """For attention (L, H, T, T), how much each head looks at the token just before: (L, H)."""
    return np.diagonal(weights, offset=-1, axis1=2, axis2=3).mean(-1)


@pytest.mark.slow
def test_3_the_head_that_looks_back(run):
    model = run.model
    share = looks_back(model.attention("Once upon a time there was a cat."))
    assert share.shape == (model.config.n_layer, model.config.n_head)
    layer, head = np.unravel_index(np.argmax(share), share.shape)
    assert share[layer, head] == share.max()
    # A head that looks at nothing else has a share of 1, one that looks evenly far less.
    T = 6
    back = np.eye(T, k=-1) + np.eye(T) * (np.arange(T) == 0)
    even = np.tril(np.ones((T, T))) / np.arange(1, T + 1)[:, None]
    assert looks_back(back[None, None])[0, 0] == 1 and looks_back(even[None, None])[0, 0] < 0.4
