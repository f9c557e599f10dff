"""Worker processes: from a script without a guard, and when something goes wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

import bpe
from bpe.training import chunk_counter
from bpe.workers import imap


@pytest.mark.slow
def test_a_script_without_a_main_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import bpe\n"
        "texts = ['hello hello world'] * 50\n"
        "tokenizer = bpe.train(texts, 260, processes=2)\n"
        "print(tokenizer.encode_batch(texts, processes=2) == tokenizer.encode_batch(texts))\n",
        encoding="utf-8",
    )
    root = str(Path(bpe.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(script)], cwd=root, capture_output=True, text=True, timeout=60,
        env={"PYTHONPATH": root, "SYSTEMROOT": ""},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.slow
def test_an_error_in_a_worker_comes_through():
    characters = bpe.CharTokenizer("abc", control_tokens=False)
    assert characters.encode_batch(["abc"] * 5, processes=2) == [[0, 1, 2]] * 5
    with pytest.raises(bpe.TokenizerError, match=r"'d' .* is not among the 3 characters"):
        characters.encode_batch(["abc", "abcd"], processes=2)


def test_jobs_are_drawn_as_they_are_needed_and_workers_end():
    drawn = []

    def endless():
        while True:
            drawn.append(1)
            yield ["a b"]

    counts = imap(chunk_counter, ("gpt2",), endless(), 2)
    assert next(counts) == {"a": 1, " b": 1}
    counts.close()
    assert len(drawn) <= 5


def test_a_worker_that_dies():
    with pytest.raises(bpe.TokenizerError, match="a worker process ended before its work was done"):
        list(imap(exit, (), ["job"], 2))
