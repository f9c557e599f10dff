"""Broken and hostile files are refused with one line that says what is wrong and where."""

import base64
import copy
import json
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bpe
from bpe.alphabet import printable

BYTES = [bytes([byte]) for byte in range(256)]
SMALL = bpe.BPETokenizer(
    [*BYTES, b"ab", b"abc"], [(97, 98), (256, 99)], special_tokens={"<s>": 258}
)
OWN = SMALL.to_dict()


def refused(path, data, message, **options):
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    with pytest.raises(bpe.TokenizerError, match=message) as caught:
        bpe.load(path, **options)
    text = str(caught.value)
    assert text.startswith(str(path.parent))
    assert "\n" not in text
    assert len(text) <= 401 + len(str(path))


def changed(data, *keys, to=None):
    """A copy of `data` with the value at `keys` replaced, or left out."""
    data = copy.deepcopy(data)
    *path, last = keys
    place = data
    for key in path:
        place = place[key]
    if to is None:
        del place[last]
    else:
        place[last] = to
    return data


@pytest.mark.mostly_slow
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b" " * 1000, "nothing but white space"),
        (b"{", "not JSON: .* line 1 column 2"),
        (b'{"a": "\xff"}', "not UTF-8: invalid start byte at byte 7"),
        (b'{"a": ' + b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' + b'{"a": ' * 200_000, "nested too deeply"),
        (b'{"version": ' + b"9" * 5000 + b"}", "a number of 5000 digits"),
        (b'{"version": NaN}', "NaN is not JSON"),
        (b'{"kind": 1, "kind": 2}', "the key 'kind' is twice"),
        (b'{"' + b"k" * 10**6 + b'": 1, "' + b"k" * 10**6 + b'": 2}', "the key 'kkk.*…"),
        (b"{}", "format: missing"),
        (b'{"hello": "world"}', "format: missing"),
        (b"\x7fELF" + bytes(500), "not a tokenizer file of a known format"),
        (b"Once upon a time there was a hedgehog.\n" * 20, "not a tokenizer file of a known"),
        (b"\x00\x00\x00\x00", "not a tokenizer file of a known format"),
        (
            lambda: b'{"vocab": [' + b"[]," * (20 << 20) + b"[]]}",
            "more than 1,048,576 values and keys",
        ),
        (b'{"a\\u001b[2J": 1}', "merges.txt: No such file"),
        (b'{"kind": "\\u001b[2J", "format": "bpe", "version": 1}', r"kind: '\\x1b\[2J' is none"),
    ],
)
def test_no_tokenizer_at_all(tmp_path, data, message):
    refused(tmp_path / "file", data() if callable(data) else data, message)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["format"], "other", "format: only 'bpe', version 1, is known"),
        (["format"], 1, "format: expected a string, got a number"),
        (["version"], 2, "format: only 'bpe', version 1, is known"),
        (["version"], True, "version: expected a number, got true or false"),
        (["kind"], "none", "kind: 'none' is none of 'bpe', 'char', 'reduced'"),
        (["vocab"], None, "vocab: missing"),
        (["vocab"], {"a": 1}, "vocab: expected a list, got an object"),
        (["vocab", 7], 3, r"vocab\[7\]: expected a string or null, got a number"),
        (["vocab", 7], "猫", r"vocab\[7\]: '猫' has '猫', which stands for no byte"),
        (["vocab", 7], "ab", r"vocab: ids 7 and 256 are both b'ab'"),
        (["vocab", 7], "abcd", "vocab: no token for the byte 0x07"),
        (["merges"], "a b", "merges: expected a list, got a string"),
        (["merges", 1], [256], r"merges\[1\]: expected two ids, got \[256\]"),
        (["merges", 1], [256, "c"], r"merges\[1\]: expected two ids"),
        (["merges", 1], [256, True], r"merges\[1\]: expected two ids"),
        (["merges", 1], [256, 99.0], r"merges\[1\]: expected two ids"),
        (["merges", 1], [256, 9 * 10**18], r"merges\[1\]: 9000000000000000000 is not a token"),
        (["merges", 1], [256, -1], r"merges\[1\]: -1 is not a token"),
        (["merges", 1], [257, 257], r"merges\[1\]: b'abc' and b'abc' join to bytes without"),
        (["merges", 1], [97, 98], r"merges\[1\]: the pair \(97, 98\) has been merged before"),
        (["special_tokens"], ["<s>"], "special_tokens: expected an object, got a list"),
        (["special_tokens", "<s>"], "258", "special_tokens: '<s>' has '258' for an id"),
        (["special_tokens", "<s>"], 3, "special_tokens: '<s>' has an id that is in use, 3"),
        (["special_tokens", "<s>"], 10**12, "'<s>' has the impossible id 1000000000000"),
        (["special_tokens", "<s>"], -1, "'<s>' has the impossible id -1"),
        (["pattern"], "(((", "pattern: not a regular expression: missing"),
        (["pattern"], "x" * 20_000, "pattern: 20000 characters; 10000 are allowed"),
        (["pattern"], "a{4000000000}", "pattern: its counts multiply to more than 10,000"),
        (["pattern"], "(?:(?:a{999}){999}){999}", "pattern: its counts multiply to more than"),
        (["pattern"], "((?R)|a)*", r"pattern: '\(\?R': neither recursion nor fuzzy"),
        (["pattern"], "(?:xyz){e<=8}", r"pattern: '{e<=8}': neither recursion nor fuzzy"),
        (["special_tokens"], {str(i): i for i in range(258, 20_000)}, "at most 16,384 are allowed"),
        (["by_token"], "yes", "by_token: expected true or false, got a string"),
        (["training"], [], "training: expected an object, got a list"),
        (["surprise"], 1, "surprise: not a field of a tokenizer of kind 'bpe'"),
    ],
)
def test_own_files(tmp_path, keys, value, message):
    refused(tmp_path / "t.json", changed(OWN, *keys, to=value), message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"control_tokens": True, "vocab_size": 1 << 40, "characters": "ab"}, "vocab_size: 5 ids"),
        ({"control_tokens": True, "vocab_size": 9, "characters": "aa"}, "distinct characters"),
        (
            {"control_tokens": 1, "vocab_size": 9, "characters": "ab"},
            "control_tokens: expected true or",
        ),
        ({"control_tokens": True, "vocab_size": 9, "characters": "\ud800"}, "surrogate"),
    ],
)
def test_characters(tmp_path, data, message):
    refused(tmp_path / "t", {"format": "bpe", "version": 1, "kind": "char", **data}, message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"coverage": 0.5, "kept": [1, 1], "base": OWN}, r"kept\[1\]: the id 1 is there twice"),
        ({"coverage": 0.5, "kept": [{}], "base": OWN}, r"kept\[0\]: .* is not an id"),
        ({"coverage": 5, "kept": [1], "base": OWN}, "coverage: expected a share from 0 to 1"),
        (
            {"coverage": 0.5, "kept": [1], "base": {"kind": "reduced"}},
            "base: expected a tokenizer of kind",
        ),
        ({"coverage": 0.5, "kept": [1], "base": {"kind": "bpe"}}, "format: missing"),
    ],
)
def test_reduced(tmp_path, data, message):
    refused(tmp_path / "t", {"format": "bpe", "version": 1, "kind": "reduced", **data}, message)


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    SMALL.save(path, "huggingface")
    return json.loads(path.read_text(encoding="utf-8"))


LSTRIP = [{"content": "<s>", "id": 258, "lstrip": True}]
SPLIT = {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Isolated", "invert": False}
PLAIN = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["model"], "BPE", "model: expected an object, got a string"),
        (["model", "type"], "WordPiece", "model.type: only BPE is known, not 'WordPiece'"),
        (["model", "byte_fallback"], True, "model.byte_fallback: True is not supported"),
        (["model", "dropout"], 0.1, "model.dropout: 0.1 is not supported"),
        (["normalizer"], {"type": "NFC"}, "normalizer: changing the text is not supported"),
        (["pre_tokenizer"], None, "pre_tokenizer: missing"),
        (["pre_tokenizer"], {"type": "Metaspace"}, r"expected .*, got \['Metaspace'\]"),
        (["pre_tokenizer", "add_prefix_space"], True, "add_prefix_space is not supported"),
        (
            ["pre_tokenizer"],
            {"type": "Sequence", "pretokenizers": [{**SPLIT, "behavior": "MergedWithNext"}, PLAIN]},
            "expected a Split that isolates",
        ),
        (["pre_tokenizer"], {"type": "Sequence", "pretokenizers": [1]}, "expected objects"),
        (
            ["pre_tokenizer"],
            {"type": "Sequence", "pretokenizers": [{**SPLIT, "pattern": {"Regex": "("}}, PLAIN]},
            "pattern: not a regular expression",
        ),
        (["added_tokens"], LSTRIP, r"added_tokens\[0\].lstrip: not supported"),
        (["added_tokens"], [5], r"added_tokens\[0\]: expected an object"),
        (["added_tokens"], [{"id": 9}], r"added_tokens\[0\].content: missing"),
        (["added_tokens"], [{"id": 9, "content": "<s>"}], "vocab: '<s>' has the ids 258 and 9"),
        (["model", "vocab", "Ā"], None, "no token for the byte 0x00"),
        (["model", "vocab", "xyz"], 3, "vocab: 'xyz' and '.*' have the id 3"),
        (["model", "vocab", "xyz"], 1 << 60, "vocab: 'xyz' has the impossible id"),
        (["model", "vocab", "xyz"], "1", "vocab: 'xyz' has the impossible id '1'"),
        (["model", "vocab", "x y"], 300, "vocab: 'x y' has ' ', which stands for no byte"),
        (["model", "merges", 0], "a  b", r"model.merges\[0\]: expected two tokens"),
        (["model", "merges", 0], ["a", 1], r"model.merges\[0\]: expected two tokens"),
        (["model", "merges", 0], {"a": "b"}, r"model.merges\[0\]: expected two tokens"),
        (["model", "merges", 0], ["a", "猫"], r"model.merges\[0\]: '猫' is not in the vocabulary"),
        (["model", "merges", 0], ["a", "c"], r"merges\[0\]: b'a' and b'c' join to bytes without"),
    ],
)
def test_hugging_face(tmp_path, hugging_face, keys, value, message):
    refused(tmp_path / "tokenizer.json", changed(hugging_face, *keys, to=value), message)


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        (None, "merges.txt: No such file"),
        (b"#version: 0.2\na b\nab d\n", "merges.txt, line 3: 'd' is not|join to bytes without"),
        (b"#version: 0.2\na b c\n", "merges.txt, line 2: expected two tokens, got 'a b c'"),
        (b"a \xff\n", "merges.txt: not UTF-8 at byte 2"),
    ],
)
def test_two_files(tmp_path, merges, message):
    vocab = {printable(byte): i for i, byte in enumerate(BYTES)} | {"ab": 256}
    if merges is not None:
        (tmp_path / "merges.txt").write_bytes(merges)
    refused(tmp_path / "vocab.json", vocab, message)


def tiktoken(*lines):
    return b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(BYTES)) + b"".join(
        lines
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tiktoken(b"YWI= 256 3\n"), "line 257: expected a token in base64 and its rank"),
        (tiktoken(b"YW=I= 256\n"), "line 257: expected a token in base64 and its rank"),
        (tiktoken(b"YWI= -1\n"), "line 257: the rank -1 is impossible"),
        (tiktoken(b"YWI= " + b"9" * 5000 + b"\n"), "line 257: the rank 9+ is impossible"),
        (tiktoken(b"YWI= 5\n"), "line 257: the token b'ab' or its rank 5 is twice"),
        (tiktoken(b"YQ== 300\n"), "line 257: the token b'a' or its rank 300 is twice"),
        (tiktoken().replace(b"AA== 0\n", b""), "no token for the byte 0x00"),
        (tiktoken(base64.b64encode(b"a" * 30_000) + b" 256\n"), "tokens too long"),
        (tiktoken(b"YWI= \xff\n"), "line 257: expected a token in base64 and its rank"),
        (tiktoken(b"YWI= " + b"\xff" * 30 + b"\n"), "line 257: the rank .* is impossible"),
        (tiktoken(b"YWI= 256\n" * 599_744), "600,000 lines; 262,144 tokens are allowed"),
        (tiktoken(b"\n" * 600_000), "600,256 lines; 262,144 tokens are allowed"),
        (tiktoken(b"YWI= 262144\n"), "line 257: the rank 262144 is impossible"),
    ],
)
def test_tiktoken(tmp_path, data, message):
    refused(tmp_path / "ranks", data, message)


def rows(*tokens, longest=100, score=0.0):
    parts = [struct.pack("<fI", score, len(token)) + token for token in tokens]
    return struct.pack("<I", longest) + b"".join(parts)


LLAMA = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256))]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (rows(*LLAMA)[:-3], "row 258 is broken"),
        (rows(*LLAMA) + b"\0\0\0\0", "cut in row 259"),
        (rows(*LLAMA, longest=2), "row 0 is broken"),
        (rows(*LLAMA, score=float("nan")), "row 0 is broken"),
        (struct.pack("<IfI", 1 << 31, 0.0, 1 << 31), "row 0 is broken"),
        (rows(*LLAMA[:100]), "no token for the byte 0x61"),
        (rows(*LLAMA, b"ab", b"ab"), "are both b'ab'"),
        (rows(*LLAMA[:3], b"a", b"bc"), "row 4 is no character"),
        (rows(*LLAMA[:3], b"a", b"\xff"), "row 4 is no character"),
        (rows(*LLAMA[:3], b"a", b"a"), "distinct characters"),
        (rows(b"", b"", b"", b"", b""), "no row is a character"),
        (rows(*LLAMA[:4], b"<0x41>", *LLAMA[5:]), "no token for the byte 0x01"),
    ],
)
def test_llama2c(tmp_path, data, message):
    refused(tmp_path / "tokenizer.bin", data, message)


def test_the_control_tokens_of_llama2c_can_have_other_names(tmp_path):
    (tmp_path / "t.bin").write_bytes(rows(*LLAMA))
    tokenizer = bpe.load(tmp_path / "t.bin", special_tokens={"<end>": 2})
    assert tokenizer.special_tokens == {"<end>": 2}


@pytest.mark.slow
def test_a_file_of_2_gb_is_not_read(tmp_path):
    path = tmp_path / "big.json"
    with path.open("wb") as file:
        file.truncate(2 << 30)  # a hole: it takes no room
    with pytest.raises(bpe.TokenizerError, match=r"big.json: more than 64 MB: no tokenizer file"):
        bpe.load(path)


def test_what_is_no_file(tmp_path):
    with pytest.raises(bpe.TokenizerError, match="No such file"):
        bpe.load(tmp_path / "nothing")
    with pytest.raises(bpe.TokenizerError, match=r"a folder without tokenizer.json"):
        bpe.load(tmp_path)
    if os.path.exists(os.devnull):
        with pytest.raises(bpe.TokenizerError, match="empty"):
            bpe.load(os.devnull)


@pytest.mark.skipif(os.name != "posix", reason="pipes and links")
def test_what_lies_beside_a_file_is_an_ordinary_file(tmp_path):
    """A pipe would never answer, a device never end."""
    SMALL.save(tmp_path / "t", format="gpt2")
    ends = {"merges.txt": os.mkfifo, "vocab.json": lambda path: path.symlink_to("/dev/zero")}
    for name, end in ends.items():
        path = tmp_path / "t" / name
        kept = path.read_bytes()
        path.unlink()
        end(path)
        other = {"merges.txt": "vocab.json", "vocab.json": "merges.txt"}[name]
        with pytest.raises(bpe.TokenizerError, match=f"{name}: not an ordinary file"):
            bpe.load(tmp_path / "t" / other)
        path.unlink()
        path.write_bytes(kept)
    assert bpe.load(tmp_path / "t") == bpe.load(tmp_path / "t" / "vocab.json")


def test_more_ids_than_there_may_be(tmp_path):
    vocab = [*OWN["vocab"], *[None] * 262_144]
    message = r"vocab: 262\d+ tokens; 262144 are allowed"
    refused(tmp_path / "t.json", {**OWN, "vocab": vocab}, message)


def test_special_tokens_that_are_no_table(tmp_path):
    SMALL.save(tmp_path / "ranks", format="tiktoken")
    with pytest.raises(
        bpe.TokenizerError, match="special_tokens: expected names with their ids, got"
    ):
        bpe.load(tmp_path / "ranks", special_tokens=["<s>"])


SOUND = [json.dumps(OWN).encode(), rows(*LLAMA, b"ab"), tiktoken(b"YWI= 256\n")]


@pytest.mark.slow
@given(
    data=st.sampled_from(SOUND),
    start=st.integers(0, 5000),
    length=st.integers(0, 50),
    new=st.binary(max_size=8) | st.sampled_from([b"null", b"[]", b"-1", b'"', b"99999999"]),
)
def test_any_damage_is_an_error_or_harmless(tmp_path_factory, data, start, length, new):
    path = tmp_path_factory.getbasetemp() / "damaged"
    start %= len(data)
    path.write_bytes(data[:start] + new + data[start + length :])
    try:
        tokenizer = bpe.load(path)
    except bpe.TokenizerError as error:
        assert "\n" not in str(error)
    else:
        if tokenizer.kind == "bpe":
            assert tokenizer.decode(tokenizer.encode("any abc text 🐶")) == "any abc text 🐶"


@pytest.mark.slow
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists))
def test_any_json_in_any_field(value):
    for key in OWN:
        try:
            bpe.from_dict({**OWN, key: value})
        except bpe.TokenizerError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("data", [[], None, "bpe", 5])
def test_from_dict_of_something_else(data):
    with pytest.raises(bpe.TokenizerError, match="expected an object"):
        bpe.from_dict(data)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [r"(?:x|xx)+(?:y|z)", r"(?:x|x)+$"])
def test_a_pattern_that_backtracks_without_end(tmp_path, monkeypatch, hugging_face, pattern):
    monkeypatch.setattr("bpe.patterns.MAX_SECONDS", 0.2)
    text = "x" * 60 + "! z"
    own, other = tmp_path / "own.json", tmp_path / "hf.json"
    own.write_text(json.dumps(changed(OWN, "pattern", to=pattern)))
    split = {**SPLIT, "pattern": {"Regex": pattern}}
    steps = {"type": "Sequence", "pretokenizers": [split, PLAIN]}
    other.write_text(json.dumps(changed(hugging_face, "pre_tokenizer", to=steps)))
    for path in (own, other):
        try:
            encode = bpe.load(path).encode
        except bpe.TokenizerError as error:  # the trial was enough
            assert "backtracks without end" in str(error)
            continue
        with pytest.raises(bpe.TokenizerError, match="it backtracks without end"):
            encode(text)


def test_published_patterns_are_taken():
    for pattern in (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # GPT-4o
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
    ):
        tokenizer = bpe.BPETokenizer(BYTES, [], pattern=pattern)
        assert tokenizer.decode(tokenizer.encode("Don't {x} 1234 été!")) == "Don't {x} 1234 été!"
