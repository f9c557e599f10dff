"""The command ``tinygpt generate``: write text with a trained model.

The text streams to standard output as it comes; several samples are separated by lines of three
hyphens. On a terminal, control characters are shown as \\x1b and the like; a file or a pipe gets
them as they are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bpe.terminal import show
from tinygpt import Error, UsageError
from tinygpt.model.ahead import compiling_ahead
from tinygpt.model.sample import check, generate_many, prompt_ids, stop_at

if TYPE_CHECKING:
    from bpe import Tokenizer
    from tinygpt.formats.checkpoint import Saved


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``tinygpt generate``."""
    add = parser.add_argument
    add(
        "model",
        type=Path,
        nargs="?",
        help="a run folder or a model file, such as runs/quick/best.npz (default: the small one "
        "that comes with tinygpt)",
    )
    add("--interactive", "-i", action="store_true", help="type beginnings; /? there tells more")
    add("--prompt", default="", metavar="TEXT", help="how the text begins (default: empty)")
    add("--max-new-tokens", type=int, default=500, metavar="N", help="length (default: 500)")
    add(
        "--temperature",
        type=float,
        default=0.8,
        metavar="T",
        help="below 1 likely tokens become likelier, 0 is greedy (default: 0.8)",
    )
    add(
        "--top-k",
        type=int,
        default=200,
        metavar="K",
        help="draw from the K likeliest tokens; 0: from all (default: 200)",
    )
    add(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw from the likeliest tokens that together have probability P (default: 1)",
    )
    add("--greedy", action="store_true", help="always the likeliest token")
    add("--num-samples", type=int, default=1, metavar="N", help="texts to write (default: 1)")
    add("--seed", type=int, default=1337, metavar="N", help="of the random numbers")
    add("--ignore-eot", action="store_true", help="go on after the end of a text")
    add(
        "--past-context",
        choices=("drop", "exact"),
        default="drop",
        help="when the context is full: drop its older half, or recompute all of it for every "
        "token (default: drop)",
    )


def main(args: argparse.Namespace) -> int:
    """Run ``tinygpt generate``."""
    from tinygpt.formats import box
    from tinygpt.formats.exchange import load_any

    if args.num_samples < 1:
        raise UsageError(f"--num-samples: expected at least 1, got {args.num_samples}")
    temperature = 0.0 if args.greedy else args.temperature
    check(args.max_new_tokens, temperature, args.top_k, args.top_p)
    saved = load_any(args.model) if args.model else box.load()
    if not args.model:
        from tinygpt.progress import tell  # imports what writing does without

        told = f"no model given: this one comes with the package, {box.told(saved)}"
        tell(told)
    tokenizer = saved.tokenizer
    if args.interactive:
        return converse(args, saved, temperature)
    try:
        prompt = prompt_ids(tokenizer, args.prompt)
    except ValueError as error:
        raise Error(f"--prompt: {error}") from error
    pairs = generate_many(
        saved,
        [prompt] * args.num_samples,
        max_new_tokens=args.max_new_tokens,
        temperature=temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
        stop=stop_at(tokenizer, args.ignore_eot),
        past_context=args.past_context,
        vocab_size=tokenizer.vocab_size,
    )
    with compiling_ahead(saved.config):
        stream(pairs, tokenizer, args.prompt, args.num_samples)
    return 0


def converse(args: argparse.Namespace, saved: Saved, temperature: float) -> int:
    """Answer what is typed, beginning with the settings of the command."""
    from tinygpt.interactive import Session, Settings

    if args.prompt or args.num_samples != 1:
        option = "--prompt" if args.prompt else "--num-samples"
        raise UsageError(f"{option}: not with --interactive, where beginnings are typed")
    settings = Settings(temperature, args.top_k, args.top_p, args.seed, args.max_new_tokens)
    with compiling_ahead(saved.config):
        return Session(saved, settings, args.past_context, args.ignore_eot).run()


def stream(
    pairs: Iterator[tuple[int, int | None]], tokenizer: Tokenizer, prompt: str, samples: int
) -> None:
    """Write texts to standard output: the first as it comes, the others as soon as it is done."""
    write = partial(show, stream=sys.stdout)
    decoders = [tokenizer.stream_decoder() for _ in range(samples)]
    waiting, ended, shown = [prompt] * samples, [False] * samples, 0
    for n, token in pairs:
        if waiting[0]:  # with the first token, as kernels may be compiled for it and say so
            write(waiting[0])
            waiting[0] = ""
        ended[n] = token is None
        text = decoders[n].flush() + "\n" if token is None else decoders[n].feed(token)
        if n == shown:
            write(text)
        else:
            waiting[n] += text
        while ended[shown] and shown + 1 < samples:
            shown += 1
            write(f"---\n{waiting[shown]}")
