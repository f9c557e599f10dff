"""The embedded stories: deterministic, correct in form, many, and with an honest held-out split."""

import hashlib
import re
import subprocess
import sys

import pytest

from tinygpt.data import stories
from tinygpt.data.stories import BOYS, GIRLS, PLOTS, _compile_plot, _count, _Dice, _parse, _tell

FIRST_100_SHA256 = "7d6e0a40fcd6f5ac7af1234fb275c425281258d5a34426bf0436b92fe6e3b5a1"


@pytest.fixture(scope="module")
def train():
    return list(stories.corpus(20_000))


@pytest.fixture(scope="module")
def some():
    return list(stories.corpus(2_000))


@pytest.fixture(scope="module")
def valid():
    return list(stories.corpus(1_000, split="valid"))


def words(text):
    return re.findall(r"[A-Za-z']+", text)


def wordings(text, draws=2_000):
    dice = _Dice(0, 0)
    seen = set()
    for _ in range(draws):
        out = []
        _tell(text, dice, out)
        seen.add("".join(out))
    return seen


# ------------------------------------------------------------------ determinism


def test_the_first_hundred_stories_are_frozen():
    text = "\n\n".join(stories.corpus(100))
    assert hashlib.sha256(text.encode("ascii")).hexdigest() == FIRST_100_SHA256


def test_splitmix64_matches_its_published_vectors():
    # The reference generator seeded with 1234567 (as in Vigna's splitmix64.c).
    dice = _Dice(0, 0)
    dice.state = 1234567
    assert dice.below(1 << 64) == 6457827717110365317
    assert dice.below(1 << 64) == 3203168211198807973


def test_a_story_depends_on_seed_and_index_only():
    assert stories.story(3, 5) == stories.story(3, 5)
    assert stories.story(3, 5) != stories.story(3, 6)
    assert stories.story(3, 5) != stories.story(4, 5)
    assert list(stories.corpus(6, seed=3))[5] == stories.story(3, 5)


# ------------------------------------------------------------------ number and split


@pytest.mark.slow
def test_stories_are_distinct_and_the_splits_do_not_meet(train, valid):
    assert len(set(train)) == len(train)
    assert len(set(valid)) == len(valid)
    assert not set(train) & set(valid)


@pytest.mark.slow
def test_near_duplicates_across_the_splits_are_rare(train, valid):
    """A valid story shares its phrases with train, but not a train story's whole course."""

    def shingles(text):
        parts = words(text)
        return {hash(tuple(parts[i : i + 8])) for i in range(len(parts) - 7)}

    index = {}
    sets = [shingles(text) for text in train[:5_000]]
    for number, found in enumerate(sets):
        for shingle in found:
            index.setdefault(shingle, []).append(number)
    close = 0
    for text in valid[:100]:
        mine = shingles(text)
        shared = {}
        for shingle in mine:
            for number in index.get(shingle, ()):
                shared[number] = shared.get(number, 0) + 1
        jaccard = [n / (len(mine) + len(sets[i]) - n) for i, n in shared.items()]
        close += max(jaccard, default=0) > 0.6
    assert close == 0


@pytest.mark.slow
def test_count_is_the_number_of_wordings():
    plot = _compile_plot("- a[b|c[d|e]]\n| f\n? g\n| h\n- [i|i]")
    assert _count(plot.text) == (3 + 1) * (2 + 1) * 1
    assert len(wordings(plot.text)) == 12
    first_beats = PLOTS["share"].text[:3]
    assert len(wordings(first_beats, 20_000)) == _count(first_beats)


def test_there_are_billions_of_stories():
    assert 10**10 < stories.count() < 10**12
    assert min(_count(plot.text) for plot in PLOTS.values()) > 10**6


def test_an_optional_beat_is_told_half_the_time():
    text = _compile_plot("? a\n| b\n| c").text
    dice = _Dice(0, 1)
    told = 0
    for _ in range(2_000):
        out = []
        _tell(text, dice, out)
        told += "".join(out).strip() != ""
    assert abs(told - 1_000) < 150


# ------------------------------------------------------------------ form


@pytest.mark.slow
def test_lengths_and_vocabulary_fit_a_small_model(train):
    lengths = sorted(len(text.split()) for text in train)
    assert lengths[0] >= 100
    assert lengths[-1] <= 210
    assert 140 <= sum(lengths) / len(lengths) <= 170
    vocabulary = {word.lower() for text in train for word in words(text)}
    assert 400 <= len(vocabulary) <= 600


@pytest.mark.slow
def test_text_is_clean(train):
    for text in train[:5_000]:
        assert text.isascii()
        odd = r"[{}\[\]|/;]|  |^ | $|\n\n| [,.!?]|,[^ \"]|[.!?]{2}"
        assert not re.search(odd, text, re.MULTILINE), text
        assert text == text.strip()
        assert 3 <= len(text.split("\n")) <= 4
        for paragraph in text.split("\n"):
            assert paragraph[0].isupper() or paragraph[0] == '"'
            assert paragraph[-1] in '.!"'
            assert paragraph.count('"') % 2 == 0


@pytest.mark.slow
def test_sentences_and_quotes_start_with_capitals(some):
    for text in some:
        for paragraph in text.split("\n"):
            for number, piece in enumerate(paragraph.split('"')):
                if number % 2:  # inside a quotation
                    assert piece[0].isupper(), piece
                    assert piece[-1] in ",.!?", piece
                outside = re.findall(r"[.!?] ([a-z]\w*)", piece)
                assert not outside, piece


def test_articles_agree(some):
    for text in some:
        assert not re.search(r"\b[Aa] [aeiou]", text)
        assert not re.search(r"\b[Aa]n [^aeiou]", text)


@pytest.mark.slow
def test_two_characters_with_different_pronouns(train):
    """One or two names a story, of different gender, and no pronoun without its character."""
    for text in train[:5_000]:
        found = set(words(text))
        boys, girls = found & set(BOYS), found & set(GIRLS)
        hers, his = found & {"she", "She", "Her", "her"}, found & {"he", "He", "him", "his", "His"}
        assert len(boys) <= 1
        assert len(girls) <= 1
        assert bool(boys) >= bool(his), text
        assert bool(girls) >= bool(hers), text


@pytest.mark.slow
def test_every_plot_is_told_and_carries_its_slots_through(some):
    names = list(PLOTS)
    told = [names[_Dice(0, i).below(len(names))] for i in range(len(some))]
    assert all(0.08 < told.count(name) / len(told) < 0.12 for name in names)
    one_of = {  # rows of a table: a story uses one of them, in every paragraph that needs it
        "lost": ("ball", "kite", "drum", "boat", "car", "train"),
        "wait": ("pumpkin", "flower", "carrot", "rose"),
        "stranger": ("flower", "shell", "rose", "feather"),
        "friend": ("ball", "kite", "drum", "boat", "car", "train"),
        "mistake": ("cup", "plate", "bowl", "jar", "vase", "pot"),
        "share": ("apples", "cookies", "berries", "nuts", "pears"),
    }
    for name, text in zip(told, some, strict=True):
        paragraphs = [words(paragraph) for paragraph in text.split("\n")]
        hero = next(word for word in paragraphs[0] if word in BOYS + GIRLS)
        assert hero in paragraphs[-1]
        if name in one_of:
            assert len(set(one_of[name]) & set(words(text))) == 1, text
            assert sum(bool(set(one_of[name]) & set(part)) for part in paragraphs) >= 2, text


# ------------------------------------------------------------------ errors and the command


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stories.corpus(3, split="test"), "split is 'test', it must be"),
        (lambda: stories.corpus(-1), "n is -1, it must be in 0"),
        (lambda: stories.corpus(1, seed=-1), "seed is -1, it must be in 0"),
        (lambda: stories.story(0, 1 << 64), "index is 18446744073709551616, it must be in 0"),
        (lambda: _parse("a [b"), "a bracket is not closed in: a .b"),
        (lambda: _parse("a | b"), "outside of brackets in: a . b"),
        (lambda: _compile_plot("+ a"), "a line starts with one of"),
    ],
)
def test_errors_teach(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_the_module_prints_stories():
    command = [sys.executable, "-m", "tinygpt.data.stories", "--n", "3", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    assert done.stdout == "\n\n".join(stories.corpus(3, seed=1)) + "\n"
    assert done.stderr == ""


def test_a_wrong_call_exits_with_2(capsys):
    with pytest.raises(SystemExit) as stop:
        stories.main(["--n", "-1"])
    assert stop.value.code == 2
    assert "n is -1" in capsys.readouterr().err
