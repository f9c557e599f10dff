"""The command `bpe`: train, encode, decode, info."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from bpe.char import CharTokenizer
from bpe.errors import TokenizerError
from bpe.formats import FORMATS, load
from bpe.reduced import ReducedTokenizer
from bpe.tokenizer import BPETokenizer, Tokenizer
from bpe.training import decode_blocks, read_blocks, train

WRONG_CALL = 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_CALL, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="bpe", description="Byte-level BPE tokenizers: train, use, look at them.")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("train", help="learn a tokenizer from UTF-8 text files")
    add = command.add_argument
    add("files", nargs="+", type=Path, metavar="FILE")
    add(
        "--out",
        type=Path,
        default=Path("tokenizer.json"),
        metavar="PATH",
        help="default: %(default)s",
    )
    add("--kind", choices=("bpe", "char", "reduced"), default="bpe", help="default: %(default)s")
    add("--vocab-size", type=int, metavar="N", help="ids in all (bpe: 8000; char: all characters)")
    add("--special-token", action="append", metavar="TEXT", help="default: <|endoftext|>")
    add("--pattern", default="gpt2", help="gpt2 (default), gpt4, none, or a regular expression")
    add("--tie-break", choices=("bytes", "ids"), default="bytes", help="default: %(default)s")
    add("--min-frequency", type=int, default=1, metavar="N", help="default: %(default)s")
    add("--processes", type=int, default=1, metavar="N", help="to count with (default: 1)")
    add("--no-control-tokens", action="store_true", help="char: number characters from 0")
    add("--base", metavar="TOKENIZER", help="reduced: the tokenizer to take tokens from")
    add("--format", choices=FORMATS, default="json", help="of the file (default: %(default)s)")
    add("--quiet", action="store_true", help="no progress bar")
    command.set_defaults(run=_train)

    command = commands.add_parser("encode", help="print the ids of a text")
    command.add_argument("tokenizer")
    command.add_argument(
        "file", nargs="?", default="-", help="UTF-8 text (default: standard input)"
    )
    command.add_argument(
        "--allow-special", action="store_true", help="special tokens in the text become their ids"
    )
    command.set_defaults(run=_encode)

    command = commands.add_parser("decode", help="print the text of ids")
    command.add_argument("tokenizer")
    command.add_argument("file", nargs="?", default="-", help="ids (default: standard input)")
    command.set_defaults(run=_decode)

    command = commands.add_parser("info", help="describe a tokenizer")
    command.add_argument("tokenizer")
    command.add_argument("--data", metavar="FILE", help="measure it on this text")
    command.add_argument("--longest", type=int, default=10, metavar="N", help="tokens to show")
    command.set_defaults(run=_info)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 1 (it failed) or 2 (the call was wrong)."""
    words = [_dashes(word) for word in (sys.argv[1:] if argv is None else argv)]
    options = build_parser().parse_args(words)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_, **__: _say(f"note: {message}")
            options.run(options)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        _say("stopped")
        return 130
    except TokenizerError as error:
        if options.debug:
            raise
        _say(str(error))
        return 1


def _dashes(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def _say(message: str) -> None:
    print(f"bpe: {message}", file=sys.stderr)


def _train(options: argparse.Namespace) -> None:
    specials = options.special_token or ["<|endoftext|>"]
    tokenizer: Tokenizer
    if options.kind == "char":
        tokenizer = CharTokenizer.train(
            options.files,
            options.vocab_size,
            not options.no_control_tokens,
            special_tokens=specials,
        )
    elif options.kind == "reduced":
        if options.base is None:
            raise TokenizerError("--base: the tokenizer to reduce is missing")
        base = load(options.base)
        if not isinstance(base, BPETokenizer):
            raise TokenizerError(f"--base: a BPE tokenizer is expected, not {base.kind!r}")
        size = 8000 if options.vocab_size is None else options.vocab_size - 1
        tokenizer = ReducedTokenizer.train(base, options.files, size)
        _say(f"{size} tokens cover {tokenizer.coverage:.2%} of the text")
    else:
        tokenizer = train(
            options.files,
            8000 if options.vocab_size is None else options.vocab_size,
            special_tokens=specials,
            pattern=options.pattern,
            tie_break=options.tie_break,
            min_frequency=options.min_frequency,
            processes=options.processes,
            progress=sys.stderr.isatty() and not options.quiet,
        )
    tokenizer.save(options.out, options.format)
    _say(f"{tokenizer.vocab_size} ids written to {options.out}")


def _blocks(name: str) -> Iterator[str]:
    if name == "-":
        return decode_blocks(sys.stdin.buffer, "standard input")
    return read_blocks(Path(name))


def _encode(options: argparse.Namespace) -> None:
    allowed = "all" if options.allow_special else ()
    tokenizer = load(options.tokenizer)
    ids = tokenizer.encode_iterable(_blocks(options.file), allowed_special=allowed)
    separator = ""
    while part := list(islice(ids, 10_000)):
        sys.stdout.write(separator + " ".join(map(str, part)))
        separator = " "
    print()


def _decode(options: argparse.Namespace) -> None:
    tokenizer = load(options.tokenizer)
    ids = _numbers(_blocks(options.file))
    while part := list(islice(ids, 10_000)):
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
    tokenizer = load(options.tokenizer)
    for name, value in _facts(tokenizer):
        print(f"{name:<16} {value}")
    if options.data is not None:
        for name, value in _measures(tokenizer, options.data):
            print(f"{name:<16} {value}")
    print(f"the {options.longest} longest tokens:")
    specials = set(tokenizer.special_tokens.values())
    ids = [id for id in range(tokenizer.vocab_size) if id not in specials]
    for id in sorted(ids, key=lambda id: (-len(tokenizer.token_bytes(id)), id))[: options.longest]:
        token = tokenizer.token_bytes(id)
        print(f"{id:>9} {len(token):>4} bytes  {token.decode('utf-8', 'backslashreplace')!r}")


def _facts(tokenizer: Tokenizer) -> Iterator[tuple[str, Any]]:
    yield "kind", tokenizer.kind
    yield "ids", tokenizer.vocab_size
    yield "special tokens", ", ".join(f"{n} = {i}" for n, i in tokenizer.special_tokens.items())
    if isinstance(tokenizer, BPETokenizer):
        yield "merges", len(tokenizer.merges)
        yield "pattern", tokenizer.pattern
        record = dict(tokenizer.training)
        size, tokens = record.pop("bytes", 0), record.pop("tokens", 0)
        if record:
            yield "trained with", ", ".join(f"{name} {value}" for name, value in record.items())
        if tokens:
            yield "trained on", f"{size:,} bytes: {size / tokens:.3f} bytes per token"
    elif isinstance(tokenizer, ReducedTokenizer):
        yield "reduced from", f"{tokenizer.base.vocab_size} ids"
        yield "coverage", f"{tokenizer.coverage:.4%} of the tokens of its training text"
    elif isinstance(tokenizer, CharTokenizer):
        yield "characters", len(tokenizer.characters)
    yield "sha256", tokenizer.sha256


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
        raise TokenizerError(f"{data}: empty")
    yield "text", f"{size:,} bytes, {tokens:,} tokens: {size / tokens:.3f} bytes per token"
    unknown = {"char": 0, "reduced": tokenizer.vocab_size - 1}.get(tokenizer.kind)
    if unknown is not None:
        yield "coverage", f"{1 - counts[unknown] / tokens:.4%} of its tokens are not unknown"
    yield "vocabulary", f"{len(counts):,} of {tokenizer.vocab_size:,} ids occur in it"


if __name__ == "__main__":
    sys.exit(main())
