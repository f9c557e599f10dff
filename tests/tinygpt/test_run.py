"""Training from Python: the bits of the command line, a callback that stops, a run as arrays."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

import tinygpt
from tinygpt import Error, UsageError, cli
from tinygpt.formats import checkpoint
from tinygpt.model import config


def params(folder):
    return checkpoint.load(folder / "model.npz").params


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.slow
def test_the_bits_are_those_of_the_command_line(tmp_path, tiny):
    config.save(tiny, tmp_path / "tiny.json")
    call = ["train", "--config", tmp_path / "tiny.json", "--out", tmp_path / "a", "--threads", 1]
    assert cli.main([str(word) for word in [*call, "--max-iters", 4, "--set", "lr=1e-3"]]) == 0
    run = tinygpt.train(tiny, out=tmp_path / "b", threads=1, max_iters=4, lr=1e-3)
    assert same(params(tmp_path / "a"), params(tmp_path / "b"))
    assert run.folder == tmp_path / "b" and run.config.lr == 1e-3


@pytest.mark.slow
def test_a_callback_sees_the_log_and_can_stop(tmp_path, tiny):
    whole = tinygpt.train(tiny, out=tmp_path / "whole", threads=1)
    seen = []

    def stop_after_two(record):
        seen.append(record)
        return "stop" if record.get("step") == 1 and "loss" in record else None

    run = tinygpt.train(tiny, out=tmp_path / "run", threads=1, callback=stop_after_two)
    assert [r["step"] for r in seen if "loss" in r] == [0, 1]
    assert seen[0]["event"] == "start" and seen[-1]["event"] == "stop"
    assert "2 of 6 steps" in repr(run)
    again = tinygpt.train(
        resume=True, out=tmp_path / "run", threads=1, callback=lambda record: np.bool_(False)
    )
    assert "6 of 6 steps" in repr(again)
    assert same(params(tmp_path / "run"), params(tmp_path / "whole"))
    np.testing.assert_array_equal(again.log.loss, whole.log.loss)


@pytest.mark.slow
def test_an_interrupt_keeps_the_run(tmp_path, tiny):
    def interrupt(record):
        if record.get("step") == 2 and "loss" in record:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    run = tinygpt.train(tiny, out=tmp_path, threads=1, callback=interrupt)
    assert checkpoint.load(tmp_path / "checkpoint.npz").training["step"] == 3
    assert run.model.provenance["step"] == 3
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_is_its_log_and_its_model(tmp_path, tiny):
    run = tinygpt.train(tiny, out=tmp_path, threads=1)
    assert run.log.steps.tolist() == [0, 1, 2, 3, 4, 5]
    assert run.log.loss.shape == run.log.lr.shape == (6,)
    assert run.log.valid_steps.tolist() == [0, 3, 6] and np.isfinite(run.log.valid_loss).all()
    assert run.model.generate("Once", max_new_tokens=5).startswith("Once")
    assert run.best.provenance["step"] == run.log.valid_steps[np.argmin(run.log.valid_loss)]
    assert "<polyline" in run._repr_html_() and "<td>6</td>" in run._repr_html_()
    assert run.model.tokenizer == tinygpt.load(tmp_path / "best.npz").tokenizer
    assert tinygpt.Run(tmp_path).log.loss.tolist() == run.log.loss.tolist()


def test_what_cannot_be_is_told(tmp_path, tiny):
    with pytest.raises(UsageError, match="unknown configuration key 'learning_rate'"):
        tinygpt.train(tiny, out=tmp_path / "a", learning_rate=1)
    with pytest.raises(UsageError, match="unknown recipe 'quack'"):
        tinygpt.train("quack")
    with pytest.raises(UsageError, match="leave out 'quick'"):
        tinygpt.train("quick", start_from="model.npz")
    with pytest.raises(UsageError, match="start_from: a run goes on with its own weights"):
        tinygpt.train(out=tmp_path / "a", resume=True, start_from="model.npz")
    with pytest.raises(UsageError, match="check: "):
        tinygpt.train("quick", check="text.txt")
    with pytest.raises(Error, match="not a run's folder"):
        tinygpt.Run(tmp_path)
    assert not list(tmp_path.iterdir())
