"""Writes docs/reference.md from the programs' own parsers and the configuration.

python docs/make_reference.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from bpe.cli import build_parser
from tinygpt import cli
from tinygpt.model.config import CHOICES, MEANING, TYPES, Config

PAGE = Path(__file__).with_name("reference.md")
HEAD = """# Every option and every setting

This page is made by `python docs/make_reference.py`; a test holds it true.

Names of options take `-` or `_`. Every command of tinygpt takes `--debug`, which shows errors with
their traceback. Where a command has `--set`, every key of the configuration is an option, too:
`--n-layer 3` is `--set n_layer=3`.
"""


def page() -> str:
    """The text of the page."""
    return "\n".join([HEAD, *tinygpt(), *configuration(), *bpe()])


def tinygpt() -> Iterator[str]:
    """The commands of tinygpt."""
    for name, (_, what) in cli.COMMANDS.items():
        _, parser = cli.parser_of(name)
        yield from command(f"tinygpt {name}", what, parser)


def bpe() -> Iterator[str]:
    """The commands of bpe."""
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    helps = {action.dest: action.help or "" for action in commands._choices_actions}
    for name, parser in commands.choices.items():
        yield from command(f"bpe {name}", helps[name], parser)


def command(name: str, what: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """A command's arguments and options as a table."""
    yield f"## {name}\n\n{what[0].upper()}{what[1:]}.\n\n| | |\n| --- | --- |"
    for action in parser._actions:
        if action.dest not in ("help", "debug"):
            yield f"| {call(action)} | {cell(str(action.help or '') % vars(action))} |"
    yield ""


def call(action: argparse.Action) -> str:
    """How an argument or option is written."""
    if isinstance(action.metavar, str):
        value = action.metavar
    elif action.choices:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    else:
        value = action.dest.upper()
    value += (
        " …" if action.nargs in ("*", "+") or isinstance(action, argparse._AppendAction) else ""
    )
    if not action.option_strings:
        return f"`{cell(value)}`"
    flag = ", ".join(action.option_strings)
    return f"`{flag}`" if action.nargs == 0 else f"`{flag} {cell(value)}`"


def configuration() -> Iterator[str]:
    """The keys of the configuration."""
    yield (
        "## Keys of a configuration\n\nOf `--set KEY=VALUE` and of files for `--config`. A file "
        "may name with `base` the recipe whose values it changes. The last column has the values "
        "where no recipe says others; `tinygpt recipes NAME` shows those of a recipe.\n\n"
        "| key | what | values | default |\n| --- | --- | --- | --- |"
    )
    plain = Config().to_dict()
    kinds = {"int": "whole number", "float": "number", "bool": "true, false", "str": "text"}
    for key, meaning in MEANING.items():
        values = ", ".join(CHOICES.get(key, ())) or kinds.get(TYPES[key], "whole numbers, as 0,256")
        default = ",".join(map(str, plain[key])) if isinstance(plain[key], list) else plain[key]
        shown = str(default).lower() if isinstance(default, bool) else default
        yield f"| `{key}` | {cell(meaning)} | {values} | {shown} |"
    yield ""


def cell(text: str) -> str:
    """`text` without what ends a cell of a table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8", newline="\n")
