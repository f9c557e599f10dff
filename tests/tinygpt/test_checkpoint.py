"""Model files: whole, readable without pickle, and clear when they are not what they should be."""

from __future__ import annotations

import json
import os
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest

import bpe
import minitensor as mt
from tinygpt import Error
from tinygpt.files import replacing
from tinygpt.formats import checkpoint
from tinygpt.formats.checkpoint import Saved
from tinygpt.model.transformer import GPT, layout
from tinygpt.training.optimizers import check_state, make_optimizer, pack_optimizer


@pytest.fixture
def saved(tiny) -> Saved:
    tokenizer = bpe.CharTokenizer.train(["abc é"], vocab_size=80)
    return Saved(tiny, tokenizer, GPT(tiny).state_dict(), {"recipe": "tiny", "step": 3})


def test_a_model_comes_back_with_all_that_it_needs(tmp_path, saved):
    checkpoint.save(tmp_path / "m.npz", saved)
    read = checkpoint.load(tmp_path / "m.npz")
    assert read.config == saved.config
    assert read.tokenizer == saved.tokenizer
    assert read.provenance == saved.provenance
    ids = np.array([[1, 3, 4]])
    with mt.no_grad():
        np.testing.assert_array_equal(read.model()(ids).data, GPT(saved.config).eval()(ids).data)


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


def changed(path, saved, **meta):
    """The file of `saved`, with `meta` over what its member of that name holds."""
    checkpoint.save(path, saved)
    with np.load(path) as archive:
        arrays = dict(archive)
    text = json.dumps(json.loads(arrays["meta"].tobytes()) | meta).encode()
    np.savez(path, **arrays | {"meta": np.frombuffer(text, np.uint8)})


def with_meta(text):
    return lambda path, saved: np.savez(path, meta=np.frombuffer(text, np.uint8))


def with_weight(make):
    """A model whose last norm is `make` of what it was."""

    def write(path, saved):
        saved.params["norm.weight"] = make(saved.params["norm.weight"])
        checkpoint.save(path, saved)

    return write


def rewritten(change, compression=zipfile.ZIP_STORED):
    """A model whose archive is written again by `change(archive, name, data)` for each member."""

    def write(path, saved):
        checkpoint.save(path, saved)
        with zipfile.ZipFile(path) as old:
            content = {name: old.read(name) for name in old.namelist()}
        with zipfile.ZipFile(path, "w", compression) as new:
            for name, data in content.items():
                change(new, name, data)

    return write


def twice(archive, name, data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's own
        for _ in range(1 + name.startswith("param/norm")):
            archive.writestr(name, data)


def foreign(archive, name, data):
    archive.writestr(name, data)
    if name == "meta.npy":
        archive.writestr("readme.txt", b"hello")


def taller(archive, name, data):
    archive.writestr(name, data.replace(b"'shape': (16,)", b"'shape': (99,)"))


def patched(offset, new, of=b"PK\1\2"):
    """A model of whose last `of` some bytes are `new`."""

    def write(path, saved):
        checkpoint.save(path, saved)
        raw = bytearray(path.read_bytes())
        place = raw.rindex(of) + offset
        raw[place : place + len(new)] = new
        path.write_bytes(raw)

    return write


def config_of(**fields):
    return lambda path, saved: changed(path, saved, config=saved.config.to_dict() | fields)


def extra(path, saved):
    saved.params["surprise"] = np.zeros(1000, np.float32)
    checkpoint.save(path, saved)


@pytest.mark.mostly_slow
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path, saved: None, "no such model file"),
        (lambda path, saved: path.mkdir(), "a folder; give a model file"),
        (lambda path, saved: path.write_bytes(b""), "not a tinygpt model file"),
        (lambda path, saved: path.write_bytes(b"\x93NUMPY\x01\x00"), "not a tinygpt model file"),
        (lambda path, saved: np.savez(path, x=np.ones(2)), "an archive without 'meta'"),
        (with_meta(b'{"format": "other"}'), "its 'meta' is of another kind"),
        (with_meta(b'{"format": "tinygpt-model", "version": 9}'), "model format 9"),
        (with_meta(b'{"a": ' + b"[" * 100_000), "nested too deeply"),
        (with_meta(b"[" + b"[]," * 1_000_000 + b"[]]"), "more than 1,048,576 values"),
        (with_meta(b'{"format": ' + b"9" * 5000 + b"}"), "a number of 5000 digits"),
        (lambda path, saved: np.savez(path, meta=np.zeros(9)), "'meta': expected .* as float64"),
        (
            lambda path, saved: np.savez(path, meta=np.array([{"a": 1}], dtype=object)),
            "its elements, object, are not numbers",
        ),
        (truncated, "truncated or damaged"),
        (flipped, "checksum is another"),
        (lacking, "lacks 'norm.weight'"),
        (misshapen, r"'norm.weight' has shape \(3,\), the configuration says \(16,\)"),
        (extra, "holds 'param/surprise', for which nothing in it asks"),
        (with_weight(lambda w: w * np.nan), "'param/norm.weight' holds numbers that are not fin"),
        (with_weight(lambda w: w.astype("c8")), "norm.weight': expected numbers of float32, got c"),
        (with_weight(lambda w: w > 0), "norm.weight': expected numbers of float32, got bool"),
        (with_weight(lambda w: w.astype("S4")), r"its elements, \|S4, are not numbers"),
        (rewritten(zipfile.ZipFile.writestr, zipfile.ZIP_DEFLATED), "compressed; expected members"),
        (rewritten(twice), "there twice"),
        (rewritten(foreign), "expected NAME.npy, got b'readme.txt'"),
        (rewritten(taller), r"396 bytes for its shape \(99,\), but 64 are there"),
        (patched(8, b"\1"), "encrypted, or written by a program of another kind"),
        (patched(20, b"\xff" * 8), "the header before it is not that"),
        (patched(42, b"\0\0\0\0"), "directory does not fit its members"),
        (patched(10, b"\xff\xff", of=b"PK\5\6"), "directory is not where the end"),
        (patched(8, b"X", of=b"PK\3\4"), "the header before it is not that"),
        (lambda path, saved: changed(path, saved, config=[]), "config: expected an object"),
        (lambda path, saved: changed(path, saved, tokenizer=5), "tokenizer: expected an object"),
        (lambda path, saved: changed(path, saved, training={"step": -1}), "training: step: -1"),
        (
            lambda path, saved: changed(path, saved, provenance={"step": "\x1b[2J"}),
            "expected a numb",
        ),
        (config_of(context=30_000_000), "context: expected at most 65,536, got 30000000"),
        (config_of(n_layer=1000), "lacks 'blocks.2"),
        (config_of(lr=[[[[["\x1b[2J"]]]]]), "lr: expected a number, got a list of 1"),
        (config_of(vocab_size=70), "its tokenizer has 80 ids, its model only 70"),
    ],
)
def test_what_is_no_model_is_told_in_one_line(tmp_path, saved, make, message):
    path = tmp_path / "m.npz"
    make(path, saved)
    with pytest.raises(Error, match=message) as caught:
        checkpoint.load(path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1100
    assert str(path) in str(caught.value)


def test_an_array_that_the_header_promises_takes_no_memory(tmp_path, saved):
    def promise(archive, name, data):
        archive.writestr(name, data.replace(b"(16,), }        ", b"(9999999999,), }"))

    rewritten(promise)(tmp_path / "m.npz", saved)
    tracemalloc.start()
    with pytest.raises(Error, match=r"39,999,999,996 bytes for its shape"):
        checkpoint.load(tmp_path / "m.npz")
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_a_model_takes_little_more_memory_than_its_file(tmp_path, saved):
    c = saved.config.replace(vocab_size=100_000, d_model=32)
    saved = Saved(c, saved.tokenizer, {n: np.ones(s, np.float32) for n, s in layout(c).items()})
    checkpoint.save(tmp_path / "m.npz", saved)
    del saved
    tracemalloc.start()
    checkpoint.load(tmp_path / "m.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * (tmp_path / "m.npz").stat().st_size


@pytest.mark.slow
def test_every_flipped_bit_is_told_or_without_effect(tmp_path, saved):
    path = tmp_path / "m.npz"
    checkpoint.save(path, saved)
    raw = path.read_bytes()
    for place in np.random.default_rng(1).integers(0, 8 * len(raw), 300):
        bad = bytearray(raw)
        bad[place // 8] ^= 1 << place % 8
        path.write_bytes(bad)
        try:
            read = checkpoint.load(path)
        except Error:
            continue
        assert read.config == saved.config and read.tokenizer == saved.tokenizer
        assert all(np.array_equal(read.params[k], v) for k, v in saved.params.items())


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


@pytest.fixture
def resumable(saved) -> Saved:
    """A checkpoint after one step of AdamW."""
    optimizer = make_optimizer(
        saved.config, {name: mt.tensor(p, requires_grad=True) for name, p in saved.params.items()}
    )
    grads = [np.ones(p.shape, np.float32) for p in optimizer.parameters]
    optimizer.step(grads, scale=1.0, workers=None)
    saved.optim, state = pack_optimizer(optimizer)
    saved.training = {
        "step": 1,
        "shown": False,
        "optimizer": state,
        "best": None,
        "seconds": 1.5,
        "data_sha256": "0" * 64,
        "sizes": {},
    }
    return saved


def places(state, *path):
    """Where `path` leads inside a packed state: (container, index)."""
    for key in path[:-1]:
        pairs = state["dict"] if isinstance(state, dict) else None
        state = next(v for k, v in pairs if k == key) if pairs else state[key]
    pairs = state["dict"] if isinstance(state, dict) else None
    if pairs is None:
        return state, path[-1]
    return next(pair for pair in pairs if pair[0] == path[-1]), 1


def state_with(value, *path):
    def change(saved):
        container, index = places(saved.training["optimizer"], *path)
        container[index] = value

    return change


def moment_with(value, ending):
    def change(saved):
        name = next(n for n in saved.optim if n.endswith(ending))
        saved.optim[name] = np.full_like(saved.optim[name], value)

    return change


def training_with(**values):
    return lambda saved: saved.training.update(values)


def without_a_moment(saved):
    saved.optim.pop(next(iter(saved.optim)))


def with_a_moment_too_many(saved):
    saved.optim["surprise"] = np.zeros(3, np.float32)


@pytest.mark.mostly_slow
@pytest.mark.parametrize(
    "change",
    [
        state_with("x", "param_groups", 0, "lr"),
        state_with([0.9, 2.0], "param_groups", 0, "betas"),
        state_with(None, "param_groups"),
        state_with([], "param_groups"),
        state_with({"array": [1]}, "param_groups"),
        state_with({"dict": 5}, "state"),
        state_with({"dict": [["0", {"dict": []}]]}, "state"),
        state_with(-1, "state", 0, "step"),
        state_with("x", "state", 0, "step"),
        state_with(0.0, "state", 0, "exp_avg"),
        state_with({"array": "nothing"}, "state", 0, "exp_avg"),
        moment_with(np.nan, "exp_avg"),
        moment_with(-1.0, "exp_avg_sq"),
        training_with(step="1"),
        training_with(step=True),
        training_with(seconds=-1),
        training_with(best="x"),
        training_with(data_sha256=None),
        training_with(sizes={"log.jsonl": "x"}),
        training_with(optimizer=[]),
        state_with([0.0], "state", 0, "exp_avg"),
        without_a_moment,
        with_a_moment_too_many,
    ],
)
def test_whatever_is_wrong_leads_to_the_one_before(tmp_path, resumable, change):
    path, told = tmp_path / "c.npz", []
    checkpoint.save(path, resumable)
    assert checkpoint.load_latest(path, told.append, check_state).training["step"] == 1
    resumable.provenance["step"] = 4
    change(resumable)
    checkpoint.save(path, resumable, keep=True)
    found = checkpoint.load_latest(path, told.append, check_state)
    assert found.provenance["step"] == 3
    assert len(told) == 1 and "taking the one before it" in told[0]
    assert told[0].isprintable() and len(told[0]) < 1100
    checkpoint.backup(path).unlink()
    with pytest.raises(Error):
        checkpoint.load_latest(path, told.append, check_state)


def test_a_model_is_no_checkpoint(tmp_path, saved):
    checkpoint.save(tmp_path / "c.npz", saved)
    with pytest.raises(Error, match="the training state is not one of"):
        checkpoint.load_latest(tmp_path / "c.npz", check=check_state)


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
