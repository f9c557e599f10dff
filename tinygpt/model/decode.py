"""Decoding with a key/value cache: a new token costs one pass over the weights, not over the text.

A `Decoder` holds the cache of one or more sequences. `feed` appends tokens to some of them and
gives the logits after the last. A sequence's logits have the same bits whether it is decoded alone
or among others, and when its tokens are processed again.

Positions end with the model's context. A sequence that would outgrow it goes on in one of two ways:

    "drop"    the older half of the window is dropped, the newer half is processed again in one
              pass, with positions from 0 on, and the cache goes on from there (the default)
    "exact"   the last `context` tokens are processed again for every new one, as samplers without
              a cache do

Logits come from the model itself (`Plain`) or from its compiled twin in compiled.py, which is used
for the models it knows, unless MINITENSOR_KERNELS says "numpy".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

import minitensor as mt
from minitensor import kernels
from tinygpt import UsageError
from tinygpt.machine import cores
from tinygpt.model.config import Config
from tinygpt.model.drawing import Choice, draw, probabilities
from tinygpt.model.guess import ORDER, Memory
from tinygpt.model.transformer import GPT, Cache, kernels_know

if TYPE_CHECKING:
    from tinygpt.formats.checkpoint import Saved

Array = np.ndarray
# Slot, position of the first new token, and tokens: the new ones, or for `write` the last few, of
# which the very last is new.
Work = Sequence[tuple[int, int, Sequence[int]]]
PAST_CONTEXT = ("drop", "exact")
TOGETHER = 8  # positions that `Plain` processes in one pass
MIN_SHARE, MAX_SHARE = 4, 16  # sequences that are worth a thread; whose keys stay in a cache


class Plain:
    """The model with the caches of some sequences, `TOGETHER` positions at a time.

    BLAS adds up a row in an order that may depend on how many rows there are, and where among them
    it is; and a text must not depend on what it was generated with. So positions are processed in
    fixed blocks, 0 to 7, 8 to 15, …, whether one of their tokens is new or all of them are: every
    product then has the same shape each time, and a token is always the same row of it. Rows of a
    block that are in the cache already are computed again, with the same result. The rows after the
    last token are ignored: no token sees the future, and later tokens overwrite them.
    """

    def __init__(self, c: Config, params: Mapping[str, Array], sequences: int):
        self.model = GPT(c).eval()
        self.model.load_state_dict(params)
        with mt.no_grad():
            self.head = self.model.head_weight()
        self.caches = [Cache(c) for _ in range(sequences)]
        self.ids = np.zeros((sequences, c.context), np.int64)

    def rows(self, slot: int, position: int, tokens: Sequence[int]) -> Array:
        """Logits (rows, V) after the tokens; of more than a block, after those in the last one."""
        cache, ids, end = self.caches[slot], self.ids[slot], position + len(tokens)
        ids[position:end] = tokens
        with mt.no_grad():
            for begin in range(position // TOGETHER * TOGETHER, end, TOGETHER):
                cache.length = begin
                block = ids[None, begin : begin + TOGETHER]  # (1, TOGETHER), fewer at the end
                hidden = self.model.hidden(block, cache=cache)  # (1, TOGETHER, D)
            logits = mt.linear(hidden, self.head).numpy()[0]  # (TOGETHER, V)
        return logits[max(0, position - begin) : end - begin]

    def logits(self, work: Work) -> Array:
        """Logits (N, V) after the last token of each slot's new ones."""
        return np.stack([self.rows(*item)[-1] for item in work])

    def write(self, work: Work, vocab_size: int, choice: Choice, u: Array, memory: Memory) -> Array:
        """Tokens (steps, N) drawn with u (steps, N); `work` has the last few tokens of each slot.

        The rest of a block costs next to nothing: it is filled with guesses, as far as there are.
        """
        out = np.full(u.shape, -1)
        for n, (slot, position, last) in enumerate(work):
            past, done = list(last), 0
            while done < len(u):
                at, ahead = position + done, list(past[-1:])
                while len(ahead) < min(TOGETHER - at % TOGETHER, len(u) - done):
                    token = memory.guess([*past, *ahead[1:]], u[done + len(ahead) - 1, n])
                    if token < 0:
                        break
                    ahead.append(token)
                for row, guess in zip(self.rows(slot, at, ahead), [*ahead[1:], -1], strict=True):
                    if not np.isfinite(row[:vocab_size].max()):
                        return out
                    p = probabilities(row[:vocab_size], *choice)
                    token = draw(p, u[done, n])
                    memory.remember(past, p)
                    past.append(token)
                    out[done, n] = token
                    done += 1
                    if token != guess:  # the rows that follow are of another text
                        break
        return out


class Decoder:
    """The model with the cache of `sequences` sequences, each empty at first.

    `model` is a `GPT` or what `checkpoint.load` gives; later changes of its weights are not seen.
    `threads` share the sequences of a call (0: as many as there are cores), and `guessing` lets
    `write` process guessed tokens ahead; neither changes a bit.
    """

    def __init__(
        self,
        model: GPT | Saved,
        sequences: int = 1,
        past_context: str = "drop",
        threads: int = 0,
        guessing: bool = True,
    ):
        if past_context not in PAST_CONTEXT:
            raise UsageError(
                f"past_context: expected {' or '.join(PAST_CONTEXT)}, got {past_context!r}"
            )
        params = getattr(model, "params", None)
        if params is None:
            params = {name: p.data for name, p in model.named_parameters()}  # type: ignore
        c = self.config = model.config
        self.past_context = past_context
        self.threads = min(threads or cores(), max(1, sequences))
        self.guessing = guessing
        self.memories: list[Any] = []  # for guesses, one for each share of a call
        self.pool = ThreadPoolExecutor(self.threads)  # starts no thread before the first use
        self.window: list[list[int]] = [[] for _ in range(sequences)]  # the tokens in the cache
        self.plain = kernels.backend() == "numpy" or not kernels_know(c)
        self.twin: Any
        self.memory: Callable[[], Any]
        if self.plain:
            self.twin, self.memory = Plain(c, params, sequences), Memory
        else:
            from tinygpt.model.compiled import Compiled, no_guesses  # imports numba

            self.twin, self.memory = Compiled(c, params, sequences, guessing), no_guesses

    def feed(self, tokens: Sequence[Sequence[int]], slots: Sequence[int] | None = None) -> Array:
        """Append `tokens[n]`, one or more, to sequence `slots[n]`; the logits (N, V) after each.

        Of more tokens than the context, the last ones are taken.
        """
        slots = range(len(self.window)) if slots is None else slots
        work = [(slot, *self._extend(slot, new)) for slot, new in zip(slots, tokens, strict=True)]
        shares = [work[share] for share in self._shares(len(work))]
        return np.concatenate(list(self._map(self.twin.logits, shares)))

    def room(self, slots: Sequence[int]) -> int:
        """Tokens that `write` can append to all of these sequences; 0 where there is no gain."""
        longest = max((len(self.window[slot]) for slot in slots), default=0)
        return 0 if self.plain and not self.guessing else self.config.context - longest

    def write(
        self, tokens: Sequence[int], slots: Sequence[int], u: Array, vocab_size: int, choice: Choice
    ) -> list[list[int]]:
        """Append a token to each sequence and draw the next, len(u) times: (len(u), N) tokens.

        In place of `feed` and `drawing.choose`, for at most `room` times: in one compiled call, and
        with guesses, so that one pass may give several tokens.
        """
        work = [
            (slot, len(self.window[slot]), [*self.window[slot][1 - ORDER :], token])
            for slot, token in zip(slots, tokens, strict=True)
        ]
        shares = self._shares(len(slots))
        self.memories += [self.memory() for _ in range(len(shares) - len(self.memories))]

        def part(share: int) -> Array:
            n = shares[share]
            mine = np.ascontiguousarray(u[:, n])
            return self.twin.write(work[n], vocab_size, choice, mine, self.memories[share])

        new = np.concatenate(list(self._map(part, list(range(len(shares))))), axis=1)
        for n, slot in enumerate(slots):
            self.window[slot] += [tokens[n], *new[:-1, n].tolist()]
        return new.tolist()

    def _shares(self, count: int) -> list[slice]:
        """Parts of a list of sequences: one a thread where that is worth it, or more."""
        size = -(-count // self.threads)
        size = max(1, count if size < MIN_SHARE else size)
        size = -(-size // -(-size // MAX_SHARE))
        return [slice(n, n + size) for n in range(0, count, size)]

    def _map(self, work: Callable[..., Array], shares: list[Any]) -> Iterable[Array]:
        return map(work, shares) if len(shares) == 1 else self.pool.map(work, shares)

    def _extend(self, slot: int, new: Sequence[int]) -> tuple[int, list[int]]:
        """Append to a window; the position and the tokens that have to be processed for it."""
        if not len(new):
            raise ValueError(f"feed: sequence {slot} was given no token; give at least one")
        bad = [token for token in new if not 0 <= token < self.config.vocab_size]
        if bad:
            raise IndexError(
                f"feed: token {bad[0]} is not in the vocabulary, 0 to {self.config.vocab_size - 1}"
            )
        context, old = self.config.context, self.window[slot]
        window = self.window[slot] = [*old, *new]
        if len(window) <= context:
            return len(old), list(new)
        if self.past_context == "drop" and old:
            context -= context // 2
        window[:-context] = []
        return 0, window
