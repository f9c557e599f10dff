"""Token files from texts: what is in them, that nothing is lost, and that a killed run goes on."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

import bpe
from tinygpt import Error, UsageError
from tinygpt.data import corpus, streams
from tinygpt.data import prepare as module
from tinygpt.data.corpus import Options, repair_mojibake
from tinygpt.data.prepare import prepare
from tinygpt.data.streams import load_prepared
from tinygpt.files import alone
from tinygpt.model import recipes

STORIES = [
    f"Story {i}. Tom saw the {'big' if i % 2 else 'small'} dog.\n\nIt ran {i}0 times. “Oh!”"
    for i in range(60)
]
SEPARATOR = "\n<|endoftext|>\n"


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of 512 bytes, so that a small text takes the way of a large one."""
    monkeypatch.setattr(corpus, "PIECE", 512)


@pytest.fixture
def make(tmp_path):
    """Write `content` to a file, prepare it with a small BPE, and return the loaded data."""

    def make(content, name="text.txt", valid=None, processes=1, **options):
        source = tmp_path / name
        source.write_bytes(content if isinstance(content, bytes) else content.encode())
        options = {"vocab_size": 300, **options}
        meta = prepare(
            [source], tmp_path / "out", valid=valid, options=Options(**options),
            processes=processes,
        )  # fmt: skip
        return load_prepared(tmp_path / "out"), meta

    return make


def documents(dataset, split):
    """The documents of a stream, taken apart at the separator."""
    tokenizer, texts = dataset.tokenizer, []
    for id in getattr(dataset, split).tolist():
        if id == tokenizer.separator_id:
            texts.append([])
        else:
            texts[-1].append(id)
    return [tokenizer.decode(ids) for ids in texts]


def test_every_document_is_in_one_of_the_splits_unchanged_and_in_order(make, small_pieces):
    data, meta = make(SEPARATOR.join(STORIES), valid_fraction=0.1)
    train, valid = documents(data, "train"), documents(data, "valid")
    assert sorted(train + valid) == sorted(STORIES)
    assert len(valid) == 6
    assert train == [s for s in STORIES if s not in valid]
    assert meta["train"]["bytes"] == sum(len(s.encode()) for s in train)
    assert data.documents == {"train": 54, "valid": 6}
    assert data.train.dtype == np.uint16


@pytest.mark.slow
def test_the_split_depends_on_a_document_and_not_on_its_place(make, small_pieces):
    first, _ = make(SEPARATOR.join(STORIES), valid_fraction=0.2)
    second, _ = make(SEPARATOR.join(reversed(STORIES)), valid_fraction=0.2)
    assert set(documents(first, "valid")) == set(documents(second, "valid"))


def test_many_documents_are_split_by_their_hash(make, monkeypatch):
    monkeypatch.setattr(corpus, "FEW", 10)
    data, _ = make(SEPARATOR.join(STORIES), valid_fraction=0.3)
    assert 5 <= data.documents["valid"] <= 35
    hashes = [corpus.document_hash(d) / (1 << 64) for d in documents(data, "valid")]
    assert max(hashes) < 0.3


def test_equal_documents_stay_on_one_side(make):
    data, _ = make(SEPARATOR.join(STORIES + [f"  {s}\n" for s in STORIES]), valid_fraction=0.3)
    assert not set(documents(data, "train")) & set(documents(data, "valid"))
    assert sum(data.documents.values()) == 120


def test_a_validation_text_is_taken_out_of_the_training_text(make, tmp_path):
    held = tmp_path / "held.txt"
    held.write_text(SEPARATOR.join([*STORIES[:7], "only here"]), encoding="utf-8")
    data, meta = make(SEPARATOR.join(STORIES), valid=[held])
    assert documents(data, "train") == STORIES[7:]
    assert documents(data, "valid") == [*STORIES[:7], "only here"]
    assert meta["duplicates"] == 7


@pytest.mark.slow
def test_processes_and_piece_sizes_do_not_change_the_tokens(make, monkeypatch):
    text = SEPARATOR.join(STORIES)
    whole, _ = make(text)
    whole = np.array(whole.train)
    monkeypatch.setattr(corpus, "PIECE", 700)
    pieces, _ = make(text, valid_fraction=0.050001)
    np.testing.assert_array_equal(whole, pieces.train)
    parallel, _ = make(text, valid_fraction=0.050002, processes=2)
    np.testing.assert_array_equal(whole, parallel.train)


@pytest.mark.slow
@pytest.mark.parametrize("join", [" ", "\n", "  \n", "。"])
def test_a_long_document_is_cut_without_a_trace(make, small_pieces, join):
    text = join.join(f"word{i}, Häuser 汉字" for i in range(300)) + "\n"
    data, meta = make(text, valid_fraction=0.25)
    (train,), (valid,) = documents(data, "train"), documents(data, "valid")
    assert train + valid == text
    assert len(train) == int(0.75 * len(text))
    assert meta["train"]["documents"] == meta["valid"]["documents"] == 1
    if join == " ":
        whole = [data.tokenizer.separator_id, *data.tokenizer.encode(train)]
        assert data.train.tolist() == whole


@pytest.mark.slow
def test_long_documents_among_others_keep_to_one_split(make, small_pieces):
    long = [" ".join(f"{name}{i}" for i in range(400)) for name in "abcdef"]
    data, _ = make(SEPARATOR.join([*long, *STORIES[:9]]), valid_fraction=0.4)
    train, valid = documents(data, "train"), documents(data, "valid")
    assert sorted(train + valid) == sorted([*long, *STORIES[:9]])
    assert len(valid) == 6


def test_one_text_of_characters_is_split_as_nanogpt_does(make):
    text = "First Citizen:\nBefore we proceed\n" * 10
    data, _ = make(text, tokenizer="char-plain", vocab_size=None, valid_fraction=0.1)
    assert data.tokenizer.decode(data.train.tolist()) == text[: int(len(text) * 0.9)]
    assert data.tokenizer.decode(data.valid.tolist()) == text[int(len(text) * 0.9) :]


def test_the_alphabet_covers_both_splits(make):
    stories = [f"{chr(0x4E00 + i)} only here" for i in range(30)]
    data, _ = make(SEPARATOR.join(stories), tokenizer="char", vocab_size=361)
    assert data.tokenizer.vocab_size == 361
    assert sorted(documents(data, "train") + documents(data, "valid")) == sorted(stories)


def test_json_lines(make, small_pieces):
    lines = [json.dumps({"id": i, "story": s}) for i, s in enumerate(STORIES)]
    data, _ = make("\n".join(lines) + "\n\n", name="stories.jsonl", field="story")
    assert sorted(documents(data, "train") + documents(data, "valid")) == sorted(STORIES)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": 5}', r"line 21: no text in field 'text'; it has \['text'\]"),
        ('{"body": "x"}', r"line 21: no text in field 'text'; it has \['body'\]"),
        ("{text}", "line 21: not JSON"),
        ('{"text": ' + "[" * 400, "line 21: JSON nested too deeply|line 21: not JSON"),
        ('{"text": ' + "[" * 100 + "]" * 100 + "}", "line 21: JSON nested too deeply"),
        ('{"text": ' + "9" * 30 + "}", "line 21: a number of 30 digits"),
        ('{"\\u001b[2J": 1}', r"it has \['\\x1b\[2J'\]"),
    ],
    ids=range(7),
)
def test_a_bad_line_of_json_is_named(make, small_pieces, line, message):
    good = [json.dumps({"text": s}) for s in STORIES[:20]]
    with pytest.raises(Error, match=message):
        make("\n".join([*good, line, *good]), name="stories.jsonl")


def test_a_line_without_an_end_is_not_read_to_its_end(make, small_pieces, monkeypatch):
    monkeypatch.setattr(corpus, "MAX_JSON", 4096)
    with pytest.raises(Error, match=r"stories\.jsonl, line 2: more than 0 MB in a line"):
        make('{"text": "a"}\n' + '{"text": "' + "x" * 50_000, name="stories.jsonl")


def test_a_folder_is_searched_in_order(tmp_path):
    folder = tmp_path / "folder"
    for i, name in enumerate(["b/one.txt", "a.txt", "c.md", "d.jsonl", "picture.png"]):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = f"text number {i}\n"
        if name.endswith("jsonl"):
            text = json.dumps({"text": text}) + "\n"
        path.write_text(text, encoding="utf-8")
    meta = prepare([folder], tmp_path / "out", options=Options(tokenizer="char"))
    assert [f["path"][len(str(folder)) + 1 :] for f in meta["files"]] == [
        "a.txt", "b/one.txt", "c.md", "d.jsonl",
    ]  # fmt: skip
    assert meta["train"]["documents"] + meta["valid"]["documents"] == 4


def test_only_the_first_documents(make, small_pieces):
    data, _ = make(SEPARATOR.join(STORIES), max_documents=23)
    assert sorted(documents(data, "train") + documents(data, "valid")) == sorted(STORIES[:23])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one.txt", "one.jsonl"])
def test_the_command_takes_only_the_first_documents(tmp_path, small_pieces, capsys, name):
    lines = name.endswith(".jsonl")
    text = (
        "".join(json.dumps({"text": s}) + "\n" for s in STORIES)
        if lines
        else SEPARATOR.join(STORIES)
    )
    (tmp_path / name).write_text(text, encoding="utf-8")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    args = [str(tmp_path / name), "--out", str(tmp_path / "out"), "--tokenizer", "char"]
    assert module.main(parser.parse_args([*args, "--max-documents", "23"])) == 0
    assert "read     1 file" in capsys.readouterr().out
    meta = json.loads((tmp_path / "out" / "meta.json").read_text("utf-8"))
    assert meta["train"]["documents"] + meta["valid"]["documents"] == 23
    assert 0 < meta["files"][0]["bytes"] < len(text.encode())
    for wrong in (("--max-documents", "-4"), ("--vocab-size", "0"), ("--processes", "0")):
        name = wrong[0][2:].replace("-", ".")  # or with an underscore
        with pytest.raises(UsageError, match=f"{name}: expected .*, got {wrong[1]}"):
            module.main(parser.parse_args([*args, *wrong]))


def test_one_process_prepares_a_folder(make, tmp_path):
    pytest.importorskip("fcntl")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".train.npy.123.tmp").write_bytes(b"of a killed process")
    with (
        alone(tmp_path / "out", "preparing data"),
        pytest.raises(Error, match="another process is preparing data here"),
    ):
        make(SEPARATOR.join(STORIES))
    make(SEPARATOR.join(STORIES))
    assert not list((tmp_path / "out").glob(".*"))


def test_line_ends_byte_order_mark_and_blank_documents(make):
    text = "\ufeff<|endoftext|>\r\none\r\n<|endoftext|>\r\n \n<|endoftext|>\ntwo <|endoftext|> x\n"
    data, _ = make(text + "<|endoftext|>", tokenizer="char", vocab_size=None)
    assert sorted(documents(data, "train") + documents(data, "valid")) == [
        "one", "two <|endoftext|> x",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_is_continued(make, small_pieces, monkeypatch, tmp_path):
    text = SEPARATOR.join(STORIES)
    expected, _ = make(text, valid_fraction=0.2)
    expected = np.array(expected.train)
    encode, calls = bpe.BPETokenizer.encode, []

    def killed(self, text, **options):
        calls.append(text)
        if len(calls) == 40:
            raise KeyboardInterrupt
        return encode(self, text, **options)

    (tmp_path / "out" / "meta.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(bpe.BPETokenizer, "encode", killed)
        with pytest.raises(KeyboardInterrupt):
            make(text, valid_fraction=0.2)
    assert not (tmp_path / "out" / "meta.json").exists()
    data, meta = make(text, valid_fraction=0.2)
    assert meta["resumed"] > 3
    np.testing.assert_array_equal(data.train, expected)
    assert not list((tmp_path / "out").glob(".prepare-*"))


@pytest.mark.mostly_slow
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("0.json", b"["),
        ("0.json", b"[]"),
        ("0.json", b'{"train tokens": "x"}'),
        ("0.json", b'{"train tokens": -1}'),
        ("0.json", b'{"surprise": 1}'),
        ("0.train", b"x"),
        ("0.valid", None),
        ("tokenizer.json", b"{"),
    ],
)
def test_damaged_work_is_done_again(make, small_pieces, monkeypatch, tmp_path, name, content):
    text, out = SEPARATOR.join(STORIES), tmp_path / "out"
    expected, _ = make(text)
    expected = np.array(expected.train)
    (out / "meta.json").write_bytes(b'{"sha256": []')
    with monkeypatch.context() as patch:
        patch.setattr(module, "_merge", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make(text)
    [work] = out.glob(".prepare-*")
    if content is None:
        (work / name).unlink()
    else:
        (work / name).write_bytes(content)
    data, meta = make(text)
    assert meta["resumed"] > 3
    np.testing.assert_array_equal(data.train, expected)


def test_a_finished_run_is_left_alone_until_the_text_changes(make):
    make(SEPARATOR.join(STORIES))
    _, meta = make(SEPARATOR.join(STORIES))
    assert meta["resumed"] == 1
    data, meta = make(SEPARATOR.join(STORIES[1:]))
    assert meta["resumed"] == 0 and sum(data.documents.values()) == 59


def test_a_text_that_changes_while_it_is_read_is_told(make, tmp_path, small_pieces, monkeypatch):
    """Its pieces were counted before; now one of them ends amid a character."""
    plain = module.scan

    def spoil(*args, **options):
        planned = plain(*args, **options)
        raw = (tmp_path / "text.txt").read_bytes()
        (tmp_path / "text.txt").write_bytes(raw[:-1] + b"\xff")
        return planned

    monkeypatch.setattr(corpus, "FEW", 1)
    monkeypatch.setattr(module, "scan", spoil)
    tokenizer = bpe.CharTokenizer.train(STORIES)
    tokenizer.save(tmp_path / "t.json")
    with pytest.raises(Error, match=r"text.txt: byte 0xe2 at offset .* is not UTF-8"):
        make(SEPARATOR.join(STORIES), tokenizer=str(tmp_path / "t.json"), vocab_size=None)


def test_work_for_other_sources_is_taken_away(make, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".prepare-0123456789abcdef").mkdir()
    make(SEPARATOR.join(STORIES))
    assert not list((tmp_path / "out").glob(".prepare-*"))


def test_a_text_without_a_space_is_cut_between_characters(make, small_pieces):
    text = "日本語" * 400 + "ab"  # 3,602 bytes, no place to cut by its sense
    data, _ = make(text, tokenizer="char-plain", vocab_size=None, valid_fraction=0.1)
    ids = [*data.train.tolist(), *data.valid.tolist()]
    assert data.tokenizer.decode(ids) == text


def test_a_large_text_teaches_the_tokenizer_by_samples(make, small_pieces, monkeypatch):
    monkeypatch.setattr(module, "LEARN", 1024)
    data, _ = make(SEPARATOR.join(STORIES), vocab_size=270)
    assert sorted(documents(data, "train") + documents(data, "valid")) == sorted(STORIES)


@pytest.mark.parametrize("text", [STORIES[0], "Zoë’s “naïve” café — £5 … 😀"])
@pytest.mark.parametrize("times", [1, 2])
def test_mojibake_is_undone(text, times):
    broken = text
    for _ in range(times):
        broken = "".join(
            bytes([b]).decode("cp1252", "ignore") or chr(b) for b in broken.encode("utf-8")
        )
    assert broken != text
    assert repair_mojibake(broken) == text
    assert repair_mojibake(text) == text


def test_a_closing_quotation_mark_that_lost_its_last_byte():
    assert repair_mojibake("â€œOh!â€ she said") == "“Oh!” she said"


@pytest.mark.parametrize("text", ["Spaß–", "Straße", "É»", "NÃO", "Â", "à «x»"])
def test_good_text_is_not_taken_for_mojibake(text):
    assert repair_mojibake(text) == text


def test_mojibake_is_repaired_on_request_and_counted(make):
    stories = [s.replace("“", "â€œ") for s in STORIES]
    data, meta = make(SEPARATOR.join(stories + STORIES), repair=True, valid_fraction=0.3)
    assert meta["repaired"] == 60
    assert set(documents(data, "train") + documents(data, "valid")) == set(STORIES)
    assert not set(documents(data, "train")) & set(documents(data, "valid"))


def test_what_is_not_utf8_is_named_by_its_place(make, small_pieces):
    content = SEPARATOR.join(STORIES).encode() + b"caf\xe9 "
    with pytest.raises(Error, match=f"byte 0xe9 at offset {len(content) - 2} is not UTF-8"):
        make(content)


@pytest.mark.slow
def test_errors_of_a_worker_arrive(make, small_pieces, monkeypatch):
    monkeypatch.setattr(corpus, "FEW", 1)  # so that the scan leaves the reading to the workers
    with pytest.raises(Error, match="byte 0xff at offset"):
        make(SEPARATOR.join(STORIES).encode() + b"\xff", processes=2, tokenizer="char-plain")


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "the sources are empty"), ("\n \n", "no text"), ("x", "no text is left for train")],
)
def test_too_little_text(make, text, message, tmp_path):
    tokenizer = tmp_path / "t.json"
    bpe.CharTokenizer.train(["x"]).save(tokenizer)
    with pytest.raises(Error, match=message):
        make(text, tokenizer=str(tokenizer))


def test_wrong_calls(tmp_path, make):
    with pytest.raises(UsageError, match="no such file"):
        prepare([tmp_path / "nothing.txt"], tmp_path / "out")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(Error, match="the sources are empty"):  # with a tokenizer to be learnt
        prepare([tmp_path / "empty.txt"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Error, match="no file in this folder"):
        prepare([tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(UsageError, match=r"valid-fraction: 1\.5 is not between"):
        make("text", valid_fraction=1.5)
    with pytest.raises(Error, match="give --valid"):
        make(json.dumps({"text": "one"}), name="one.jsonl")


def test_the_command_prints_what_it_did(tmp_path, capsys):
    source = tmp_path / "s.txt"
    source.write_text(SEPARATOR.join(STORIES), encoding="utf-8")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    args = [str(source), "--out", str(tmp_path / "out"), "--tokenizer", "char", "--processes", "1"]
    assert module.main(parser.parse_args(args)) == 0
    out = capsys.readouterr().out
    assert "train    57 documents" in out and "valid    3 documents" in out


TEXTS = {
    "documents": "\ufeff" + SEPARATOR.join([*STORIES, " \n", "two <|endoftext|> x", STORIES[0]]),
    "windows": ("<|endoftext|>\n" + SEPARATOR.join(STORIES)).replace("\n", "\r\n"),
    "one": " \n" + " ".join(f"word{i}, Häuser 汉字" for i in range(300)) + "\n\n",
    "one, closed": " \n" + " ".join(f"größer {i}" for i in range(300)) + " \n<|endoftext|>\n\n",
    "equal": SEPARATOR.join(["the same"] * 40),
}


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer": "bpe", "vocab_size": 290},
        {"tokenizer": "char", "vocab_size": 1024},
        {"tokenizer": "char", "vocab_size": 90, "max_documents": 23},
        {"tokenizer": "char-plain"},
        {"tokenizer": "reduced", "vocab_size": 280, "reduced_from": 300, "valid_fraction": 0.3},
    ],
    ids=lambda settings: settings["tokenizer"],
)
def test_the_tokens_are_those_of_training_on_the_text(tmp_path, monkeypatch, tiny, text, settings):
    """For each kind of tokenizer, whatever the pieces and the processes."""
    monkeypatch.setattr(corpus, "PIECE", 700)
    source = tmp_path / "text.txt"
    source.write_bytes(text.encode())
    config = tiny.replace(data=str(source), **settings)
    told = []
    expected = streams.load(config, told.append)
    prepare([source], tmp_path / "out", options=module.of_recipe(config), processes=1)
    data = load_prepared(tmp_path / "out")
    assert data.tokenizer == expected.tokenizer
    np.testing.assert_array_equal(data.train, expected.train)
    np.testing.assert_array_equal(data.valid, expected.valid)
    assert data.train.dtype == expected.train.dtype
    assert (data.documents, data.bytes) == (expected.documents, expected.bytes)


@pytest.mark.parametrize("name", ["neo-41m", "pinv-0.8m", "shakespeare-char", "mini-1m"])
def test_a_recipe_says_how_to_prepare(name, tmp_path, capsys):
    source = tmp_path / "s.txt"
    source.write_text(SEPARATOR.join(STORIES), encoding="utf-8")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    args = [str(source), "--out", str(tmp_path / "out"), "--recipe", name, "--processes", "1"]
    assert module.main(parser.parse_args([*args, "--valid-fraction", "0.25"])) == 0
    data = load_prepared(tmp_path / "out")
    recipe = recipes.get(name)
    kind = data.tokenizer.kind
    assert kind == recipe.tokenizer.removesuffix("-plain")
    assert data.documents == {"train": 45, "valid": 15}
    if kind == "char" and recipe.tokenizer == "char":
        assert data.tokenizer.vocab_size == recipe.vocab_size == 361
    if kind == "reduced":  # the text is short, so that there is little to reduce
        assert data.tokenizer.unknown_id == data.tokenizer.vocab_size - 1


def test_options_of_a_reduced_vocabulary(make, tmp_path):
    data, _ = make(
        SEPARATOR.join(STORIES), tokenizer="reduced", vocab_size=280, reduced_from=300
    )  # fmt: skip
    assert (data.tokenizer.vocab_size, data.tokenizer.base.vocab_size) == (280, 300)
    with pytest.raises(
        UsageError, match=r"reduced_from: expected at least vocab_size \(280\), got 0"
    ):
        make(SEPARATOR.join(STORIES), tokenizer="reduced", vocab_size=280)
    with pytest.raises(UsageError, match="vocab_size: expected at least 1, got 0"):
        make(SEPARATOR.join(STORIES), vocab_size=0)
    with pytest.raises(UsageError, match="split: expected one of hash, last, got 'first'"):
        make(SEPARATOR.join(STORIES), split="first")
    with pytest.raises(Error, match="neither a file nor one of"):
        make(SEPARATOR.join(STORIES), tokenizer="bpee")
    assert not list((tmp_path / "out").glob(".prepare-*"))  # nothing was begun
