"""Whether a model keeps the names of a story: `tinygpt eval MODEL --names`.

The model reads embedded stories as they are, and is asked wherever a story repeats a name. A name
is right if each of its tokens is the likeliest there; its loss is that of its tokens together. A
model that copies nothing guesses among the ten names that fit the pronoun, which costs ln 10 = 2.30
nats. No model can always be right: where a name comes, "he" or a quotation mark may do as well. So
the share of places where another name is the likeliest is reported, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

import minitensor as mt
from tinygpt.data import stories
from tinygpt.model.sample import prompt_ids
from tinygpt.model.transformer import GPT

if TYPE_CHECKING:
    from bpe import Tokenizer

EVERY = stories.BOYS + stories.GIRLS
NAMES = re.compile(rf"\b({'|'.join(EVERY)})\b")


@dataclass(frozen=True)
class Names:
    """The shares of names that are right, and in whose place another is the likeliest; their mean
    loss in nats, and how many there are."""

    right: float
    other: float
    loss: float
    count: int


def repeated(text: str) -> list[tuple[int, int]]:
    """Where a text repeats a name: (begin, end) of each place."""
    told: set[str] = set()
    places = []
    for match in NAMES.finditer(text):
        if match.group() in told:
            places.append(match.span())
        told.add(match.group())
    return places


def judge(model: GPT, tokenizer: Tokenizer, texts: Iterable[str]) -> Names:
    """How a model does on the repeated names of `texts`, as far as its context reaches.

    A token counts as a name's if it has a letter of it, even with what stands around: a space or a
    quotation mark belongs to many of them.
    """
    model.eval()
    right, other, losses = 0, 0, []
    for text in texts:
        ids = prompt_ids(tokenizer, text)[: model.config.context + 1]
        sizes = [len(tokenizer.token_bytes(id)) for id in ids]
        opening = sizes[0] if ids[0] == tokenizer.separator_id else 0  # it is no part of the text
        ends = np.cumsum(sizes) - opening
        with mt.no_grad():
            logits = model(np.array([ids[:-1]])).numpy()[0].astype(np.float64)  # (T - 1, V)
        logits -= logits.max(axis=-1, keepdims=True)
        logp = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        for begin, end in repeated(text):
            first = int(np.searchsorted(ends, begin, side="right"))
            after = int(np.searchsorted(ends, end, side="left")) + 1
            if first == 0 or after > len(ids):
                continue
            rows, wanted = logp[first - 1 : after - 1], ids[first:after]
            likeliest = rows.argmax(axis=-1)
            right += bool((likeliest == wanted).all())
            for i, (id, name) in enumerate(zip(likeliest, wanted, strict=True)):
                if id != name:  # where the model goes another way: does a name begin there?
                    spelled = tokenizer.decode([*wanted[:i], int(id)]).strip(' \n"')
                    other += any(name.startswith(spelled) for name in EVERY if spelled)
                    break
            losses.append(-float(rows[np.arange(len(wanted)), wanted].sum()))
    count = len(losses)
    places = max(count, 1)
    return Names(right / places, other / places, sum(losses) / places, count)
