"""Files of others: written and read back, and encoded as llama2.c would."""

import base64
import json
import os
import struct
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bpe
from bpe.alphabet import printable, unprintable
from bpe.ranks import llama2c_rows

BYTES = [bytes([byte]) for byte in range(256)]


@pytest.fixture(scope="module", params=["gpt2", "gpt4", r"\w+|\W", "none"])
def trained(request, sample):
    return bpe.train([sample], 600, pattern=request.param)


def same_parts(one, other):
    return all(
        getattr(one, part) == getattr(other, part)
        for part in ("vocab", "merges", "special_tokens", "pattern", "vocab_size")
    )


def test_own_json(trained, tmp_path):
    trained.save(tmp_path / "t.json")
    text = (tmp_path / "t.json").read_text(encoding="utf-8")
    assert json.loads(text) == trained.to_dict()
    assert len(text.splitlines()) == len(trained.to_dict())  # a line a field
    assert bpe.load(str(tmp_path / "t.json")) == trained


def test_hugging_face(trained, tmp_path, sample):
    path = tmp_path / "tokenizer.json"
    trained.save(path, "huggingface")
    for place in (path, tmp_path):  # the file, or its folder
        assert same_parts(bpe.load(place), trained)


@pytest.mark.parametrize("control_tokens", [True, False])
def test_characters_are_a_bpe_without_merges(control_tokens, tmp_path):
    size = 12 if control_tokens else None
    tokenizer = bpe.CharTokenizer("a b\né猫", control_tokens=control_tokens, vocab_size=size)
    tokenizer.save(tmp_path / "tokenizer.json", "huggingface")
    assert bpe.load(tmp_path) == tokenizer
    model = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    assert model["merges"] == [] and model["vocab"]["猫"] == tokenizer.encode("猫")[0]
    assert model["unk_token"] == ("<unk>" if control_tokens else None)


@pytest.mark.parametrize("vocab", [{"a": 0, "b": 2}, {"ab": 0}, {"a": "0"}, {"a": 0, "<x>": 1}])
def test_characters_that_are_none(vocab, tmp_path):
    path = tmp_path / "tokenizer.json"
    bpe.CharTokenizer("ab", control_tokens=False).save(path, "huggingface")
    data = json.loads(path.read_text(encoding="utf-8"))
    data["model"]["vocab"] = vocab
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(bpe.TokenizerError, match=r"model\.vocab"):
        bpe.load(path)


def test_hugging_face_as_older_versions_wrote_it(trained, tmp_path):
    path = tmp_path / "tokenizer.json"
    trained.save(path, "huggingface")
    data = json.loads(path.read_text(encoding="utf-8"))
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    for key in ("type", "ignore_merges", "byte_fallback", "unk_token", "fuse_unk"):
        del data["model"][key]
    path.write_text(json.dumps(data), encoding="utf-8")
    assert same_parts(bpe.load(path), trained)


def test_two_files(trained, tmp_path):
    if trained.pattern == "gpt2":
        trained.save(tmp_path, "gpt2")
    else:
        with pytest.warns(UserWarning, match="does not hold the pattern"):
            trained.save(tmp_path, "gpt2")
    for name in ("vocab.json", "merges.txt", "."):
        assert same_parts(bpe.load(tmp_path / name, pattern=trained.pattern), trained)
    lines = (tmp_path / "merges.txt").read_bytes().decode().split("\n")
    assert lines[0] == "#version: 0.2"
    assert len(lines) == len(trained.merges) + 2
    (tmp_path / "merges.txt").write_bytes("\r\n".join(lines).encode())
    assert same_parts(bpe.load(tmp_path, pattern=trained.pattern), trained)


@pytest.mark.filterwarnings("ignore:text with")
def test_tiktoken(trained, tmp_path, sample):
    path = tmp_path / "ranks.tiktoken"
    trained.save(path, "tiktoken")
    first = path.read_text().splitlines()[65]
    assert first == f"{base64.b64encode(b'A').decode()} 65"
    again = bpe.load(path, pattern=trained.pattern, special_tokens=trained.special_tokens)
    assert again.vocab == trained.vocab
    assert again.by_token and again.whole_chunks
    assert again.encode(sample) == trained.encode(sample)
    again.save(tmp_path / "again", "tiktoken")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_ranks_of_tokens_are_not_ranks_of_pairs():
    """Tokens ab, bc, abc: from ranks, any neighbours that join to abc are merged."""
    vocab = [*BYTES, b"bc", b"abc"]
    pairs = bpe.BPETokenizer(vocab, [(98, 99)], pattern="none")
    assert pairs.encode("abc") == [97, 256]
    ranked = bpe.BPETokenizer(vocab, [(98, 99), (97, 256)], pattern="none", by_token=True)
    assert ranked.encode("abc") == [257]
    whole = bpe.BPETokenizer(vocab, [(98, 99)], pattern="none", whole_chunks=True)
    assert whole.encode("abc") == [257]
    assert whole.encode("abcd") == [97, 256, 100]


def test_a_warning_where_ranks_lose_something(tmp_path):
    odd = bpe.BPETokenizer([*BYTES, b"ab", b"xyz"], [(97, 98)])
    with pytest.warns(UserWarning, match=r"text with b'xyz' may be encoded differently") as caught:
        odd.save(tmp_path / "ranks", "tiktoken")
    assert caught[0].filename == __file__
    backwards = bpe.BPETokenizer([*BYTES, b"ab", b"cd"], [(99, 100), (97, 98)])
    with pytest.raises(bpe.TokenizerError, match="ids here do not follow the merges"):
        backwards.save(tmp_path / "ranks", "tiktoken")


def llama2c_encode(text, rows, scores):
    """`encode` of llama2.c's run.c, step by step, without its begin token and its first space."""
    ids = []
    for character in text:
        token = character.encode()
        ids += [rows.index(token)] if token in rows else [byte + 3 for byte in token]
    while True:
        best, place = -1e10, None
        for i in range(len(ids) - 1):
            joined = rows[ids[i]] + rows[ids[i + 1]]
            if joined in rows and scores[rows.index(joined)] > best:
                best, place = scores[rows.index(joined)], i
        if place is None:
            return ids
        ids[place : place + 2] = [rows.index(rows[ids[place]] + rows[ids[place + 1]])]


def read_rows(path):
    data = path.read_bytes()
    longest, position, rows, scores = *struct.unpack_from("<I", data), 4, [], []
    while position < len(data):
        score, size = struct.unpack_from("<fI", data, position)
        rows.append(data[position + 8 : position + 8 + size])
        scores.append(score)
        position += 8 + size
    assert longest == max(map(len, rows))
    return rows, scores


@pytest.fixture(scope="module")
def llama2c(sample, tmp_path_factory):
    """A BPE tokenizer, and the `tokenizer.bin` that it is written to."""
    path = tmp_path_factory.mktemp("llama2c") / "tokenizer.bin"
    trained = bpe.train([sample], 500, pattern="none", special_tokens=["<|endoftext|>"])
    trained.save(path, "llama2c")
    return trained, path


def test_llama2c(llama2c, tmp_path):
    trained, path = llama2c
    rows, _ = read_rows(path)
    assert rows[:3] == [b"<unk>", b"<|endoftext|>", b"</s>"]
    assert rows[3] == b"<0x00>"
    assert rows[3 + ord("t")] == b"t"
    ids = llama2c_rows(trained)
    assert len(ids) == len(rows) == 502
    again = bpe.load(path)
    assert again.separator_id == 1
    assert list(map(trained.token_bytes, ids[3:])) == list(map(again.token_bytes, range(3, 502)))
    again.save(tmp_path / "again.bin", "llama2c")
    assert bpe.load(tmp_path / "again.bin") == again


@pytest.mark.slow
@given(text=st.text("the andsw,.'éж猫🐶\n", max_size=25))
def test_llama2c_ids(llama2c, text):
    again = bpe.load(llama2c[1])
    assert again.encode(text) == llama2c_encode(text, *read_rows(llama2c[1]))
    assert again.decode(again.encode(text)) == text


def sentencepiece_rows():
    """Rows as llama2.c writes a SentencePiece model: byte tokens, pieces, then characters."""
    rows = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256))]
    pieces = ["th", "the", " t", " the", "猫", "猫a", *" aeht", "\n"]
    rows += [piece.encode() for piece in pieces]
    return rows, [0.0] * 259 + [-float(i) for i in range(len(pieces))]


def write_rows(path, rows, scores, longest=None):
    body = [struct.pack("<fI", s, len(r)) + r for r, s in zip(rows, scores, strict=True)]
    path.write_bytes(struct.pack("<I", longest or max(map(len, rows))) + b"".join(body))


@pytest.mark.slow
@given(text=st.text(" aehtb\n猫é", max_size=20))
def test_llama2c_of_a_sentencepiece_model(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("llama2c") / "tokenizer.bin"
    rows, scores = sentencepiece_rows()
    write_rows(path, rows, scores)
    tokenizer = bpe.load(path)
    assert tokenizer.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert tokenizer.encode(text) == llama2c_encode(text, rows, scores)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.token_bytes(3 + ord("b")) == b"b"
    assert bpe.from_dict(tokenizer.to_dict()) == tokenizer


def test_llama2c_of_characters(tmp_path):
    tokenizer = bpe.CharTokenizer.train(["abracadabra é猫"], vocab_size=20)
    tokenizer.save(tmp_path / "tokenizer.bin", "llama2c")
    rows, _ = read_rows(tmp_path / "tokenizer.bin")
    assert rows[:5] == [b"<unk>", b"<s>", b"</s>", b"a", b"b"]
    assert bpe.load(tmp_path) == tokenizer
    assert llama2c_rows(tokenizer) == list(range(20))


def test_what_a_format_cannot_hold(tokenizer, tmp_path, sample):
    characters = bpe.CharTokenizer("abc")
    reduced = bpe.ReducedTokenizer.train(tokenizer, [sample], 50)
    for other, names in ((characters, ()), (reduced, ("huggingface",))):
        for name in (*names, "gpt2", "tiktoken"):
            with pytest.raises(bpe.TokenizerError, match=f"'{name}' holds BPE only"):
                other.save(tmp_path / "x", name)
    for other in (bpe.CharTokenizer("abc", control_tokens=False), reduced):
        with pytest.raises(bpe.TokenizerError, match=r"tokenizer.bin holds BPE, or characters"):
            other.save(tmp_path / "x", "llama2c")
    with pytest.raises(bpe.TokenizerError, match=r"no place for the special token '<\|end\|>'"):
        tokenizer.save(tmp_path / "x", "llama2c")
    with pytest.raises(bpe.TokenizerError, match="'yaml' is none of json, huggingface, gpt2"):
        tokenizer.save(tmp_path / "x", "yaml")
    write_rows(tmp_path / "llama.bin", *sentencepiece_rows())
    with pytest.raises(bpe.TokenizerError, match="encoding by character"):
        bpe.load(tmp_path / "llama.bin").save(tmp_path / "x", "tiktoken")
    assert not (tmp_path / "x").exists()


def test_words_of_gpt2_are_not_taken_for_fields(tmp_path):
    """GPT-2's vocabulary has the words "format", "model" and "kind"."""
    names = {printable(byte): i for i, byte in enumerate(BYTES)}
    vocab = {**names, "fo": 256, "for": 257, "model": 258, "<|endoftext|>": 259}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\nf o\nfo r\n", encoding="utf-8")
    tokenizer = bpe.load(tmp_path)
    assert tokenizer.encode("for") == [257]
    assert tokenizer.special_tokens == {"model": 258, "<|endoftext|>": 259}
    assert bpe.load(tmp_path, special_tokens={"<|endoftext|>": 259}).special_tokens == {
        "<|endoftext|>": 259
    }


def test_saving_is_whole_or_not_at_all(tokenizer, tmp_path, monkeypatch):
    path = tmp_path / "t.json"
    path.write_text("before", encoding="utf-8")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(bpe.TokenizerError, match=r"t.json: cannot be written: No space left"):
            tokenizer.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["t.json"]
    assert path.read_text(encoding="utf-8") == "before"
    with pytest.raises(bpe.TokenizerError, match="cannot be written"):
        tokenizer.save(tmp_path / "no such folder" / "t.json")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer.save(path)
    assert bpe.load(path) == tokenizer


def test_what_a_killed_process_left_goes_when_it_is_old(tokenizer, tmp_path):
    old, new = (tmp_path / f".t.json.{process}.tmp" for process in (1, 2))
    old.write_bytes(b"half")
    new.write_bytes(b"of one that may be at work")
    os.utime(old, (0, 0))
    tokenizer.save(tmp_path / "t.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == [new.name, "t.json"]


def test_the_alphabet():
    assert printable(b" the\n\x00\xff") == "ĠtheĊĀÿ"
    assert all(unprintable(printable(byte)) == byte for byte in BYTES)
    assert all(printable(byte).isprintable() for byte in BYTES)
