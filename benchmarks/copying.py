"""What the copying warm-up does to the default recipe: names, the warm-up's loss, and its heads.

    python benchmarks/copying.py train warm.jsonl                     # the recipe as it is
    python benchmarks/copying.py train plain.jsonl --warmup-copy 0 --max-iters 1000
    python benchmarks/copying.py draw warm.jsonl plain.jsonl --out docs/img/copying.png

Every `--every` steps it judges the names of embedded stories that are neither trained on nor those
of `tinygpt eval --names`, and looks at the heads on rows of the warm-up that it never trains on:

    previous    how much of a head's attention goes to the token before
    induction   how much goes to the token that came after this one when it was last here

each of the head that has most of it. Drawing needs the extra 'plot'.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import minitensor as mt
from tinygpt.data import copying, stories, streams
from tinygpt.inspection import names, plot
from tinygpt.model import recipes
from tinygpt.training.command import fit_vocabulary
from tinygpt.training.train import Trainer

TEXTS = 60  # stories whose names are judged
UNSEEN = 1 << 20  # a step of the warm-up that no run has


def heads(trainer: Trainer) -> dict[str, float]:
    """Of all heads, the largest mean attention to the token before, and to what came after."""
    c = trainer.config
    ids, targets = copying.batch(c.seed, UNSEEN, c.vocab_size, c.context)
    maps = trainer.model.attention_maps(ids)  # (L, B, H, T, T)
    before, after = [], []
    for row, wanted in enumerate(targets):
        period = int(np.argmax(wanted != copying.IGNORE))
        places = np.arange(period, len(wanted))
        before.append(maps[:, row, :, places, places - 1].mean(axis=0))  # (L, H)
        after.append(maps[:, row, :, places, places - period + 1].mean(axis=0))
    return {
        "previous": round(float(np.mean(before, axis=0).max()), 4),
        "induction": round(float(np.mean(after, axis=0).max()), 4),
    }


def train(out: Path, settings: dict[str, Any], threads: int, every: int) -> None:
    """Train the recipe and write what is seen on the way, a line for each look."""
    c = recipes.lay(recipes.get(recipes.DEFAULT), settings)
    dataset = streams.load(c, print)
    c = fit_vocabulary(c, dataset)
    texts = list(stories.corpus(TEXTS, seed=2, split="valid"))
    with mt.Workers(threads) as workers, out.open("w", encoding="utf-8") as file:
        trainer = Trainer(c, dataset, workers)
        for step in range(-c.warmup_copy, c.max_iters + 1):
            if step % every == 0 or step == c.max_iters:
                kept = names.judge(trainer.model, dataset.tokenizer, texts)
                line = {"step": step, "right": round(kept.right, 4), "names": round(kept.loss, 4)}
                line |= {"valid_loss": round(trainer.validate() or 0, 4), **heads(trainer)}
                with mt.no_grad():
                    ids, targets = copying.batch(c.seed, UNSEEN, c.vocab_size, c.context)
                    loss = trainer.model.loss(ids, targets).item()
                line["copy_loss"] = round(loss / int((targets != copying.IGNORE).sum()), 4)
                print(json.dumps(line), file=file, flush=True)
                print(line, flush=True)
            if step < c.max_iters:
                trainer.step(step)


def draw(warm: Path, plain: Path | None, out: Path) -> None:
    """Losses above, attention below, with the warm-up and without."""
    picture = plot.figure(10, 7)
    upper, lower = picture.subplots(2, 1, sharex=True)
    plot.tidy(upper, "A default run and its copying warm-up", y="nats")
    plot.tidy(lower, "", "step (those before 0 are the warm-up's)", "attention of the best head")
    for path, label, style in ((plain, "without", ":"), (warm, "with", "-")):
        if path is None:
            continue
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        columns = {key: np.array([row[key] for row in rows], float) for key in rows[0]}
        steps = columns["step"]
        names_of = {
            upper: (
                ("copy_loss", "a random row told again, a token", plot.ORANGE),
                ("names", "a name told again", plot.BLUE),
                ("valid_loss", "stories, a token", plot.GREY),
            ),
            lower: (
                ("previous", "to the token before", plot.GREY),
                ("induction", "to what came after this token last", plot.BLUE),
            ),
        }
        for axes, curves in names_of.items():
            for key, what, color in curves:
                axes.plot(steps, columns[key], style, color=color, label=f"{what}, {label}")
    for axes in (upper, lower):
        axes.axvline(0, color="black", linewidth=0.6)
        axes.legend(fontsize=8, ncols=2)
    upper.set_ylim(0, 7.5)
    lower.set_ylim(0, 1)
    plot.save(picture, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("train")
    one.add_argument("out", type=Path)
    one.add_argument("--warmup-copy", type=int)
    one.add_argument("--max-iters", type=int)
    one.add_argument("--seed", type=int)
    one.add_argument("--every", type=int, default=25)
    one.add_argument("--threads", type=int, default=2)
    two = commands.add_parser("draw")
    two.add_argument("warm", type=Path)
    two.add_argument("plain", type=Path, nargs="?")
    two.add_argument("--out", type=Path, default=Path("docs/img/copying.png"))
    args = parser.parse_args()
    if args.command == "draw":
        draw(args.warm, args.plain, args.out)
        return
    keys = ("warmup_copy", "max_iters", "seed")
    settings = {key: getattr(args, key) for key in keys if getattr(args, key) is not None}
    train(args.out, settings, args.threads, args.every)


if __name__ == "__main__":
    main()
