"""Train a model, and write it, its log and its samples into a run folder.

tinygpt train                               the default recipe on the embedded stories
tinygpt train --data my.txt                 on a text of your own
tinygpt train --data my.txt --n-layer 2     with another setting: docs/reference.md has all
tinygpt train shakespeare-fast              a recipe on its own text, once it is fetched
tinygpt train --resume                      go on after Ctrl-C or a power cut
"""

# This module goes from the options to a run; the run itself is in train.py.

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import minitensor as mt
from minitensor.files import sweep
from minitensor.parallel import part
from tinygpt import Error, UsageError, ranks
from tinygpt.data import streams
from tinygpt.data.documents import size_asked_for
from tinygpt.data.streams import Dataset
from tinygpt.files import alone
from tinygpt.formats import checkpoint
from tinygpt.formats.checkpoint import Saved
from tinygpt.formats.exchange import load_any
from tinygpt.machine import threads
from tinygpt.model import config, recipes
from tinygpt.model.config import Config
from tinygpt.progress import tell
from tinygpt.ranks import World
from tinygpt.training import finetune
from tinygpt.training.compiling import compile_kernels, helper
from tinygpt.training.folder import latest_folder, made, new_folder
from tinygpt.training.optimizers import check_state
from tinygpt.training.report import plan
from tinygpt.training.train import Run, Trainer, cut, follow, kept

# What may be changed when a run goes on: none of it touches the bits of a step.
CHANGEABLE = {
    "data",
    "name",
    "max_iters",
    "eval_interval",
    "eval_batches",
    "sample_interval",
    "checkpoint_interval",
    "log_interval",
}
CHECK = "--check: judges what a run forgets that began with --from MODEL; this one does not"


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Options that choose a configuration."""
    add = parser.add_argument
    add("recipe", nargs="?", help="one that 'tinygpt recipes' lists (default: quick)")
    add(
        "--data",
        metavar="PATH",
        help="a UTF-8 text, or a folder made by 'tinygpt data prepare' "
        "(default: the recipe's own; 'stories': those that the project makes itself)",
    )
    add("--max-iters", type=int, metavar="N", help="steps")
    add("--seed", type=int, metavar="N", help="of the weights, the batches and the dropout")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="assignments",
        help="change any field of the configuration, as --n-layer 3 does too; may be repeated",
    )
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help="a .json, .toml or .yaml of fields; the others are those of RECIPE, or of the one "
        "that the file names as 'base'",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``tinygpt train``."""
    add_choice(parser)
    add = parser.add_argument
    add(
        "-o",
        "--out",
        type=Path,
        metavar="DIR",
        help="run folder, without a run in it (default: runs/RECIPE, numbered)",
    )
    add("--resume", action="store_true", help="go on with the run in --out, or the latest one")
    add(
        "--from",
        dest="start",
        metavar="MODEL",
        help="start from a model: a model file, a run folder, or what 'tinygpt import' reads",
    )
    add(
        "--check",
        type=Path,
        metavar="TEXT",
        help="with --from: a text that the model knows, judged before and after",
    )
    add(
        "--threads",
        type=int,
        metavar="N",
        help="threads of each process (default: all processors); they do not change the result",
    )
    add(
        "--patience",
        type=float,
        metavar="SECONDS",
        default=ranks.PATIENCE,
        help="under mpiexec: end the run when a rank gives no sign of life for so long, or takes "
        f"{ranks.STALL} times as long for a step as the others (default: %(default)g)",
    )
    add(
        "--reduce",
        choices=("exact", "fast"),
        default="exact",
        help="under mpiexec: add up gradients to the bits of one process (default), or in the "
        "order that MPI likes best",
    )


@dataclass
class Job:
    """A run to start or to continue."""

    config: Config
    out: Path
    saved: Saved | None = None  # its checkpoint, or a model to start from: one without training
    newest: bool = True  # if not, the newest checkpoint is damaged, and must not be kept beside
    fit: Callable[[Config, Dataset], Config] | None = None  # what the data decides
    check: Path | None = None  # a text that the model to start from knows


def main(args: argparse.Namespace) -> int:
    """Run ``tinygpt train``."""
    if not args.patience > ranks.BEAT * 2:
        raise UsageError(f"--patience: expected more than {ranks.BEAT * 2:g}, got {args.patience}")
    with ranks.world(args.patience, args.reduce == "exact") as world:
        if world is None:
            return perform(resolve(args), threads(args.threads))
        n_threads = world.threads() if args.threads is None else threads(args.threads)
        asked = ranks.asked(args, ("out", "threads", "debug"))
        if args.config:
            asked["--config"] = hashlib.sha256(args.config.read_bytes()).hexdigest()[:16]
        world.compare({**ranks.software(), **asked})
        if world.rank:
            return follow_rank_0(args, n_threads, world)
        return perform(resolve(args), n_threads, world=world)


def follow_rank_0(args: argparse.Namespace, n_threads: int, world: World) -> int:
    """Train on a rank that writes nothing: rank 0 says with which configuration, and from where."""
    c, out, saved = world.share(None)
    world.kept = lambda: kept(out)
    fit = fit_to(asked_for(args)) if saved and not saved.training else None
    with ready(c, n_threads, saved, fit, world) as trainer:
        if saved and saved.training:
            trainer.restore(saved)
        elif saved:
            trainer.model.load_state_dict(saved.params)
        compare_start(trainer, world)
        fresh = {"step": -c.warmup_copy, "shown": False}
        done = saved.training if saved and saved.training else fresh
        return follow(trainer, done["step"], bool(done["shown"]))


def shards_of(c: Config) -> int:
    """How many shards a step is cut into."""
    return len(cut(np.empty(c.sequences_per_step), c.shard_tokens // c.context))


def check_replicas(c: Config, world: World | None) -> None:
    """Raise UsageError unless there are as many ranks as replicas, and work for each."""
    size, shards = world.size if world else 1, shards_of(c)
    if c.local_steps and size != c.replicas:
        raise UsageError(
            f"replicas: expected as many ranks, {c.replicas}, got {size}; start the run with "
            f"mpiexec -n {c.replicas}"
        )
    if c.local_steps and not part(shards, size - 1, size):
        raise UsageError(
            f"replicas: a step has {shards} shards, of which {size} replicas do not all get one; "
            "a larger batch_size, or smaller shard_tokens, gives more"
        )


def compare_start(trainer: Trainer, world: World) -> None:
    """Raise Error unless all ranks begin with the same data and weights."""
    world.compare({f"{trainer.config.data} (its SHA-256)": trainer.dataset.sha256})
    world.compare_weights(0, [p.data for p in trainer.parameters])


def perform(
    job: Job,
    threads: int,
    callback: Callable[[dict[str, Any]], Any] = lambda record: None,
    world: World | None = None,
) -> int:
    """Make the run, or go on with it, as the process that writes the run folder, be it alone or
    rank 0 of several. Returns the exit status.

    `callback` is given each record of the log; if it answers True or "stop", the run stops.
    """
    saved, out = job.saved, job.out
    check_replicas(job.config, world)
    if world:
        world.kept = lambda: kept(out)
        world.share((job.config, out, saved))
    if saved and not saved.training:
        finetune.foretell(job.config, threads)
    start = ready(job.config, threads, saved, job.fit, world, to_write=True)
    with made(out), alone(out, "training"), start as trainer:
        sweep(out)
        run = Run(trainer, out)
        run.good, run.callback = job.newest, callback
        if saved and saved.training:
            run.restore(saved)
            tell(f"going on {run.where().replace('at step', 'from step')}")
        elif saved:
            finetune.tell_unknown(trainer.dataset)
            run.start_from(saved, finetune.origin(saved))
            saved.params.clear()  # the model has them now; a large one needs the room
        if job.check and not run.origin:
            raise UsageError(CHECK)
        if world:
            compare_start(trainer, world)
        try:
            run.open()
            n_threads = trainer.workers.threads
            for line in plan(trainer.config, trainer.dataset, n_threads, out, run.step):
                tell(line)
            if world:
                c = trainer.config
                for line in world.plan(shards_of(c), c.local_steps):
                    tell(line)
            return finetune.watched(run, job.check) if run.origin else run.loop()
        finally:
            run.close()


@contextmanager
def ready(
    c: Config,
    threads: int,
    saved: Saved | None = None,
    fit: Callable[[Config, Dataset], Config] | None = None,
    world: World | None = None,
    to_write: bool = False,
) -> Iterator[Trainer]:
    """A trainer with its data, its threads and its compiled kernels, with `to_write` also those of
    samples.

    With `saved` the data is read with its tokenizer. `fit` gives the configuration what the data
    decides: without it and without `saved`, the size of the vocabulary.
    """
    with nullcontext(False) if world else helper(c, threads) as helped:
        with world.in_turn() if world else nullcontext():
            dataset = _dataset(c, saved)
        if fit is not None or saved is None:
            c = (fit or fit_vocabulary)(c, dataset)
        with mt.Workers(threads) as workers:
            if not workers.blas_limited:
                tell("this NumPy's BLAS cannot be kept to one thread: right results, slower steps")
            trainer = Trainer(c, dataset, workers, world)
            with world.in_turn() if world else nullcontext():
                now = to_write and not world and not helped
                compile_kernels(trainer, to_write=now, helped=helped)
            yield trainer


def _dataset(c: Config, saved: Saved | None) -> Dataset:
    from bpe import TokenizerError

    try:
        dataset = streams.load(c, tell, saved.tokenizer if saved else None)
    except TokenizerError as error:
        if saved is None:
            raise
        raise Error(
            f"{c.data}: {error}; a model of other characters cannot learn it: change the text, or "
            "train without --from"
        ) from error
    if saved and dataset.tokenizer != saved.tokenizer:
        raise Error(f"{c.data}: not prepared with the tokenizer of this run, so not its data")
    return dataset


def resolve(args: argparse.Namespace) -> Job:
    """What the options ask for."""
    if args.resume:
        if args.config:
            raise UsageError(
                "--config: a run goes on with its own configuration; --resume needs none"
            )
        if args.start is not None:
            raise UsageError("--from: a run goes on with its own weights; --resume needs no others")
        name = recipes.get(args.recipe).name if args.recipe else None
        return going_on(args.out, name, asked_for(args), args.check)
    if args.start is not None:
        if args.recipe or args.config:
            given = repr(args.recipe) if args.recipe else "--config"
            raise UsageError(f"--from: the model brings its configuration; leave out {given}")
        return starting_from(args.start, asked_for(args), args.out, args.check)
    if args.check:
        raise UsageError(CHECK)
    c = chosen(args, with_its_text=True)
    return Job(c, new_folder(args.out, c.name))


def starting_from(
    model: str | Path, changes: Mapping[str, Any], out: Path | None, check: Path | None = None
) -> Job:
    """A new run with the weights of a model: whatever `load_any` reads."""
    read = load_any(model)
    saved = Saved(read.config, read.tokenizer, read.params, read.provenance)
    c = finetune.configuration(saved, changes)
    if check is not None:
        streams.read_text(check)  # fails now, not after the work
    return Job(c, new_folder(out, c.name), saved, fit=fit_to(changes), check=check)


def fit_to(changes: Mapping[str, Any]) -> Callable[[Config, Dataset], Config]:
    """What decides, from the data, what was not asked for in a run that starts from a model."""
    return lambda c, dataset: finetune.fit(c, dataset, changes.keys())


def going_on(
    out: Path | None, name: str | None, changes: Mapping[str, Any], check: Path | None = None
) -> Job:
    """The run in `out`, or the latest one (of the recipe `name`)."""
    out = out or latest_folder(name)
    if not (out / "config.json").is_file():
        raise Error(f"{out}: no run to go on with (there is no config.json)")
    damage: list[str] = []
    saved = checkpoint.load_latest(out / "checkpoint.npz", damage.append, check_state)
    for line in damage:
        tell(line)
    before = saved.config if saved else config.load(out / "config.json")
    if name and before.name != name:
        raise UsageError(f"--resume: the run in {out} is of {before.name}, not of {name}")
    c = before.replace(**changes)
    changed = {key for key, value in c.to_dict().items() if before.to_dict()[key] != value}
    if changed - CHANGEABLE:
        raise UsageError(
            f"--resume: {min(changed - CHANGEABLE)} cannot be changed in a run that "
            "has begun; start a new one with another --out"
        )
    return Job(c, out, saved, newest=not damage, check=check)


def chosen(args: argparse.Namespace, with_its_text: bool = False) -> Config:
    """The configuration that the options choose for a new run.

    Raises Error, if the recipe's own text is wanted, where that is not here and no other was given.
    """
    if args.config:
        base, given = recipes.load(args.config, args.recipe)
    else:
        base, given = recipes.get(args.recipe or recipes.DEFAULT), set()
    return configured(base, asked_for(args), given, with_its_text)


def configured(
    base: Config, values: Mapping[str, Any], given: Collection[str], with_its_text: bool
) -> Config:
    """`base` with `values` over it; the fields `given` are not the recipe's own."""
    c = recipes.lay(base, values)
    if (Path(c.data) / "meta.json").is_file():
        check_prepared(c, values)
    if with_its_text and "data" not in {*given, *values}:
        return c.replace(data=own_text(c))
    return c


def asked_for(args: argparse.Namespace) -> dict[str, Any]:
    """The fields that the command's options set."""
    values = config.fields_of(config.assigned(args.assignments))
    given = {"data": args.data, "max_iters": args.max_iters, "seed": args.seed}
    return values | {key: value for key, value in given.items() if value is not None}


def check_prepared(c: Config, values: Mapping[str, Any]) -> None:
    """Raise UsageError for an option about what was settled when the data was prepared."""
    if "vocab_size" in values:
        import bpe

        size = bpe.load(Path(c.data) / "tokenizer.json").vocab_size
        if size != c.vocab_size:
            raise UsageError(
                f"vocab_size: the data in {c.data} has a vocabulary of {size:,}, not of "
                f"{c.vocab_size:,}; leave it out, or prepare the text again with --vocab-size"
            )
    for key in ("tokenizer", "reduced_from", "valid_fraction", "max_documents"):
        if key in values:
            raise UsageError(
                f"{key}: settled when {c.data} was prepared; leave it out, or prepare the text "
                f"again with --{key.replace('_', '-')}"
            )


def own_text(c: Config) -> str:
    """The text that a recipe was published with, where `tinygpt data fetch` puts it."""
    name = recipes.TEXTS.get(c.name)
    if name is None:
        return c.data
    fetch = f"'tinygpt data fetch {name}'"
    if name == "shakespeare":
        path = Path("data", "tinyshakespeare.txt")
        if path.is_file():
            return str(path)
        what = f"{path}, which is not here: {fetch} brings it"
    else:
        what = (
            f"TinyStories: {fetch} brings it, 'tinygpt data prepare --recipe {c.name} "
            "data/TinyStories-train.txt --out prepared' makes tokens of it for --data prepared"
        )
    raise Error(f"{c.name} learns from {what}; --data takes any text, or 'stories'")


def fit_vocabulary(c: Config, dataset: Dataset) -> Config:
    """The configuration with the size that the tokenizer really has."""
    size = dataset.tokenizer.vocab_size
    if size == c.vocab_size:
        return c
    if size_asked_for(c) is not None:  # characters take what they need
        tell(f"tokenizer: {size:,} tokens (the configuration said {c.vocab_size:,})")
    if c.tokenizer == "reduced":
        return c.replace(vocab_size=size, reduced_from=max(size, c.reduced_from))
    return c.replace(vocab_size=size)
