"""The command line."""

import io
import json
import os
import signal
import subprocess
import sys
from importlib import metadata

import pytest

import bpe
from bpe.cli import main

TEXT = "Once upon a time.\r\nThe end.\n<|endoftext|>\n" * 20


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    return path


@pytest.fixture
def trained(text, tmp_path):
    path = tmp_path / "t.json"
    bpe.train(text, 270).save(path)
    return path


def test_train_takes_the_options(text, trained, tmp_path, capsys):
    path = tmp_path / "other.json"
    assert main(["train", str(text), "--vocab_size=270", "--out", str(path)]) == 0
    assert capsys.readouterr().err == f"bpe: 270 ids written to {path}\n"
    assert path.read_bytes() == trained.read_bytes()
    call = ["train", text, text, "--vocab-size", 262, "--out", path, "--special-token", "<s>"]
    call += ["--pattern", "gpt4", "--tie_break", "ids", "--min-frequency", 2, "--processes", 2]
    assert main([str(word) for word in [*call, "--quiet"]]) == 0
    expected = bpe.train(
        [text, text], 262, special_tokens=["<s>"], pattern="gpt4", tie_break="ids", min_frequency=2
    )
    assert bpe.load(path) == expected


def test_the_help_has_examples_and_fits_the_screen(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    assert "bpe encode tokenizer.json my.txt > ids" in told
    assert max(map(len, told.splitlines())) <= 80


def test_a_text_in_place_of_a_file_is_told_where_it_goes(trained, capsys):
    for command, typed in (("encode", "Hello world"), ("decode", "1 2 3")):
        assert main([command, str(trained), typed]) == 1
        told = capsys.readouterr().err
        assert told.startswith(f"bpe: {typed}: no such file; ") and "standard input" in told
        assert told.count("\n") == 1


def test_one_byte_is_not_bytes(tmp_path, capsys):
    bpe.CharTokenizer.train(["aé"]).save(tmp_path / "c.json")
    assert main(["info", str(tmp_path / "c.json")]) == 0
    told = capsys.readouterr().out
    assert "2 bytes  'é'" in told and "1 byte   'a'" in told


def test_other_kinds(text, trained, tmp_path, capsys):
    path = tmp_path / "other.json"
    assert main(["train", str(text), "--kind", "char", "--out", str(path)]) == 0
    assert bpe.load(path) == bpe.CharTokenizer.train(text)
    assert (
        main(["train", str(text), "--kind", "char", "--no-control-tokens", "--out", str(path)]) == 0
    )
    assert bpe.load(path).separator_id is None
    call = ["train", str(text), "--kind", "reduced", "--out", str(path), "--vocab-size", "6"]
    assert main(call) == 2
    assert main([*call, "--base", str(path)]) == 2
    assert main([*call, "--base", str(trained)]) == 0
    assert bpe.load(path).vocab_size == 6
    errors = capsys.readouterr().err
    assert "bpe: --base: missing, and kind 'reduced' needs it\n" in errors
    assert "bpe: base: expected a BPETokenizer, got CharTokenizer\n" in errors
    assert "bpe: coverage: " in errors
    assert main([*call, "--base", str(trained), "--pattern", "gpt4"]) == 2
    assert capsys.readouterr().err == "bpe: pattern: not an option of kind 'reduced'\n"


def test_encode_and_decode(text, trained, tmp_path, capsysbinary):
    assert main(["encode", str(trained), str(text)]) == 0
    out = capsysbinary.readouterr().out
    ids = [int(word) for word in out.split()]
    assert ids == bpe.load(trained).encode(TEXT)
    assert main(["encode", str(trained), str(text), "--allow-special"]) == 0
    assert len(capsysbinary.readouterr().out) < len(out)
    numbers = tmp_path / "ids.txt"
    numbers.write_bytes(out.replace(b" ", b", ", 7).replace(b" ", b"\n", 20))
    assert main(["decode", str(trained), str(numbers)]) == 0
    assert capsysbinary.readouterr().out == TEXT.encode()


def test_standard_input(trained, monkeypatch, capsysbinary):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Once upon")))
    assert main(["encode", str(trained)]) == 0
    out = capsysbinary.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(out)))
    assert main(["decode", str(trained), "-"]) == 0
    assert capsysbinary.readouterr().out == b"Once upon"


def test_info_shows_no_control_characters_of_a_file(trained, tmp_path, capsys):
    data = json.loads(trained.read_text(encoding="utf-8"))
    data["training"] = {"\x1b[2J": "\r\x07", "bytes": "\x1b", "tokens": []}
    data["special_tokens"] = {"\x1b]0;x\x07": 5000}
    (tmp_path / "t.json").write_text(json.dumps(data))
    assert main(["info", str(tmp_path / "t.json")]) == 0
    assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())


def test_info(text, trained, tmp_path, capsys):
    assert main(["info", str(trained), "--data", str(text), "--longest", "2"]) == 0
    out = capsys.readouterr().out
    tokenizer = bpe.load(trained)
    tokens = len(tokenizer.encode(TEXT, allowed_special="all"))
    assert f"{tokens:,} tokens: {len(TEXT) / tokens:.3f} bytes per token" in out
    assert tokenizer.sha256 in out
    assert "the 2 longest tokens:" in out
    assert len(out.partition("longest tokens:\n")[2].splitlines()) == 2
    for kind in (bpe.CharTokenizer.train(["Once"]), bpe.ReducedTokenizer.train(tokenizer, text, 9)):
        kind.save(tmp_path / "other.json")
        assert main(["info", str(tmp_path / "other.json"), "--data", str(text)]) == 0
        assert "of its tokens are not unknown" in capsys.readouterr().out


def test_failures_are_one_line_and_status_1(trained, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "words").write_bytes(b"12 twelve")
    for call in (
        ["train", "no-such-file"],
        ["train", str(tmp_path / "empty")],
        ["train", str(tmp_path)],
        ["info", "no-such-file"],
        ["info", str(tmp_path / "empty")],
        ["info", str(trained), "--data", str(tmp_path / "empty")],
        ["decode", str(trained), str(tmp_path / "words")],
        ["encode", str(tmp_path / "words")],
    ):
        assert main(call) == 1
        error = capsys.readouterr().err
        assert error.startswith("bpe: ")
        assert error.count("\n") == 1
    with pytest.raises(bpe.TokenizerError):
        main(["--debug", "train", "no-such-file"])


@pytest.mark.parametrize(
    "call",
    [
        "",
        "fly",
        "train",
        "train TEXT --vocab-size many",
        "train TEXT --vocab-size 3",
        "train TEXT --kind char --vocab-size -4",
        "train TEXT --kind char --pattern gpt2",
        "train TEXT --kind reduced --base BPE --vocab-size 1000",
        "train TEXT --pattern (",
        "train TEXT --min-frequency 0",
        "train TEXT --processes 0",
        "train TEXT --special-token a --special-token a",
        "info BPE --longest -1",
    ],
)
def test_wrong_calls_are_one_line_and_status_2(call, text, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = call.replace("TEXT", str(text)).replace("BPE", str(trained)).split()
    try:
        status = main(words)
    except SystemExit as leaving:
        status = leaving.code
    assert status == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("trian TEXT", "got 'trian'; did you mean train?"),
        ("train TEXT --vocabsize 300", "unknown option '--vocabsize'; did you mean --vocab-size?"),
        ("train TEXT --kind chars", "; got 'chars'; did you mean char?"),
        ("encode BPE TEXT more", "bpe encode: unknown argument 'more' (see 'bpe encode --help')"),
    ],
)
def test_what_was_meant_is_named(call, told, text, trained, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(call.replace("TEXT", str(text)).replace("BPE", str(trained)).split())
    assert leaving.value.code == 2
    assert told in capsys.readouterr().err


def test_a_tokenizer_is_replaced_only_where_it_is_named(text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = ["train", str(text), "--quiet", "--vocab-size"]
    assert main([*call, "260"]) == 0
    assert capsys.readouterr().err == "bpe: 260 ids written to tokenizer.json\n"
    before = (tmp_path / "tokenizer.json").read_bytes()
    assert main([*call, "261"]) == 1
    assert "tokenizer.json: is there already" in capsys.readouterr().err
    assert main(["train", "none.txt", "--vocab-size", "261"]) == 1
    assert "none.txt: No such file" in capsys.readouterr().err
    assert (tmp_path / "tokenizer.json").read_bytes() == before
    assert main([*call, "261", "-o", "tokenizer.json"]) == 0
    told = capsys.readouterr().err
    assert told == "bpe: 261 ids written to tokenizer.json, replacing what was there\n"
    assert bpe.load(tmp_path / "tokenizer.json").vocab_size == 261


def test_a_note_when_pairs_run_out(tmp_path, capsys):
    path = tmp_path / "t.txt"
    path.write_text("abab", encoding="utf-8")
    assert main(["train", str(path), "--out", str(tmp_path / "t.json")]) == 0
    assert "bpe: note: the text ran out of pairs" in capsys.readouterr().err


@pytest.mark.slow
def test_the_module_is_the_command(trained, tmp_path):
    call = [sys.executable, "-m", "bpe"]
    done = subprocess.run([*call, "info", str(trained)], capture_output=True, timeout=60)
    assert done.returncode == 0
    assert b"the 10 longest tokens" in done.stdout
    ids = tmp_path / "ids"
    ids.write_bytes(b"97 " * 500_000)
    with subprocess.Popen([*call, "decode", str(trained), str(ids)], stdout=subprocess.PIPE) as run:
        run.stdout.close()  # nobody wants the output: no traceback, the status of other programs
        assert run.wait(timeout=60) == 128 + signal.SIGPIPE


def test_convert_writes_what_the_library_reads(trained, tmp_path, capsys):
    out = tmp_path / "hf.json"
    assert main(["convert", str(trained), str(out), "--to", "huggingface"]) == 0
    assert capsys.readouterr().err == f"bpe: 270 ids written to {out}\n"
    back, tokenizer = bpe.load(out), bpe.load(trained)
    assert back.encode(TEXT) == tokenizer.encode(TEXT)
    assert main(["convert", str(tmp_path / "none.json"), str(out)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("format", "ids", "notes"),
    [
        ("json", "270 ids", []),
        ("huggingface", "270 ids", []),
        ("gpt2", "270 ids", []),
        ("tiktoken", "269 ids", ["special tokens, so '<|endoftext|>'", "must be given 'gpt2'"]),
        ("llama2c", "272 ids", ["270 tokens of it have another id", "no splitting pattern"]),
    ],
)
def test_convert_counts_what_is_in_the_file_and_says_what_is_not(
    trained, tmp_path, capsys, format, ids, notes
):
    out = tmp_path / "out"
    assert main(["convert", str(trained), str(out), "--to", format]) == 0
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith(f"bpe: {ids} written to {out}")
    assert len(rest) == len(notes)
    assert all(note in line for note, line in zip(notes, rest, strict=True))
    written = bpe.load(out / "vocab.json" if format == "gpt2" else out)
    assert written.vocab_size == int(ids.split()[0])


def test_convert_tells_ids_that_nothing_uses(tmp_path, capsys):
    tokenizer = bpe.train(["abab"], 258, special_tokens=["<s>"])
    data = {**tokenizer.to_dict(), "special_tokens": {"<s>": 299}}
    (tmp_path / "t.json").write_text(json.dumps(data), encoding="utf-8")
    assert main(["convert", str(tmp_path / "t.json"), str(tmp_path / "u.json")]) == 0
    assert "300 ids (258 of them in use) written to" in capsys.readouterr().err
    plain = bpe.CharTokenizer.train(["ab"], control_tokens=False)
    plain.save(tmp_path / "c.json")
    call = ["convert", str(tmp_path / "c.json"), str(tmp_path / "h.json"), "--to", "huggingface"]
    assert main(call) == 0
    assert "its readers drop them" in capsys.readouterr().err


def test_a_terminal_gets_no_control_characters_a_pipe_gets_every_byte(
    tmp_path, monkeypatch, capfdbinary
):
    raw = b"a\x1b[2J\xe9b\r\n\x07\xc3\xa9"
    tokenizer = bpe.train(["abab"], 257)
    tokenizer.save(tmp_path / "t.json")
    ids = [tokenizer.byte_ids[byte] for byte in raw]
    (tmp_path / "ids").write_text(" ".join(map(str, ids)), encoding="utf-8")
    call = ["decode", str(tmp_path / "t.json"), str(tmp_path / "ids")]
    assert main(call) == 0
    assert capfdbinary.readouterr().out == raw
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(call) == 0
    sys.stdout.flush()
    assert capfdbinary.readouterr().out.decode() == "a\\x1b[2J\ufffdb\r\n\\x07é"


def test_show_cuts_the_text_into_its_tokens(trained, tmp_path, capsys, monkeypatch):
    path = tmp_path / "some.txt"
    path.write_text("Once é\nThe end", encoding="utf-8")
    tokenizer = bpe.load(trained)
    pieces = [tokenizer.token_bytes(id) for id in tokenizer.encode("Once é\nThe end")]
    assert main(["encode", str(trained), str(path), "--show"]) == 0
    told = capsys.readouterr().out
    shown = [piece.decode("utf-8", "backslashreplace") for piece in pieces]
    assert told == "|".join(shown) + "\n" and "\\xc3|\\xa9" in told
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["encode", str(trained), str(path), "--show"]) == 0
    coloured = capsys.readouterr().out
    assert "|" not in coloured and coloured.count("\x1b[0m") == len(pieces) + 1
    assert "\n" not in coloured.split("\x1b[3")[1]


def test_the_version_is_that_of_the_distribution(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["--version"])
    assert leaving.value.code == 0
    assert capsys.readouterr().out.startswith("bpe ")


def test_the_help_is_written_as_other_output_is(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["encode", "--help"])
    assert leaving.value.code == 0
    assert capsys.readouterr().out.startswith("usage: bpe encode")


def test_a_package_that_is_not_installed_has_no_version(capsys, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == "bpe of a folder that is not installed\n"


def test_ctrl_c_ends_it_in_one_line(trained, capsys, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("bpe.cli.load", interrupted)
    assert main(["info", str(trained)]) == 130
    assert capsys.readouterr().err == "bpe: stopped\n"


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_output_that_cannot_be_written(trained):
    with open("/dev/full", "wb") as full:
        call = [sys.executable, "-m", "bpe", "info", str(trained)]
        done = subprocess.run(call, stdout=full, stderr=subprocess.PIPE, timeout=60)
        assert done.returncode == 1
        assert done.stderr == b"bpe: standard output: No space left on device\n"
        call.insert(3, "--debug")
        debug = subprocess.run(call, stdout=full, stderr=subprocess.PIPE, timeout=60)
        assert debug.returncode == 1 and b"OSError: [Errno 28]" in debug.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="how a shell closes a stream")
def test_streams_that_are_closed(trained):
    call = f'"{sys.executable}" -m bpe info "{trained}" >&- 2>&-'
    assert subprocess.run(call, shell=True, timeout=60).returncode == 0
