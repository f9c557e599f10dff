"""Splitting: the cheap cut at spaces gives the chunks of the pattern itself."""

import re
import sys
from collections import Counter
from itertools import pairwise

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

import bpe
from bpe.patterns import SPACE, Splitter, cut_at_special, scalar, segments, special_regex

# Every class of character that the patterns tell apart, and what is easily taken for another.
TRICKY = st.text(
    st.sampled_from(
        " \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u2003\u2028\u3000'sStTlLdrevmſaéZ猫1²Ⅷ½.!—\u0301\0🐶"
    )
)
NAMED = ["gpt2", "gpt4"]


def test_white_space_is_that_of_the_regex_module():
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    assert re.findall(f"[{SPACE}]", everything) == regex.findall(r"\s", everything)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
@given(text=TRICKY)
def test_words_hold_the_chunks_of_the_pattern(name, text):
    splitter = Splitter(name)
    first, *rest = splitter.words(text)
    chunks = splitter.chunks(first)
    for word in rest:
        chunks += splitter.chunks(" " + word)
    assert chunks == regex.findall(bpe.PATTERNS[name], text)
    assert " ".join([first, *rest]) == text == "".join(chunks)


@pytest.mark.parametrize("name", NAMED)
@given(text=TRICKY, limit=st.integers(0, 30))
def test_a_text_may_be_cut_where_last_cut_says(name, text, limit):
    splitter = Splitter(name)
    cut = splitter.last_cut(text, limit)
    assert 0 <= cut <= max(limit - 1, 0)
    assert splitter.chunks(text[:cut]) + splitter.chunks(text[cut:]) == splitter.chunks(text)


@pytest.mark.parametrize(
    ("pattern", "text", "chunks"),
    [
        ("gpt2", "It's  3 o'clock!\n\n", ["It", "'s", " ", " 3", " o", "'", "clock", "!", "\n\n"]),
        ("gpt4", "IT'S 12345\r\n x", ["IT", "'S", " ", "123", "45", "\r\n", " x"]),
        ("none", "It's one.", ["It's one."]),
        (r"\w+", "a-b, c", ["a", "-", "b", ", ", "c"]),  # what lies between matches is kept
        (r"(a)|(b)", "abc", ["a", "b", "c"]),  # groups have no effect
        (r"x*", "axxbc", ["a", "xx", "bc"]),  # nor have empty matches
        ("", "whole", ["whole"]),
    ],
)
def test_chunks(pattern, text, chunks):
    assert Splitter(pattern).chunks(text) == chunks
    assert Splitter(pattern).chunks("") == []


@given(pattern=st.text("ab.*+?|()[]{}^$\\12,-", max_size=12), text=st.text("ab1 ", max_size=12))
def test_any_expression_that_compiles_loses_nothing(pattern, text):
    try:
        splitter = Splitter(pattern)
    except bpe.TokenizerError as error:
        assert "\n" not in str(error)
    else:
        assert "".join(splitter.chunks(text)) == text


@pytest.mark.parametrize("pattern", ["(", "a" * 10_001, 5, "(?<=a+b"])
def test_a_pattern_that_is_none(pattern):
    with pytest.raises(bpe.TokenizerError, match="pattern: "):
        Splitter(pattern)


@given(
    text=st.text(st.sampled_from("<|ab> .\n猫"), max_size=200),
    cuts=st.lists(st.integers(0, 200)),
    block=st.integers(1, 20),
)
def test_segments_do_not_depend_on_how_a_text_arrives(text, cuts, block):
    special = ["<|a|>", "<|a|><|b|>", "<|", "a b"]
    splitter = Splitter("gpt2")
    ends = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    parts = [text[a:b] for a, b in pairwise(ends)]
    whole, arrived = (
        [
            token
            for piece, is_special in pieces
            for token in ([(piece,)] if is_special else splitter.chunks(piece))
        ]
        for pieces in (
            cut_at_special(text, special_regex(special)),
            segments(parts, special, splitter.last_cut, block),
        )
    )
    assert arrived == whole


@pytest.mark.parametrize("name", [*NAMED, "none", r"\w+"])
def test_counting(name, sample):
    splitter = Splitter(name)
    texts = sample.split("<|endoftext|>")
    assert splitter.count(texts) == Counter(c for text in texts for c in splitter.chunks(text))


@pytest.mark.parametrize("name", NAMED)
def test_text_without_spaces_is_not_held(name):
    """Chinese and Japanese have none, so a long text has to be cut elsewhere."""
    splitter = Splitter(name)
    texts = [text for text, _ in segments(["猫が鳴く。" * 10] * 100, [], splitter.last_cut, 100)]
    assert max(map(len, texts)) < 250
    whole = splitter.chunks("猫が鳴く。" * 1000)
    assert [chunk for text in texts for chunk in splitter.chunks(text)] == whole


def test_surrogates():
    assert scalar("a\ud83d\udc36b\ud800c\udc00") == "a🐶b\ufffdc\ufffd"
    assert scalar("🐶 café") == "🐶 café"
