"""The command `bpe`: train, encode, decode, convert, info.

Exit status 0, 1 (the work failed), 2 (the call was wrong), or 128 plus the number of the signal
that stopped it, as that of `tinygpt`.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import inspect
import os
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NoReturn

from bpe.base import KINDS, WRITERS, Tokenizer
from bpe.errors import TokenizerError, UsageError
from bpe.files import decode_blocks, read_blocks
from bpe.formats import load, losses
from bpe.terminal import fitted, harmless
from bpe.untrusted import one_line

WRONG_CALL = 2
OUT = "tokenizer.json"
TOKENIZER = "its file, of any known format, a folder with one, or a model file"


def _hint(near: Sequence[str]) -> str:
    return f"; did you mean {near[0]}?" if near else ""


class _Parser(argparse.ArgumentParser):
    of: Mapping[str, _Parser]  # the parsers of the commands

    def error(self, message: str) -> NoReturn:
        text = fitted(f"{self.prog}: {message} (see '{self.prog} --help')", sys.stderr)
        with contextlib.suppress(OSError):  # which argparse does since Python 3.11
            print(text, file=sys.stderr)
        self.exit(WRONG_CALL)

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse all of `words`; what is unknown is an error that names the nearest option."""
        options, extra = self.parse_known_args(words)
        if extra:
            parser = self.of[options.command]
            known = [option for option in parser._option_string_actions if option[:2] == "--"]
            near = difflib.get_close_matches(extra[0].partition("=")[0], known, n=1, cutoff=0.5)
            kind = "option" if extra[0].startswith("-") else "argument"
            parser.error(f"unknown {kind} {extra[0]!r}{_hint(near)}")
        return options

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = list(map(str, action.choices))
            near = difflib.get_close_matches(str(value), choices, n=1)
            expected = f"expected one of {', '.join(choices)}"
            raise argparse.ArgumentError(action, f"{expected}; got {value!r}{_hint(near)}")

    def print_help(self, file: Any = None) -> None:
        # argparse would take no notice of what cannot be written
        print(self.format_help(), end="", file=file, flush=True)


class _Version(argparse.Action):
    """Print the version of the distribution that this package came with; found out only if asked
    for, which takes longer than importing the package."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> None:
        from importlib import metadata

        try:
            version = metadata.version("tinygpt")
        except metadata.PackageNotFoundError:
            version = "of a folder that is not installed"
        print(f"bpe {version}", flush=True)
        parser.exit()


EXAMPLES = """\
examples:
  bpe train my.txt --vocab-size 1000          writes tokenizer.json
  bpe encode tokenizer.json my.txt > ids      of a file, or of standard input
  echo "Hello" | bpe encode tokenizer.json --show
  bpe decode tokenizer.json ids
  bpe convert tokenizer.json hf.json --to huggingface
"""


def build_parser() -> _Parser:
    parser = _Parser(
        prog="bpe",
        description="Byte-level BPE tokenizers: train, use, look at them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    add = parser.add_argument
    add("--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="show the version")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    # What is not given is not there, and left to the kind: its `train` says what it takes.
    command = commands.add_parser(
        "train",
        help="learn a tokenizer",
        description="Learn a tokenizer from texts and write it into a file.",
        argument_default=argparse.SUPPRESS,
    )
    add = command.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help="UTF-8 text")
    add(
        "-o",
        "--out",
        type=Path,
        default=None,
        metavar="PATH",
        help=f"the file to write, or to replace (default: {OUT}, if there is none yet)",
    )
    add(
        "--kind",
        choices=KINDS,
        default="bpe",
        help="merged bytes; characters; or the most frequent tokens of another tokenizer (default: "
        "%(default)s)",
    )
    add("--vocab-size", type=int, metavar="N", help="ids in all (default: 8000; char: as needed)")
    add(
        "--special-token",
        dest="special_tokens",
        action="append",
        metavar="NAME",
        help="one that no text becomes by chance; may be repeated (default: <|endoftext|>)",
    )
    add(
        "--pattern",
        help="what divides a text into chunks, across which nothing is merged: gpt2 (default), "
        "gpt4, none, or a regular expression",
    )
    add(
        "--tie-break",
        choices=("bytes", "ids"),
        help="of pairs that are equally frequent, the greater bytes or the smaller ids are merged "
        "first (default: bytes)",
    )
    add(
        "--min-frequency",
        type=int,
        metavar="N",
        help="stop at pairs that occur less often (default: 1)",
    )
    add("--processes", type=int, metavar="N", help="to count a large text with (default: 1)")
    add(
        "--no-control-tokens",
        dest="control_tokens",
        action="store_false",
        help="char: no <unk>, <s> and </s>; the characters' ids begin at 0",
    )
    add("--base", metavar="TOKENIZER", help="reduced: the tokenizer to take tokens from")
    add("--format", choices=WRITERS, default="json", help="of the file (default: %(default)s)")
    add("--quiet", action="store_true", default=False, help="no progress bar")
    command.set_defaults(run=_train)

    command = commands.add_parser(
        "encode", help="print the ids of a text", description="Print the ids of a text."
    )
    command.add_argument("tokenizer", help=TOKENIZER)
    command.add_argument("file", nargs="?", default="-", help="text (default: standard input)")
    command.add_argument("--allow-special", action="store_true", help="special tokens become ids")
    command.add_argument(
        "--show", action="store_true", help="print the pieces instead: coloured, or with | between"
    )
    command.set_defaults(run=_encode)

    command = commands.add_parser(
        "decode", help="print the text of ids", description="Print the text of ids."
    )
    command.add_argument("tokenizer", help=TOKENIZER)
    command.add_argument("file", nargs="?", default="-", help="ids (default: standard input)")
    command.set_defaults(run=_decode)

    command = commands.add_parser(
        "convert",
        help="write a tokenizer in another format",
        description="Write a tokenizer in the format of another program.",
    )
    command.add_argument("tokenizer", help=TOKENIZER)
    command.add_argument(
        "out",
        type=Path,
        help="the file to write, or to replace; for gpt2 the folder of vocab.json and merges.txt",
    )
    command.add_argument(
        "--to",
        dest="format",
        choices=WRITERS,
        default="json",
        help="json: our own; huggingface: a tokenizer.json of the library tokenizers; gpt2: "
        "vocab.json and merges.txt; tiktoken: ranks; llama2c: a tokenizer.bin (default: "
        "%(default)s)",
    )
    command.set_defaults(run=_convert)

    command = commands.add_parser(
        "info", help="describe a tokenizer", description="Describe a tokenizer, and measure it."
    )
    command.add_argument("tokenizer", help=TOKENIZER)
    command.add_argument("--data", metavar="FILE", help="measure it on this text")
    command.add_argument("--longest", type=int, default=10, metavar="N", help="tokens to show")
    command.set_defaults(run=_info)
    parser.of = commands.choices
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    words = [_dashes(word) for word in (sys.argv[1:] if argv is None else argv)]
    debug = "--debug" in words
    try:
        options = build_parser().parse(words)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_, **__: _say(f"note: {message}")
            options.run(options)
        if sys.stdout:  # None where it is closed
            sys.stdout.flush()
        return 0
    except BrokenPipeError:  # whoever read the output has seen enough, as with | head
        return 128 + getattr(signal, "SIGPIPE", 13)
    except OSError as error:  # files have errors of their own; what is left is the output
        if debug:
            raise
        _say(f"{error.filename or 'standard output'}: {error.strerror or error}")
        return 1
    except KeyboardInterrupt:
        _say("stopped")
        return 128 + signal.SIGINT
    except TokenizerError as error:
        if debug:
            raise
        _say(str(error))
        return WRONG_CALL if isinstance(error, UsageError) else 1
    finally:
        _settle(sys.stdout)
        _settle(sys.stderr)  # on which argparse tells its errors


def _dashes(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def _say(message: str) -> None:
    with contextlib.suppress(OSError):  # messages are a courtesy: without them the work counts
        print(fitted(f"bpe: {message}", sys.stderr), file=sys.stderr)
    _settle(sys.stderr)


def _settle(stream: Any) -> None:
    """Flush a stream; if it fails, send what it holds nowhere: at exit it would fail once more."""
    try:
        if stream:  # None where it is closed
            stream.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _train(options: argparse.Namespace) -> None:
    train = KINDS[options.kind].train
    takes = inspect.signature(train).parameters
    out = options.out or Path(OUT)
    if options.out is None and out.exists():
        for name in options.files:
            next(read_blocks(Path(name)), None)  # if there is no such text, that is the error
        raise TokenizerError(f"{OUT}: is there already; '-o {OUT}' replaces it, -o PATH keeps it")
    common = ("command", "debug", "run", "files", "out", "kind", "format", "quiet")
    given = {name: value for name, value in vars(options).items() if name not in common}
    if "size" in takes and "vocab_size" in given:
        given["size"] = given.pop("vocab_size") - 1  # it does not count the unknown one
    if wrong := given.keys() - takes.keys():
        raise UsageError(f"{min(wrong)}: not an option of kind {options.kind!r}")
    needed = {name for name, parameter in takes.items() if parameter.default is parameter.empty}
    if missing := needed - given.keys() - {"source"}:
        raise UsageError(f"--{min(missing)}: missing, and kind {options.kind!r} needs it")
    if "base" in given:
        given["base"] = load(given["base"])
    if "progress" in takes:
        given["progress"] = sys.stderr.isatty() and not options.quiet
    tokenizer = train(source=options.files, **given)
    if coverage := dict(tokenizer.facts()).get("coverage"):
        _say(f"coverage: {coverage}")
    _write(tokenizer, out, options.format)


def _write(tokenizer: Tokenizer, out: Path, format: str) -> None:
    """Write a tokenizer, and say what its file holds, and what it does not."""
    place = out / "vocab.json" if format == "gpt2" else out
    there = place.exists()
    tokenizer.save(out, format)
    written = load(place)  # as others will see it
    names = set(written.special_tokens.values())
    used = sum(bool(text) or id in names for id, text in written.bytes_of.items())
    unused = f" ({used:,} of them in use)" if used < written.vocab_size else ""
    what = f"{place} and {out / 'merges.txt'}" if format == "gpt2" else str(out)
    replaced = ", replacing what was there" if there else ""
    _say(f"{written.vocab_size:,} ids{unused} written to {what}{replaced}")
    for loss in losses(tokenizer, format, written):
        _say(f"note: {loss}")


def _blocks(name: str) -> Iterator[str]:
    if name == "-":
        return decode_blocks(sys.stdin.buffer, "standard input")
    if not Path(name).exists():
        raise TokenizerError(
            f"{name[:60]}: no such file; what is not in a file comes on standard input, as in: "
            "echo ... | bpe encode TOKENIZER"
        )
    return read_blocks(Path(name))


def _encode(options: argparse.Namespace) -> None:
    allowed = "all" if options.allow_special else ()
    tokenizer = load(options.tokenizer)
    ids = tokenizer.encode_iterable(_blocks(options.file), allowed_special=allowed)
    if options.show:
        _show(tokenizer, ids)
        return
    separator = ""
    while part := list(islice(ids, 10_000)):
        sys.stdout.write(separator + " ".join(map(str, part)))
        separator = " "
    print()


def _show(tokenizer: Tokenizer, ids: Iterable[int]) -> None:
    """Print the text cut into its tokens; bytes that are no character of their own as \\xNN."""
    colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    names = {id: name for name, id in tokenizer.special_tokens.items()}
    for number, id in enumerate(ids):
        piece = names.get(id) or tokenizer.token_bytes(id).decode("utf-8", "backslashreplace")
        piece = harmless(piece, sys.stdout)
        if colours:  # the background ends with its line, or it would run on to the right
            lines = (f"\x1b[3{number % 6 + 1};7m{line}\x1b[0m" for line in piece.split("\n"))
            sys.stdout.write("\n".join(lines))
        else:
            sys.stdout.write("|" * (number > 0) + piece)
    print()


def _convert(options: argparse.Namespace) -> None:
    _write(load(options.tokenizer), options.out, options.format)


def _decode(options: argparse.Namespace) -> None:
    tokenizer = load(options.tokenizer)
    ids = _numbers(_blocks(options.file))
    decoder = tokenizer.stream_decoder()
    while part := list(islice(ids, 10_000)):
        if sys.stdout.isatty():
            sys.stdout.write(harmless("".join(map(decoder.feed, part)), sys.stdout))
        else:  # to the byte
            sys.stdout.buffer.write(tokenizer.decode_bytes(part))


def _numbers(blocks: Iterable[str]) -> Iterator[int]:
    rest = ""
    for block in blocks:
        *words, rest = (rest + block).replace(",", " ").split(" ") if block else ["", rest]
        yield from map(_number, " ".join(words).split())
    yield from map(_number, rest.split())


def _number(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) < 20):
        raise TokenizerError(f"decode: {word[:40]!r} is not an id")
    return int(word)


def _info(options: argparse.Namespace) -> None:
    if options.longest < 0:
        raise UsageError(f"--longest: expected 0 or more, got {options.longest}")
    tokenizer = load(options.tokenizer)
    specials = tokenizer.special_tokens
    facts = (
        ("kind", tokenizer.kind),
        ("ids", tokenizer.vocab_size),
        ("special tokens", ", ".join(f"{name} = {id}" for name, id in specials.items())),
        *tokenizer.facts(),
        ("sha256", tokenizer.sha256),
    )
    measures = _measures(tokenizer, options.data) if options.data is not None else ()
    for name, value in chain(facts, measures):
        print(one_line(f"{name:<15} {value}", 2000))
    if options.longest:
        print(f"the {options.longest} longest tokens:")
    names = set(specials.values())
    ids = [id for id in range(tokenizer.vocab_size) if id not in names]
    for id in sorted(ids, key=lambda id: (-len(tokenizer.token_bytes(id)), id))[: options.longest]:
        token = tokenizer.token_bytes(id)
        unit = "byte" if len(token) == 1 else "bytes"
        print(f"{id:>9} {len(token):>4} {unit:5}  {token.decode('utf-8', 'backslashreplace')!r}")


def _measures(tokenizer: Tokenizer, data: str) -> Iterator[tuple[str, Any]]:
    """What `tokenizer` makes of a text."""
    size = 0

    def counted() -> Iterator[str]:
        nonlocal size
        for block in _blocks(data):
            size += len(block.encode())
            yield block

    counts = Counter(tokenizer.encode_iterable(counted(), allowed_special="all"))
    tokens = sum(counts.values())
    if not tokens:
        raise TokenizerError(f"{data}: empty; there is nothing to measure")
    yield "text", f"{size:,} bytes, {tokens:,} tokens: {size / tokens:.3f} bytes per token"
    if tokenizer.unknown_id is not None:
        known = 1 - counts[tokenizer.unknown_id] / tokens
        yield "coverage", f"{known:.4%} of its tokens are not unknown"
    yield "vocabulary", f"{len(counts):,} of {tokenizer.vocab_size:,} ids occur in it"
