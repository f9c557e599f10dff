"""The tokenizer inside a model file, and what is no model file."""

import json
import struct

import numpy as np
import pytest

import bpe
from bpe.cli import main
from bpe.untrusted import MAX_JSON

TOKENIZER = bpe.train(["the cat sat on the mat by a river " * 9], 270)


@pytest.fixture
def model(tmp_path):
    """What a model file is to this package: `meta` first, then weights of no interest."""
    meta = json.dumps({"format": "any", "tokenizer": TOKENIZER.to_dict(), "é": "ä"}).encode()
    np.savez(tmp_path / "m.npz", meta=np.frombuffer(meta, np.uint8), weights=np.ones(1000))
    return tmp_path / "m.npz"


def test_it_is_read_like_any_tokenizer(model, capsys):
    assert bpe.load(model) == TOKENIZER
    assert main(["info", str(model)]) == 0
    assert f"sha256          {TOKENIZER.sha256}" in capsys.readouterr().out


@pytest.mark.parametrize("to", ["json", "huggingface", "gpt2"])
def test_it_is_converted(model, tmp_path, to, capsys):
    out = tmp_path / "out"
    assert main(["convert", str(model), str(out), "--to", to]) == 0
    assert f"bpe: 270 ids written to {out}" in capsys.readouterr().err
    read = bpe.load(out)
    assert read.encode("the cat and é") == TOKENIZER.encode("the cat and é")


def test_a_conversion_that_cannot_be_is_refused(tmp_path, capsys):
    bpe.CharTokenizer("abc").save(tmp_path / "c.json")
    assert main(["convert", str(tmp_path / "c.json"), str(tmp_path / "x"), "--to", "tiktoken"]) == 1
    assert "'tiktoken' holds BPE only, not 'char'" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "no.npz"), str(tmp_path / "x"), "--to", "json"]) == 1
    assert "No such file" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def refused(model, data, message):
    model.write_bytes(data)
    with pytest.raises(bpe.TokenizerError, match=message) as caught:
        bpe.load(model)
    assert str(caught.value).startswith(f"{model}: ") and "\n" not in str(caught.value)


def test_other_archives_are_refused(model, tmp_path):
    for arrays, message in (
        ({"weights": np.ones(3)}, "does not begin with 'meta'"),
        ({"meta": np.ones(3)}, "'meta' is not plain bytes"),
        ({"meta": np.frombuffer(b"{]", np.uint8)}, "not JSON"),
        ({"meta": np.frombuffer(b"{}", np.uint8)}, "without a tokenizer"),
        ({"meta": np.frombuffer(b'{"tokenizer": {}}', np.uint8)}, "format: missing"),
    ):
        np.savez(tmp_path / "other.npz", **arrays)
        refused(model, (tmp_path / "other.npz").read_bytes(), message)
    np.savez_compressed(tmp_path / "other.npz", meta=np.zeros(1000, np.uint8))
    refused(model, (tmp_path / "other.npz").read_bytes(), "not stored as it is|its size")


def test_damage_is_told(model):
    data = model.read_bytes()
    place = data.index(b'"tokenizer"')
    refused(model, data[:20], "cut off")
    refused(model, data[: place + 100], "cut off or damaged")
    refused(model, data[:place] + b'"tOkenizer"' + data[place + 11 :], "cut off or damaged")


def test_no_size_is_believed(model):
    """A file that says it has 2⁶⁰ bytes, or more than a tokenizer takes, is refused unread."""
    data = bytearray(model.read_bytes())
    extra = 30 + len(b"meta.npy")
    assert data[extra : extra + 2] == b"\1\0"  # np.savez writes sizes with 64 bits
    data[18:26] = b"\xff" * 8  # the sizes are there; Python 3.10 gives small ones here as well
    for size in (1 << 60, MAX_JSON + (1 << 13)):
        data[extra + 4 : extra + 20] = struct.pack("<2Q", size, size)
        refused(model, bytes(data), "more than 64 MB")
    data[extra : extra + 2] = b"\2\0"  # something else than sizes
    refused(model, bytes(data), "'meta' does not tell its size")
