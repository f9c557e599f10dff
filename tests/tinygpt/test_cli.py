"""The command line: exit statuses, one-line errors, and how quickly help comes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import bpe
import tinygpt
from minitensor.files import sweep
from tinygpt import Error, cli, files, machine
from tinygpt.model import config, recipes

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ("train quik", 2, "unknown recipe 'quik'; did you mean 'quick'?"),
        ("train --set lrr=1", 2, "did you mean 'lr'?"),
        ("train --set block_size=64", 2, "'block_size'; it is called 'context' here"),
        ("train --learning_rate 1", 2, "it is called --lr here"),
        ("train --device cpu", 2, "there is nothing to choose here"),
        ("train --set windows=0 n_layer=4", 2, "each setting has a --set before it"),
        ("train --set lr=fast", 2, "lr: expected a number, got 'fast'"),
        ("train --max-itres 3", 2, "unknown option '--max-itres'; did you mean --max-iters?"),
        ("train --max-iters many", 2, "invalid int value"),
        ("train --max-iters 0", 2, "max_iters: expected at least 1"),
        ("train --threads 100000000", 2, "--threads: expected 1 to 1,024, got 100000000"),
        ("bench --threads 0", 2, "--threads: expected 1 to 1,024, got 0"),
        ("bench --steps -4", 2, "--steps: expected at least 1, got -4"),
        ("profile --steps -4", 2, "--steps: expected at least 1, got -4"),
        ("eval none.npz --threads 100000000", 2, "--threads: expected 1 to 1,024"),
        ("train --set eps=0", 2, "eps: expected a number that float32 holds above 0, got 0"),
        ("train --set eps=1e-50", 2, "eps: expected a number that float32 holds above 0"),
        ("train --set lr=1e39", 2, "lr: expected a number that float32 holds, got 1e+39"),
        ("train --threads 0", 2, "--threads: expected 1 to 1,024, got 0"),
        ("train quick pinv", 2, "unknown argument 'pinv'"),
        ("train --config none.json", 1, "none.json: No such file"),
        ("train --data none.txt", 1, "none.txt: no such file"),
        ("train --resume", 1, "no run to go on with"),
        ("eval none.npz", 1, "none.npz: no such file or folder"),
        ("evil", 2, "unknown command 'evil'; did you mean 'eval'?"),
        ("resume", 2, "unknown command 'resume'; did you mean 'train --resume'?"),
        ("compare setup.py", 1, "setup.py: not a run's folder, or a file in one"),
        ("data fetch", 2, "required: shakespeare | tinystories"),
        ("--verison", 2, "did you mean '--version'?"),
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


def process(*arguments: str, module: str = "tinygpt", **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        check=False,
        **{"stderr": subprocess.PIPE, "text": True, **options},
    )


@pytest.mark.slow
def test_debug_shows_the_traceback_and_keeps_the_status():
    with pytest.raises(Exception, match="unknown recipe"):
        cli.main(["train", "quik", "--debug"])
    done = process("train", "quik", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr and "did you mean 'quick'" in done.stderr


FULL = Path("/dev/full")


@pytest.mark.slow
@pytest.mark.skipif(not FULL.exists(), reason="no device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("tinygpt", "recipes"),
        ("tinygpt", "recipes --help"),
        ("tinygpt", "--help"),
        ("bpe", "--help"),
        ("bpe", "encode TOKENIZER README.md"),
        ("bpe", "decode TOKENIZER IDS"),
        ("bpe", "info TOKENIZER"),
    ],
)
def test_output_that_cannot_be_written_is_one_line_and_status_1(
    tmp_path, module, arguments, unbuffered
):
    bpe.CharTokenizer.train(["a text"]).save(tmp_path / "t.json")
    (tmp_path / "ids").write_text("3 4", encoding="utf-8")
    arguments = arguments.replace("TOKENIZER", str(tmp_path / "t.json"))
    arguments = arguments.replace("IDS", str(tmp_path / "ids"))
    with FULL.open("w") as full:
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = process(*arguments.split(), module=module, stdout=full, env=environment)
    assert done.returncode == 1
    assert done.stderr.endswith("standard output: No space left on device\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(not FULL.exists(), reason="no device that is always full")
@pytest.mark.parametrize("module", ["tinygpt", "bpe"])
def test_messages_that_cannot_be_written_change_no_status(module):
    with FULL.open("w") as full:
        for status, arguments in ((0, ["--help"]), (2, ["--none"])):
            done = process(*arguments, module=module, stdout=subprocess.DEVNULL, stderr=full)
            assert done.returncode == status


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="closes descriptors in the child")
def test_closed_streams_are_no_error():
    for descriptor in (1, 2):
        done = process("recipes", stdout=None, preexec_fn=lambda fd=descriptor: os.close(fd))
        assert done.returncode == 0


def test_only_what_no_living_process_writes_is_swept_from_a_shared_folder(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = [f".a.npz.{gone.pid}.tmp", f".a.npz.{os.getpid()}.tmp", ".notes.tmp", "a.npz"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    sweep(tmp_path, "a.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[2:])


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_no_link_is_followed_where_a_file_is_written(tmp_path):
    (tmp_path / "precious").write_text("mine", encoding="utf-8")
    for name in ("a.npz", f".a.npz.{os.getpid()}.tmp"):
        (tmp_path / name).symlink_to("precious")
    with files.replacing(tmp_path / "a.npz") as handle:
        handle.write(b"new")
    assert (tmp_path / "precious").read_text("utf-8") == "mine"
    assert (tmp_path / "a.npz").read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 2


def test_both_signs_are_the_same_in_option_names():
    assert cli.dashes("--max_iters=a_b") == "--max-iters=a_b"
    assert cli.dashes("some_text") == "some_text"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_fits_the_screen(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main([*name.split(), "--help"])
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80
    assert "``" not in told and "module" not in told


@pytest.mark.parametrize(
    "arguments",
    ["--help", "recipes", "recipes --table", *(f"recipes {n}" for n in recipes.RECIPES)],
)
def test_what_is_listed_fits_the_screen(arguments, capsys):
    assert cli.main(arguments.split()) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize(
    "arguments", ["train quik", "train --max-itres 3", "train mini-1m", "evil", "train --eps 0"]
)
def test_errors_fit_a_terminal(arguments, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    try:
        assert cli.main(arguments.split()) > 0
    except SystemExit as leaving:
        assert leaving.code == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) > 1 and max(map(len, told)) <= 50


def test_a_wrong_value_for_the_tokenizer_is_a_wrong_call(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text("some words of a text " * 9, encoding="utf-8")
    assert cli.main(["train", "--data", "my.txt", "--vocab-size", "10"]) == 2
    assert "vocab_size: 10 is not a number from 257 up" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_columns_text_goes_on_below_itself():
    text = "Much " * 20 + "\n\n    train        learns\n    train --out  " + "word " * 20
    *lines, first, second = cli.Help("tinygpt")._fill_text(text, 60, "").rsplit("\n    train", 2)
    assert max(map(len, lines[0].splitlines())) <= 60 and first == "        learns"
    below = second.splitlines()
    assert below[0].startswith(" --out  word") and len(below) > 1
    assert all(line.startswith(" " * 17 + "word") for line in below[1:])


@pytest.mark.parametrize(
    ("typed", "meant"), [("gen", "generate"), ("pro", "probe"), ("trian", "train")]
)
def test_half_a_command_is_understood_in_the_error(typed, meant, capsys):
    assert cli.main([typed]) == 2
    assert f"unknown command {typed!r}; did you mean {meant!r}?" in capsys.readouterr().err


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


def test_a_lack_of_memory_says_what_helps(monkeypatch, capsys):
    def fail(args):
        raise MemoryError

    monkeypatch.setattr(recipes, "main", fail)
    assert cli.main(["recipes"]) == 1
    told = capsys.readouterr().err
    assert told == "tinygpt: error: out of memory: use a smaller batch_size or shard_tokens\n"


def test_a_reader_that_went_away_is_no_error(monkeypatch, capsys):
    def fail(args):
        raise BrokenPipeError

    monkeypatch.setattr(recipes, "main", fail)
    assert cli.main(["recipes"]) == 141
    assert capsys.readouterr().err == ""


def test_the_version_is_that_of_the_package(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"tinygpt {tinygpt.__version__}\n"


@pytest.mark.parametrize(
    ("platform", "variables", "place"),
    [
        ("linux", {}, ".cache/tinygpt"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/tinygpt"),
        ("darwin", {"XDG_CACHE_HOME": "/x"}, "Library/Caches/tinygpt"),
        ("win32", {}, "AppData/Local/tinygpt"),
        ("win32", {"LOCALAPPDATA": "/y"}, "/y/tinygpt"),
        ("win32", {"TINYGPT_CACHE": "/z"}, "/z"),
    ],
)
def test_the_cache_lies_where_the_platform_keeps_such(
    monkeypatch, tmp_path, platform, variables, place
):
    for name in ("TINYGPT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(sys, "platform", platform)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert files.cache_folder() == tmp_path / place


def test_a_platform_that_tells_little_of_itself(monkeypatch):
    """As Windows and macOS: no affinity, no resource module, no sysconf, no /proc."""
    for name in ("sched_getaffinity", "sysconf"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.delattr(machine.time, "CLOCK_BOOTTIME", raising=False)
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(machine, "Path", lambda name: Path(name + " is not here"))
    assert machine.cores() == os.cpu_count()
    assert machine.installed_memory() == 0 and machine.peak_memory() == "unknown"
    assert abs(machine.asleep() - machine.asleep()) < 60  # a difference is what it is for
    told = machine.describe()
    assert f"{os.cpu_count()} cores, " in told and "numba" in told and " GB" not in told


def test_without_locks_a_folder_is_not_kept_alone(monkeypatch, tmp_path):
    """Windows has no fcntl, and some file systems have no locks; a second process is let in."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with files.alone(tmp_path, "writing"), files.alone(tmp_path, "writing"):
        pass
    monkeypatch.undo()
    fcntl = pytest.importorskip("fcntl")
    with (
        files.alone(tmp_path, "writing"),
        pytest.raises(Error, match="another process is writing here"),
        files.alone(tmp_path, "writing"),
    ):
        pass

    def no_locks(handle, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with files.alone(tmp_path, "writing"):
        pass


def test_the_list_of_recipes_has_their_parameters(capsys):
    assert cli.main(["recipes"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in recipes.RECIPES)
    assert "41,026,560" in told and "100,000" in told
    assert max(map(len, told.splitlines())) <= 80


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_is_shown_with_a_comment_on_every_field(name, capsys):
    assert cli.main(["recipes", name]) == 0
    told = capsys.readouterr().out
    assert all("  # " in line for line in told.splitlines())
    assert config.loads(told, ".toml") == recipes.get(name)
    assert list(config.MEANING) == list(config.TYPES)


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
    recipes.remember_time(quick, 0.5)  # on a busier day
    recipes.remember_time(recipes.get("mini-1m").replace(batch_size=1), 9.0)
    assert recipes.times() == {"quick": 0.1234}
    for damaged in ('{"quick": NaN}', '{"quick": Infinity}', '{"quick": -1}', '{"quick": []}', "["):
        (tmp_path / "times.json").write_text(damaged, encoding="utf-8")
        assert recipes.times() == {}
    recipes.remember_time(quick, 0.1234)
    cli.main(["recipes"])
    assert " 2 min " in capsys.readouterr().out
