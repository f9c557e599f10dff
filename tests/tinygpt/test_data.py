"""Text to tokens to batches."""

from __future__ import annotations

import json

import numpy as np
import pytest

import bpe
from tinygpt import Error
from tinygpt.data import documents, streams
from tinygpt.formats.checkpoint import Saved
from tinygpt.training.command import ready


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b" \n ", "empty"), (b"abc\xff\xfe", "not UTF-8 text: byte 0xff at offset 3")],
)
def test_texts_that_cannot_be_used_are_told_in_one_line(tmp_path, tiny, content, message):
    path = write(tmp_path / "t.txt", content)
    with pytest.raises(Error, match=message):
        streams.load(tiny.replace(data=str(path)))


def test_a_missing_file_and_a_bare_folder(tmp_path, tiny):
    with pytest.raises(Error, match="no such file"):
        streams.load(tiny.replace(data=str(tmp_path / "none.txt")))
    with pytest.raises(Error, match="tinygpt data prepare"):
        streams.load(tiny.replace(data=str(tmp_path)))


def test_a_text_that_cannot_be_read_is_told(tmp_path):
    write(tmp_path / "t.txt", "text")
    with pytest.raises(Error, match=r"t.txt/more: cannot be read: Not a directory"):
        streams.read_text(tmp_path / "t.txt" / "more")


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, tiny, monkeypatch):
    monkeypatch.setenv("TINYGPT_CACHE", str(write(tmp_path / "file", "in the way")))
    said = []
    data = streams.load(tiny, said.append)
    assert len(data.train) and any("not kept for the next run" in line for line in said)


def test_a_text_shorter_than_one_context(tmp_path, tiny):
    path = write(tmp_path / "t.txt", "too short")
    with pytest.raises(Error, match="one context of 16 needs 17"):
        streams.load(tiny.replace(data=str(path)))


def test_documents_are_split_at_separator_lines_only():
    text = "one\n<|endoftext|>\ntwo <|endoftext|> still\r\n<|endoftext|>\r\n\n<|endoftext|>\nlast"
    assert documents.cut_documents(text) == ["one", "two <|endoftext|> still", "last"]
    assert documents.cut_documents(" as it is\n") == [" as it is\n"]


def test_the_last_documents_are_held_out():
    docs = [str(i) for i in range(20)]
    assert documents.split_documents(docs, 0.1) == (docs[:18], docs[18:])
    assert documents.split_documents(["abcdefghij"], 0.1) == (["abcdefghi"], ["j"])
    assert documents.split_documents(["abc"], 0.0) == (["abc"], [])


def test_every_document_is_opened_by_the_separator(tmp_path, tiny):
    path = write(tmp_path / "t.txt", "\n<|endoftext|>\n".join(["abc"] * 9 + ["abcd"]))
    dataset = streams.load(tiny.replace(data=str(path)))
    ids = dict(zip("abcd", dataset.tokenizer.encode("abcd"), strict=True))
    assert dataset.train.tolist() == [1, ids["a"], ids["b"], ids["c"]] * 9
    assert dataset.valid.tolist() == [1, *(ids[c] for c in "abcd")]
    assert dataset.bytes == {"train": 27, "valid": 4}
    assert dataset.train.dtype == np.uint16
    assert dataset.bits_per_byte(np.log(2)) == pytest.approx(5 / 4)


@pytest.mark.mostly_slow
@pytest.mark.parametrize(("kind", "size"), [("bpe", 300), ("char", 80), ("char-plain", 80)])
def test_streams_decode_to_the_text(tiny, kind, size):
    dataset = streams.load(tiny.replace(tokenizer=kind, vocab_size=size, valid_fraction=0.5))
    for stream, split in ((dataset.train, "train"), (dataset.valid, "valid")):
        text = dataset.tokenizer.decode(stream.tolist()).replace("<|endoftext|>", "")
        assert len(text.encode()) == dataset.bytes[split]


def test_a_reduced_vocabulary_has_the_size_asked_for(tiny):
    c = tiny.replace(tokenizer="reduced", vocab_size=290, reduced_from=320)
    assert streams.load(c).tokenizer.vocab_size == 290


def test_characters_fit_unless_a_size_was_asked_for(tmp_path, tiny):
    path = write(tmp_path / "t.txt", "abcdefgh" * 20)
    c = tiny.replace(tokenizer="char", data=str(path))
    sizes = {n: streams.load(c.replace(vocab_size=n)).tokenizer.vocab_size for n in (1024, 361, 20)}
    assert sizes == {1024: 11, 361: 361, 20: 20}  # 1024: what a configuration has by itself


def test_a_tokenizer_file(tmp_path, tiny):
    bpe.train(["aaab " * 50], 258).save(tmp_path / "tok.json")
    dataset = streams.load(tiny.replace(tokenizer=str(tmp_path / "tok.json")))
    assert dataset.tokenizer == bpe.load(tmp_path / "tok.json")
    with pytest.raises(Error, match="neither a file nor one of"):
        streams.load(tiny.replace(tokenizer="bpee"))


def test_the_second_time_tokens_come_from_the_cache(tiny):
    told: list[str] = []
    c = tiny.replace(max_documents=41)
    first = streams.load(c, told.append)
    assert not any("cache" in line for line in told)
    second = streams.load(c, told.append)
    assert "cache" in told[-1]
    assert (first.sha256, first.tokenizer) == (second.sha256, second.tokenizer)
    np.testing.assert_array_equal(first.train, second.train)
    streams.load(c.replace(valid_fraction=0.2), told.append)
    assert "cache" not in told[-1]


def test_batches_are_a_function_of_seed_and_step():
    first = streams.starts(7, 3, 64, 1000, 16)
    np.testing.assert_array_equal(first, streams.starts(7, 3, 64, 1000, 16))
    np.testing.assert_array_equal(first[:8], streams.starts(7, 3, 8, 1000, 16))
    assert not np.array_equal(first, streams.starts(7, 4, 64, 1000, 16))
    assert not np.array_equal(first, streams.starts(8, 3, 64, 1000, 16))
    drawn = streams.starts(7, 0, 20_000, 50, 16)
    assert set(drawn) == set(range(34))  # the last one reads tokens 33 to 49


def test_validation_sequences_do_not_overlap():
    begin = streams.even_starts(10, 1000, 16)
    assert len(begin) == 10
    assert (np.diff(begin) >= 16).all()
    assert len(streams.even_starts(10**6, 1000, 16)) == 62


@pytest.fixture
def prepared(tmp_path, tiny, monkeypatch):
    """A prepared folder of a few tokens, in a cache of its own."""
    monkeypatch.setenv("TINYGPT_CACHE", str(tmp_path))
    streams.load(tiny)
    [folder] = (tmp_path / "data").iterdir()
    return folder


def meta_with(**values):
    def change(folder):
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps(meta | values))

    return change


def part(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def tokens_with(change):
    """Other tokens, of the same number."""
    return lambda folder: np.save(folder / "train.npy", change(np.load(folder / "train.npy")))


def raised(tokens):
    tokens[100] = 80
    return tokens


def huge(folder):
    raw = (folder / "train.npy").read_bytes()
    place = raw.index(b"(")
    (folder / "train.npy").write_bytes(raw[:place] + b"(99999999999,), }" + raw[place + 17 :])


def another_tokenizer(folder):
    bpe.CharTokenizer("abc", vocab_size=80).save(folder / "tokenizer.json")


@pytest.mark.mostly_slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (part("meta.json", b"{"), "not JSON"),
        (part("meta.json", b"[]"), "expected an object of the format 'tinygpt-data'"),
        (part("meta.json", b"\xff"), "not UTF-8"),
        (part("meta.json", b"[" * 100_000), "nested too deeply"),
        (meta_with(version=2), "expected an object of the format 'tinygpt-data', version 1"),
        (meta_with(sha256=None), "sha256: expected text, got None"),
        (meta_with(train=None), "train.bytes: expected a count|train.*expected a count"),
        (meta_with(valid={"documents": 1, "tokens": -5, "bytes": 1}), "valid.tokens: expected a"),
        (meta_with(valid={"documents": 1, "tokens": 5, "bytes": 1}), "expected 5 tokens"),
        (part("train.npy", b""), "train.npy: no array"),
        (part("train.npy", b"\x93NUMPY\1\0\xff\xff"), "header is not that of a plain array"),
        (huge, "train.npy: 199,999,999,998 bytes for its shape"),
        (tokens_with(lambda t: t.astype(np.int16)), "train.npy: expected .* tokens as uint16"),
        (tokens_with(lambda t: t[:, None]), "train.npy: expected .* tokens as uint16"),
        (tokens_with(lambda t: t[::-1]), "train.npy: its tokens are not those"),
        (tokens_with(raised), "train.npy: token 100 is 80, but the tokenizer has 80 ids"),
        (meta_with(left_out=-1), "left_out: expected a count, got -1"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "it has no tokenizer.json"),
        (another_tokenizer, "tokenizer.json is not the tokenizer"),
        (part("tokenizer.json", b"{"), "tokenizer.json: not JSON"),
        (lambda folder: (folder / "valid.npy").unlink(), "No such file"),
    ],
)
def test_prepared_data_that_does_not_fit_together(prepared, change, message):
    assert len(streams.load_prepared(prepared).train)
    change(prepared)
    with pytest.raises(Error, match=message) as caught:
        streams.load_prepared(prepared)
    assert str(prepared) in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_run_goes_on_with_its_own_tokenizer(prepared, tiny):
    c = tiny.replace(data=str(prepared))
    saved = Saved(c, bpe.CharTokenizer("abc", vocab_size=80), {})
    with (
        pytest.raises(Error, match="not prepared with the tokenizer of this run"),
        ready(c, 1, saved),
    ):
        pass


def test_a_cache_that_a_stranger_filled_is_made_again(prepared, tiny):
    first = streams.load_prepared(prepared)
    tokens = np.array(first.train)
    np.save(prepared / "train.npy", tokens[::-1])
    meta_with(train={"documents": 1, "tokens": len(tokens), "bytes": 1}, sha256="x")(prepared)
    again = streams.load(tiny)
    np.testing.assert_array_equal(again.train, tokens)
    assert again.sha256 == first.sha256
