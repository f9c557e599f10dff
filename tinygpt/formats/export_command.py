"""Write a model in the format of another program: ``tinygpt export MODEL --to FORMAT --out PATH``.

A model that the other program would run differently is not written: the error says what it cannot
hold. docs/formats.md has the table of what goes where.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bpe.terminal import fitted
from tinygpt import UsageError
from tinygpt.formats.exchange import WRITERS, load_any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``tinygpt export``."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="model file or run folder")
    listed = "; ".join(f"{name}: {what}" for name, (_, what) in WRITERS.items())
    parser.add_argument("--to", required=True, choices=list(WRITERS), help=listed)
    parser.add_argument(
        "-o",
        "--out",
        required=True,
        type=Path,
        metavar="PATH",
        help="file or folder; a file that is there is replaced",
    )


def main(args: argparse.Namespace) -> int:
    """Run ``tinygpt export``."""
    if args.to == "safetensors" and args.out.suffix != ".safetensors":
        raise UsageError(f"--out: expected a name that ends in .safetensors, got {args.out}")
    saved = load_any(args.model)
    word = "replaced" if args.out.exists() else "wrote"
    what = WRITERS[args.to][0](saved, args.out)
    print(fitted(f"{word} {args.out}: {what}", sys.stdout))
    return 0
