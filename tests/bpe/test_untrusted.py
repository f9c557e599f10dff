"""JSON from strangers: what it may hold, what that costs, and how it is told."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpe.untrusted import MAX_DEPTH, MAX_JSON, MAX_MARKS, one_line, parse_json, shown

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats(-1e9, 1e9) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.slow
@settings(deadline=None)
@given(values, st.booleans())
def test_json_is_read_as_python_reads_it(value, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text.encode("utf-8", "surrogatepass")) == json.loads(text)


@pytest.mark.slow
@settings(deadline=None)
@given(values)
def test_strings_with_brackets_do_not_count(value):
    text = json.dumps([value, '[[{"\\', "\\"] * 20)
    assert parse_json(text.encode("utf-8", "surrogatepass")) == json.loads(text)


@pytest.mark.slow
@pytest.mark.mostly_slow
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"[1", "not JSON"),
        (b"\xff", "not UTF-8: invalid start byte at byte 0"),
        (b"[NaN]", "NaN is not JSON"),
        (b"[-Infinity]", "-Infinity is not JSON"),
        (b'{"a": 1, "a": 1}', "the key 'a' is twice"),
        (b"1" * 21, "a number of 21 digits"),
        (b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"x", "not JSON"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nested too deeply: expected at most 64"),
        (b'{"":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "nested too deeply"),
        (b"[" * 1_000_000, "nested too deeply"),
        (lambda: b"[" + b"[]," * (20 << 20) + b"1]", "more than 1,048,576 values"),
        (lambda: b"[" + b'"",' * (20 << 20) + b"1]", "more than 1,048,576 values"),
        (lambda: b'"' + b"\\n" * (20 << 20), "not JSON: Unterminated string"),
        (lambda: b" " * (MAX_JSON + 1), "expected at most 64 MB of JSON, got 64 MB"),
    ],
    ids=lambda value: "" if callable(value) else str(value[:12]),
)
def test_what_is_refused(data, message):
    data = data() if callable(data) else data
    tracemalloc.start()
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400
    assert peak < 2 * len(data) + (64 << 20)


@pytest.mark.slow
def test_the_deepest_and_the_longest_are_read():
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert len(parse_json(b"[" + b"1," * (MAX_MARKS - 1) + b"1]")) == MAX_MARKS


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\x1b[2Jb\n", r"'a\x1b[2Jb\n'"),
        ("x" * 100, f"'{'x' * 60}'…"),
        (b"\0", r"b'\x00'"),
        (10**5000, "a number of 16610 bits"),
        ([1, "a", None], "[1, 'a', None]"),
        ((1,), "(1)"),
        ({"a": 1}, "{'a'}"),
        ([[[]]], "a list of 1"),
        ([0] * 10**6, "a list of 1000000"),
        (float("nan"), "nan"),
        (object, "a type"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_are_shown_in_short(value, text):
    assert shown(value) == text


@settings(deadline=None)
@given(st.text(), st.integers(20, 200))
def test_one_line_is_short_and_printable(text, most):
    line = one_line(text * 10, most)
    assert line.isprintable()
    assert len(line) <= 10 * (most + 3)  # an escape takes up to ten characters


def test_one_line_keeps_both_ends():
    assert one_line("a\nb\x1b[1m") == r"a b\x1b[1m"
    line = one_line("where " + "x" * 1000 + " why", 100)
    assert line.startswith("where xxx") and line.endswith("xxx why") and len(line) == 103
