"""The copying warm-up: its rows, and that a run with it has the same bits whatever happens."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest

import minitensor as mt
from tinygpt import cli
from tinygpt.data import copying, streams
from tinygpt.formats import checkpoint
from tinygpt.model import config, recipes
from tinygpt.run import Run
from tinygpt.training import finetune, train
from tinygpt.training.report import plan

WARM = 4


@pytest.fixture
def warm(tiny):
    """The tiny model with a short warm-up; its numbers are not 0, as dropout and Muon are on."""
    return tiny.replace(warmup_copy=WARM, optimizer="muon", checkpoint_interval=0)


def run(c: config.Config, out: Path, *options: str) -> int:
    file = out.with_suffix(".json")
    config.save(c, file)
    return cli.main(["train", "--config", str(file), "--out", str(out), "--debug", *options])


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]


# ------------------------------------------------------------------------------------ its rows


def test_a_row_repeats_and_only_what_can_be_known_is_predicted():
    ids, targets = copying.batch(seed=3, step=-5, vocab_size=1000, context=256)
    assert ids.shape == targets.shape == (copying.ROWS, copying.LENGTH)
    periods = []
    for row, wanted in zip(ids, targets, strict=True):
        whole = np.append(row, wanted[-1])
        period = next(p for p in range(1, len(whole)) if (whole[p:] == whole[:-p]).all())
        periods.append(period)
        asked = wanted != copying.IGNORE
        assert (wanted[asked] == whole[1:][asked]).all()
        assert not asked[:period].any() and asked[period:].all()
        known = [tuple(whole[i : i + 2]) for i in range(period)]  # a look back tells all of them
        assert all(tuple(whole[i : i + 2]) in known for i in np.flatnonzero(asked))
    assert min(periods) == copying.PERIODS[0] and max(periods) == copying.PERIODS[1]


def test_rows_depend_on_seed_and_step_alone():
    first = copying.batch(1, -1, 50, 16)
    assert all(map(np.array_equal, first, copying.batch(1, -1, 50, 16)))
    assert first[0].shape[1] == 16  # no longer than the context
    for seed, step in ((2, -1), (1, -2)):
        assert not np.array_equal(first[0], copying.batch(seed, step, 50, 16)[0])
    assert first[0].max() < 50


# ------------------------------------------------------------------------------- the same bits


@pytest.mark.slow
@pytest.mark.mostly_slow
@pytest.mark.parametrize("at", [-WARM, -2, -1, 2])
def test_a_run_stopped_in_its_warm_up_goes_on_with_the_same_bits(warm, tmp_path, at):
    run(warm, tmp_path / "whole", "--threads", "1")
    plain = train.Trainer.step

    def step(self, number):
        if number == at:
            signal.raise_signal(signal.SIGINT)
        return plain(self, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Trainer, "step", step)
        assert run(warm, tmp_path / "cut", "--threads", "3") == 130
    saved = checkpoint.load(tmp_path / "cut" / "checkpoint.npz")
    assert saved.training["step"] == at + 1
    assert cli.main(["train", "--resume", "--out", str(tmp_path / "cut"), "--threads", "2"]) == 0
    for name in ("model.npz", "best.npz", "samples.txt"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    logs = [
        [{k: v for k, v in r.items() if k != "seconds"} for r in records(out) if "event" not in r]
        for out in (tmp_path / "whole", tmp_path / "cut")
    ]
    assert logs[0] == logs[1]


def test_the_warm_up_leaves_the_steps_on_the_text_as_they_are(warm, tiny):
    dataset = streams.load(tiny)
    with mt.Workers(1) as workers:
        one, other = (train.Trainer(c, dataset, workers) for c in (warm, tiny))
        for step in (0, 5):
            assert all(map(np.array_equal, one.batch(step)[0], other.batch(step)[0]))
            assert one.lr(step) == other.lr(step)
        assert one.lr(-WARM) == 0 < one.lr(-1) == warm.lr * (WARM - 1) / copying.RISE


def test_its_loss_is_the_mean_over_what_is_predicted(warm):
    c = warm.replace(dropout=0.0)
    with mt.Workers(1) as workers:
        trainer = train.Trainer(c, streams.load(c), workers)
        loss, _ = trainer.gradients(-1)
        ids, targets = copying.batch(c.seed, -1, c.vocab_size, c.context)
        logits = trainer.model(ids).data.astype(np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    asked = targets != copying.IGNORE
    wanted = -np.take_along_axis(logp, np.where(asked, targets, 0)[..., None], -1)[..., 0]
    np.testing.assert_allclose(loss, wanted[asked].mean(), rtol=1e-5)


# --------------------------------------------------------------------------------- what is told


@pytest.mark.slow
def test_its_loss_is_told_apart_from_that_of_the_text(warm, tmp_path, capsys):
    run(warm, tmp_path / "run")
    log = records(tmp_path / "run")
    assert log[0] == {**log[0], "event": "start", "step": -WARM}
    assert [r["step"] for r in log if "copy_loss" in r] == list(range(-WARM, 0))
    assert [r["step"] for r in log if "loss" in r] == list(range(warm.max_iters))
    assert all(r["tokens"] == 0 for r in log if "copy_loss" in r)
    assert Run(tmp_path / "run").log.steps[0] == 0
    told = capsys.readouterr().err
    assert "first 4 steps of 512 random tokens that repeat" in told
    assert f"{warm.max_iters} of {warm.max_iters} steps" in told


def test_the_plan_and_the_times_know_of_it(warm):
    c = recipes.get("mini-1m")
    assert recipes.work(c) == c.max_iters
    longer = c.replace(warmup_copy=400)
    assert recipes.work(longer) == c.max_iters + 400 * copying.tokens(c.context) / c.tokens_per_step
    assert recipes.is_recipe(longer)
    dataset = streams.load(warm)
    lines = plan(warm, dataset, 1, Path("run"))
    assert [line for line in lines if line.startswith("first 4 steps")]
    on = plan(warm, dataset, 1, Path("run"), step=2)
    assert not [line for line in on if line.startswith("first")]
    assert any(" steps (2 of them done) of " in line for line in on)
    assert not [line for line in plan(c, dataset, 1, Path("run")) if line.startswith("first")]


def test_a_run_shorter_than_the_warm_up_leaves_it_out():
    base = recipes.get("quick").replace(warmup_copy=300)
    assert recipes.lay(base, {}).warmup_copy == 300
    assert recipes.lay(base, {"max_iters": "20"}).warmup_copy == 0
    assert recipes.lay(base, {"max_iters": 300}).warmup_copy == 300
    assert recipes.lay(base, {"max_iters": 2000}).warmup_copy == 300
    assert recipes.lay(base, {"max_iters": 20, "warmup-copy": 90}).warmup_copy == 90


def test_a_model_that_knows_something_is_not_warmed_up_again(warm, tiny):
    saved = checkpoint.Saved(warm, streams.load(warm).tokenizer, {}, {})
    assert finetune.configuration(saved, {}).warmup_copy == 0
    assert finetune.configuration(saved, {"warmup_copy": 3}).warmup_copy == 3
    assert tiny.warmup_copy == 0
