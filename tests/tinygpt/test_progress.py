"""Progress where standard error is no terminal: plain lines, few of them."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import tqdm.auto

from tinygpt import progress


def test_a_file_gets_lines_without_returns_or_padding(capsys, monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with progress.bar(20, "steps", initial=2, desc="all") as bar:
        for _ in range(10):
            bar.set_postfix_str("loss 1.5", refresh=False)
            bar.update()
    told = capsys.readouterr().err
    assert told.isprintable() is False and "\r" not in told
    lines = told.splitlines()
    assert 3 <= len(lines) <= 6 and told.endswith("\n")
    assert lines[0].startswith("all: 5 of 20 steps (25%), 00:")
    assert lines[-1].startswith("all: 12 of 20 steps (60%), ") and lines[-1].endswith(", loss 1.5")
    assert all(line == line.strip() for line in lines)


def test_a_notebook_gets_a_bar_of_its_own(monkeypatch, capsys):
    shell = SimpleNamespace(kernel=None)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert progress.in_notebook()
    with progress.bar(2, "B", desc="reading") as bar:
        bar.update(2)
    assert isinstance(bar, tqdm.auto.tqdm)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert not progress.in_notebook()


def test_one_that_is_off_or_leaves_nothing_is_silent(capsys):
    for options in ({"disable": True}, {"leave": False}):
        with progress.bar(3, "B", **options) as bar:
            bar.update(3)
    with progress.bar(3, "B", initial=3):
        pass  # nothing was left to do
    assert capsys.readouterr().err == ""
