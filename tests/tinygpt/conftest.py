"""What the tests of tinygpt share: a model of a few thousand parameters, and a cache of its own."""

from __future__ import annotations

import pytest

from tinygpt.model.config import Config


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYGPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def tiny() -> Config:
    """A llama-style model that takes a step in milliseconds, on characters of forty stories."""
    return Config(
        name="tiny",
        vocab_size=80,
        context=16,
        n_layer=2,
        n_head=2,
        d_model=16,
        d_ff=24,
        norm="rms",
        positions="rope",
        ffn="swiglu",
        gate_bias=True,
        qkv_bias=False,
        out_bias=False,
        ffn_bias=False,
        head="pinv",
        dropout=0.1,
        init="llama2c",
        tokenizer="char",
        lr=3e-3,
        warmup=2,
        max_iters=6,
        batch_size=4,
        shard_tokens=32,
        max_documents=40,
        eval_interval=3,
        eval_batches=2,
        sample_interval=3,
        checkpoint_interval=2,
        seed=1,
    )
