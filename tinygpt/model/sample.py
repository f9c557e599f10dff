"""Texts from a model: prompts are continued token by token, each drawn as drawing.py says."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tinygpt import UsageError
from tinygpt.model.decode import Decoder
from tinygpt.model.drawing import Choice, checked, choose, uniforms

if TYPE_CHECKING:
    from bpe import Tokenizer
    from tinygpt.formats.checkpoint import Saved
    from tinygpt.model.transformer import GPT

STEPS = 16  # tokens that are drawn before the first of them is shown


def generate_many(
    model: GPT | Saved,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.8,
    top_k: int = 200,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Collection[int] = (),
    past_context: str = "drop",
    vocab_size: int = 0,
    threads: int = 0,
    guessing: bool = True,
) -> Iterator[tuple[int, int | None]]:
    """Continue several prompts together: pairs (index of the prompt, its next token).

    A sequence ends with a token of `stop`, which is not yielded, or after `max_new_tokens`; its
    last pair is (index, None). Prompt n is continued with random numbers that are a function of
    (seed, n, how many tokens came before), and logits do not depend on what else is processed: its
    text is the same whether it is continued alone, with `prompts[:n + 1]`, or with others.

    temperature, top_k (0: all) and top_p (1: all) are those of `probabilities`; past_context is
    that of `tinygpt.decode`; `vocab_size` leaves out the tokens from there on; `threads` share the
    sequences (0: as many as there are cores); `guessing` processes tokens ahead of the text, which
    takes less time and changes none. Raises UsageError for values without a meaning.
    """
    check(max_new_tokens, temperature, top_k, top_p)
    decoder = Decoder(model, len(prompts), past_context, threads, guessing)
    vocab_size = min(vocab_size or decoder.config.vocab_size, decoder.config.vocab_size)
    active, count = list(range(len(prompts))), 0
    tokens = list(prompts)
    while active and count < max_new_tokens:
        steps = min(STEPS, max_new_tokens - count, decoder.room(active)) if count else 0
        u = uniforms(seed, active, count, max(1, steps))
        if steps:
            last = [new[0] for new in tokens]
            choice = Choice(float(temperature), int(top_k), float(top_p))
            drawn = decoder.write(last, active, u, vocab_size, choice)
            checked(drawn[-1])
        else:
            logits = np.ascontiguousarray(decoder.feed(tokens, active)[:, :vocab_size])
            drawn = [choose(logits, temperature, top_k, top_p, u[0])]
        count += len(drawn)
        going = list(range(len(active)))
        for row in drawn:
            for i in list(going):
                if row[i] in stop:
                    going.remove(i)
                    yield active[i], None
                else:
                    yield active[i], row[i]
        tokens = [[drawn[-1][i]] for i in going]
        active = [active[i] for i in going]
    yield from ((n, None) for n in active)


def generate(model: GPT | Saved, prompt: Sequence[int], **options: Any) -> Iterator[int]:
    """Continue one prompt, given as ids: its next tokens. Options as for `generate_many`.

    ids = tokenizer.encode("Once upon a time")
    text = tokenizer.decode(generate(model, ids, seed=1))
    """
    for _, token in generate_many(model, [prompt], **options):
        if token is not None:
            yield token


def check(max_new_tokens: int, temperature: float, top_k: int, top_p: float) -> None:
    """Raise UsageError, in one line, for a value that has no meaning."""
    if max_new_tokens < 0:
        raise UsageError(f"--max-new-tokens: expected 0 or more, got {max_new_tokens}")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UsageError(f"--temperature: expected 0 (greedy) or more, got {temperature}")
    if top_k < 0:
        raise UsageError(f"--top-k: expected 0 (off) or more, got {top_k}")
    if not 0 < top_p <= 1:
        raise UsageError(f"--top-p: expected above 0 and at most 1 (off), got {top_p}")


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The tokens of a prompt as training saw texts begin: the separator, then the text.

    An empty prompt of a tokenizer without a separator is a new line.
    """
    opening = [] if tokenizer.separator_id is None else [tokenizer.separator_id]
    ids = [*opening, *tokenizer.encode(prompt, allowed_special="all")]
    return ids or tokenizer.encode("\n") or [0]


def stop_at(tokenizer: Tokenizer, ignore_eot: bool = False) -> tuple[int, ...]:
    """The tokens that end a text: the separator, if there is one and it is not to be ignored."""
    separator = tokenizer.separator_id
    return () if ignore_eot or separator is None else (separator,)


def pieces(
    model: GPT | Saved,
    tokenizer: Tokenizer,
    prompt: str = "",
    *,
    ignore_eot: bool = False,
    **options: Any,
) -> Iterator[str]:
    """`prompt`, then its continuation, piece by piece as it is drawn. Options as for
    `generate_many`."""
    begin, stop = prompt_ids(tokenizer, prompt), stop_at(tokenizer, ignore_eot)
    ids = generate(model, begin, stop=stop, vocab_size=tokenizer.vocab_size, **options)
    decoder = tokenizer.stream_decoder()
    yield prompt
    yield from map(decoder.feed, ids)
    yield decoder.flush()


def sample_text(model: GPT | Saved, tokenizer: Tokenizer, prompt: str = "", **options: Any) -> str:
    """`prompt` and its continuation as text. Options as for `pieces`."""
    return "".join(pieces(model, tokenizer, prompt, **options))
