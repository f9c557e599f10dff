"""Training: the same merges as the naive algorithm, and as others' trainers."""

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bpe
from bpe.alphabet import GPT2_ORDER, printable
from bpe.char import count_characters
from bpe.patterns import Splitter
from bpe.reduced import count_ids
from bpe.training import count_chunks, learn_merges

DATA = Path(__file__).parent / "data"
WORDS = "low low low low low lower lower widest widest widest " + " ".join(["newest"] * 6)


def merges(tokenizer):
    return [(tokenizer.vocab[a], tokenizer.vocab[b]) for a, b in tokenizer.merges]


def joined(tokenizer):
    return [f"{a.decode()} {b.decode()}" for a, b in merges(tokenizer)]


def test_the_worked_example_of_each_rule():
    texts = WORDS.split(" ")
    greatest = bpe.train(texts, 262, special_tokens=[], tie_break="bytes")
    assert joined(greatest) == ["s t", "e st", "o w", "l ow", "w est", "n e"]
    smallest = bpe.train(texts, 262, special_tokens=[], tie_break="ids")
    assert joined(smallest) == ["e s", "es t", "l o", "lo w", "e w", "n ew"]


TEXTS = st.lists(st.text("ab c", max_size=30) | st.text(max_size=10), min_size=1, max_size=5)


@pytest.mark.slow
@given(texts=TEXTS, size=st.integers(256, 280), pattern=st.sampled_from(list(bpe.PATTERNS)))
def test_merges_are_those_of_the_naive_algorithm(naive_bpe, texts, size, pattern):
    if not any(texts):
        return
    expression = bpe.PATTERNS[pattern] or r"(?s:.+)"
    counts = Counter()
    for text in texts:
        counts.update(chunk.encode() for chunk in bpe.patterns.Splitter(pattern).chunks(text))
    vocab, learned, tokens = learn_merges(counts, size - 256)
    assert [(vocab[a], vocab[b]) for a, b in learned] == naive_bpe(texts, size, expression)
    assert len(set(vocab)) == len(vocab)
    tokenizer = bpe.BPETokenizer(vocab, learned, pattern=pattern)
    assert sum(len(tokenizer.encode(text)) for text in texts) == tokens


@pytest.mark.slow
@given(counts=st.dictionaries(st.binary(min_size=1, max_size=12), st.integers(1, 5), min_size=1))
def test_smallest_ids_as_a_plain_loop_finds_them(counts):
    vocab, learned, _ = learn_merges(counts, 12, tie_break="ids")
    order = [*GPT2_ORDER, *range(256, 300)]
    words = {chunk: list(chunk) for chunk in counts}
    for merge in learned:
        pairs = Counter()
        for chunk, ids in words.items():
            for pair in pairwise(ids):
                pairs[pair] += counts[chunk]
        best = max(pairs.values())
        expected = min((order[a], order[b], a, b) for (a, b), n in pairs.items() if n == best)
        assert merge == expected[2:]
        new = vocab.index(vocab[merge[0]] + vocab[merge[1]])
        for ids in words.values():
            i = 0
            while i < len(ids) - 1:
                if (ids[i], ids[i + 1]) == merge:
                    ids[i : i + 2] = [new]
                i += 1


def test_the_example_trains_both_ways(naive_bpe, sample):
    tokenizer = bpe.train([sample], 500, special_tokens=[])
    assert merges(tokenizer) == naive_bpe([sample], 500)


@pytest.mark.slow
def test_merges_are_those_of_hugging_face():
    """Frozen by benchmarks/bpe_peers.py, which also compares on a large text."""
    frozen = json.loads((DATA / "peers.json").read_text(encoding="utf-8"))
    text = (DATA / "sample.txt").read_text(encoding="utf-8")
    for size, expected in frozen["merges"].items():
        tokenizer = bpe.train([text], int(size), tie_break="ids")
        found = [f"{printable(a)} {printable(b)}" for a, b in merges(tokenizer)]
        assert found == expected


def test_an_id_is_reused_when_two_pairs_join_to_the_same_bytes():
    counts = {b"ab": 9, b"bc": 8, b"abc": 7, b"xbc": 6, b"abcd": 1, b"aabc": 1}
    vocab, learned, _ = learn_merges(counts, 8)
    made = [vocab[a] + vocab[b] for a, b in learned]
    assert len(vocab) == len(set(vocab)) == 256 + len(set(made))


def test_counts_beyond_machine_integers_are_exact():
    big = 10**30
    _, learned, tokens = learn_merges({b"ab": big, b"cd": big + 1}, 1)
    assert learned == [(99, 100)]
    assert tokens == 2 * big + big + 1


@pytest.mark.slow
def test_the_result_depends_neither_on_order_nor_on_processes(sample, tmp_path):
    texts = [line for line in sample.split("\n") if line]
    expected = bpe.train(texts, 500)
    random.Random(1).shuffle(texts)
    assert bpe.train(iter(texts), 500) == expected
    files = []
    for i in range(3):
        files.append(tmp_path / f"{i}.txt")
        files[-1].write_text("<|endoftext|>".join(texts[i::3]), encoding="utf-8", newline="")
    assert bpe.train(files, 500) == expected
    assert bpe.train(files[::-1], 500, processes=2) == expected
    assert bpe.train(str(files[0]), 300) == bpe.train(files[0], 300)


def test_blocks_of_a_file_leave_no_trace(sample, tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_bytes(sample.encode())
    expected = bpe.train(path, 500)
    monkeypatch.setattr("bpe.files.BLOCK", 7)
    assert bpe.train(path, 500) == expected


def test_special_tokens_divide_and_are_never_learned():
    tokenizer = bpe.train(["aXa" * 50], 258, special_tokens=["X"], pattern="none")
    assert merges(tokenizer) == [(b"a", b"a")]
    assert tokenizer.special_tokens == {"X": 257}


def test_it_stops_when_no_pair_is_left():
    with pytest.warns(UserWarning, match="257 tokens instead of 1000"):
        tokenizer = bpe.train(["abab cdcd"], 1000, min_frequency=3, special_tokens=["<s>"])
    assert tokenizer.vocab_size == 257
    with pytest.warns(UserWarning, match="ran out of pairs: "):
        tokenizer = bpe.train(["abab"], 1000, special_tokens=[])
    assert joined(tokenizer) == ["a b", "ab ab"]


def test_the_choices_are_recorded(tmp_path):
    tokenizer = bpe.train(["hello hello"], 258, tie_break="ids", min_frequency=2, pattern="gpt4")
    tokenizer.save(tmp_path / "t.json")
    again = bpe.load(tmp_path / "t.json")
    assert again.pattern == "gpt4"
    assert again.training == {"tie_break": "ids", "min_frequency": 2, "bytes": 11, "tokens": 9}


@pytest.mark.filterwarnings("ignore:the text ran out")
@settings(max_examples=20)
@given(text=st.text("ab", min_size=200, max_size=400))
def test_one_long_chunk(text):
    tokenizer = bpe.train([text], 270, special_tokens=[], pattern="none")
    assert len(tokenizer.encode(text)) == tokenizer.training["tokens"]


@pytest.mark.filterwarnings("ignore:the text ran out")
@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("no such file", {}, "no such file: No such file"),
        ([], {}, "there is no text"),
        (["", ""], {}, "there is no text"),
        (b"bytes", {}, "source: expected files or texts, got bytes"),
        ([b"bytes"], {}, "source: expected texts or Paths, got bytes"),
        (iter([5]), {}, "source: expected texts or Paths, got int"),
        (
            "a text\nof two lines",
            {},
            "a string names a file; to train on a text, pass it in a list",
        ),
        ("a" * 2000, {}, "a string names a file"),
        ([__file__], {}, "pass Path objects"),
        (["text"], {"vocab_size": 256}, "vocab_size: 256 is not a number from 257 up"),
        (["text"], {"vocab_size": "300"}, "vocab_size: '300'"),
        (["text"], {"tie_break": "coin"}, "tie_break: expected 'bytes' or 'ids'"),
        (["text"], {"min_frequency": 0}, "min_frequency: expected a number from 1 up"),
        (["text"], {"processes": 0}, "processes: expected a number from 1 up"),
        (["text"], {"special_tokens": ["a", "a"]}, "'a' is given twice"),
        (["text"], {"special_tokens": [""]}, "non-empty strings"),
    ],
)
def test_errors_say_what_to_do(source, options, message):
    with pytest.raises(bpe.TokenizerError, match=message):
        bpe.train(source, **{"vocab_size": 300, **options})


def test_progress_is_shown_on_standard_error(sample, capsys):
    shown = bpe.train([sample], 300, progress=True)
    assert shown == bpe.train([sample], 300)
    out, err = capsys.readouterr()
    assert out == ""
    assert "reading" in err
    assert "43/43" in err


def test_a_file_that_is_not_utf8(tmp_path):
    path = tmp_path / "latin1.txt"
    for content, at in ((b"abc\xe9 def", 3), (b"abc\xe2\x82", 3)):
        path.write_bytes(content)
        with pytest.raises(bpe.TokenizerError, match=rf"latin1.txt: not UTF-8: .* at byte {at}"):
            bpe.train(path, 300)


def test_what_was_counted_in_parts_gives_the_tokenizer_of_the_whole():
    texts, specials = ["one two two", "three<|endoftext|>two", "one"], ["<|endoftext|>"]
    halves = (texts[:1], texts[1:])
    chunks = sum((count_chunks(h, Splitter("gpt2"), specials) for h in halves), Counter())
    base = bpe.train(texts, 262)
    assert bpe.train(chunks, 262) == base
    characters = sum((count_characters(h, specials) for h in halves), Counter())
    assert bpe.CharTokenizer.train(characters) == bpe.CharTokenizer.train(texts)
    ids = sum((count_ids(base, h) for h in halves), Counter())
    assert bpe.ReducedTokenizer.train(base, ids, 5) == bpe.ReducedTokenizer.train(base, texts, 5)


def test_counts_of_something_else_are_refused():
    with pytest.raises(bpe.TokenizerError, match="a Counter of bytes, but it counts 'one'"):
        bpe.train(Counter(["one"]), 300)
    with pytest.raises(bpe.TokenizerError, match="no text"):
        bpe.train(Counter(), 300)
