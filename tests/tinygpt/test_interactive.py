"""Typing beginnings: the text of `generate`, commands, Ctrl-C, the end of the input."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys

import pytest

import bpe
from tinygpt import UsageError, cli, interactive
from tinygpt.data import stories
from tinygpt.formats import checkpoint
from tinygpt.formats.checkpoint import Saved
from tinygpt.interactive import Settings, changed
from tinygpt.model.sample import sample_text
from tinygpt.model.transformer import GPT

SETTINGS = Settings(0.8, 200, 1.0, 1337, 12)


@pytest.fixture
def saved(tiny):
    tokenizer = bpe.CharTokenizer.train(list(stories.corpus(20)), vocab_size=80)
    return Saved(tiny, tokenizer, GPT(tiny).state_dict(), {})


@pytest.fixture
def model(saved, tmp_path):
    checkpoint.save(tmp_path / "model.npz", saved)
    return tmp_path  # a run's folder, as far as this command looks


def converse(model, typed, monkeypatch, capsys, *options):
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    call = ["generate", str(model), "--interactive", "--ignore-eot", "--max-new-tokens", "12"]
    assert cli.main([*call, *options, "--debug"]) == 0
    return capsys.readouterr()


def text(saved, prompt, n=12, **options):
    return sample_text(
        saved.model(), saved.tokenizer, prompt, max_new_tokens=n, ignore_eot=True, **options
    )


def test_a_line_is_a_beginning(model, saved, monkeypatch, capsys):
    told = converse(model, "Once\n//x\n", monkeypatch, capsys)
    options = {"temperature": 0.8, "top_k": 200, "seed": 1337}
    assert told.out == text(saved, "Once", **options) + "\n" + text(saved, "/x", **options) + "\n"
    assert told.err == ""


def test_commands_change_what_comes(model, saved, monkeypatch, capsys):
    typed = "/t 0\n/n 5\n/s 3\n/k 7\n/p 0.5\nOnce\n/q\nnever\n"
    told = converse(model, typed, monkeypatch, capsys)
    assert told.out == text(saved, "Once", 5, temperature=0.0) + "\n"
    assert told.err.splitlines()[-1] == "/t 0  /k 7  /p 0.5  /s 3  /n 5"


def test_an_empty_line_goes_on(model, saved, monkeypatch, capsys):
    told = converse(model, "/t 0\nOnce\n\n", monkeypatch, capsys)
    first, more, _ = told.out.split("\n")
    assert first == text(saved, "Once", temperature=0.0)
    assert first + more == text(saved, "Once", 24, temperature=0.0)


def test_what_has_no_meaning_is_told_and_it_goes_on(model, monkeypatch, capsys):
    typed = "/t hot\n/k 1.5\n/p 2\n/x\n/n -1\n/?\nOnce\n"
    told = converse(model, typed, monkeypatch, capsys)
    for message in (
        "/t: expected a number, got 'hot'",
        "/k: expected a whole number, got '1.5'",
        "--top-p: expected above 0 and at most 1",
        "/x: expected one of /t /k /p /s /n /? /q",
        "--max-new-tokens: expected 0 or more, got -1",
        "/p 0.9    draw from the likeliest",
    ):
        assert message in told.err
    assert told.out.startswith("Once")


def test_only_settings_change():
    assert changed(SETTINGS, "/k 3") == Settings(0.8, 3, 1.0, 1337, 12)
    with pytest.raises(UsageError):
        changed(SETTINGS, "/t nan")


def test_a_character_without_a_token_is_told(saved, tmp_path, monkeypatch, capsys):
    plain = bpe.CharTokenizer("abc", control_tokens=False, vocab_size=80)
    checkpoint.save(tmp_path / "model.npz", Saved(saved.config, plain, saved.params, {}))
    told = converse(tmp_path, "xyz\nabc\n", monkeypatch, capsys)
    assert "'x' (U+0078) is not among" in told.err and told.out.startswith("abc")


def test_ctrl_c_stops_the_text_and_not_the_program(saved, monkeypatch, capsys):
    def endless(*args, **options):
        yield from saved.tokenizer.encode("abc")
        raise KeyboardInterrupt

    monkeypatch.setattr(interactive, "generate", endless)
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    assert interactive.Session(saved, SETTINGS, "drop", True).run() == 0
    assert capsys.readouterr().out == "oneabc\ntwoabc\n"


def test_options_of_one_text_are_refused(model, capsys):
    call = ["generate", str(model), "--interactive"]
    assert cli.main([*call, "--prompt", "x"]) == 2
    assert cli.main([*call, "--num-samples", "2"]) == 2
    assert "--num-samples: not with --interactive" in capsys.readouterr().err


@pytest.mark.slow
def test_in_a_terminal(model):
    """With a prompt, an interrupt while it writes, and Ctrl-D at the end."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    call = [sys.executable, "-m", "tinygpt", "generate", str(model), "--interactive"]
    call += ["--ignore-eot", "--max-new-tokens", "1000000"]
    process = subprocess.Popen(
        call, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "dumb",
        "MINITENSOR_KERNELS": "numpy"}, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)

    def wait(mark, times=1):
        seen = b""
        while seen.count(mark) < times:
            assert len(seen) < 100_000 and select.select([ours], [], [], 120)[0], seen[:1000]
            seen += os.read(ours, 4096)

    try:
        wait(b"> ")
        os.write(ours, b"Once\n")
        wait(b"Once", times=2)  # as typed, and as the text begins
        process.send_signal(signal.SIGINT)
        wait(b"> ")
        os.write(ours, b"/s 5\n")
        wait(b"/s 5  /n 1000000\r\n> ")
        os.write(ours, b"\x04")
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.slow
def test_an_interrupt_that_was_caught_does_not_end_the_session_later():
    """As it may come while kernels are loaded, which executes program texts."""
    program = (
        "from tinygpt.interactive import forget_interrupt\n"
        "try:\n    exec('raise KeyboardInterrupt')\n"
        "except KeyboardInterrupt:\n    forget_interrupt()\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0
