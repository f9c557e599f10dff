"""Decoding with a key/value cache: a new token costs one pass over the weights, not over the text.

A `Decoder` holds the cache of one or more sequences. `feed` appends tokens to some of them and
gives the logits after the last. A sequence's logits have the same bits whether it is decoded alone
or among others, and when its tokens are processed again.

Positions end with the model's context. A sequence that would outgrow it goes on in one of two ways:

    "drop"    the older half of the window is dropped, the newer half is processed again in one
              pass, with positions from 0 on, and the cache goes on from there (the default)
    "exact"   the last `context` tokens are processed again for every new one, as samplers without
              a cache do

Logits come from the model itself (`Plain`) or from its compiled twin in compiled.py, which is taken
where it knows the model, unless MINITENSOR_KERNELS says "numpy".
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
from tinygpt.model.transformer import GPT, Cache, kernels_know

if TYPE_CHECKING:
    from tinygpt.formats.checkpoint import Saved
    from tinygpt.model.sample import Choice

Array = np.ndarray
Work = Sequence[tuple[int, int, Sequence[int]]]  # slot, position of the first token, tokens
PAST_CONTEXT = ("drop", "exact")
MIN_SHARE = 4  # sequences that are worth a thread


class Plain:
    """The model with the caches of some sequences, one token at a time.

    Several tokens in a call would be one larger matrix product, and quicker; but BLAS adds up the
    sums of a row in an order that depends on how many rows there are, and then a text would depend
    on what it was generated with.
    """

    def __init__(self, c: Config, params: Mapping[str, Array], sequences: int):
        self.model = GPT(c).eval()
        self.model.load_state_dict(params)
        with mt.no_grad():
            self.head = self.model.head_weight()
        self.caches = [Cache(c) for _ in range(sequences)]

    def logits(self, work: Work) -> Array:
        """Logits (N, V) after the last token of each slot's new ones."""
        last = []
        with mt.no_grad():
            for slot, position, tokens in work:
                cache = self.caches[slot]
                cache.length = position
                for token in tokens:
                    hidden = self.model.hidden(np.array([[token]]), cache=cache)  # (1, 1, D)
                last.append(mt.linear(hidden, self.head).numpy()[0, 0])
        return np.stack(last)


class Decoder:
    """The model with the cache of `sequences` sequences, each empty at first.

    `model` is a `GPT` or what `checkpoint.load` gives; later changes of its weights are not seen.
    `threads` share the sequences of a call (0: as many as there are cores), and `guessing` lets
    `write` process tokens before it is known that they come; neither changes a bit.
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
        self.guesses: list[Any] = []  # one for each share of a call
        self.pool = ThreadPoolExecutor(self.threads)  # starts no thread before the first use
        self.window: list[list[int]] = [[] for _ in range(sequences)]  # the tokens in the cache
        self.plain = kernels.backend() == "numpy" or not kernels_know(c)
        self.twin: Any
        if self.plain:
            self.twin = Plain(c, params, sequences)
        else:
            from tinygpt.model.compiled import Compiled  # imports numba

            self.twin = Compiled(c, params, sequences, guessing)

    def feed(self, tokens: Sequence[Sequence[int]], slots: Sequence[int] | None = None) -> Array:
        """Append `tokens[n]`, one or more, to sequence `slots[n]`; the logits (N, V) after each.

        Of more tokens than the context, the last ones are taken.
        """
        slots = range(len(self.window)) if slots is None else slots
        work = [(slot, *self._extend(slot, new)) for slot, new in zip(slots, tokens, strict=True)]
        shares = [work[share] for share in self._shares(len(work))]
        return np.concatenate(list(self._map(self.twin.logits, shares)))

    def room(self, slots: Sequence[int]) -> int:
        """Tokens that fit into the windows of all these sequences; 0 where `write` is not there."""
        longest = max((len(self.window[slot]) for slot in slots), default=0)
        return 0 if self.plain else self.config.context - longest

    def write(
        self, tokens: Sequence[int], slots: Sequence[int], u: Array, vocab_size: int, choice: Choice
    ) -> list[list[int]]:
        """Append a token to each sequence and draw the next, len(u) times: (len(u), N) tokens.

        In place of `feed` and `sample.choose`, for at most `room` times, in one compiled call.
        """
        from tinygpt.model.compiled import no_guesses
        from tinygpt.model.decode_kernels import ORDER, Rows

        ids, where = np.array(tokens), np.array(slots)
        places = np.array([len(self.window[slot]) for slot in slots])
        past = np.full((len(slots), ORDER + len(u)), -1)
        for n, slot in enumerate(slots):
            last = [*self.window[slot][1 - ORDER :], tokens[n]]
            past[n, ORDER - len(last) : ORDER] = last
        shares = self._shares(len(slots))
        self.guesses += [no_guesses() for _ in range(len(shares) - len(self.guesses))]

        def part(share: int) -> Array:
            n = shares[share]
            rows = Rows(ids[n], where[n], places[n])
            mine = np.ascontiguousarray(u[:, n])
            return self.twin.write(rows, vocab_size, choice, mine, past[n], self.guesses[share])

        new = np.concatenate(list(self._map(part, list(range(len(shares))))), axis=1)
        for n, slot in enumerate(slots):
            self.window[slot] += [tokens[n], *new[:-1, n].tolist()]
        return new.tolist()

    def _shares(self, count: int) -> list[slice]:
        """Parts of a list of sequences, one a thread where that is worth it."""
        size = -(-count // self.threads)
        size = max(1, count if size < MIN_SHARE else size)
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
