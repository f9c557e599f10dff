"""Loss, perplexity and bits per byte of a model on a whole text.

The text's stream is covered by windows of one context each, a stride apart; every token is judged
once, in the window where it has the most before it. Windows are cut into shards by their place in
the text, so the number is the same, to the last bit, for any batch size and any number of threads.

Bits per byte is the loss of all tokens over the UTF-8 bytes of the text: the one figure that
compares models with different tokenizers.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import minitensor as mt
from bpe.terminal import counted, fitted
from bpe.untrusted import shown
from tinygpt import Error, UsageError
from tinygpt.data import documents, stories, streams
from tinygpt.formats.exchange import load_any
from tinygpt.inspection import names
from tinygpt.machine import threads
from tinygpt.model.transformer import GPT
from tinygpt.progress import bar, tell
from tinygpt.training.journal import as_json
from tinygpt.training.report import number

if TYPE_CHECKING:
    from bpe import Tokenizer

Array = np.ndarray
IGNORE = -100
SHARD_TOKENS = 512
STORIES = 200  # embedded ones that are judged
BASELINE_TOKENS = 20_000  # of the text on which the untrained model is judged


@dataclass(frozen=True)
class Score:
    """Mean loss in nats a token, and what follows from it."""

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int


def score(nats: float, tokens: int, size: int) -> Score:
    """A score from the summed loss of `tokens` tokens that stand for `size` bytes of text."""
    loss = nats / tokens
    return Score(
        loss,
        math.exp(loss) if loss < 700 else math.inf,
        nats / max(size, 1) / math.log(2),
        tokens,
        size,
    )


def windows(tokens: int, context: int, stride: int) -> list[tuple[int, int]]:
    """(begin, first target judged) of the windows over a stream of `tokens`.

    A window reads `context` tokens from `begin` on and predicts the one after each. All are of one
    length: the last is moved back to end with the stream.
    """
    last = max(tokens - 1 - context, 0)
    begins = [*range(0, last, stride), last]
    result = []
    judged = 1  # targets below this are already judged; token 0 has nothing before it
    for begin in begins:
        result.append((begin, judged))
        judged = begin + min(context, tokens - 1) + 1
    return result


def stream_loss(
    model: GPT,
    stream: Array,
    *,
    stride: int,
    batch_size: int = 32,
    workers: Any = None,
    progress: Callable[[int], Any] = lambda n: None,
) -> float:
    """Summed loss in nats of all tokens of `stream` but the first."""
    length = min(model.config.context, len(stream) - 1)
    places = windows(len(stream), length, stride)
    size = max(1, SHARD_TOKENS // length)
    shards = [places[i : i + size] for i in range(0, len(places), size)]
    model.eval()
    with mt.no_grad():
        head = model.head_weight()

    def loss(shard: list[tuple[int, int]]) -> float:
        begin = np.array([b for b, _ in shard])
        block = streams.rows(stream, begin, length + 1)
        targets = block[:, 1:].copy()
        for row, (b, judged) in zip(targets, shard, strict=True):
            row[: judged - b - 1] = IGNORE
        with mt.no_grad():
            return model.loss(block[:, :-1], targets, head=head).item()

    together = max(1, math.ceil(batch_size / size))
    sums: list[float] = []
    for i in range(0, len(shards), together):
        group = shards[i : i + together]
        sums += workers.map(loss, group) if workers else map(loss, group)
        progress(sum(map(len, group)))
    return math.fsum(sums)


def evaluate(model: GPT, tokenizer: Tokenizer, text: str, **options: Any) -> dict[str, Any]:
    """The score of a model on `text`. Options as for `evaluate_stream`."""
    docs = documents.cut_documents(text)
    stream = documents.encode_documents(tokenizer, docs)
    size = documents.text_bytes(docs)
    if tokenizer.separator_id is None and len(stream):
        size -= len(tokenizer.token_bytes(int(stream[0])))  # nothing predicts the first token
    return evaluate_stream(model, tokenizer, stream, size, **options)


def evaluate_stream(
    model: GPT,
    tokenizer: Tokenizer,
    stream: Array,
    size: int,
    *,
    stride: int = 0,
    batch_size: int = 32,
    workers: Any = None,
    progress: bool = False,
) -> dict[str, Any]:
    """The model's score on tokens, with those of the untrained model and of a uniform guess.

    `size` is the number of bytes of text that the tokens stand for. `stride` is half a context
    unless given: every token but the first ones then has at least half a context before it. Raises
    Error for a text too short to judge.
    """
    if len(stream) < 2:
        raise Error("the text is too short to judge: it needs at least two tokens")
    context = model.config.context
    stride = stride or max(1, context // 2)
    # First, as it is soon done: what compiles kernels here does not spoil the estimate of the rest.
    part = stream[: BASELINE_TOKENS + 1]
    fresh = stream_loss(GPT(model.config), part, stride=context, workers=workers)
    total = len(windows(len(stream), min(context, len(stream) - 1), stride))
    with bar(total, "windows", disable=not progress, leave=False) as judged:
        nats = stream_loss(
            model,
            stream,
            stride=stride,
            batch_size=batch_size,
            workers=workers,
            progress=judged.update,
        )
    n = len(stream) - 1
    untrained = score(fresh / (len(part) - 1) * n, n, size)
    uniform = score(math.log(tokenizer.vocab_size) * n, n, size)
    return {
        **asdict(score(nats, n, size)),
        "context": context,
        "stride": stride,
        "untrained": asdict(untrained),
        "uniform": asdict(uniform),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``tinygpt eval``."""
    parser.add_argument("model", type=Path, help="a run folder or a model file")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="a UTF-8 text, or the validation part of a prepared folder "
        "(default: 200 held-out embedded stories)",
    )
    parser.add_argument(
        "--stride",
        type=int,
        default=0,
        metavar="N",
        help="tokens from window to window (default: half a context)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=32,
        metavar="N",
        help="windows at a time; does not change the result",
    )
    parser.add_argument(
        "--names",
        action="store_true",
        help="also whether the embedded stories' names are kept: at each that came before",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads (default: all)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _is_stories(path: Path | None) -> bool:
    return path is None or str(path) == "stories"


def _stories() -> Iterator[str]:
    return stories.corpus(STORIES, seed=1, split="valid")


def _text(path: Path | None) -> str:
    if path is not None and not _is_stories(path):
        return streams.read_text(path, "judge")
    return f"\n{documents.SEPARATOR}\n".join(_stories())


def write(line: str) -> None:
    """A sentence of the result."""
    print(fitted(line, sys.stdout))


def _same(path: Path, other: str) -> bool:
    """Whether two names are those of one file."""
    try:
        return path.samefile(other)
    except (OSError, ValueError):
        return False


def main(args: argparse.Namespace) -> int:
    """Run ``tinygpt eval``."""
    n_threads = threads(args.threads)
    for option in ("stride", "batch_size"):
        value = getattr(args, option)
        if value < (option != "stride"):
            raise UsageError(f"--{option.replace('_', '-')}: expected at least 1, got {value}")
    if args.names and not _is_stories(args.data):
        raise UsageError("--names: knows the names of the embedded stories alone; leave out --data")
    saved = load_any(args.model)
    model, tokenizer = saved.model(), saved.tokenizer
    if args.data is None and saved.config.data != "stories":
        learned = shown(saved.config.data)
        tell(f"judged on the embedded stories; it learned from {learned}: see --data")
    if args.data and args.data.is_file() and _same(args.data, saved.config.data):
        tell(
            "it learned from most of this text: the loss tells what it knows by heart, too; that "
            "of the part held out is in its log, or judge it on another text"
        )
    if args.stride > model.config.context:
        raise UsageError(
            f"--stride: {args.stride} exceeds the model's context of "
            f"{model.config.context}, so some tokens would not be judged"
        )
    with mt.Workers(n_threads) as workers:
        options = {
            "stride": args.stride,
            "batch_size": args.batch_size,
            "workers": workers,
            "progress": not args.json,
        }
        if args.data and (args.data / "meta.json").is_file():
            dataset = streams.load_prepared(args.data)
            if dataset.tokenizer != tokenizer:
                raise Error(
                    f"{args.data}: prepared with another tokenizer than the model's; give "
                    "the text itself"
                )
            result = evaluate_stream(
                model, tokenizer, dataset.valid, dataset.bytes["valid"], **options
            )
        else:
            result = evaluate(model, tokenizer, _text(args.data), **options)
    result = {
        "model": str(args.model),
        "data": str(args.data or "stories"),
        "step": saved.provenance.get("step"),
        **result,
    }
    if args.names:
        result["names"] = asdict(names.judge(model, tokenizer, _stories()))
    if args.json:
        print(as_json(result))
        return 0
    step = f" (step {result['step']:,})" if isinstance(result["step"], int) else ""
    write(
        f"{args.model}{step} on {result['data']}: {counted(result['tokens'], 'token')}, "
        f"{counted(result['bytes'], 'byte')}, context {result['context']}, stride "
        f"{result['stride']}"
    )
    print(f"{'':12}{'loss':>10}{'perplexity':>14}{'bits per byte':>16}")
    for name, row in (
        ("model", result),
        ("untrained", result["untrained"]),
        ("uniform", result["uniform"]),
    ):
        print(
            f"{name:12}{row['loss']:10.4f}{number(row['perplexity']):>14}{row['bits_per_byte']:16.4f}"
        )
    if args.names:
        kept = result["names"]
        write(
            f"names that a story has told before: {kept['right']:.1%} of {kept['count']:,} are the "
            f"likeliest there, in {kept['other']:.1%} another name is; loss {kept['loss']:.3f} a "
            "name"
        )
    if result["loss"] > result["uniform"]["loss"] + 0.05:  # an untrained one is as good as a guess
        write(
            "the model is worse here than a guess among all tokens: the text is unlike the one "
            "that it learned from"
        )
    return 0
