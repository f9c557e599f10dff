"""The files of a run that grow: whole lines, whatever happens to the disk."""

from __future__ import annotations

import io
import os
from types import SimpleNamespace

import pytest

from tinygpt import Error
from tinygpt.inspection.page.page import read_samples
from tinygpt.training import journal
from tinygpt.training.journal import Journal, as_json, read_records


def test_what_is_appended_is_there_at_once(tmp_path):
    log = Journal(tmp_path / "log")
    log.append("one\n")
    log.append("twö\n")
    assert (tmp_path / "log").read_text("utf-8") == "one\ntwö\n"
    assert log.sync() == len("one\ntwö\n".encode())
    log.close()


@pytest.mark.parametrize(
    ("text", "size", "left", "all_there"),
    [
        ("one\ntwo\nthree\n", 8, "one\ntwo\n", True),
        ("one\ntwo\n", 8, "one\ntwo\n", True),
        ("one\ntwo\n", 14, "one\ntwo\n", False),
        ("one\ntwo\nthr", 14, "one\ntwo\n", False),
        ("one\ntwo\nthree\n", 6, "one\n", False),
        ("", 5, "", False),
        ("one\n", 0, "", True),
        ("one\n", 10**12, "one\n", False),  # what a stranger's checkpoint says
        ("one\n", 10**19, "one\n", False),
    ],
)
def test_a_journal_is_cut_to_whole_lines(tmp_path, text, size, left, all_there):
    (tmp_path / "log").write_text(text, encoding="utf-8")
    log = Journal(tmp_path / "log")
    assert log.cut(size) is all_there
    log.append("next\n")
    assert (tmp_path / "log").read_text("utf-8") == left + "next\n"
    log.close()


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    class Full(io.FileIO):
        room = 6

        def write(self, data):
            if not self.room:
                raise OSError(28, "No space left on device")
            written = super().write(data[: self.room])
            self.room -= written
            return written

    monkeypatch.setattr(journal, "io", SimpleNamespace(FileIO=Full))
    log = Journal(tmp_path / "log")
    log.append("one\n")
    with pytest.raises(Error, match="log: cannot be written: No space left on device"):
        log.append("two\n")
    assert (tmp_path / "log").read_text("utf-8") == "one\n"
    log.close()


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
def test_a_journal_leads_to_no_other_file(tmp_path):
    (tmp_path / "other").write_text("precious", encoding="utf-8")
    (tmp_path / "log").symlink_to(tmp_path / "other")
    with pytest.raises(Error, match="log: cannot be written"):
        Journal(tmp_path / "log")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Error, match="not an ordinary file"):
        Journal(tmp_path / "pipe")
    assert (tmp_path / "other").read_text("utf-8") == "precious"


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
def test_a_log_that_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        with pytest.raises(Error, match=f"{name}: not an ordinary file"):
            read_records(tmp_path / name)
        assert read_samples(tmp_path / name) == []


def test_a_log_is_read_within_bounds(tmp_path, monkeypatch):
    long = b"[" + b"[]," * 100_000 + b"[]]\n"
    (tmp_path / "log").write_bytes(b'{"step": 0}\n' + long + b'{"step": 1}\n' + long[:-1])
    assert read_records(tmp_path / "log") == ([{"step": 0}, {"step": 1}], [2, 4])
    monkeypatch.setattr(journal, "MAX_LINES", 3)
    with pytest.raises(Error, match="log: expected at most 3 lines, got more"):
        read_records(tmp_path / "log")


def test_what_is_not_finite_is_null():
    record = {"loss": float("nan"), "step": 3, "uniform": {"perplexity": float("inf"), "n": 1.5}}
    assert as_json(record) == '{"loss": null, "step": 3, "uniform": {"perplexity": null, "n": 1.5}}'


def test_records_and_what_are_none(tmp_path):
    (tmp_path / "log").write_bytes(
        b'{"step": 0, "loss": NaN, "recipe": "x"}\n\n[]\n{"s": 1e308}\n{"step": 1'
    )
    assert read_records(tmp_path / "log") == ([{"step": 0, "loss": None, "recipe": "x"}], [3, 4, 5])
    with pytest.raises(Error, match="expected a run's folder"):
        read_records(tmp_path / "none")
