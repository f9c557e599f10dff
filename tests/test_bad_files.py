"""Files that are nearly right: the short form of benchmarks/bad_files.py, and what it has found."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import sys
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOUND = json.loads((ROOT / "tests" / "bad_files.json").read_text(encoding="utf-8"))

posix = pytest.mark.skipif(os.name != "posix", reason="children are forked and limited")


@pytest.fixture(scope="module")
def bad_files():
    spec = importlib.util.spec_from_file_location("bad_files", ROOT / "benchmarks/bad_files.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bad_files"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["bad_files"]


NAMES = (
    "model",
    "checkpoint",
    "prepared",
    "config.json",
    "config.toml",
    "config.yaml",
    "tokenizer",
    "huggingface",
    "gpt2",
    "tiktoken",
    "llama2c",
    "run",
    "json lines",
    "llama2c model",
)


@pytest.mark.mostly_slow
@posix
@pytest.mark.parametrize("name", NAMES)
def test_a_changed_file_loads_or_is_refused(bad_files, name):
    counts, findings = bad_files.run(name, seed=0, numbers=range(40))
    assert not findings
    assert counts["refused"] > 5 and counts.total() == 40


def test_every_reader_is_tried(bad_files):
    optional = {"safetensors", "hf model"} if importlib.util.find_spec("safetensors") else set()
    assert set(bad_files.READERS) == set(NAMES) | optional


@pytest.mark.mostly_slow
@posix
@pytest.mark.parametrize("name", ["safetensors", "hf model"])
def test_a_changed_file_of_others_loads_or_is_refused(bad_files, name):
    pytest.importorskip("safetensors")
    assert not bad_files.run(name, seed=0, numbers=range(40))[1]


@pytest.mark.slow
@pytest.mark.parametrize("case", FOUND, ids=lambda case: f"{case['reader']}: {case['was']}")
def test_what_was_found_is_told_now(bad_files, tmp_path, case):
    """Files that readers once took, or ended on with what `was` says, before they were strict."""
    packed = case["files"].items()
    files = {name: zlib.decompress(base64.b85decode(data)) for name, data in packed}
    reader = bad_files.READERS[case["reader"]]
    bad_files.put(files, tmp_path / reader.name)
    result, message = bad_files.attempt(reader, tmp_path / reader.name)
    assert result == "refused", message


@pytest.mark.slow
@posix
@pytest.mark.parametrize(
    ("read", "finding"),
    [
        (lambda path: {}[0], "KeyError"),
        (lambda path: bytearray(1 << 30), "MemoryError"),
        (lambda path: os.kill(os.getpid(), 11), "died"),
        (lambda path: any(i < 0 for i in iter(int, 1)), "died"),
        (lambda path: sum(range(10**7)), "slow"),
    ],
    ids=["error", "memory", "crash", "hang", "slow"],
)
def test_what_a_reader_may_not_do_is_found(bad_files, monkeypatch, read, finding):
    sound = bad_files.READERS["config.json"]
    monkeypatch.setitem(
        bad_files.READERS,
        "config.json",
        bad_files.Reader(sound.name, sound.seeds, sound.change, read),
    )
    monkeypatch.setattr(bad_files, "PATIENCE", 1.0 if finding == "died" else 60.0)
    monkeypatch.setattr(bad_files, "SECONDS", 0.01 if finding == "slow" else 2.0)
    counts, findings = bad_files.run("config.json", seed=0, numbers=range(2))
    assert [result for _, result, _ in findings] == [finding] * 2
    assert counts[finding] == 2
