"""The command line: exit statuses, one-line errors, and how quickly help comes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tinygpt import cli
from tinygpt.model import recipes

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ("train quik", 2, "unknown recipe 'quik'; did you mean 'quick'?"),
        ("train --set lrr=1", 2, "did you mean 'lr'?"),
        ("train --set lr=fast", 2, "lr: expected a number, got 'fast'"),
        ("train --max-itres 3", 2, "unknown option '--max-itres'; did you mean --max-iters?"),
        ("train --max-iters many", 2, "invalid int value"),
        ("train --max-iters 0", 2, "max_iters: expected at least 1"),
        ("train --threads 0", 2, "--threads: expected at least 1"),
        ("train quick pinv", 2, "unknown argument 'pinv'"),
        ("train --config none.json", 1, "none.json: No such file"),
        ("train --data none.txt", 1, "none.txt: no such file"),
        ("train --resume", 1, "no run to go on with"),
        ("eval none.npz", 1, "none.npz: no such model file"),
        ("evil", 2, "unknown command 'evil'; did you mean 'eval'?"),
        ("data", 2, "expected fetch or prepare"),
        ("recipes nano", 2, "unknown recipe 'nano'"),
    ],
)
def test_errors_are_one_line_with_the_right_status(
    tmp_path, monkeypatch, capsys, arguments, status, message
):
    monkeypatch.chdir(tmp_path)
    try:
        assert cli.main(arguments.split()) == status
    except SystemExit as leaving:
        assert leaving.code == status
    told = capsys.readouterr()
    assert message in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""


def test_debug_shows_the_traceback():
    with pytest.raises(Exception, match="unknown recipe"):
        cli.main(["train", "quik", "--debug"])


def test_both_signs_are_the_same_in_option_names():
    assert cli.dashes("--max_iters=a_b") == "--max-iters=a_b"
    assert cli.dashes("some_text") == "some_text"


def test_help_needs_none_of_the_heavy_modules():
    code = (
        "import sys, tinygpt.cli; status = tinygpt.cli.main(['--help']); "
        "heavy = {'numpy', 'numba', 'tqdm', 'minitensor', 'bpe'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy or status else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout


def test_errors_that_nobody_foresaw_are_one_line_too(monkeypatch, capsys):
    def fail(args):
        raise KeyError("surprise")

    monkeypatch.setattr(recipes, "main", fail)
    assert cli.main(["recipes"]) == 1
    assert capsys.readouterr().err == (
        "tinygpt: error: KeyError: 'surprise' (run again with --debug for the traceback)\n"
    )


def test_the_list_of_recipes_has_their_parameters(capsys):
    assert cli.main(["recipes"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in recipes.RECIPES)
    assert "41,026,560" in told and "8,192" in told


def test_a_table_of_parameters_has_both_columns(capsys):
    assert cli.main(["recipes", "neo_41m", "--table"]) == 0
    told = capsys.readouterr().out
    for number in (
        "38,990,592",
        "28,342,272",
        "38,598,912",
        "105,931,776",
        "6,537,984",
        "6,146,304",
        "41,026,560",
    ):
        assert number in told


def test_a_recipe_is_shown_as_a_file_that_can_be_read_back(tmp_path, capsys):
    from tinygpt.model import config

    assert cli.main(["recipes", "pretrain-2m", "--format", "yaml"]) == 0
    text = capsys.readouterr().out
    assert config.loads(text, ".yaml") == recipes.get("pretrain-2m")


def test_times_are_kept_for_the_recipe_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TINYGPT_CACHE", str(tmp_path))
    quick = recipes.get("quick")
    recipes.remember_time(quick.replace(seed=5, max_iters=3), 0.1234)
    recipes.remember_time(recipes.get("mini-1m").replace(batch_size=1), 9.0)
    assert recipes.times() == {"quick": 0.1234}
    cli.main(["recipes"])
    assert "123" in capsys.readouterr().out
