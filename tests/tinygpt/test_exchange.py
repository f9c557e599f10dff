"""Models that leave and come in: round trips to the bit, refusals, and files that are not models.

That transformers, llama2.c and llama.cpp read them as they should is checked by
benchmarks/exchange_peers.py; what transformers computed is frozen in tests/goldens.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bpe
import minitensor as mt
from tinygpt import Error, cli
from tinygpt.data import stories
from tinygpt.formats import checkpoint, exchange, families
from tinygpt.formats.checkpoint import Saved
from tinygpt.formats.ggufile import save_gguf
from tinygpt.formats.huggingface import load_folder, save_folder
from tinygpt.formats.llama2c import load_bin, save_bin
from tinygpt.formats.safetensor import load_file, save_file
from tinygpt.language_model import load
from tinygpt.model import recipes
from tinygpt.model.config import Config
from tinygpt.model.transformer import GPT, layout

pytest.importorskip("safetensors")
pytest.importorskip("gguf")

TEXTS = list(stories.corpus(20))
BPE = bpe.train(TEXTS, 300)
CHARACTERS = bpe.CharTokenizer.train(TEXTS)
LLAMA = {
    "norm": "rms",
    "norm_bias": False,
    "positions": "rope",
    "ffn": "swiglu",
    "qkv_bias": False,
    "out_bias": False,
    "ffn_bias": False,
}


def model(tokenizer=BPE, **changes) -> Saved:
    """A tiny model with random numbers everywhere, biases and norms too."""
    c = Config(
        vocab_size=tokenizer.vocab_size,
        **{"context": 12, "n_layer": 2, "n_head": 4, "d_model": 16, "d_ff": 12, **changes},
    )
    rng = np.random.default_rng(1)
    params = {
        name: rng.standard_normal(shape).astype(c.dtype) * 0.3 for name, shape in layout(c).items()
    }
    return Saved(c, tokenizer, params, {"step": 3})


def logits(saved: Saved) -> np.ndarray:
    with mt.no_grad():
        return saved.model()(np.arange(10)[None] % saved.config.vocab_size).data


def same(one: Saved, other: Saved) -> None:
    assert one.config == other.config
    for part in ("kind", "special_tokens", "vocab_size", "characters", "merges", "pattern"):
        assert getattr(one.tokenizer, part, None) == getattr(other.tokenizer, part, None)
    assert list(one.params) == list(other.params)
    for name, value in one.params.items():
        assert other.params[name].dtype == value.dtype
        np.testing.assert_array_equal(other.params[name], value, err_msg=name)


common = {
    "head": st.sampled_from(["tied", "untied"]),
    "out_bias": st.booleans(),
    "ffn_bias": st.booleans(),
    "norm_eps": st.sampled_from([1e-5, 1e-6]),
    "d_ff": st.integers(1, 20),
    "dtype": st.sampled_from(["float32", "float64"]),
}
gelu = {
    "norm": st.just("layer"),
    "norm_bias": st.booleans(),
    "positions": st.sampled_from(["learned", "sinusoidal"]),
    "ffn": st.sampled_from(["gelu", "gelu_tanh"]),
}
EXPRESSIBLE = st.one_of(
    st.fixed_dictionaries(
        {**common, **gelu, "qkv_bias": st.booleans(), "scale_attention": st.booleans()}
    ),
    st.fixed_dictionaries(
        {
            **common,
            **gelu,
            "qkv_bias": st.just(False),
            "scale_attention": st.just(False),
            "windows": st.sampled_from([(0,), (3,), (0, 3), (5, 0)]),
        }
    ),
    st.fixed_dictionaries(
        {
            **common,
            **{key: st.just(value) for key, value in LLAMA.items() if not key.endswith("_bias")},
            "head": st.sampled_from(["tied", "untied", "pinv"]),
            "norm_bias": st.just(False),
            "qkv_bias": st.booleans(),
            "gate_bias": st.booleans(),
            "n_kv_head": st.sampled_from([0, 1, 2]),
            "rope_theta": st.sampled_from([100.0, 10000.0]),
        }
    ),
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(EXPRESSIBLE, st.sampled_from([BPE, CHARACTERS]))
def test_a_folder_of_hugging_face_gives_back_the_very_model(changes, tokenizer):
    saved = model(tokenizer, **changes)
    with tempfile.TemporaryDirectory() as folder:
        save_folder(saved, Path(folder) / "hf")
        same(load_folder(Path(folder) / "hf"), saved)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(EXPRESSIBLE)
def test_without_our_configuration_the_logits_are_the_same(changes):
    """As a folder from elsewhere: what we left out is there as zeros."""
    saved = model(**changes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hf"
        save_folder(saved, path)
        values = json.loads((path / "config.json").read_text())
        del values["tinygpt"]
        (path / "config.json").write_text(json.dumps({**values, "dtype": "float32"}))
        read = load_folder(path)
    np.testing.assert_allclose(logits(read), logits(saved), rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            **{key: st.just(value) for key, value in LLAMA.items()},
            "head": st.sampled_from(["tied", "untied"]),
            "n_kv_head": st.sampled_from([0, 1, 2]),
        }
    ),
    st.sampled_from([0, 1]),
)
def test_a_llama2c_file_gives_back_the_same_numbers(changes, version):
    saved = model(CHARACTERS, **changes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.bin"
        save_bin(saved, path, version)
        read = load_bin(path)
        assert read.tokenizer == CHARACTERS
        for name, value in saved.params.items():
            np.testing.assert_array_equal(read.params[name], value)
        np.testing.assert_array_equal(logits(read), logits(saved))


def test_llama2c_orders_the_rows_as_its_tokenizer_does(tmp_path):
    """The same text goes on with the same text; a row without a token is never the likeliest."""
    saved = model(**LLAMA)
    save_bin(saved, tmp_path / "m.bin")
    read = load_bin(tmp_path / "m.bin")
    text = "Once upon a time"
    ours, theirs = saved.tokenizer.encode(text)[:8], read.tokenizer.encode(text)[:8]
    assert saved.tokenizer.decode(ours) == read.tokenizer.decode(theirs)
    with mt.no_grad():
        a = saved.model()(np.array([ours])).data[0, -1]
        b = read.model()(np.array([theirs])).data[0, -1]
    np.testing.assert_allclose(np.sort(a)[-5:], np.sort(b)[-5:], rtol=1e-5)
    assert read.tokenizer.token_bytes(int(b.argmax())) == saved.tokenizer.token_bytes(
        int(a.argmax())
    )


@pytest.mark.parametrize("changes", [{}, {**LLAMA, "head": "pinv"}, {"windows": (3, 0)}])
def test_safetensors_hold_every_model(changes, tmp_path):
    saved = model(**changes)
    save_file(saved, tmp_path / "m.safetensors")
    read = load_file(tmp_path / "m.safetensors")
    same(read, saved)
    assert read.provenance == saved.provenance


def test_where_weights_come_from_is_checked_before_it_is_kept(tmp_path):
    """A model.npz with such words would be written, and never be read."""
    saved = model()
    saved.provenance = {"recipe": "x", "step": "many"}
    save_file(saved, tmp_path / "m.safetensors")
    with pytest.raises(Error, match="provenance: step: expected a number, got 'many'"):
        load_file(tmp_path / "m.safetensors")


def test_the_pseudo_inverse_is_written_out_as_a_matrix(tmp_path):
    saved = model(**LLAMA, head="pinv", gate_bias=True)
    save_folder(saved, tmp_path / "hf")
    values = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert values["tie_word_embeddings"] is False and values["mlp_bias"] is True
    values["tinygpt"]["head"] = "untied"
    (tmp_path / "hf" / "config.json").write_text(json.dumps(values))
    np.testing.assert_allclose(logits(load_folder(tmp_path / "hf")), logits(saved), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "to", "reason"),
    [
        ({**LLAMA, "windows": (4, 0)}, "hf", "no local attention"),
        ({"windows": (3, 5)}, "hf", "one window"),
        ({"norm": "rms", "norm_bias": False}, "hf", "it needs norm=layer"),
        ({}, "llama2c", "it needs norm=rms"),
        ({**LLAMA, "gate_bias": True}, "llama2c", "no place for biases"),
        ({**LLAMA, "norm_eps": 1e-6}, "llama2c-v1", "norm_eps=1e-05"),
        ({}, "gguf", "its GELU is the tanh form"),
        ({"ffn": "gelu_tanh", "scale_attention": False}, "gguf", "scale_attention"),
    ],
)
def test_what_a_format_cannot_hold_is_said_and_nothing_written(changes, to, reason, tmp_path):
    saved = model(**changes)
    with pytest.raises(Error, match=reason):
        exchange.WRITERS[to][0](saved, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tokenizer", "to", "reason"),
    [
        (bpe.BPETokenizer.train(["one two"], 257, pattern="x+|."), "gguf", "has no name in llama"),
        (bpe.ReducedTokenizer.train(BPE, ["one two"], 60), "gguf", "no tokenizer of the kind"),
        (bpe.CharTokenizer.train(["é"]), "gguf", "takes 2 bytes"),
        (bpe.ReducedTokenizer.train(BPE, ["one two"], 60), "llama2c", "cannot hold .* tokenizer"),
        (bpe.ReducedTokenizer.train(BPE, ["one two"], 60), "hf", "cannot go into a tokenizer.json"),
    ],
)
def test_what_a_format_cannot_write_text_with_is_said(tokenizer, to, reason, tmp_path):
    if to != "llama2c":
        pytest.importorskip("gguf" if to == "gguf" else "safetensors")
    saved = model(tokenizer, **{**LLAMA, "norm_eps": 1e-5})
    with pytest.raises(Error, match=reason):
        exchange.WRITERS[to][0](saved, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(Error, match="needs safetensors: 'pip install safetensors'"):
        save_file(model(), tmp_path / "m.safetensors")


def test_a_bias_of_zeros_may_go_to_llama2c(tmp_path):
    saved = model(CHARACTERS, **LLAMA, gate_bias=True)
    for name in saved.params:
        if name.endswith(".bias"):
            saved.params[name] = np.zeros_like(saved.params[name])
    save_bin(saved, tmp_path / "m.bin")
    np.testing.assert_array_equal(logits(load_bin(tmp_path / "m.bin")), logits(saved))


@pytest.mark.parametrize("changes", [LLAMA, {"ffn": "gelu_tanh"}])
def test_a_gguf_holds_every_number(changes, tmp_path):
    import gguf

    saved = model(**changes)
    save_gguf(saved, tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    tensors = {t.name: np.asarray(t.data) for t in reader.tensors}
    np.testing.assert_array_equal(tensors["token_embd.weight"], saved.params["embedding.weight"])
    total = sum(t.size for name, t in tensors.items() if name != "output.weight")
    assert total == sum(p.size for p in saved.params.values())
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    assert len(tokens) == saved.config.vocab_size


def test_halves_and_neighbours_undo_each_other():
    rows = np.arange(24.0).reshape(8, 3)
    np.testing.assert_array_equal(families.neighbours(families.halves(rows, 2), 2), rows)
    np.testing.assert_array_equal(families.halves(rows[:, 0], 2), rows[[0, 2, 1, 3, 4, 6, 5, 7], 0])


# ------------------------------------------------------------------------------ from the shell


def test_there_and_back_on_the_command_line(tmp_path, capsys):
    checkpoint.save(tmp_path / "m.npz", model(**LLAMA))
    out = tmp_path / "hf"
    assert cli.main(["export", str(tmp_path / "m.npz"), "--to", "hf", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"wrote {out}: Llama\n"
    assert cli.main(["import", str(out), "--out", str(tmp_path / "back.npz")]) == 0
    same(checkpoint.load(tmp_path / "back.npz"), checkpoint.load(tmp_path / "m.npz"))
    assert capsys.readouterr().out.startswith(f"wrote {tmp_path / 'back.npz'}: ")
    assert cli.main(["import", str(out), "-o", str(tmp_path / "back.npz")]) == 0
    assert capsys.readouterr().out.startswith(f"replaced {tmp_path / 'back.npz'}: ")


@pytest.fixture
def folder(tmp_path) -> Path:
    save_folder(model(**LLAMA), tmp_path / "hf")
    return tmp_path / "hf"


def damage(folder: Path, name: str) -> str:
    """Spoil a folder in one way; the words that the error must have."""
    config = folder / "config.json"
    values = json.loads(config.read_text())
    weights = folder / "model.safetensors"
    if name == "no config":
        config.unlink()
        return "neither a run folder"
    if name == "no weights":
        weights.unlink()
        return "no model.safetensors"
    if name == "a pickle":
        weights.rename(folder / "pytorch_model.bin")
        return "can run code"
    if name == "cut":
        weights.write_bytes(weights.read_bytes()[:-5])
        return "not a safetensors file"
    if name == "no tokenizer":
        (folder / "tokenizer.json").unlink()
        return "tokenizer"
    if name == "foreign tokenizer":
        bpe.train(TEXTS, 500).save(folder / "tokenizer.json", "huggingface")
        return "do not belong together"
    if name == "other type":
        values["model_type"] = "mamba"
    elif name == "wrong shape":
        values["tinygpt"]["d_ff"] = 13
    elif name == "missing tensor":
        values["tinygpt"]["n_layer"] = 3
    elif name == "unexpected tensor":
        values["tinygpt"]["n_layer"] = 1
    elif name == "no object":
        values = [1]
    config.write_text(json.dumps(values))
    return {
        "other type": "'mamba' is not known",
        "wrong shape": "shape",
        "missing tensor": "missing: model.layers.2",
        "unexpected tensor": "unexpected: model.layers.1",
        "no object": "JSON object",
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "no config",
        "no weights",
        "a pickle",
        "cut",
        "no tokenizer",
        "foreign tokenizer",
        "other type",
        "wrong shape",
        "missing tensor",
        "unexpected tensor",
        "no object",
    ],
)
def test_a_bad_folder_is_refused_in_one_line(name, folder, tmp_path, capsys):
    words = damage(folder, name)
    assert cli.main(["import", str(folder), "--out", str(tmp_path / "m.npz")]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and words in told
    assert not (tmp_path / "m.npz").exists()


def foreign(folder: Path, **changes) -> None:
    """Take our configuration out of a folder, and change the foreign one."""
    values = json.loads((folder / "config.json").read_text())
    values.pop("tinygpt")
    (folder / "config.json").write_text(json.dumps({**values, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 3}, "head_dim: expected hidden_size / num_attention_heads, got 3"),
        ({"num_attention_heads": 0, "head_dim": None}, "n_head: expected at least 1, got 0"),
        ({"rope_parameters": {"type": "x" * 1000}}, "only the default rotation is known"),
        ({"hidden_act": ["silu"] * 1000}, "hidden_act: expected silu"),
        ({"model_type": "x" * 100_000}, "is not known here"),
        (
            {"model_type": "gpt_neo", "num_layers": 10**9, "attention_types": [[["local"], 10**9]]},
            "attention_types: expected at most 1,024 layers, got more",
        ),
        # No layer, a billion billion times; a billion of them, and a billion fewer.
        ({"model_type": "gpt_neo", "attention_types": [[[], 10**18]]}, "at most 1,024 layers"),
        (
            {"model_type": "gpt_neo", "attention_types": [[["local"], 10**9], [["x"], -(10**9)]]},
            "at most 1,024 layers",
        ),
        ({"model_type": "gpt_neo", "attention_types": [[5, 1]]}, "expected .*kind, ….*, times"),
        ({"model_type": "gpt_neo", "attention_layers": [["local"]]}, "times 'global' or 'local'"),
        # What is multiplied is a number: a text times a billion would take all memory.
        (
            {"head_dim": "ab", "num_attention_heads": 10**12},
            "head_dim: expected a number, got 'ab'",
        ),
        ({"num_attention_heads": [0], "head_dim": 10**12}, r"num_attention_heads: .* got \[0\]"),
        ({"model_type": "gpt2", "n_embd": "ab"}, "n_embd: expected a number, got 'ab'"),
        ({"rope_parameters": ["linear"]}, "rope_parameters: expected an object"),
        ({"model_type": "gpt2", "activation_function": ["gelu"]}, "the activation .* is not known"),
    ],
)
def test_a_strangers_configuration_is_refused_in_short(folder, changes, message):
    foreign(folder, **changes)
    with pytest.raises(Error, match=message) as caught:
        load_folder(folder)
    assert len(str(caught.value)) < 600


@pytest.mark.slow
def test_a_thousand_layers_are_refused_in_linear_time(tmp_path, monkeypatch):
    """The shapes of all were once made for each vector: 20 seconds for a file of a kilobyte."""
    save_folder(model(ffn="gelu_tanh"), tmp_path / "hf")
    foreign(tmp_path / "hf", n_layer=1000)
    calls = []
    plain = families.layout
    monkeypatch.setattr(families, "layout", lambda c: calls.append(c) or plain(c))
    with pytest.raises(Error, match=r"missing: .* and [0-9]+ more"):
        load_folder(tmp_path / "hf")
    assert len(calls) <= 2


@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_a_pipe_instead_of_a_tokenizer_is_not_waited_for(tmp_path):
    save_bin(model(**{**LLAMA, "norm_eps": 1e-5}), tmp_path / "m.bin")
    (tmp_path / "tokenizer.bin").unlink()
    os.mkfifo(tmp_path / "tokenizer.bin")
    with pytest.raises(Error, match=r"tokenizer.bin: no such file"):
        load_bin(tmp_path / "m.bin")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="a limit on the size of files")
@pytest.mark.parametrize("to", ["safetensors", "hf", "llama2c", "gguf"])
def test_a_full_disk_while_exporting(tmp_path, to):
    """In a process that may write little: also what the libraries write by themselves."""
    if to != "llama2c":
        pytest.importorskip("gguf" if to == "gguf" else "safetensors")
    checkpoint.save(tmp_path / "m.npz", model(**{**LLAMA, "norm_eps": 1e-5}))
    out = tmp_path / ("out.safetensors" if to == "safetensors" else "out")
    program = (
        "import resource, sys; from tinygpt.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); sys.exit(main(sys.argv[1:]))"
    )
    call = [sys.executable, "-c", program, "export", str(tmp_path / "m.npz"), "--to", to]
    # Measured, it could not write what it ran (benchmarks/coverage_of_tests.py).
    unmeasured = {key: v for key, v in os.environ.items() if not key.startswith("COVERAGE_")}
    done = subprocess.run(
        [*call, "--out", str(out)], capture_output=True, text=True, timeout=120, env=unmeasured
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"tinygpt: error: {out}") and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m.npz"]


def test_a_safetensors_file_has_its_name(tmp_path, capsys):
    checkpoint.save(tmp_path / "m.npz", model(**LLAMA))
    call = ["export", str(tmp_path / "m.npz"), "--to", "safetensors"]
    assert cli.main([*call, "--out", str(tmp_path / "m.st")]) == 2
    assert "--out: expected a name that ends in .safetensors" in capsys.readouterr().err
    with pytest.raises(Error, match="expected a name that ends in"):
        load(tmp_path / "m.npz").export(tmp_path / "m.st", to="safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["m.npz"]


def test_an_index_may_name_files_of_its_folder_only(folder):
    weights = folder / "model.safetensors"
    weights.rename(folder / "part.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "part.safetensors"}}))
    same(load_folder(folder), model(**LLAMA))
    for name in ("../hf/part.safetensors", "x" * 5000, "a\0b", ""):
        index.write_text(json.dumps({"weight_map": {"x": name}}))
        with pytest.raises(Error, match="not a file of this folder"):
            load_folder(folder)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda b: b[:20], "ends within its header"),
        (lambda b: b[:-4], "expected"),
        (lambda b: b + b"\0", "expected"),
        (lambda b: struct.pack("<i", 1 << 30) + b[4:], "dim is"),
        (lambda b: struct.pack("<i", -16) + b[4:], "dim is -16"),
        (
            lambda b: struct.pack("<7i", 1 << 14, 1 << 14, 99, 2, 2, 9, 9) + b[28:],
            "bytes, expected",
        ),
        (lambda b: struct.pack("<Ii", 0x616B3432, 2) + b[8:].ljust(300, b"\0"), "version 2"),
    ],
)
def test_a_bad_llama2c_file_is_refused(spoil, words, tmp_path):
    path = tmp_path / "m.bin"
    save_bin(model(CHARACTERS, **LLAMA), path)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(Error, match=words):
        load_bin(path)


def test_a_folder_that_is_there_is_not_written_over(folder):
    before = sorted(folder.iterdir())
    with pytest.raises(Error, match="is there already"):
        save_folder(model(**LLAMA), folder)
    assert sorted(folder.iterdir()) == before


def test_low_precision_weights_are_widened(folder):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    from safetensors.numpy import load_file as read_tensors
    from safetensors.numpy import save_file as write_tensors

    exact = load_folder(folder)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        path = folder / "model.safetensors"
        tensors = read_tensors(path)
        write_tensors({name: t.astype(dtype) for name, t in tensors.items()}, path)
        read = load_folder(folder)
        for name, value in read.params.items():
            assert value.dtype == np.float32
            np.testing.assert_allclose(value, exact.params[name], rtol=1e-2, atol=1e-6)
        write_tensors(tensors, path)


NEO = {"qkv_bias": False, "scale_attention": False, "windows": (0, 3)}
SHAPES = {
    "GPT-2": {},
    "GPT-2, untied": {"head": "untied"},
    "GPT-Neo, tied": NEO,
    "GPT-Neo": {**NEO, "head": "untied"},
    "Llama": {**LLAMA, "head": "untied"},
    "Llama, tied, two key/value heads": {**LLAMA, "n_kv_head": 2},
    "Llama, one key/value head, biases": {
        **LLAMA, "head": "untied", "n_kv_head": 1, "qkv_bias": True, "out_bias": True,
    },
}  # fmt: skip


def rewritten(folder: Path, change, shards: int = 1) -> None:
    """A folder's tensors after `change`, in so many files, and nothing left of our own."""
    from safetensors.numpy import load_file as read_tensors
    from safetensors.numpy import save_file as write_tensors

    tensors = change(read_tensors(folder / "model.safetensors"))
    if shards > 1:
        (folder / "model.safetensors").unlink()
        names = sorted(tensors, key=lambda name: name[::-1])  # a layer in several files
        files = {name: f"model-{n % shards + 1}.safetensors" for n, name in enumerate(names)}
        for file in set(files.values()):
            write_tensors({n: tensors[n] for n in names if files[n] == file}, folder / file)
        index = {"metadata": {"total_size": 1}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        write_tensors(tensors, folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text())
    del values["tinygpt"]
    (folder / "config.json").write_text(json.dumps(values))


@pytest.mark.mostly_slow
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("prefixed", [True, False], ids=["prefixes", "bare"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_folder_as_others_write_it(shape, prefixed, shards, tmp_path):
    """In one file or several, with prefixes of the names or without: the same logits."""
    saved = model(**SHAPES[shape])
    save_folder(saved, tmp_path / "hf")
    prefix = families.family_of(saved.config).prefix

    def named(tensors):
        if prefixed:
            assert sum(name.startswith(prefix) for name in tensors) > 10
            return tensors
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}

    rewritten(tmp_path / "hf", named, shards)
    read = exchange.load_any(tmp_path / "hf")
    assert read.config.n_kv_head in (0, read.config.n_head, saved.config.n_kv_head)
    assert read.config.head == saved.config.head
    np.testing.assert_allclose(logits(read), logits(saved), rtol=1e-4, atol=1e-5)


def test_a_tied_head_may_be_there_twice_and_an_untied_one_must_be_there(tmp_path):
    saved = model(**LLAMA)
    save_folder(saved, tmp_path / "tied")
    embedding = "model.embed_tokens.weight"
    rewritten(tmp_path / "tied", lambda t: {**t, "lm_head.weight": t[embedding]})
    np.testing.assert_allclose(logits(load_folder(tmp_path / "tied")), logits(saved), atol=1e-5)
    save_folder(model(**LLAMA, head="untied"), tmp_path / "untied")
    rewritten(tmp_path / "untied", lambda t: {n: a for n, a in t.items() if n != "lm_head.weight"})
    with pytest.raises(Error, match=r"do not fit Llama: missing: lm_head\.weight"):
        load_folder(tmp_path / "untied")


def test_a_shard_that_is_missing_is_named(tmp_path):
    save_folder(model(**LLAMA), tmp_path / "hf")
    rewritten(tmp_path / "hf", lambda tensors: tensors, shards=3)
    (tmp_path / "hf" / "model-2.safetensors").unlink()
    with pytest.raises(Error, match=r"'model-2\.safetensors' is not a file of this folder"):
        load_folder(tmp_path / "hf")


def test_any_place_will_do(tmp_path, folder):
    """A run folder, a model file, a folder of Hugging Face, and what none of them is."""
    saved = model(**LLAMA)
    (tmp_path / "run").mkdir()
    checkpoint.save(tmp_path / "run" / "model.npz", saved)
    for place in (tmp_path / "run", tmp_path / "run" / "model.npz", folder):
        same(exchange.load_any(place), saved)
    with pytest.raises(Error, match="no such file"):
        exchange.load_any(tmp_path / "missing")
    with pytest.raises(Error, match="neither a run folder"):
        exchange.load_any(tmp_path)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(Error, match="written here, not read"):
        exchange.load_any(tmp_path / "m.gguf")


def test_fresh_weights_of_every_recipe_are_accounted_for():
    """Each foreign tensor comes from one of ours, and each of ours goes somewhere."""
    for family, changes in ((families.GPT2, {}), (families.LLAMA, LLAMA)):
        saved = model(**changes)
        links = families.GPT2.links(saved.config) if not changes else family.links(saved.config)
        assert {link.own for link in links} - {""} == set(GPT(saved.config).state_dict())


# ------------------------------------------------------------------------- what others computed

GOLDENS = Path(__file__).parents[1] / "goldens" / "exchange"


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "llama"])
def test_logits_are_those_of_transformers(name):
    """One file, shards with an index, bfloat16: as transformers wrote them (make_exchange.py)."""
    if name == "llama":
        pytest.importorskip("ml_dtypes")
    saved = exchange.load_any(GOLDENS / name)
    assert saved.tokenizer.decode(saved.tokenizer.encode("the cat sat")) == "the cat sat"
    with np.load(GOLDENS / name / "expected.npz") as expected, mt.no_grad():
        logits = saved.model()(expected["ids"]).data
        np.testing.assert_allclose(logits, expected["logits"], rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------- which goes where


def small(recipe: Config) -> Saved:
    """A recipe's architecture and kind of tokenizer, in a size for a test."""
    tokenizers = {
        "bpe": BPE,
        "char": CHARACTERS,
        "char-plain": bpe.CharTokenizer.train(TEXTS, control_tokens=False),
        "reduced": bpe.ReducedTokenizer.train(BPE, TEXTS, 280),
    }
    tokenizer = tokenizers[recipe.tokenizer]
    kept = ("norm", "norm_eps", "norm_bias", "positions", "rope_theta", "ffn", "gate_bias")
    kept += ("qkv_bias", "out_bias", "ffn_bias", "scale_attention", "head")
    changes = {key: getattr(recipe, key) for key in kept}
    windows = tuple(3 if window else 0 for window in recipe.windows)
    return model(tokenizer, **changes, windows=windows, n_kv_head=min(recipe.n_kv_head, 2))


def goes(saved: Saved, to: str, folder: Path) -> str:
    try:
        return exchange.WRITERS[to][0](saved, folder / f"m.{to}")
    except Error:
        return "no"


@pytest.mark.slow
def test_the_table_of_the_page_says_which_recipe_goes_where(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    told = {row[0].strip("`"): row[1:5] for row in rows if row[0].strip("`") in recipes.RECIPES}
    assert set(told) == set(recipes.RECIPES)
    for name, cells in told.items():
        (tmp_path / name).mkdir()
        found = [goes(small(recipes.get(name)), to, tmp_path / name)
                 for to in ("safetensors", "hf", "llama2c", "gguf")]  # fmt: skip
        assert cells == [
            "yes" if what == "safetensors" else what.split(",")[0] for what in found
        ], name
