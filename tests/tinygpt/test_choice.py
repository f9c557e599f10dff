"""From the options of `tinygpt train` to a configuration: what follows from what was asked for."""

from __future__ import annotations

import argparse
import json

import pytest

from tinygpt import cli, files
from tinygpt.data import streams
from tinygpt.data.corpus import Options
from tinygpt.data.documents import SEPARATOR
from tinygpt.data.prepare import prepare
from tinygpt.model import recipes
from tinygpt.training import command, report

TINY = "--n-layer 1 --d_model=16 --n-head 2 --d-ff 16 --context 16 --vocab-size 300"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def options(line: str) -> argparse.Namespace:
    parser = cli.Parser(allow_abbrev=False)
    command.add_arguments(parser)
    return parser.parse(line.split())


def chosen(line: str):
    return command.chosen(options(line))


def write_stories(tmp_path, n=41):
    docs = [f"Story {i} of a cat that ran and of a dog that sat." for i in range(n)]
    (tmp_path / "mine.txt").write_text(f"\n{SEPARATOR}\n".join(docs), encoding="utf-8")


@pytest.mark.parametrize("line", ["--data mine.txt", "--set data=mine.txt", "--config c.json"])
def test_a_text_of_ones_own_is_taken_whole(tmp_path, line):
    (tmp_path / "c.json").write_text('{"data": "mine.txt"}', encoding="utf-8")
    assert chosen(line).max_documents == 0
    assert chosen(line + " --max-documents 7").max_documents == 7
    assert chosen("").max_documents == chosen("--data stories").max_documents == 12_000


def test_a_run_s_own_configuration_does_not_cut_another_text(tmp_path):
    recipes_file = tmp_path / "config.json"
    recipes_file.write_text('{"data": "stories", "max_documents": 12000}', encoding="utf-8")
    assert chosen("--config config.json --data mine.txt").max_documents == 0


def test_a_published_recipe_keeps_its_number_of_documents_and_says_so(tmp_path):
    write_stories(tmp_path)
    assert chosen("pretrain-2m --data mine.txt").max_documents == 50_000
    c = chosen(f"--data mine.txt --max-documents 40 {TINY}")
    for _ in ("made", "from the cache"):
        dataset = streams.load(c)
        lines = "\n".join(report.plan(c, dataset, 1, tmp_path))
        assert "data: the first 40 of 41 documents; --set max_documents=0 takes all" in lines
    whole = c.replace(max_documents=0)
    assert "the first" not in "\n".join(report.plan(whole, streams.load(whole), 1, tmp_path))


def test_a_configuration_without_a_recipe_is_the_default_recipe_with_it_over(tmp_path):
    (tmp_path / "c.json").write_text('{"n_layer": 2}', encoding="utf-8")
    assert chosen("--config c.json") == recipes.get("quick").replace(n_layer=2)
    assert chosen("mini-1m --config c.json") == recipes.get("mini-1m").replace(n_layer=2)


def test_base_names_the_recipe_that_a_file_goes_over(tmp_path):
    (tmp_path / "c.json").write_text('{"base": "mini_1m", "dropout": 0}', encoding="utf-8")
    assert chosen("--config c.json") == recipes.get("mini-1m").replace(dropout=0.0)
    assert chosen("mini-1m --config c.json").dropout == 0
    for line, message in (
        ("quick --config c.json", "the recipe asked for is quick"),
        ("--config d.json", "c.json"),
    ):
        (tmp_path / "d.json").write_text('{"base": "mini"}', encoding="utf-8")
        with pytest.raises(cli.UsageError, match="json: ") as caught:
            chosen(line)
        assert message in str(caught.value) or "unknown recipe 'mini'" in str(caught.value)


@pytest.mark.parametrize("base", ["a" * 5000, "a\0b", 3, ["quick"], {"a": 1}, "\ud800"])
def test_a_base_that_is_no_name_is_one_line(tmp_path, base):
    (tmp_path / "c.json").write_text(json.dumps({"base": base}), encoding="utf-8")
    with pytest.raises(cli.UsageError, match=r"^c\.json: unknown recipe|^c\.json: not valid JSON"):
        chosen("--config c.json")


def test_a_runs_config_json_is_of_the_recipe_that_it_names(tmp_path):
    (tmp_path / "config.json").write_text('{"name": "mini-1m"}', encoding="utf-8")
    assert chosen("--config config.json") == recipes.get("mini-1m")
    (tmp_path / "config.json").write_text('{"name": ["mini-1m"]}', encoding="utf-8")
    with pytest.raises(cli.UsageError, match="name: expected text"):
        chosen("--config config.json")


def test_what_differs_from_the_recipe_is_shown_at_the_start(tmp_path):
    write_stories(tmp_path)
    c = chosen(f"--data mine.txt {TINY} --windows 0,0")
    first = report.plan(c, streams.load(c), 1, tmp_path)[0]
    assert first.startswith("differs from the recipe quick: vocab_size 300 (not 1152), context 16 ")
    assert "windows 0,0 (not 4,0)" in first and "max_documents" not in first
    assert recipes.differences(recipes.get("mini-3m")) == ("mini-3m", {})
    custom = recipes.get("mini-3m").replace(name="mine", lr=0.5)
    assert recipes.differences(custom) == ("mini-3m", {"lr": 1e-3})
    first = report.plan(c.replace(name="mine"), streams.load(c), 1, tmp_path)[0]
    assert first.startswith("a configuration of its own, most like the recipe quick, from which it")
    far = c.replace(name="mine", dropout=0.5, lr=1.0, beta1=0.5, beta2=0.5, seed=9, warmup=3)
    assert report.plan(far, streams.load(c), 1, tmp_path)[0].startswith("mine: ")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("shakespeare-char", ["tinygpt data fetch shakespeare", "data/tinyshakespeare.txt"]),
        ("mini-1m", ["tinygpt data fetch tinystories", "data prepare --recipe mini-1m"]),
    ],
)
def test_a_recipe_without_its_text_is_an_error_that_says_where_it_comes_from(capsys, line, words):
    assert cli.main(["train", line]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert all(word in told for word in [*words, "--data takes any text, or 'stories'"])


def test_a_recipe_finds_its_text_where_fetch_puts_it(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tinyshakespeare.txt").write_text("To be", encoding="utf-8")
    c = command.resolve(options("shakespeare-fast")).config
    assert c.data == "data/tinyshakespeare.txt"
    for line in ("shakespeare-fast --data stories", "pinv-0.8m --set data=stories", "quick"):
        assert command.resolve(options(line)).config.data == "stories"


def test_fields_are_options():
    c = chosen("--n-layer 3 --batch_size=4 --set lr=1 --norm-bias yes --windows=0,8")
    assert (c.n_layer, c.batch_size, c.lr, c.norm_bias, c.windows) == (3, 4, 1.0, True, (0, 8))
    assert command.asked_for(options("--max-iters 3 --seed 4")) == {"max_iters": 3, "seed": 4}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train --n-layer", "--n-layer: expected a value"),
        ("train --n-layer --seed 3", "--n-layer: expected a value"),
        ("train --n-layer three", "n_layer: expected a whole number, got 'three'"),
        ("train --n-layers 3", "unknown option '--n-layers'; did you mean --n-layer?"),
        ("train my.txt", "unknown recipe 'my.txt'; a text is given with --data"),
        ("eval --n-layer 3 m.npz", "unknown option '--n-layer'"),
    ],
)
def test_hints_lead_on(capsys, line, message):
    try:
        assert cli.main(line.split()) == 2
    except SystemExit as leaving:
        assert leaving.code == 2
    assert message in capsys.readouterr().err


def test_what_was_settled_when_data_was_prepared_is_not_asked_for_again(tmp_path):
    write_stories(tmp_path)
    prepare([tmp_path / "mine.txt"], tmp_path / "p", options=Options(vocab_size=270), processes=1)
    with pytest.raises(cli.UsageError, match="data in p has a vocabulary of 270, not of 300"):
        chosen("--data p --vocab-size 300")
    with pytest.raises(cli.UsageError, match="tokenizer: settled when p was prepared"):
        chosen("--data p --set tokenizer=char")
    assert chosen("--data p --vocab-size 270").vocab_size == 270


def test_a_vocabulary_of_characters_fits_unless_a_size_was_asked_for(tmp_path):
    write_stories(tmp_path)
    characters = len(set((tmp_path / "mine.txt").read_text(encoding="utf-8")) - set("<|>_\n"))

    def size(line):
        return streams.load(chosen(f"{line} --data mine.txt --context 16")).tokenizer.vocab_size

    assert size("mini-1m --tokenizer char") == size("--tokenizer char") < characters + 5
    assert size("mini-1m --tokenizer char-plain") <= characters
    assert size("mini-1m --tokenizer char --vocab-size 90") == 90
    assert chosen("shakespeare-char --tokenizer bpe").vocab_size == 1024


def test_a_failed_start_leaves_no_folder(tmp_path):
    assert cli.main(["train", "--data", "none.txt"]) == 1
    assert cli.main(["train", "--data", "none.txt", "--out", "a/b"]) == 1
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").write_text("text", encoding="utf-8")
    assert cli.main(["train", "--data", "none.txt", "--out", "a"]) == 1
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["mine"]
    assert not list(files.cache_folder().glob("data/*.tmp"))
