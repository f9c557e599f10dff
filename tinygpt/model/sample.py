"""Draw tokens from a model's logits, and texts from a model.

Logits are divided by the temperature, then all but the `top_k` likeliest tokens are left out, then
all but the fewest likeliest tokens that together have a probability of `top_p` (the nucleus); from
what remains a token is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minitensor import kernels
from minitensor.random import fold
from tinygpt import Error, UsageError

if TYPE_CHECKING:
    from bpe import Tokenizer
    from tinygpt.formats.checkpoint import Saved
    from tinygpt.model.transformer import GPT

Array = np.ndarray
COLDEST = 3e-39  # a lower temperature is 0: its inverse is more than a float32 holds
STEPS = 16  # tokens that are drawn before the first of them is shown


class Choice(NamedTuple):
    """How a token is drawn, as the compiled twin takes it; see `probabilities`."""

    temperature: float
    top_k: int
    top_p: float


def probabilities(logits: Array, temperature: float, top_k: int, top_p: float) -> Array:
    """Probabilities (V,) with which tokens are drawn; a temperature of 0 is the likeliest alone.

    Equal logits are kept or left out together, so that more than `top_k` can remain.
    """
    z = logits.astype(np.float64)
    if temperature < COLDEST:
        return (np.arange(len(z)) == np.argmax(z)).astype(np.float64)
    z = (z - z.max()) / temperature
    if 0 < top_k < len(z):
        z[z < np.sort(z)[-top_k]] = -np.inf
    p = np.exp(z)
    p /= p.sum()
    if top_p < 1:
        order = np.sort(p)[::-1]
        last = int(np.searchsorted(np.cumsum(order), top_p))
        p[p < order[min(last, len(p) - 1)]] = 0
        p /= p.sum()
    return p


def draw(p: Array, u: float) -> int:
    """The token at which the running sum of `p` passes the uniform number `u`."""
    sums = np.cumsum(p)
    token = int(np.searchsorted(sums, u * sums[-1], side="right"))
    return min(token, int(np.flatnonzero(p)[-1]))


def choose(logits: Array, temperature: float, top_k: int, top_p: float, u: Array) -> list[int]:
    """A token for every row of logits (N, V), with the uniform numbers `u` (N,).

    Raises Error where logits are not finite. Twin of the compiled `decode_kernels.choose`, which is
    taken unless MINITENSOR_KERNELS says "numpy".
    """
    if kernels.backend() == "numba":
        from tinygpt.model import decode_kernels  # imports numba

        choice = Choice(float(temperature), int(top_k), float(top_p))
        tokens = decode_kernels.choose(logits, choice, u).tolist()
    else:
        tokens = [
            draw(probabilities(row, temperature, top_k, top_p), x) if np.isfinite(row.max()) else -1
            for row, x in zip(logits, u, strict=True)
        ]
    return checked(tokens)


def checked(tokens: list[int]) -> list[int]:
    """`tokens`, unless one is -1, which stands for logits that are not finite."""
    if -1 in tokens:
        raise Error(
            "the model's logits are not finite: its weights are damaged, or its training diverged"
        )
    return tokens


def uniform(seed: int, *counters: int) -> float:
    """A number from 0 to 1 that is a function of a seed and counters."""
    return (fold(seed, *counters) >> 11) * 2.0**-53


def uniforms(seed: int, sequences: Sequence[int], begin: int, steps: int) -> Array:
    """`uniform(seed, n, begin + i)` for each i < steps and n of `sequences` (N,): (steps, N)."""
    if kernels.backend() == "numba":
        from tinygpt.model import decode_kernels  # imports numba

        key, where = np.uint64(fold(seed)), np.array(sequences)
        return decode_kernels.uniforms(key, where, begin, steps)
    return np.array([[uniform(seed, n, begin + i) for n in sequences] for i in range(steps)])


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
    (seed, n, how many tokens came before), and logits do not depend on what else is processed: it
    becomes the same text whether it is continued alone, with `prompts[:n + 1]`, or with others.

    temperature, top_k (0: all) and top_p (1: all) are those of `probabilities`; past_context is
    that of `tinygpt.decode`; `vocab_size` leaves out the tokens from there on; `threads` share the
    sequences (0: as many as there are cores); `guessing` processes tokens ahead of the text, which
    takes less time and changes none. Raises UsageError for values without a meaning.
    """
    from tinygpt.model.decode import Decoder

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


def sample_text(
    model: GPT | Saved,
    tokenizer: Tokenizer,
    prompt: str = "",
    *,
    max_new_tokens: int = 256,
    ignore_eot: bool = False,
    **options: Any,
) -> str:
    """`prompt` and its continuation as text. Options as for `generate_many`."""
    stop = () if ignore_eot or tokenizer.separator_id is None else (tokenizer.separator_id,)
    ids = generate(
        model,
        prompt_ids(tokenizer, prompt),
        max_new_tokens=max_new_tokens,
        stop=stop,
        vocab_size=tokenizer.vocab_size,
        **options,
    )
    return prompt + tokenizer.decode(list(ids))
