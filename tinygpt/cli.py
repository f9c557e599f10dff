"""The command line: which module does a command's work, and how its errors are shown.

A command's module has ``add_arguments(parser)`` and ``main(args)``; it is imported when the command
is called, so that ``tinygpt --help`` needs none of them. Text goes to standard output; progress and
messages go to standard error. Exit status 0, 1 (the work failed), 2 (the call was wrong), or 128
plus the number of the signal that stopped it.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib.util
import os
import re
import signal
import sys
import textwrap
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from tinygpt import UsageError, __version__

# command: (module, what it does)
COMMANDS = {
    "train": ("training.command", "train a recipe on the embedded stories or on a text"),
    "generate": ("generate", "write text with a trained model"),
    "eval": ("inspection.evaluate", "loss, perplexity and bits per byte of a model on a text"),
    "recipes": ("model.recipes", "list the recipes, or show one"),
    "probe": ("inspection.probe", "neighbours of a word, and analogies, as a model sees them"),
    "plot": ("inspection.plot", "pictures of a run: curves, attention, weights"),
    "page": ("inspection.page.page", "one HTML file of a run, with the model alive in it"),
    "compare": ("inspection.compare", "curves and perplexities of several runs"),
    "bench": ("training.bench", "what this machine does: tokens a second, share of its peak"),
    "profile": ("training.profile", "where the time of a training step goes, op by op"),
    "export": ("formats.export_command", "write a model in the format of another program"),
    "import": ("formats.import_command", "make a model file of a model from elsewhere"),
    "data fetch": ("data.fetch", "download a published data set"),
    "data prepare": ("data.prepare", "turn texts into token files"),
}


# What commands are called in other programs, or without their first word.
ELSEWHERE = {
    "resume": "train --resume",
    "sample": "generate",
    "chat": "generate",
    "run": "generate",
    "evaluate": "eval",
    "convert": "export",
    "fetch": "data fetch",
    "download": "data fetch",
    "prepare": "data prepare",
}


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors that name the nearest option."""

    def error(self, message: str) -> NoReturn:
        from bpe.terminal import fitted

        text = f"{self.prog}: error: {message} (see '{self.prog} --help')"
        self.exit(2, f"{fitted(text, sys.stderr)}\n")

    def print_help(self, file: Any = None) -> None:
        """The help, and an error if it cannot be written: argparse says nothing of that."""
        print(self.format_help(), end="", file=file, flush=True)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse all of `argv`; an unknown option is an error that names the nearest one."""
        known = [option for option in self._option_string_actions if option.startswith("--")]
        words = [dashes(a) for a in argv]
        if "--set" in known:
            from tinygpt.model.config import TYPES

            fields = {f"--{field.replace('_', '-')}" for field in TYPES}
            words = assignments(words, fields.difference(known))
            known += fields
        args, extra = self.parse_known_args(words)
        if extra:
            from tinygpt.model.config import called_here

            word = extra[0].partition("=")[0]
            near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            there = called_here(word, [option.lstrip("-").replace("-", "_") for option in known])
            if there is not None:
                here = f"; it is called {dashes(f'--{there}')} here"
                hint = here if there else "; there is nothing to choose here"
            kind = "option" if extra[0].startswith("-") else "argument"
            self.error(f"unknown {kind} {extra[0]!r}{hint}")
        return args


class Help(argparse.HelpFormatter):
    """Help from a docstring, in the width that there is.

    Paragraphs are filled again. Lines with two columns stay lines, and what is too long goes on
    under the second column.
    """

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip().replace("``", "'").split("\n\n")
        return "\n\n".join(self._paragraph(paragraph, width) for paragraph in paragraphs)

    def _paragraph(self, paragraph: str, width: int) -> str:
        lines = paragraph.splitlines()
        parted = [re.fullmatch(r"(\s*\S.*?\S {2,}|\s+)(\S.*)", line) for line in lines]
        if not all(parted):
            return textwrap.fill(paragraph, width)
        return "\n".join(
            textwrap.fill(
                match[2], width, initial_indent=match[1], subsequent_indent=" " * len(match[1])
            )
            for match in parted
            if match
        )


def dashes(argument: str) -> str:
    """``--max_iters=3`` as ``--max-iters=3``: in option names the two signs are the same."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def assignments(words: list[str], fields: set[str]) -> list[str]:
    """`words` with the options in `fields` as what they stand for: ``--n-layer 3`` (or with ``=``)
    is ``--set n_layer=3``.
    """
    result, rest = [], iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in fields:
            value = value if equals else next(rest, "--")
            if value.startswith("--"):
                raise UsageError(f"{name}: expected a value, as in {name} VALUE")
            result += ["--set", f"{name[2:].replace('-', '_')}={value}"]
        else:
            result.append(word)
    return result


def overview() -> str:
    """What ``tinygpt --help`` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items() if _exists(name)]
    return "\n".join(
        [
            "usage: tinygpt COMMAND [OPTIONS]",
            "",
            "Train, inspect and run small language models on a plain CPU.",
            "",
            "commands:",
            *lines,
            "",
            "  tinygpt train              trains the default recipe on the embedded stories",
            "  tinygpt COMMAND --help     tells a command's options",
            "  --debug                    after any command: errors with their traceback",
            "",
            "A picture, a page or an export replaces the file that was there, and the",
            "command says so; a run is never replaced. Exit status: 0; 1: the work failed;",
            "2: the call was wrong; 128 and the number of the signal that ended it.",
        ]
    )


def _exists(command: str) -> bool:
    return importlib.util.find_spec(f"tinygpt.{COMMANDS[command][0]}") is not None


class Stream:
    """A standard stream whose failures have a name, or, where it is for messages, no effect.

    A disk that is full of messages must not end the training of a night: `courtesy` goes on without
    them. Where the output itself is lost, OSError says that it was standard output.
    """

    def __init__(self, stream: Any, name: str, courtesy: bool):
        self._stream, self._name, self._courtesy = stream, name, courtesy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write `text`."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush what was written."""
        self._try(self._stream.flush)

    def _try(self, work: Any) -> None:
        try:
            work()
        except OSError as error:
            # What the stream still holds, and whatever comes, goes nowhere: else the interpreter
            # would try once more at exit, and say so.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
            if not self._courtesy:
                raise OSError(error.errno, error.strerror, self._name) from error


def command() -> int:
    """The command `tinygpt` as a process: `main` between streams that may fail or be closed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed; the next file opened must not take its number
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    output: Any = Stream(sys.stdout, "standard output", courtesy=False)
    messages: Any = Stream(sys.stderr, "standard error", courtesy=True)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(messages):
        try:
            return main()
        except SystemExit as leaving:  # argparse, after --help or an error that it has told
            return leaving.code if isinstance(leaving.code, int) else 0
        except Exception as error:  # with --debug
            traceback.print_exc()
            return 2 if wrong_call(error) else 1
        finally:
            with contextlib.suppress(OSError):  # of an output that failed, the error is told
                output.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; with ``--debug`` errors are raised."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [a for a in args if a != "--debug"]
    try:
        status = _dispatch(args)
        sys.stdout.flush()  # what cannot be written is an error now, not at exit
        return status
    except KeyboardInterrupt as signalled:  # its argument, if any, is the signal that it was
        print("\ntinygpt: interrupted", file=sys.stderr)  # not on the line of a text half written
        return 128 + int(signalled.args[0] if signalled.args else signal.SIGINT)
    except BrokenPipeError:  # the reader went away, as with | head: no error, but no more output
        return 128 + getattr(signal, "SIGPIPE", 13)
    except Exception as error:  # whatever went wrong is told in one line, with --debug in full
        if debug:
            raise
        from bpe.terminal import fitted  # imports more than --help needs

        print(fitted(f"tinygpt: error: {describe(error)}", sys.stderr), file=sys.stderr)
        return 2 if wrong_call(error) else 1


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if args else 2
    if args[0] == "--version":
        print(f"tinygpt {__version__}")
        return 0
    name = " ".join(args[:2]) if args[0] == "data" else args[0]
    rest = args[len(name.split()) :]
    if name not in COMMANDS or not _exists(name):
        if args[0] == "data":
            raise UsageError("data: expected fetch or prepare, as in 'tinygpt data prepare --help'")
        near = [ELSEWHERE[name]] if name in ELSEWHERE else None
        near = near or [known for known in COMMANDS if known.startswith(name)]
        near = near or difflib.get_close_matches(name, [*COMMANDS, "--help", "--version"], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; see tinygpt --help"
        raise UsageError(f"unknown command {name!r}{hint}")
    module, parser = parser_of(name)
    return int(module.main(parser.parse(rest)) or 0)


def parser_of(command: str) -> tuple[Any, Parser]:
    """The module that does a command's work, and what parses its arguments."""
    module = importlib.import_module(f"tinygpt.{COMMANDS[command][0]}")
    parser = Parser(
        prog=f"tinygpt {command}",
        description=module.__doc__,
        allow_abbrev=False,
        formatter_class=Help,
    )
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="errors with their traceback")
    return module, parser


def wrong_call(error: BaseException) -> bool:
    """Whether it is the call that is at fault, and not what it works on."""
    import bpe

    return isinstance(error, (UsageError, bpe.UsageError))


def describe(error: BaseException) -> str:
    """An exception as one line."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return f"out of memory: {text or 'use a smaller batch_size or shard_tokens'}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    known = type(error).__module__.split(".")[0] in ("tinygpt", "bpe", "minitensor")
    if text and (known or isinstance(error, (ValueError, RuntimeError, ImportError))):
        return text
    return f"{type(error).__name__}: {text} (run again with --debug for the traceback)"
