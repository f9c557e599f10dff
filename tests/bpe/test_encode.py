"""Encoding and decoding: nothing is lost, whatever comes."""

import copy
import heapq
import json
import pickle
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bpe
from bpe.sources import batches

DATA = Path(__file__).parent / "data"
END = "<|endoftext|>"
UNICODE = st.text(st.characters(exclude_categories=["Cs"]))


@given(text=UNICODE)
def test_round_trip_of_any_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, errors="strict") == text
    assert tokenizer.encode_bytes(text.encode()) == ids
    decoder = tokenizer.stream_decoder()
    assert "".join(map(decoder.feed, ids)) + decoder.flush() == text


@pytest.mark.slow
def test_every_character_of_unicode(tokenizer):
    text = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(data=st.binary())
def test_round_trip_of_any_bytes(tokenizer, data):
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data


@pytest.mark.slow
@given(text=UNICODE, pattern=st.sampled_from(["gpt4", "none", r"\w+", "", r"(a)|\s", ".{0,3}"]))
def test_round_trip_with_any_pattern(tokenizer, text, pattern):
    other = bpe.BPETokenizer(tokenizer.vocab, tokenizer.merges, pattern=pattern)
    ids = other.encode(text)
    assert other.decode(ids) == text
    assert list(other.encode_iterable(text)) == ids


def test_surrogates_become_what_utf8_can_hold(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud83d\udc36b\ud800")) == "a🐶b\ufffd"
    assert tokenizer.encode("\udc80") == tokenizer.encode("\ufffd")
    parts = ["\ud83d", "\udc36"]  # as the whole would be, though the pair comes in two parts
    assert list(tokenizer.encode_iterable(parts)) == tokenizer.encode("🐶")


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
def test_ids_are_those_of_hugging_face_and_tiktoken(sample, pattern):
    """Frozen by benchmarks/bpe_peers.py, where both give the same."""
    frozen = json.loads((DATA / "peers.json").read_text(encoding="utf-8"))["ids"][pattern]
    tokenizer = bpe.train([sample], 700, pattern=pattern)
    assert tokenizer.encode(sample, allowed_special="all") == frozen
    assert tokenizer.decode(frozen) == sample


def merge_slowly(tokenizer, data):
    """The rule in its plainest form: find the best pair, merge it, look again."""
    ids = [tokenizer.vocab.index(bytes([byte])) for byte in data]
    while True:
        pairs = enumerate(pairwise(ids))
        found = [(tokenizer.merges.index(p), i) for i, p in pairs if p in tokenizer.merges]
        if not found:
            return ids
        rank, i = min(found)
        joined = b"".join(tokenizer.vocab[id] for id in tokenizer.merges[rank])
        ids[i : i + 2] = [tokenizer.vocab.index(joined)]


@given(data=st.text("aehinrst '!").map(str.encode) | st.binary(max_size=20))
def test_merging_follows_the_ranks(tokenizer, data):
    whole = bpe.BPETokenizer(tokenizer.vocab, tokenizer.merges, pattern="none")
    assert whole.encode_bytes(data) == merge_slowly(tokenizer, data)


@pytest.mark.slow
def test_a_long_unbroken_chunk(tokenizer, monkeypatch):
    pushed = []
    push = heapq.heappush
    monkeypatch.setattr(heapq, "heappush", lambda heap, item: pushed.append(push(heap, item)))
    letters = "".join(random.Random(0).choices("etaoinshrdlu", k=100_000))
    for text in (letters, "a" * 100_000, " " * 100_000, "猫" * 30_000):
        pushed.clear()
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert len(pushed) <= 2 * len(text.encode())  # of log n each; looking again would be n * n


# Special tokens


def test_special_tokens_are_text_unless_allowed(tokenizer):
    text = f"one{END}two"
    end = tokenizer.special_tokens[END]
    assert end not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    ids = tokenizer.encode(text, allowed_special={END})
    assert ids == [*tokenizer.encode("one"), end, *tokenizer.encode("two")]
    assert ids == tokenizer.encode(text, allowed_special="all")
    assert list(tokenizer.encode_iterable(text, allowed_special="all")) == ids
    assert tokenizer.encode_batch([text], allowed_special="all") == [ids]
    assert tokenizer.decode(ids) == text
    assert tokenizer.separator_id == end


def test_the_longest_special_token_wins(tokenizer):
    special = tokenizer.special_tokens
    text = "<|end|><|of|><|end|>"
    assert tokenizer.encode(text, allowed_special="all") == [
        special["<|end|><|of|>"],
        special["<|end|>"],
    ]
    assert tokenizer.encode(text, allowed_special={"<|end|>", "unknown"})[0] == special["<|end|>"]


def test_disallowed_special_tokens(tokenizer):
    for disallowed in ("all", {END}):
        with pytest.raises(bpe.TokenizerError, match=r"'<\|endoftext\|>' at character 1"):
            tokenizer.encode(f"a{END}", disallowed_special=disallowed)
        assert tokenizer.encode("a", disallowed_special=disallowed)
    assert tokenizer.encode(END, allowed_special="all", disallowed_special="all")
    with pytest.raises(bpe.TokenizerError, match=r"at character 0; pass it in allowed_special"):
        tokenizer.encode(END, disallowed_special="all")


@pytest.mark.parametrize("option", ["allowed_special", "disallowed_special"])
def test_a_word_that_is_not_all(tokenizer, option):
    with pytest.raises(bpe.TokenizerError, match=f"{option}: expected a set of tokens or 'all'"):
        tokenizer.encode("text", **{option: "none"})


# Streams and batches


@given(text=UNICODE, cuts=st.lists(st.integers(0, 50)))
def test_a_stream_is_encoded_as_the_whole(tokenizer, text, cuts):
    ends = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    parts = [text[a:b] for a, b in pairwise(ends)]
    assert list(tokenizer.encode_iterable(parts)) == tokenizer.encode(text)


@pytest.mark.parametrize("kind", ["bpe", "char", "reduced"])
def test_a_long_stream_with_special_tokens_is_encoded_as_the_whole(tokenizer, kind):
    """Special tokens in the middle of a block, at its end, and across it."""
    text = ("a day by the sea, " * 2000 + "<|endoftext|>" + "the end ") * 4 + "<|endoftext|>"
    special = bpe.BPETokenizer(
        tokenizer.vocab, tokenizer.merges, special_tokens={"<|endoftext|>": len(tokenizer.vocab)}
    )
    of = {
        "bpe": special,
        "char": bpe.CharTokenizer.train([text]),
        "reduced": bpe.ReducedTokenizer.train(special, [text], 60),
    }[kind]
    whole = of.encode(text, allowed_special="all")
    for size in (1000, 65_535, 65_541):
        parts = (text[i : i + size] for i in range(0, len(text), size))
        assert list(of.encode_iterable(parts, allowed_special="all")) == whole


def test_a_long_stream_is_not_held(tokenizer, sample):
    """Ids come out long before the text has ended."""
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield sample

    ids = tokenizer.encode_iterable(endless())
    expected = tokenizer.encode(sample * 40)[:5000]
    assert [next(ids) for _ in range(5000)] == expected
    assert read < 100


def test_texts_are_handed_out_in_batches():
    assert list(batches(["aa", "b", "cc", "d"], size=3)) == [["aa", "b"], ["cc", "d"]]
    assert list(batches(["aaa"], size=3)) == [["aaa"]]


def test_batches_with_processes(tokenizer, sample):
    texts = [*sample.split("\n"), "", "🐶"] * 3
    expected = [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch(texts) == expected
    assert tokenizer.encode_batch(iter(texts), processes=2) == expected


def test_the_cache_is_bounded(tokenizer):
    fresh = bpe.BPETokenizer(tokenizer.vocab, tokenizer.merges)
    fresh._words._limit = 10
    text = " ".join(map(str, range(1000)))
    assert fresh.encode(text) == tokenizer.encode(text)
    assert len(fresh._words) <= 10


# Decoding


def test_stream_decoder_gives_whole_characters(tokenizer):
    ids = tokenizer.encode_bytes("é猫🐶".encode())
    assert len(ids) > 3
    decoder = tokenizer.stream_decoder()
    pieces = [decoder.feed(id) for id in ids]
    assert "".join(pieces) == "é猫🐶"
    assert "\ufffd" not in "".join(pieces)
    assert decoder.flush() == ""
    assert decoder.feed(0xE7) == ""  # the first byte of three
    assert decoder.flush() == "\ufffd"
    assert decoder.feed(ord("a")) == "a"


def test_decoding_what_is_not_utf8(tokenizer):
    assert tokenizer.decode([0xFF, ord("a")]) == "\ufffda"
    assert tokenizer.decode([0xFF, ord("a")], errors="ignore") == "a"
    with pytest.raises(bpe.TokenizerError, match="decode: not UTF-8: invalid start byte at byte 0"):
        tokenizer.decode([0xFF], errors="strict")


@given(text=UNICODE)
def test_offsets(tokenizer, text):
    ids = tokenizer.encode(text)
    decoded, offsets = tokenizer.decode_with_offsets(ids)
    assert decoded == text
    assert len(offsets) == len(ids)
    # A token begins in the character that holds its first byte.
    ends = [len(text[: i + 1].encode()) for i in range(len(text))]
    start = 0
    for id, offset in zip(ids, offsets, strict=True):
        assert offset == sum(end <= start for end in ends)
        start += len(tokenizer.token_bytes(id))


@pytest.mark.parametrize("ids", [[-1], [600], [10**30], ["a"], [None], [[1]], [1.5]])
def test_what_is_no_id(tokenizer, ids):
    with pytest.raises(bpe.TokenizerError, match="is not an id; ids go from 0 to 599"):
        tokenizer.decode([65, *ids])


def test_ids_without_a_token_decode_to_nothing():
    bytes_ = [bytes([byte]) for byte in range(256)]
    tokenizer = bpe.BPETokenizer([*bytes_, None, b"ab"], [(97, 98)], special_tokens={"<s>": 300})
    assert tokenizer.vocab_size == 301
    assert tokenizer.decode([97, 256, 299, 257, 300]) == "aab<s>"


# The object


def test_copies_are_equal(tokenizer, tmp_path):
    other = pickle.loads(pickle.dumps(tokenizer))
    assert other == tokenizer == copy.deepcopy(tokenizer)
    assert other.sha256 == tokenizer.sha256
    assert len({other, tokenizer}) == 1
    assert bpe.from_dict(json.loads(json.dumps(tokenizer.to_dict()))) == tokenizer
    assert tokenizer != bpe.train(["other"], 257)
    assert repr(tokenizer) == "<BPETokenizer of 600 ids>"


def test_encode_wants_a_string(tokenizer):
    with pytest.raises(bpe.TokenizerError, match="encode: expected a str, got bytes"):
        tokenizer.encode(b"bytes")
    with pytest.raises(bpe.TokenizerError, match="encode_batch: expected a list of texts"):
        tokenizer.encode_batch("text")


BYTES = [bytes([byte]) for byte in range(256)]


@pytest.mark.parametrize(
    ("vocab", "merges", "special", "message"),
    [
        (BYTES[:-1], [], {}, "no token for the byte 0xff"),
        ([*BYTES, b"a"], [], {}, "ids 97 and 256 are both b'a'"),
        (BYTES, [(97, 98)], {}, r"merges\[0\]: b'a' and b'b' join to bytes without a token"),
        (BYTES, [(97, 300)], {}, r"merges\[0\]: 300 is not a token"),
        (BYTES, [(97, -1)], {}, r"merges\[0\]: -1 is not a token"),
        ([*BYTES, b"ab"], [(97, 98), (97, 98)], {}, r"merges\[1\]: the pair .* merged before"),
        ([*BYTES, b"aa"], [(256, 256)], {}, r"merges\[0\]: b'aa' and b'aa' join"),
        (BYTES, [], {"<s>": 3}, "'<s>' has an id that is in use, 3"),
        (BYTES, [], {"<s>": 1 << 40}, "'<s>' has the impossible id"),
        (BYTES, [], {"": 256}, "an empty string"),
        (BYTES, [], {"<s>": 256, "</s>": 256}, "'</s>' has an id that is in use, 256"),
    ],
)
def test_parts_that_do_not_fit(vocab, merges, special, message):
    with pytest.raises(bpe.TokenizerError, match=message):
        bpe.BPETokenizer(vocab, merges, special_tokens=special)
