"""A new kind of tokenizer is one class: the rest of the package takes it without a change."""

import copy
import importlib
import pickle
import sys
from pathlib import Path

import pytest

import bpe
from bpe.base import KINDS
from bpe.cli import main

TEXT = "the cat saw the dog\nthe dog ran"
WORDS = ["cat", "dog", "ran", "saw", "the"]


@pytest.fixture
def words(monkeypatch):
    """The class of `whitespace.py`, known while the test runs."""
    before = dict(KINDS)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    yield importlib.import_module("whitespace").WordTokenizer
    KINDS.clear()
    KINDS.update(before)
    del sys.modules["whitespace"]


def test_it_trains_encodes_and_decodes(words, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    tokenizer = words.train(path)
    assert (tokenizer.kind, tokenizer.words) == ("words", WORDS)
    ids = tokenizer.encode("the dog saw a cat")
    assert ids == [5, 2, 4, 0, 1]
    assert tokenizer.decode(ids) == "the dog saw ? cat "
    assert list(tokenizer.encode_iterable(["the d", "og saw a c", "at"])) == ids
    assert tokenizer.encode_batch(["the dog", "a cat"], processes=2) == [[5, 2], [0, 1]]
    assert tokenizer.decode_with_offsets([5, 2]) == ("the dog ", [0, 4])


def test_it_is_saved_and_loaded(words, tmp_path):
    tokenizer = words.train([TEXT])
    assert tokenizer.to_dict() == {"format": "bpe", "version": 1, "kind": "words", "words": WORDS}
    tokenizer.save(tmp_path / "words.json")
    for again in (
        bpe.load(tmp_path / "words.json"),
        bpe.from_dict(tokenizer.to_dict()),
        pickle.loads(pickle.dumps(tokenizer)),
        copy.deepcopy(tokenizer),
    ):
        assert type(again) is words
        assert (again, again.sha256) == (tokenizer, tokenizer.sha256)
    with pytest.raises(bpe.TokenizerError, match="words: expected a list, got a string"):
        bpe.from_dict({**tokenizer.to_dict(), "words": "cat"})
    for format in ("huggingface", "gpt2", "tiktoken", "llama2c"):
        with pytest.raises(bpe.TokenizerError, match="holds BPE"):
            tokenizer.save(tmp_path / "other", format)


def test_the_command_knows_it(words, tmp_path, capsys):
    text, out = tmp_path / "text.txt", tmp_path / "words.json"
    text.write_text(TEXT, encoding="utf-8")
    assert main(["train", str(text), "--kind", "words", "--out", str(out)]) == 0
    assert capsys.readouterr().err == f"bpe: 6 ids written to {out}\n"
    assert main(["encode", str(out), str(text)]) == 0
    assert capsys.readouterr().out == "5 1 4 5 2 5 2 3\n"
    assert main(["info", str(out), "--data", str(text)]) == 0
    assert "100.0000% of its tokens are not unknown" in capsys.readouterr().out
    assert main(["train", str(text), "--kind", "words", "--out", str(out), "--vocab-size=9"]) == 2
    assert capsys.readouterr().err == "bpe: vocab_size: not an option of kind 'words'\n"


def test_a_kind_of_a_script_works_without_workers(words, monkeypatch):
    monkeypatch.setattr(words, "__module__", "__main__")
    assert words.train([TEXT]).encode_batch(["the dog", "a cat"], processes=2) == [[5, 2], [0, 1]]


def test_a_kind_has_one_class(words):
    with pytest.raises(TypeError, match="kind: 'words' is WordTokenizer already"):

        class Other(bpe.Tokenizer, kind="words"):
            pass

    assert KINDS["words"] is words
