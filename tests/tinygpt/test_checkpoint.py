"""Model files: whole, readable without pickle, and clear when they are not what they should be."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

import bpe
import minitensor as mt
from tinygpt import Error
from tinygpt.files import replacing
from tinygpt.formats import checkpoint
from tinygpt.formats.checkpoint import Saved
from tinygpt.model.transformer import GPT


@pytest.fixture
def saved(tiny) -> Saved:
    tokenizer = bpe.CharTokenizer.train(["abc é"], vocab_size=80)
    return Saved(tiny, tokenizer, GPT(tiny).state_dict(), {"recipe": "tiny", "step": 3})


def test_a_model_comes_back_with_all_that_it_needs(tmp_path, saved):
    checkpoint.save(tmp_path / "m.npz", saved)
    model, tokenizer, read = checkpoint.load_model(tmp_path / "m.npz")
    assert read.config == saved.config
    assert tokenizer == saved.tokenizer
    assert read.provenance == saved.provenance
    ids = np.array([[1, 3, 4]])
    with mt.no_grad():
        np.testing.assert_array_equal(model(ids).numpy(), GPT(saved.config).eval()(ids).numpy())


def test_numpy_alone_can_read_it(tmp_path, saved):
    checkpoint.save(tmp_path / "m.npz", saved)
    with np.load(tmp_path / "m.npz", allow_pickle=False) as archive:
        meta = json.loads(archive["meta"].tobytes().decode("utf-8"))
        assert meta["format"] == "tinygpt-model" and meta["version"] == 1
        assert archive["param/embedding.weight"].shape == (80, 16)
        assert {n[6:] for n in archive.files if n != "meta"} == set(saved.params)


def test_the_same_model_gives_the_same_bytes(tmp_path, saved):
    for name in ("a.npz", "b.npz"):
        checkpoint.save(tmp_path / name, saved)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def truncated(path, saved):
    checkpoint.save(path, saved)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path, saved):
    checkpoint.save(path, saved)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(bytes(raw))


def misshapen(path, saved):
    saved.params["norm.weight"] = np.ones(3, np.float32)
    checkpoint.save(path, saved)


def lacking(path, saved):
    del saved.params["norm.weight"]
    checkpoint.save(path, saved)


def foreign_meta(path, saved):
    np.savez(path, meta=np.frombuffer(b'{"format": "other"}', np.uint8))


def newer(path, saved):
    np.savez(path, meta=np.frombuffer(b'{"format": "tinygpt-model", "version": 9}', np.uint8))


def pickled(path, saved):
    np.savez(path, meta=np.array([{"a": 1}], dtype=object))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path, saved: None, "no such model file"),
        (lambda path, saved: path.mkdir(), "a folder; give a model file"),
        (lambda path, saved: path.write_bytes(b""), "not a tinygpt model file"),
        (lambda path, saved: path.write_bytes(b"\x93NUMPY\x01\x00"), "not a tinygpt model file"),
        (lambda path, saved: np.savez(path, x=np.ones(2)), "an archive without 'meta'"),
        (foreign_meta, "its 'meta' is of another kind"),
        (newer, "model format 9"),
        (pickled, "truncated or damaged"),
        (truncated, "truncated or damaged"),
        (flipped, "truncated or damaged"),
        (lacking, "lacks 'norm.weight'"),
        (misshapen, r"'norm.weight' has shape \(3,\), the configuration says \(16,\)"),
    ],
)
def test_what_is_no_model_is_told_in_one_line(tmp_path, saved, make, message):
    path = tmp_path / "m.npz"
    make(path, saved)
    with pytest.raises(Error, match=message) as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_one_before_is_kept(tmp_path, saved):
    path, told = tmp_path / "c.npz", []
    assert checkpoint.load_latest(path) is None
    for step in (1, 2):
        saved.provenance["step"] = step
        checkpoint.save(path, saved, keep=True)
    assert checkpoint.load_latest(path).provenance["step"] == 2
    path.write_bytes(b"PK")
    assert checkpoint.load_latest(path, told.append).provenance["step"] == 1
    assert "taking the one before it" in told[0]
    path.unlink()
    assert checkpoint.load_latest(path).provenance["step"] == 1


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with pytest.raises(Error, match="cannot be written: No space"), replacing(path) as handle:
        handle.write(b"new")
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyboardInterrupt), replacing(path) as handle:
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["f"]
    assert path.read_bytes() == b"old"
