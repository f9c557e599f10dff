"""Make a model file of a model from elsewhere: ``tinygpt import PATH --out MODEL.npz``.

PATH is a folder of Hugging Face (config.json, safetensors, a tokenizer) of the GPT-2, GPT-Neo or
Llama type, a llama2.c .bin with its tokenizer.bin, or a safetensors file of ``tinygpt export``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bpe.terminal import fitted
from tinygpt import UsageError
from tinygpt.formats import checkpoint
from tinygpt.formats.exchange import load_any
from tinygpt.model.transformer import count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``tinygpt import``."""
    parser.add_argument("path", type=Path, metavar="PATH", help="folder or file")
    parser.add_argument(
        "-o",
        "--out",
        required=True,
        type=Path,
        metavar="MODEL.npz",
        help="model file, replaced if it is there",
    )


def main(args: argparse.Namespace) -> int:
    """Run ``tinygpt import``."""
    if args.out.suffix != ".npz":
        raise UsageError(f"--out: expected a name ending in .npz, got {str(args.out)!r}")
    saved = load_any(args.path)
    word = "replaced" if args.out.exists() else "wrote"
    checkpoint.save(args.out, saved)
    c = saved.config
    what = (
        f"{sum(count(c)):,} parameters, {saved.tokenizer.kind} vocabulary "
        f"{saved.tokenizer.vocab_size:,}, context {c.context:,}"
    )
    print(fitted(f"{word} {args.out}: {what}", sys.stdout))
    return 0
