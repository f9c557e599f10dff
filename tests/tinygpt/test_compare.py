"""A table and curves of several runs."""

from __future__ import annotations

import argparse
import json
import math
import sys

import pytest

from tinygpt import Error, UsageError
from tinygpt.inspection import compare
from tinygpt.model import config, recipes


@pytest.fixture
def runs(tmp_path):
    """Two runs of different recipes."""
    folders = []
    for number, name in enumerate(("mini-1m", "quick")):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        text = config.dumps(recipes.get(name), ".json")
        (folder / "config.json").write_text(text, encoding="utf-8")
        lines = [
            {"step": s, "valid_loss": 3.0 - s / 100 - number, "valid_perplexity": 1,
             "valid_bits_per_byte": 1.5 - s / 200, "tokens": s * 4096, "seconds": s * 1.5}
            for s in (0, 50, 100)
        ]  # fmt: skip
        log = "\n".join(map(json.dumps, [{"event": "start", "step": 0}, *lines]))
        (folder / "log.jsonl").write_text(log + "\n", encoding="utf-8")
        folders.append(folder)
    return folders


def call(*args):
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    return compare.main(parser.parse_args([str(a) for a in args]))


def cells_of(text):
    """The cells of Markdown tables, by line."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_the_table_has_the_last_validation_of_each_run(runs, capsys):
    assert call(*runs, "--table") == 0
    told = capsys.readouterr().out
    rows = {row[0]: row[1:] for row in cells_of(told)}
    assert list(rows)[2:12] == list(compare.ROWS)
    columns = list(zip(*(rows[name] for name in ("run", *compare.ROWS)), strict=True))
    assert columns[0] == (
        "run0", "mini-1m", "stories", "bpe 3,000", "1,046,656", "100", "409,600",
        "2.5", "2.0000",
        f"{math.exp(2):.2f}", "1.0000",
    )  # fmt: skip
    assert columns[1][8:] == ("1.0000", f"{math.exp(1):.2f}", "1.0000")
    assert rows["settings:"] == ["", ""]
    assert rows["norm"] == ["layer", "rms"] and rows["windows"] == ["0", "4,0"]
    assert rows["norm_bias"] == ["true", "false"] and "n_kv_head" not in rows
    lines = told.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert set(lines[1]) == set("|-: ")


@pytest.mark.parametrize("width", [50, 80, 200])
def test_as_many_runs_stand_side_by_side_as_there_is_room_for(runs, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    six = [runs[n % 2] for n in range(6)]
    assert call(*six, "--table") == 0
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= width
    names = [name for row in cells_of(told) if row[0] == "run" for name in row[1:]]
    assert names == ["run0", "run1"] * 3
    tables = told.split("\n\n")
    assert len(tables) == {50: 3, 80: 2, 200: 1}[width]
    assert all(table.startswith("| run ") for table in tables)


def test_runs_are_named_without_the_folder_that_all_lie_in(runs, tmp_path, monkeypatch):
    def names(*places):
        return compare.short_names([compare.read(place) for place in places])

    monkeypatch.chdir(tmp_path)
    assert names(runs[0]) == [runs[0].as_posix()]
    assert names(runs[0], compare.Path("run1")) == ["run0", "run1"]
    (tmp_path / "deep").mkdir()
    runs[1].rename(tmp_path / "deep" / "run1")
    assert names(runs[0], tmp_path / "deep" / "run1") == ["run0", "deep/run1"]


@pytest.mark.slow
def test_a_run_that_diverged_has_a_row_of_ordinary_width(runs, capsys):
    lines = [
        {"step": step, "valid_loss": loss, "valid_perplexity": None,
         "valid_bits_per_byte": loss, "tokens": 1, "seconds": 1}
        for step, loss in ((0, 690.0), (1, 3000.0), (2, None))
    ]  # fmt: skip
    for count, text in ((1, "4.605e+299"), (2, "inf"), (3, "nan")):
        log = "".join(json.dumps(line) + "\n" for line in lines[:count])
        (runs[0] / "log.jsonl").write_text(log, encoding="utf-8")
        assert call(*runs, "--table") == 0
        told = capsys.readouterr().out
        assert f" {text} |" in told and max(map(len, told.splitlines())) <= 80
    pytest.importorskip("matplotlib")
    assert call(*runs, "--out", str(runs[0] / "c.png")) == 0


def give(run, c):
    (run / "config.json").write_text(config.dumps(c, ".json"), encoding="utf-8")


def test_different_texts_and_tokens_are_told(runs, capsys):
    call(*runs, "--table")
    assert "different texts" in capsys.readouterr().err
    give(runs[0], recipes.get("quick").replace(vocab_size=512))
    call(*runs, "--table")
    assert "compare their bits per byte" in capsys.readouterr().err
    (runs[0] / "model.npz").touch()
    call(runs[0], runs[0] / "model.npz", "--table")
    told = capsys.readouterr()
    assert told.err == "" and "setting" not in told.out


@pytest.mark.slow
def test_perplexity_is_drawn_of_the_same_tokens_only(runs, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    pictures = []
    monkeypatch.setattr(compare, "save", lambda picture, path: pictures.append(picture))
    for c in (recipes.get("mini-1m"), recipes.get("quick").replace(n_layer=9)):
        give(runs[0], c)
        compare.curves([compare.read(run) for run in runs], tmp_path / "c.png")
    different, same = pictures
    assert [axes.get_ylabel() for axes in different.axes if axes.get_ylabel()] == [
        "validation bits per byte"
    ]
    assert "do not compare" in different.get_suptitle() and not same.get_suptitle()
    assert "validation perplexity" in [axes.get_ylabel() for axes in same.axes]


def test_without_matplotlib_there_is_the_table_and_a_word(runs, tmp_path, monkeypatch, capsys):
    find = compare.importlib.util.find_spec
    monkeypatch.setattr(
        compare.importlib.util,
        "find_spec",
        lambda name: None if name == "matplotlib" else find(name),
    )
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.chdir(tmp_path)
    assert call(*runs) == 0
    told = capsys.readouterr()
    assert told.out.startswith("| run ")
    assert "no picture of the curves: pictures need matplotlib: 'pip install" in told.err
    with pytest.raises(Error, match="pip install matplotlib"):
        call(*runs, "-o", "asked-for.png")
    assert not list(tmp_path.glob("*.png"))


def test_a_picture_that_is_replaced_is_told(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "curves", lambda runs, path: (path.touch(), path)[1])
    out = tmp_path / "c.png"
    for replaced in (False, True):
        assert call(runs[0], "-o", out) == 0
        told = capsys.readouterr()
        assert told.out.splitlines()[-1] == str(out)
        assert (f"{out}: replaced" in told.err) == replaced


@pytest.mark.slow
def test_curves_are_drawn(runs, tmp_path, capsys):
    out = tmp_path / "pictures" / "both.png"
    assert call(*runs, "--out", out) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.splitlines()[-1] == str(out)


def test_what_is_no_run_is_named(runs, tmp_path):
    with pytest.raises(Error, match=r"no config\.json"):
        call(tmp_path)
    (runs[0] / "log.jsonl").write_text('{"step": 0, "loss": 1.0}\n', encoding="utf-8")
    with pytest.raises(Error, match="no validation yet"):
        call(*runs)
    with pytest.raises(UsageError, match=r"ends in \.png"):
        call(*runs, "--out", "picture.svg")


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (250_000, "250k"), (1_500_000, "1.5M"), (2e9, "2G")]
)
def test_numbers_on_axes(value, text):
    assert compare._short(value, 0) == text
