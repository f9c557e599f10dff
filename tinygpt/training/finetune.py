"""Going on from a model: what ``tinygpt train --from MODEL`` sets, and what it watches.

The model gives weights, shape and tokenizer; the run is a new one, with a fresh optimiser. Its
settings differ from those of training in four ways:

- The learning rate is three tenths of the model's, after a short warm-up and down to 0. It is a
  compromise: at a higher rate the new text is learned better and the old one forgotten sooner.
  `quick` after 300 steps, tuned on 100 KB of Shakespeare in 91 steps:

      share of the rate            before    0.1    0.3    0.5      1
      loss, Shakespeare held out     8.69   5.86   4.14   3.74   3.47
      loss, embedded stories         0.41   0.59   2.26   3.29   4.97

  Twice the steps, at 0.3, give 3.65 and 2.77. A model that was itself made this way keeps its
  rate; one from elsewhere, whose rate is not known, gets 1e-4.
- There are enough steps to pass over the text sixteen times, at least 20 and at most 500. When a
  model learns a short text by heart, best.npz holds the weights that did best on the part held out.
- A step has at most 4,096 tokens, since a short text has few.
- The last tenth of the text is held out, and judged ten times on the way.

Learning a new text may cost a model what it knew. So a text that it knew (that of --check, or the
embedded stories if it was trained on them) is judged before and after.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinygpt import UsageError
from tinygpt.data import documents, stories, streams
from tinygpt.data.streams import Dataset
from tinygpt.formats.checkpoint import Saved
from tinygpt.inspection.evaluate import stream_loss
from tinygpt.machine import installed_memory, megabytes
from tinygpt.model.config import Config, from_dict
from tinygpt.model.transformer import count
from tinygpt.progress import tell
from tinygpt.training.journal import read_records
from tinygpt.training.report import memory
from tinygpt.training.train import Run

SHARE, UNKNOWN_LR = 0.3, 1e-4  # of the model's rate; the rate where that is unknown
PASSES, LEAST, MOST = 16, 20, 500  # over the text; steps
STEP_TOKENS = 4096
EVAL_TOKENS = 1 << 14  # of the text held out, judged together
OLD_STORIES, OLD_TOKENS = 60, 20_000  # what is judged of a text that the model knew
WORSE = 0.02  # a loss that rises by this share is reported
TOLD = ("recipe", "imported", "step", "seed", "data_sha256", "tokenizer_sha256")

# What a run may set for itself. All else belongs to the weights.
FREE = {
    "name", "dropout", "optimizer", "lr", "embedding_lr", "min_lr", "warmup", "warmup_copy",
    "schedule", "max_iters", "beta1", "beta2", "eps", "weight_decay", "grad_clip", "batch_size",
    "accumulation", "shard_tokens", "replicas", "local_steps", "data", "valid_fraction",
    "max_documents", "eval_interval", "eval_batches", "sample_interval", "checkpoint_interval",
    "log_interval", "seed",
}  # fmt: skip


def origin(saved: Saved) -> list[dict[str, Any]]:
    """Where the weights of a model come from: its provenance, and those of the models before."""
    told = saved.provenance
    about = {key: told[key] for key in TOLD if isinstance(told.get(key), (str, int))}
    if saved.config.data == "stories" and "imported" not in told:
        about["data"] = "stories"
    digest = hashlib.sha256()
    for name, value in saved.params.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value).data)
    before = told.get("from", [])
    known = [entry for entry in before if isinstance(entry, dict)] if type(before) is list else []
    return [{**about, "weights_sha256": digest.hexdigest()}, *known]


def configuration(saved: Saved, changes: Mapping[str, Any]) -> Config:
    """The configuration of a run that starts from a model, but for what the text decides.

    Raises UsageError for a change that the weights do not allow.
    """
    c = saved.config
    free = set(FREE)
    if c.positions != "learned":  # the weights are the same for any number of positions
        free.add("context")
    wanted = from_dict(changes, c)
    for key in changes:
        if key not in free and getattr(wanted, key) != getattr(c, key):
            raise UsageError(
                f"{key}: the weights come with {getattr(c, key)!r}, which cannot be changed; leave "
                "it out, or train without --from"
            )
    context = wanted.context
    settings = {
        "name": c.name.removesuffix("-tuned") + "-tuned",
        "data": "stories",
        "lr": _rate(saved),
        "min_lr": 0.0,
        "embedding_lr": 1.0,
        "warmup_copy": 0,  # random tokens would undo what it knows
        "batch_size": max(1, min(c.batch_size, STEP_TOKENS // context)),
        "accumulation": 1,
        "replicas": 1,
        "local_steps": 0,
    }
    if "data" in changes:  # not the stories, whose share was chosen for their number
        settings |= {"valid_fraction": 0.1, "max_documents": 0}
    return from_dict({**settings, **changes}, c)


def _rate(saved: Saved) -> float:
    if saved.provenance.get("from"):
        return saved.config.lr
    return UNKNOWN_LR if "imported" in saved.provenance else saved.config.lr * SHARE


def fit(c: Config, dataset: Dataset, chosen: Collection[str]) -> Config:
    """`c` with as many steps as the text is worth, where they are not among the `chosen` fields."""
    worth = math.ceil(PASSES * len(dataset.train) / c.tokens_per_step)
    steps = c.max_iters if "max_iters" in chosen else min(max(LEAST, worth), MOST)
    together = c.batch_size * c.context
    settings = {
        "max_iters": steps,
        "warmup": min(20, steps // 10),
        "eval_interval": max(1, steps // 10),
        "eval_batches": max(1, min(c.eval_batches, EVAL_TOKENS // together)),
        "checkpoint_interval": min(c.checkpoint_interval or steps, max(1, steps // 4)),
    }
    return c.replace(**{key: value for key, value in settings.items() if key not in chosen})


def foretell(c: Config, threads: int) -> None:
    """Say what memory the run will take, before it takes it."""
    needed, there = memory(c, threads), installed_memory()
    tell(
        f"starting from a model of {sum(count(c)):,} parameters; training it takes about "
        f"{megabytes(needed)} of memory"
    )
    if there and needed > there:
        tell(
            f"this machine has {megabytes(there)}: take fewer --threads, or a shorter context "
            "with --set context=N where its positions are not learned"
        )


def tell_unknown(dataset: Dataset) -> None:
    """Say how much of a text its tokenizer cannot write."""
    id = dataset.tokenizer.unknown_id
    if id is None:
        return
    unknown = int((dataset.train == id).sum() + (dataset.valid == id).sum())
    if unknown:
        tokens = len(dataset.train) + len(dataset.valid)
        tell(
            f"data: {unknown:,} of {tokens:,} tokens ({unknown / tokens:.2%}) are unknown to the "
            "model's tokenizer: all of them look alike to it"
        )


class Old(NamedTuple):
    """A text that the model knew: what it is called, and its tokens (n,)."""

    name: str
    stream: np.ndarray


def old_text(run: Run, check: str | Path | None) -> Old | None:
    """What is judged to see whether the model forgets, if there is anything."""
    told_stories = any(entry.get("data") == "stories" for entry in run.origin)
    if check is not None:
        name, docs = str(check), documents.cut_documents(streams.read_text(check))
    elif told_stories and run.config.data != "stories":
        name = "embedded stories"
        docs = list(stories.corpus(OLD_STORIES, seed=1, split="valid"))
    else:
        return None
    stream = documents.encode_documents(run.dataset.tokenizer, docs)[:OLD_TOKENS]
    return Old(name, stream) if len(stream) > 1 else None


def watched(run: Run, check: str | Path | None) -> int:
    """Run the loop, and tell what it did to the text held out and to one that the model knew."""
    old = old_text(run, check)
    if old and not _logged(run, "old_loss"):
        _judge(run, old)
    status = run.loop()
    if status == 0:
        if old:
            _judge(run, old)
        for line in summary(run, old):
            tell(line)
    return status


def _judge(run: Run, old: Old) -> None:
    model, workers = run.trainer.model, run.trainer.workers
    nats = stream_loss(model, old.stream, stride=run.config.context, workers=workers)
    loss = round(nats / (len(old.stream) - 1), 6)
    run.log(event="check", step=run.step, old_loss=loss, seconds=round(run.elapsed(), 3))


def _logged(run: Run, key: str) -> list[tuple[int, float]]:
    """(step, value) of the lines of the log that have this key."""
    records, _ = read_records(run.out / "log.jsonl")
    return [(r["step"], r[key]) for r in records if key in r and r[key] is not None]


def summary(run: Run, old: Old | None) -> list[str]:
    """What the run did, in a line for each text."""
    lines = []
    if held := _logged(run, "valid_loss"):
        (_, first), (_, last) = held[0], held[-1]
        step, best = min(held, key=lambda pair: pair[1])
        word = "it helped" if best < first else "it did not help: try a lower lr, or more text"
        lines.append(
            f"text held out: loss {first:.4f} before, {last:.4f} after: {word}; the best, "
            f"{best:.4f} at step {step:,}, is {run.out / 'best.npz'}"
        )
    if old:
        losses = [loss for _, loss in _logged(run, "old_loss")]
        rise = losses[-1] / losses[0] - 1
        word = (
            "it forgets: fewer steps, a lower lr, or some of the old text in --data keep more"
            if rise > WORSE
            else "nothing is forgotten"
        )
        lines.append(f"{old.name}: loss {losses[0]:.4f} before, {losses[-1]:.4f} after: {word}")
    return lines
