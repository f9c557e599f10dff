"""`tinygpt bench` and `tinygpt profile`: that they count right, never how fast they are."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import minitensor as mt
from tinygpt.cli import main
from tinygpt.model import recipes
from tinygpt.training import bench, profile
from tinygpt.training.report import memory
from tinygpt.training.train import Trainer


def test_a_pinv_step_is_about_45_gflop():
    c = recipes.get("pinv-0.8m")
    assert bench.flops_per_token(c) * c.tokens_per_step == pytest.approx(45e9, rel=0.05)


def test_a_window_counts_only_the_keys_that_are_seen(tiny):
    narrow = bench.flops_per_token(tiny.replace(windows=(4,)))
    keys = np.arange(1, 17).mean() - np.minimum(np.arange(1, 17), 4).mean()
    assert bench.flops_per_token(tiny) - narrow == pytest.approx(12 * 2 * keys * 16)


@pytest.mark.parametrize(
    ("op", "forward", "backward"),
    [("linear", 2 * 6 * 4 * 5, 4 * 6 * 4 * 5), ("linear_cross_entropy", 6 * 6 * 4 * 5, 0)],
)
def test_operations_of_one_product(op, forward, backward):
    """x (6, 4) times the transpose of a weight (5, 4), with a bias (5,)."""
    x, w, b = np.zeros((6, 4)), np.zeros((5, 4)), np.zeros(5)
    assert profile.flops(op, "forward", [x, w, b], np.zeros((6, 5))) == forward
    assert profile.flops(op, "backward", [x, w, b], np.zeros((6, 5))) == backward


def test_a_timed_step_is_one_batch_of_bounded_size():
    c = bench.one_batch(recipes.get("neo-41m"))
    assert c.accumulation == 1
    assert c.tokens_per_step <= bench.LARGEST


@pytest.mark.slow
def test_the_command_prints_a_row_for_each_thread_count(tiny, monkeypatch, capsys):
    monkeypatch.setitem(recipes.RECIPES, "tiny", tiny)
    monkeypatch.setattr(bench, "SIDE", 16)
    assert main(["bench", "tiny", "--threads", "1", "2", "--steps", "1"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [row[:3] for row in rows] == [["tiny", "1", "64"], ["tiny", "2", "64"]]


def test_a_thread_count_below_one_is_a_wrong_call(capsys):
    assert main(["bench", "quick", "--threads", "0"]) == 2
    assert "--threads" in capsys.readouterr().err


def test_the_profile_counts_what_the_formula_says(tiny, capsys):
    c = tiny.replace(dropout=0.0, head="tied", shard_tokens=64)
    with mt.Workers(1) as workers:
        trainer = Trainer(c, bench.random_dataset(c), workers)
        costs, _ = profile.measure(trainer, 2)
        profile.profile(trainer, 1)
    counted = sum(cost.flops for cost in costs.values())
    assert counted == pytest.approx(2 * c.tokens_per_step * bench.flops_per_token(c))
    assert costs["feed_forward_sublayer", "forward"].calls == 2 * 2  # steps x layers
    told = capsys.readouterr().out
    assert told.startswith("1 step on one thread, ") and "everything else" in told
    assert max(map(len, told.splitlines())) <= 80


def test_the_estimate_of_memory_is_near_what_was_measured(monkeypatch):
    monkeypatch.setenv("MINITENSOR_KERNELS", "numba")
    page = Path(__file__).parents[2] / "benchmarks" / "README.md"
    rows = re.findall(r"(?m)^\| `([\w.-]+)` \| ([\d,]+) MB \|", page.read_text(encoding="utf-8"))
    measured = {name: int(mb.replace(",", "")) for name, mb in rows if name in recipes.RECIPES}
    del measured["neo-41m"]  # measured with fewer tokens a step
    assert len(measured) >= 4
    for name, megabytes in measured.items():
        estimate = memory(bench.one_batch(recipes.get(name)), threads=2) / 1e6
        assert megabytes / 1.15 < estimate < megabytes * 1.3, name
