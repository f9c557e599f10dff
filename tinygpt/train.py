"""Train a recipe: batches, shards, updates, validation, samples, checkpoints.

A step cuts its sequences into shards of `shard_tokens` tokens. Threads take shards; their gradients
are added in a fixed order, so the bits of a run depend on its configuration and data alone, not on
the number of threads or on where it was interrupted. More accumulation is more shards.

The run folder: config.json · log.jsonl · samples.txt · model.npz (last) · best.npz (lowest
validation loss) · checkpoint.npz (with which a run goes on) and its predecessor. A line of
log.jsonl is one of

    {"event": "start" | "resume", "step", "recipe", "parameters", "threads"}
    {"step", "loss", "lr", "grad_norm", "tokens", "seconds"}          loss before update `step`
    {"step", "valid_loss", "valid_perplexity", "valid_bits_per_byte", "tokens", "seconds"}
    {"event": "stop" | "end", "step", "seconds"}

with losses in nats per token, and tokens and seconds since the start.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import minitensor as mt
from minitensor import kernels, optim
from tinygpt import Error, UsageError, checkpoint, config, data, recipes
from tinygpt.checkpoint import Saved
from tinygpt.config import Config
from tinygpt.data import Dataset
from tinygpt.files import replacing
from tinygpt.model import GPT, count

Array = np.ndarray
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


def say(line: str) -> None:
    """A text to standard error, above a progress bar if there is one."""
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


def tell(line: str) -> None:
    """A message to standard error that says whose it is."""
    say(f"tinygpt: {line}")


class Trainer:
    """A model with its optimiser and data, and the step that ties them together."""

    def __init__(self, c: Config, dataset: Dataset, workers: Any):
        self.config, self.dataset, self.workers = c, dataset, workers
        self.model = GPT(c)
        self.optimizer = make_optimizer(c, dict(self.model.named_parameters()))
        names = {id(p): name for name, p in self.model.named_parameters()}
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.named = [(names[id(p)], p) for p in self.parameters]  # gradients come in this order

    def lr(self, step: int) -> float:
        """Learning rate of a step."""
        c = self.config
        schedule = getattr(optim, c.schedule)
        return float(schedule(step, lr=c.lr, min_lr=c.min_lr, warmup=c.warmup, total=c.max_iters))

    def gradients(self, step: int) -> tuple[float, list[Array]]:
        """Mean loss over the tokens of a step, and its gradients in the order of `named`."""
        c, model = self.config, self.model
        begin = data.starts(c.seed, step, c.sequences_per_step, len(self.dataset.train), c.context)
        rows = data.rows(self.dataset.train, begin, c.context + 1)
        if not model.training:
            model.train()

        def loss(shard: Array, index: int, *derived: mt.Tensor) -> mt.Tensor:
            key = mt.fold(c.seed, step, index)
            head = derived[0] if derived else None
            return model.loss(shard[:, :-1], shard[:, 1:], key, head) * (1 / c.tokens_per_step)

        derive = (lambda: [model.head_weight()]) if c.head == "pinv" else None
        value, grads = mt.value_and_grad(
            loss, self.parameters, cut(rows, c), workers=self.workers, derive=derive
        )
        return float(value), grads

    def step(self, step: int) -> tuple[float, float]:
        """One update. Returns the loss before it and the norm of the gradient.

        Raises Error, before anything is changed, if either is not finite.
        """
        c = self.config
        with np.errstate(all="ignore"):  # what is not finite is told below, once and by name
            loss, grads = self.gradients(step)
            norm = optim.grad_norm(grads, workers=self.workers)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise Error(self._not_finite(step, loss, grads))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(step) * group.get("lr_scale", 1.0)
        scale = min(1.0, c.grad_clip / (norm + 1e-6)) if c.grad_clip else 1.0
        self.optimizer.step(grads, scale=scale, workers=self.workers)
        return loss, norm

    def _not_finite(self, step: int, loss: float, grads: list[Array]) -> str:
        bad = [f"the weight {name}" for name, p in self.named if not np.isfinite(p.data).all()]
        bad += [
            f"the gradient of {name}"
            for (name, _), g in zip(self.named, grads, strict=True)
            if not np.isfinite(g).all()
        ]
        where = (
            f"the first tensor that is not finite is {bad[0]}"
            if bad
            else "every single weight and gradient is finite, their norm is not"
        )
        return (
            f"step {step}: the loss is {loss:.4g} and {where}; nothing was updated; try a "
            f"lower lr (now {self.config.lr:g}) or a longer warmup"
        )

    def validate(self) -> float:
        """Mean validation loss in nats a token, over evenly spread sequences; nan without any."""
        c, stream = self.config, self.dataset.valid
        if len(stream) < 2:
            return math.nan
        length = min(c.context, len(stream) - 1)
        begin = data.even_starts(c.eval_batches * c.batch_size, len(stream), length)
        shards = cut(data.rows(stream, begin, length + 1), c)
        model = self.model.eval()
        with mt.no_grad():
            head = model.head_weight()

        def loss(shard: Array) -> float:
            with mt.no_grad():
                return model.loss(shard[:, :-1], shard[:, 1:], head=head).item()

        return math.fsum(self.workers.map(loss, shards)) / (len(begin) * length)

    def sample(self, step: int) -> str:
        """A text from the empty prompt, as long as the context."""
        from tinygpt.sample import sample_text

        c = self.config
        return sample_text(
            self.model.eval(),
            self.dataset.tokenizer,
            max_new_tokens=c.context * 2,
            seed=mt.fold(c.seed, step) & 0x7FFFFFFF,
        )


MUON = 10.0  # the matrices that Muon takes learn at this times the rate of AdamW's tensors


def make_optimizer(c: Config, named: dict[str, mt.Tensor]) -> Any:
    """The optimiser of a configuration: decay for matrices, none for vectors.

    With "muon", the matrices inside the blocks go to Muon and all else to AdamW.
    """
    muon = [
        p
        for name, p in named.items()
        if c.optimizer == "muon" and p.ndim == 2 and name.startswith("blocks.")
    ]
    taken = set(map(id, muon))
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in named.values() if p.ndim > 1 and id(p) not in taken],
            "weight_decay": c.weight_decay,
        },
        {"params": [p for p in named.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = optim.AdamW(groups, lr=c.lr, betas=(c.beta1, c.beta2), eps=c.eps)
    if not muon:
        return adamw
    group = {"params": muon, "lr_scale": MUON}
    return Together(optim.Muon([group], lr=c.lr, weight_decay=c.weight_decay / MUON), adamw)


class Together:
    """Two optimisers as one, each for its own parameters."""

    def __init__(self, *parts: optim.Optimizer):
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]

    def step(self, grads: list[Array], *, scale: float, workers: Any) -> None:
        """One update; the gradients come in the order of the groups' parameters."""
        for part in self.parts:
            mine, grads = grads[: len(part.parameters)], grads[len(part.parameters) :]
            part.step(mine, scale=scale, workers=workers)

    def state_dict(self) -> dict[str, Any]:
        """The parts' states."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        for part, state in zip(self.parts, saved["parts"], strict=True):
            part.load_state_dict(state)


def cut(rows: Array, c: Config) -> list[Array]:
    """Whole sequences in equal shards of at most `shard_tokens` tokens (but at least one sequence).

    Their number is even where there are several, so that two threads end together.
    """
    most = max(1, c.shard_tokens // c.context)
    shards = -(-len(rows) // most)
    return np.array_split(rows, min(len(rows), shards + (shards > 1) * shards % 2))


# ------------------------------------------------------------------------------- the run


class Run:
    """A training run and its folder."""

    def __init__(self, trainer: Trainer, out: Path, threads: int):
        self.trainer, self.out, self.threads = trainer, out, threads
        self.config, self.dataset = trainer.config, trainer.dataset
        self.step = 0
        self.shown = False  # whether the events of `step` are already in the log
        self.best = math.inf
        self.seconds = 0.0  # spent before this process
        self.started = time.perf_counter()
        self.log_file: Any = None

    # ---- files

    def restore(self, saved: Saved) -> None:
        """Go on from a checkpoint; what was logged after it is cut off."""
        t = saved.training
        if t["data_sha256"] != self.dataset.sha256:
            raise Error(
                f"{self.config.data}: not the data that the run in {self.out} was trained "
                "on; give that with --data, or start a new run"
            )
        self.trainer.model.load_state_dict(saved.params)
        unpack_optimizer(self.trainer.optimizer, saved.optim, t["optimizer"])
        self.step, self.shown, self.seconds = t["step"], t["shown"], t["seconds"]
        self.best = math.inf if t["best"] is None else t["best"]
        for name, size in t["sizes"].items():
            path = self.out / name
            if path.is_file() and path.stat().st_size > size:
                os.truncate(path, size)

    def open(self) -> None:
        """Write the configuration, and open the log: a new one unless the run goes on."""
        with replacing(self.out / "config.json") as handle:
            handle.write(config.dumps(self.config, ".json").encode())
        if not (self.step or self.shown):
            for name in ("samples.txt", "log.jsonl"):
                (self.out / name).unlink(missing_ok=True)
        self.log_file = (self.out / "log.jsonl").open("a", encoding="utf-8", newline="\n")

    def log(self, **record: Any) -> None:
        """One line of log.jsonl, on its way to disk at once."""
        try:
            self.log_file.write(json.dumps(record) + "\n")
            self.log_file.flush()
        except OSError as error:
            raise Error(
                f"{self.out / 'log.jsonl'}: cannot be written: {error.strerror or error}"
            ) from error

    def snapshot(self, training: bool) -> Saved:
        """What a model file or a checkpoint of this moment holds."""
        c, dataset = self.config, self.dataset
        params = {name: p.numpy() for name, p in self.trainer.model.named_parameters()}
        saved = Saved(
            c,
            dataset.tokenizer,
            params,
            checkpoint.provenance(c, dataset.tokenizer, self.step, dataset.sha256),
        )
        if training:
            saved.optim, state = pack_optimizer(self.trainer.optimizer)
            paths = [self.out / "log.jsonl", self.out / "samples.txt"]
            saved.training = {
                "step": self.step,
                "shown": self.shown,
                "optimizer": state,
                "best": self.best if math.isfinite(self.best) else None,
                "seconds": self.elapsed(),
                "data_sha256": dataset.sha256,
                "sizes": {p.name: p.stat().st_size for p in paths if p.is_file()},
            }
        return saved

    def save(self) -> None:
        """Write the checkpoint, keeping the one before, and the model."""
        checkpoint.save(self.out / "checkpoint.npz", self.snapshot(True), keep=True)
        checkpoint.save(self.out / "model.npz", self.snapshot(False))

    def elapsed(self) -> float:
        """Seconds of training, over all the processes of this run."""
        return self.seconds + time.perf_counter() - self.started

    # ---- the loop

    def loop(self) -> int:
        """Train to the end or until a signal. Returns the exit status."""
        c, tty = self.config, sys.stderr.isatty()
        if self.step >= c.max_iters:
            tell(f"the run was finished at step {self.step:,}; a larger --max-iters goes on")
        self.log(
            event="resume" if self.step else "start",
            step=self.step,
            recipe=c.name,
            parameters=sum(count(c)),
            threads=self.threads,
        )
        times = StepTimes(c)
        bar = tqdm(
            total=c.max_iters,
            initial=min(self.step, c.max_iters),
            unit="step",
            file=sys.stderr,
            mininterval=0.2 if tty else 10,
            dynamic_ncols=tty,
            smoothing=0.05,
        )
        try:
            with bar, signals() as received:
                while self.step < c.max_iters:
                    if not self.shown:
                        self.show()
                        self.shown = True
                        if self.step == 0 or due(self.step, c.checkpoint_interval):
                            self.save()
                    loss = self.advance(times)
                    bar.set_postfix_str(
                        f"loss {loss:.3f}, {times.rate():,.0f} tokens/s", refresh=False
                    )
                    bar.update()
                    if received and self.step < c.max_iters:
                        return self.stop(received[0])
                if not self.shown:
                    self.show()
                    self.shown = True
                self.save()
        except Error as error:
            good = checkpoint.latest_step(self.out / "checkpoint.npz")
            kept = (
                ""
                if good is None
                else (f"; the last good checkpoint, of step {good}, is in {self.out}")
            )
            raise Error(f"{error}{kept}") from error
        return self.finish(times)

    def advance(self, times: StepTimes) -> float:
        """One step, logged and timed. Returns its loss."""
        c, step = self.config, self.step
        begin = time.perf_counter()
        loss, norm = self.trainer.step(step)
        times.add(time.perf_counter() - begin)
        if due(step, c.log_interval):
            self.log(
                step=step,
                loss=round(loss, 6),
                lr=float(f"{self.trainer.lr(step):.6g}"),
                grad_norm=round(norm, 6),
                tokens=step * c.tokens_per_step,
                seconds=round(self.elapsed(), 3),
            )
        self.step, self.shown = step + 1, False
        if times.enough():
            left = duration((c.max_iters - self.step) * times.median())
            tell(
                f"a step takes {times.median() * 1e3:.0f} ms here: about {left} to go; memory in "
                f"use {peak_memory()}"
            )
        return loss

    def show(self) -> None:
        """Validate and sample, where that is due before this step, or at the end."""
        c, step, end = self.config, self.step, self.step >= self.config.max_iters
        if due(step, c.eval_interval) or end:
            loss = self.trainer.validate()
            if math.isfinite(loss):
                self.log(
                    step=step,
                    valid_loss=round(loss, 6),
                    valid_perplexity=perplexity(loss),
                    valid_bits_per_byte=round(self.dataset.bits_per_byte(loss), 6),
                    tokens=step * c.tokens_per_step,
                    seconds=round(self.elapsed(), 3),
                )
                bits = self.dataset.bits_per_byte(loss)
                say(
                    f"step {step:,}: validation loss {loss:.4f}, perplexity "
                    f"{perplexity(loss):,.2f}, {bits:.4f} bits per byte"
                )
                if loss < self.best:
                    self.best = loss
                    checkpoint.save(self.out / "best.npz", self.snapshot(False))
        if step and (due(step, c.sample_interval) or end):
            text = self.trainer.sample(step)
            try:
                with (self.out / "samples.txt").open("a", encoding="utf-8", newline="\n") as f:
                    f.write(f"=== step {step} ===\n{text}\n\n")
            except OSError as error:
                raise Error(
                    f"{self.out / 'samples.txt'}: cannot be written: {error.strerror or error}"
                ) from error
            say(f"--- a sample at step {step:,} ---\n{text.strip()}\n---")

    def stop(self, number: int) -> int:
        """Save after a signal, and say how to go on."""
        self.log(event="stop", step=self.step, seconds=round(self.elapsed(), 3))
        self.save()
        tell(
            f"stopped by {signal.Signals(number).name} and saved at step {self.step:,}; "
            f"go on with: tinygpt train --resume --out {shlex.quote(str(self.out))}"
        )
        return 128 + number

    def finish(self, times: StepTimes) -> int:
        """The last words."""
        self.log(event="end", step=self.step, seconds=round(self.elapsed(), 3))
        times.remember()
        tell(
            f"{self.step:,} steps in {duration(self.elapsed())}, peak memory "
            f"{peak_memory()}; the model is {self.out / 'model.npz'}; write with it: "
            f"tinygpt generate {shlex.quote(str(self.out / 'model.npz'))}"
        )
        return 0


def due(step: int, interval: int) -> bool:
    """Whether something that happens every `interval` steps (0: never) happens at this one."""
    return interval > 0 and step % interval == 0


def perplexity(loss: float) -> float:
    """exp(loss), in four digits, and infinite rather than an error."""
    return float(f"{math.exp(loss):.4g}") if loss < 700 else math.inf


class StepTimes:
    """Durations of the steps of this process."""

    FIRST = 10  # steps after which the time to go is told, or five seconds of them

    def __init__(self, c: Config):
        self.config = c
        self.all: list[float] = []
        self.told = False

    def add(self, seconds: float) -> None:
        """Take in one step."""
        self.all.append(seconds)

    def enough(self) -> bool:
        """True once: when there are enough steps to say how long the run will take."""
        if self.told or len(self.all) < 2:
            return False
        self.told = len(self.all) >= self.FIRST or sum(self.all) > 5
        return self.told

    def median(self) -> float:
        """Median of the last fifty, without the first."""
        return float(np.median(self.all[1:][-50:] or self.all))

    def rate(self) -> float:
        """Tokens a second."""
        return self.config.tokens_per_step / self.median()

    def remember(self) -> None:
        """Keep a recipe's time on this machine, for `tinygpt recipes`."""
        if len(self.all) > self.FIRST:
            recipes.remember_time(self.config, self.median())


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; the second one is not waited for."""
    received: list[int] = []

    def handler(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        tell("stopping after this step")

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, old in before.items():
            signal.signal(number, old)


# ------------------------------------------------------------------------- the optimiser's state


def pack_optimizer(optimizer: Any) -> tuple[dict[str, Array], Any]:
    """The optimiser's state as arrays by name, and a JSON value that refers to them."""
    arrays: dict[str, Array] = {}

    def pack(value: Any, name: str) -> Any:
        if isinstance(value, np.ndarray):
            arrays[name] = value
            return {"array": name}
        if isinstance(value, dict):
            return {"dict": [[key, pack(v, f"{name}/{key}")] for key, v in value.items()]}
        if isinstance(value, (list, tuple)):
            return [pack(v, f"{name}/{i}") for i, v in enumerate(value)]
        return value

    return arrays, pack(optimizer.state_dict(), "state")


def unpack_optimizer(optimizer: Any, arrays: dict[str, Array], state: Any) -> None:
    """Undo `pack_optimizer`."""

    def unpack(value: Any) -> Any:
        if isinstance(value, dict):
            if "array" in value:
                return arrays[value["array"]]
            return {key: unpack(v) for key, v in value["dict"]}
        return [unpack(v) for v in value] if isinstance(value, list) else value

    optimizer.load_state_dict(unpack(state))


# ------------------------------------------------------------------------- what is told at first


def plan(c: Config, dataset: Dataset, threads: int, out: Path) -> list[str]:
    """What a run is going to do, in a few lines."""
    matrices, vectors = count(c)
    tokens = c.tokens_per_step
    batch = " x ".join(str(n) for n in (c.batch_size, c.accumulation, c.context) if n != 1)
    total = c.max_iters * tokens
    known = recipes.times().get(c.name) if recipes.is_recipe(c) else None
    before = (
        f", {duration(known * c.max_iters)} at the {known * 1e3:.0f} ms a step of last time"
        if known
        else ""
    )
    return [
        f"{c.name}: {matrices + vectors:,} parameters ({matrices:,} + {vectors:,}), "
        f"{dataset.tokenizer.kind} vocabulary {c.vocab_size:,}, context {c.context}, "
        f"head {c.head}",
        f"data: {c.data}: {len(dataset.train):,} tokens of {dataset.documents['train']:,} documents"
        f" to train on, {len(dataset.valid):,} of {dataset.documents['valid']:,} to validate",
        f"{c.max_iters:,} steps of {batch} = {tokens:,} tokens: {total:,} in all, "
        f"{total / len(dataset.train):.3g} times the data{before}",
        f"{threads} thread{'s' * (threads > 1)}, about {megabytes(memory(c, threads))} of memory; "
        f"run folder {out}",
    ]


def memory(c: Config, threads: int) -> int:
    """Estimated bytes of a run: weights, moments, gradients on their way, each thread's shard."""
    size = np.dtype(c.dtype).itemsize
    qkv = (c.n_head + 2 * c.kv_heads) * c.head_dim
    token = c.n_layer * (7 * c.d_model + qkv + 3 * c.d_ff) + 2 * c.vocab_size
    shard = max(c.shard_tokens, c.context) * token * size * 2  # values and their gradients
    waiting = math.log2(max(1, c.tokens_per_step // max(c.shard_tokens, c.context)))
    copies = 3 + threads + waiting  # of the weights' size; sums of the tree wait for their pairs
    return int(sum(count(c)) * size * copies) + threads * shard + 180_000_000


def megabytes(n: float) -> str:
    """Bytes as a person says them."""
    return f"{n / 1e6:,.0f} MB"


def peak_memory() -> str:
    """The most memory that this process has held, where the platform tells."""
    try:
        import resource
    except ImportError:
        return "unknown"
    unit = 1 if sys.platform == "darwin" else 1024
    return megabytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    seconds = round(seconds)
    if seconds < 90:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def cores() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def compile_kernels(trainer: Trainer) -> None:
    """Run one sequence forward and back, with a bar where the kernels are compiled for it."""
    if kernels.backend() != "numba":
        return
    from minitensor.kernels import _jit  # imports numba

    seen: set[tuple[str, str]] = set()

    def observer(op: str, phase: str, *rest: Any) -> None:
        seen.add((op, phase))
        bar.update(len(seen) - bar.n)

    model, context = trainer.model.train(), trainer.config.context
    row = data.rows(trainer.dataset.train, np.zeros(1, np.int64), context + 1)
    cold = not any(_jit.FOLDER.rglob("*.nbc"))
    with (
        tqdm(
            desc="tinygpt: compiling kernels…",
            unit=" ops",
            file=sys.stderr,
            leave=False,
            disable=not cold,
        ) as bar,
        mt.observe(observer),
    ):
        mt.grad(model.loss(row[:, :-1], row[:, 1:]), trainer.parameters)


# ---------------------------------------------------------------------------------- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``tinygpt train``."""
    add = parser.add_argument
    add("recipe", nargs="?", help="one of those that 'tinygpt recipes' lists (default: quick)")
    add(
        "--data",
        metavar="PATH",
        help="a UTF-8 text, or a folder made by 'tinygpt data prepare' "
        "(default: the embedded stories)",
    )
    add("--out", type=Path, metavar="DIR", help="run folder (default: runs/RECIPE, numbered)")
    add("--resume", action="store_true", help="go on with the run in --out, or the latest one")
    add(
        "--threads",
        type=int,
        metavar="N",
        help="threads (default: all processors); they do not change the result",
    )
    add("--max-iters", type=int, metavar="N", help="steps")
    add("--seed", type=int, metavar="N", help="of the weights, the batches and the dropout")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="assignments",
        help="change any field of the configuration; may be repeated",
    )
    add("--config", type=Path, metavar="FILE", help="a .json, .toml or .yaml of fields")
    add("--profile", type=int, metavar="N", help="time the ops of N steps, and keep nothing")


def overrides(args: argparse.Namespace, c: Config) -> Config:
    """A configuration with the options of the command over it."""
    c = config.override(c, args.assignments)
    given = {"data": args.data, "max_iters": args.max_iters, "seed": args.seed}
    return c.replace(**{key: value for key, value in given.items() if value is not None})


def resolve(args: argparse.Namespace) -> tuple[Config, Path, Saved | None]:
    """The configuration, the run folder, and the checkpoint to go on from."""
    if args.threads is not None and args.threads < 1:
        raise UsageError(f"--threads: expected at least 1, got {args.threads}")
    if not args.resume:
        base = recipes.get(args.recipe or "quick")
        if args.config:
            base = config.load(args.config, base if args.recipe else None)
        c = overrides(args, base)
        return c, new_folder(args.out, c.name), None
    if args.config:
        raise UsageError("--config: a run goes on with its own configuration; --resume needs none")
    name = recipes.get(args.recipe).name if args.recipe else None
    out = args.out or latest_folder(name)
    if not (out / "config.json").is_file():
        raise Error(f"{out}: no run to go on with (there is no config.json)")
    saved = checkpoint.load_latest(out / "checkpoint.npz", tell)
    before = saved.config if saved else config.load(out / "config.json")
    if name and before.name != name:
        raise UsageError(f"--resume: the run in {out} is of {before.name}, not of {name}")
    c = overrides(args, before)
    changed = {key for key, value in c.to_dict().items() if before.to_dict()[key] != value}
    if changed - CHANGEABLE:
        raise UsageError(
            f"--resume: {min(changed - CHANGEABLE)} cannot be changed in a run that "
            "has begun; start a new one with another --out"
        )
    return c, out, saved


def new_folder(out: Path | None, name: str) -> Path:
    """The folder for a new run: `out`, or the first of runs/NAME, runs/NAME-2, … that is free."""
    if out is None:
        return next(path for path in _numbered(name) if not _holds_run(path))
    if _holds_run(out):
        raise Error(
            f"{out}: holds a run already; go on with it with --resume, or give another --out"
        )
    if out.exists() and not out.is_dir():
        raise Error(f"{out}: a file; --out is the folder of the run")
    return out


def latest_folder(name: str | None) -> Path:
    """The highest-numbered run of a recipe, or of all in runs/ the one that was at work last."""
    if name is None:
        every = [path for path in Path("runs").glob("*") if (path / "config.json").is_file()]
        if not every:
            raise Error("runs: no run to go on with; give its folder with --out")
        return max(every, key=lambda path: max(f.stat().st_mtime for f in path.iterdir()))
    found = None
    for path in _numbered(name):
        if not _holds_run(path):
            break
        found = path
    if found is None:
        raise Error(f"runs/{name}: no run to go on with; give its folder with --out")
    return found


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keep other processes out of a run folder; the lock goes with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    folder = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Error(f"{out}: another process is training here") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(folder)


def _numbered(name: str) -> Iterator[Path]:
    yield Path("runs") / name
    number = 2
    while True:
        yield Path("runs") / f"{name}-{number}"
        number += 1


def _holds_run(path: Path) -> bool:
    names = ("config.json", "log.jsonl", "checkpoint.npz", "model.npz")
    return any((path / name).exists() for name in names)


def fit_vocabulary(c: Config, dataset: Dataset) -> Config:
    """The configuration with the size that the tokenizer really has."""
    size = dataset.tokenizer.vocab_size
    if size == c.vocab_size:
        return c
    tell(f"tokenizer: {size:,} tokens (the configuration said {c.vocab_size:,})")
    if c.tokenizer == "reduced":
        return c.replace(vocab_size=size, reduced_from=max(size, c.reduced_from))
    return c.replace(vocab_size=size)


def check_folder(out: Path) -> None:
    """Fail before the work, not after it, where the run folder cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise Error(
            f"{out}: the run folder cannot be written: {error.strerror or error}"
        ) from error


def main(args: argparse.Namespace) -> int:
    """Run ``tinygpt train``."""
    if args.profile is not None:
        c, _, saved = resolve(args)
        return run_or_profile(args, c, None, saved)
    c, out, saved = resolve(args)
    check_folder(out)
    with alone(out):
        return run_or_profile(args, c, out, saved)


def run_or_profile(
    args: argparse.Namespace, c: Config, out: Path | None, saved: Saved | None
) -> int:
    """Train in the folder `out`, or, without one, profile some steps."""
    dataset = data.load(c, tell, saved.tokenizer if saved else None)
    c = fit_vocabulary(c, dataset)
    threads = 1 if args.profile else args.threads or cores()
    with mt.Workers(threads) as workers:
        if not workers.blas_limited:
            tell("this NumPy's BLAS cannot be kept to one thread: right results, slower steps")
        trainer = Trainer(c, dataset, workers)
        compile_kernels(trainer)
        if out is None:
            from tinygpt.profile import profile

            profile(trainer, max(1, args.profile))
            return 0
        run = Run(trainer, out, threads)
        if saved:
            run.restore(saved)
            tell(f"going on from step {run.step:,}")
        run.open()
        for line in plan(c, dataset, threads, out):
            tell(line)
        with run.log_file:
            return run.loop()
