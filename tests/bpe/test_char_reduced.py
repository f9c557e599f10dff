"""Character tokenizers and reduced vocabularies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bpe

TEXT = "abracadabra <|endoftext|> é"


def test_characters_by_frequency():
    tokenizer = bpe.CharTokenizer.train([TEXT])
    assert tokenizer.characters == "a brcdé"  # a 5, then by code point: " " 2, b 2, r 2
    assert tokenizer.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.separator_id) == ("char", 10, 1)
    assert tokenizer.encode("bad?") == [5, 3, 8, 0]
    assert tokenizer.decode([1, 5, 3, 8, 0, 2]) == "bad"
    assert [tokenizer.token_bytes(id) for id in (0, 1, 2, 9)] == [b"", b"", b"", "é".encode()]
    assert tokenizer.encode("<s>a", allowed_special="all") == [1, 3]
    assert tokenizer.encode("<s>a") == [0, 0, 0, 3]


def test_rows_that_are_not_used():
    tokenizer = bpe.CharTokenizer.train([TEXT], vocab_size=361)
    assert tokenizer.vocab_size == 361
    assert tokenizer.decode([3, 360]) == "a"
    with pytest.raises(bpe.TokenizerError, match="361 is not an id"):
        tokenizer.decode([361])


def test_the_rarest_characters_are_left_out():
    tokenizer = bpe.CharTokenizer.train([TEXT], vocab_size=5)
    assert tokenizer.characters == "a "
    assert tokenizer.encode("a b") == [3, 4, 0]


def test_characters_without_control_tokens():
    tokenizer = bpe.CharTokenizer.train([TEXT], control_tokens=False)
    assert tokenizer.characters == " abcdré"
    assert tokenizer.encode("bad") == [2, 1, 4]
    assert tokenizer.separator_id is None
    with pytest.raises(bpe.TokenizerError, match=r"'\?' \(U\+003F\) is not among the 7 characters"):
        tokenizer.encode("bad?")


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1), control=st.booleans())
def test_round_trip_of_characters(text, control):
    tokenizer = bpe.CharTokenizer.train([text], control_tokens=control, special_tokens=[])
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert list(tokenizer.encode_iterable(text)) == ids
    assert bpe.from_dict(tokenizer.to_dict()) == tokenizer


@pytest.mark.parametrize(
    ("characters", "size", "message"),
    [
        ("aa", None, "distinct characters"),
        (["a"], None, "distinct characters"),
        ("\ud800", None, "surrogate"),
        ("abc", 5, "6 ids are needed"),
        ("abc", 1 << 30, "6 ids are needed"),
        ("abc", "9", "6 ids are needed"),
    ],
)
def test_characters_that_do_not_fit(characters, size, message):
    with pytest.raises(bpe.TokenizerError, match=message):
        bpe.CharTokenizer(characters, vocab_size=size)
    with pytest.raises(bpe.TokenizerError, match="no text"):
        bpe.CharTokenizer.train([""])


def test_reduced(tokenizer, sample):
    reduced = bpe.ReducedTokenizer.train(tokenizer, [sample], 100)
    assert (reduced.kind, reduced.vocab_size, reduced.unknown_id) == ("reduced", 101, 100)
    ordinary = [id for text in sample.split("<|endoftext|>") for id in tokenizer.encode(text)]
    counts = {id: ordinary.count(id) for id in set(ordinary)}
    most = sorted(counts, key=lambda id: (-counts[id], id))[:97]  # and three special tokens
    assert reduced.kept[:97] == most
    assert reduced.coverage == sum(counts[id] for id in most) / len(ordinary)
    ids = reduced.encode(sample, allowed_special="all")
    assert len(ids) == len(tokenizer.encode(sample, allowed_special="all"))
    assert set(ids) <= set(range(101))
    text = tokenizer.decode(most)
    assert reduced.decode(range(97)) == text
    assert reduced.decode([100]) == "\ufffd"
    assert reduced.separator_id == reduced.special_tokens["<|endoftext|>"]
    assert tokenizer.encode("猫")[0] not in reduced.kept
    assert reduced.encode("猫") == [100] * len(tokenizer.encode("猫"))


def test_reduced_wants_a_text(tokenizer):
    with pytest.raises(bpe.TokenizerError, match="no text to train on"):
        bpe.ReducedTokenizer.train(tokenizer, ["", ""], 50)


def test_reduced_to_all_loses_nothing(tokenizer, sample, tmp_path):
    reduced = bpe.ReducedTokenizer.train(tokenizer, [sample], tokenizer.vocab_size)
    assert reduced.coverage == 1
    assert reduced.decode(reduced.encode(sample)) == sample
    assert list(reduced.encode_iterable([sample])) == reduced.encode(sample)
    reduced.save(tmp_path / "r.json")
    assert bpe.load(tmp_path / "r.json") == reduced


@pytest.mark.parametrize("size", [0, 2, 601, "100"])
def test_a_size_that_does_not_fit(tokenizer, size):
    with pytest.raises(bpe.TokenizerError, match="size: expected a number from 3 to 600"):
        bpe.ReducedTokenizer.train(tokenizer, ["text"], size)


@pytest.mark.parametrize(
    ("kept", "coverage", "message"),
    [
        ([1, 1], 0.5, r"kept\[1\]: the id 1 is there twice"),
        ([600], 0.5, r"kept\[0\]: 600 is not an id"),
        (["1"], 0.5, r"kept\[0\]: '1' is not an id"),
        ([1], 2, "coverage: expected a share from 0 to 1"),
        ([1], float("nan"), "coverage: expected a share from 0 to 1"),
    ],
)
def test_parts_of_a_reduced_tokenizer(tokenizer, kept, coverage, message):
    with pytest.raises(bpe.TokenizerError, match=message):
        bpe.ReducedTokenizer(tokenizer, kept, coverage)
    with pytest.raises(bpe.TokenizerError, match="base: expected a BPETokenizer"):
        bpe.ReducedTokenizer(bpe.CharTokenizer("a"), kept, coverage)
