"""Kills, power cuts and failing calls, in short: the long forms are the scripts in benchmarks/."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the harnesses are for POSIX")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def harness(monkeypatch):
    """Import a script of benchmarks/ as a module; kernels are not what these tests are about."""
    monkeypatch.setenv("MINITENSOR_KERNELS", "numpy")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    for name in ("tiny_runs", "watched_files", "power_cut", "failing_calls"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_a_run_killed_anywhere_goes_on_to_the_same_bits():
    """In a process of its own: this one has threads, with which it is not to be forked."""
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "kill_anywhere.py", "pinv-0.8m", "--kills", "6"],
        env={**os.environ, "MINITENSOR_KERNELS": "numpy"},
        cwd=BENCHMARKS.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "'kills': 6, 'in a save': 2" in done.stdout


@pytest.mark.slow
def test_a_run_goes_on_after_a_power_cut(harness, tmp_path):
    power_cut, tiny = harness("power_cut"), harness("tiny_runs").tiny
    assert power_cut.cut_power(tiny("quick", steps=7), tmp_path, every=16) > 5


@pytest.mark.slow
def test_the_states_of_a_power_cut_would_show_a_missing_flush(harness, tmp_path):
    power_cut, tiny = harness("power_cut"), harness("tiny_runs").tiny
    with pytest.raises(AssertionError, match="after operation"):
        power_cut.cut_power(tiny("quick", steps=4), tmp_path, every=5, without_fsync=True)


@pytest.mark.slow
@pytest.mark.parametrize("work", ["training", "resuming", "preparing", "exporting", "importing"])
def test_a_call_that_fails_once_loses_nothing(harness, tmp_path, work):
    counts = getattr(harness("failing_calls"), work)(tmp_path, every=67, offset=3)
    assert sum(n for kind, n in counts.items() if kind != "calls in all") > 0
