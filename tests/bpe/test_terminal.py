"""What a terminal is shown."""

import io

import pytest

from bpe.terminal import columns, counted, fitted, harmless, show


class Terminal(io.StringIO):
    def isatty(self):
        return True


LONG = (
    "tinygpt: error: shakespeare-char learns from data/tinyshakespeare.txt, which is not here: "
    "'tinygpt data fetch shakespeare' brings it; --data takes any text, or 'stories'"
)


@pytest.mark.parametrize(("told", "width"), [("60", 60), ("", 80), ("0", 80), ("wide", 80)])
def test_messages_fit_a_terminal_of_any_width(monkeypatch, told, width):
    monkeypatch.setenv("COLUMNS", told)
    assert columns(Terminal()) == width
    lines = fitted(LONG, Terminal()).splitlines()
    assert len(lines) > 1 and max(map(len, lines)) <= width
    assert " ".join(line.strip() for line in lines) == LONG
    assert any("'tinygpt data fetch shakespeare'" in line for line in lines)
    assert all(line.startswith("  ") for line in lines[1:])


def test_a_file_gets_a_line_and_a_path_stays_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert fitted(LONG, io.StringIO()) == LONG
    path = "/a" * 50 + "-b/c"
    assert fitted(f"written to {path} now", Terminal()).splitlines()[1].strip() == path
    closed = io.StringIO()
    closed.close()
    assert fitted(LONG, closed) == LONG
    quoted = fitted("see 'tinygpt data prepare somewhere --out prepared'", Terminal())
    assert max(map(len, quoted.splitlines())) <= 40
    assert fitted("two\n\nparagraphs", Terminal()) == "two\n\nparagraphs"


def test_control_characters_reach_a_file_but_no_terminal():
    text = "é\t\x1b]0;x\x07\x9b2J\r\nb\rc\x7f🦓\n"
    assert harmless(text, io.StringIO()) == text
    assert harmless(text, Terminal()) == "é\t\\x1b]0;x\\x07\\x9b2J\r\nb\\rc\\x7f🦓\n"
    terminal = Terminal()
    show("\x1b[2J", terminal)
    assert terminal.getvalue() == "\\x1b[2J"


def test_one_is_singular():
    told = [counted(n, "step") for n in (0, 1, 2, 1000)]
    assert told == ["0 steps", "1 step", "2 steps", "1,000 steps"]
