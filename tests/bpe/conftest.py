import runpy
from pathlib import Path

import pytest

import bpe

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def naive_bpe():
    """The trainer of the example, which counts everything again after each merge."""
    return runpy.run_path(str(ROOT / "examples" / "07_train_a_bpe.py"))["naive_bpe"]


@pytest.fixture(scope="session")
def sample():
    """A text of stories, code, numbers, blanks and many scripts."""
    return (DATA / "sample.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def tokenizer(sample):
    return bpe.train([sample], 600, special_tokens=["<|endoftext|>", "<|end|>", "<|end|><|of|>"])
