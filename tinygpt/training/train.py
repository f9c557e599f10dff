"""Train a recipe: batches, shards, updates, validation, samples, checkpoints.

A step cuts its sequences into shards of `shard_tokens` tokens. Threads take shards; their gradients
are added in a fixed order, so the bits of a run depend on its configuration and data alone, not on
the number of threads or on where it was interrupted. More accumulation is more shards.

The run folder: config.json · tokenizer.json · log.jsonl · samples.txt · model.npz (last) · best.npz
(lowest validation loss) · checkpoint.npz (with which a run goes on) and its predecessor. A line of
log.jsonl is one of

    {"event": "start" | "resume", "step", "recipe", "parameters", "threads"}
                                          and on several ranks "ranks", "reduce"
    {"step", "loss", "lr", "grad_norm", "tokens", "seconds"}          loss before update `step`
    {"step", "valid_loss", "valid_perplexity", "valid_bits_per_byte", "tokens", "seconds"}
    {"event": "check", "step", "old_loss", "seconds"}                 of what --from MODEL knew
    {"event": "pause", "step", "paused", "seconds"}                   the machine slept, say
    {"event": "stop" | "end", "step", "seconds"}

with losses in nats per token, tokens and seconds since the start (those of pauses left out), and
null for what is not finite.
"""

from __future__ import annotations

import json
import math
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import minitensor as mt
from minitensor import optim
from minitensor.files import sync_folder
from tinygpt import Error
from tinygpt.data import streams
from tinygpt.data.streams import Dataset
from tinygpt.files import replacing
from tinygpt.formats import checkpoint
from tinygpt.formats.checkpoint import Saved
from tinygpt.machine import asleep, peak_memory
from tinygpt.model import config
from tinygpt.model.config import Config
from tinygpt.model.transformer import GPT, count
from tinygpt.progress import bar
from tinygpt.training.journal import Journal, as_json, read_records
from tinygpt.training.optimizers import make_optimizer, pack_optimizer, unpack_optimizer
from tinygpt.training.ranks import World
from tinygpt.training.report import StepTimes, duration, number, perplexity, say, tell

Array = np.ndarray
GROWING = ("log.jsonl", "samples.txt")
PAUSE = 30.0  # seconds without work that are logged as a pause


class Trainer:
    """A model with its optimiser and data, and the step that ties them together."""

    def __init__(self, c: Config, dataset: Dataset, workers: Any, ranks: World | None = None):
        self.config, self.dataset, self.workers, self.ranks = c, dataset, workers, ranks
        self.model = GPT(c)
        self.optimizer = make_optimizer(c, dict(self.model.named_parameters()))
        names = {id(p): name for name, p in self.model.named_parameters()}
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.named = [(names[id(p)], p) for p in self.parameters]  # gradients come in this order
        self.before_update: Callable[[], None] = lambda: None

    def restore(self, saved: Saved) -> None:
        """Take over the weights and the optimiser's state of a checkpoint."""
        self.model.load_state_dict(saved.params)
        unpack_optimizer(self.optimizer, saved.optim, saved.training["optimizer"])

    def lr(self, step: int) -> float:
        """Learning rate of a step."""
        c = self.config
        schedule = getattr(optim, c.schedule)
        return float(schedule(step, lr=c.lr, min_lr=c.min_lr, warmup=c.warmup, total=c.max_iters))

    def gradients(self, step: int, trial: bool = False) -> tuple[float, list[Array]]:
        """Mean loss over the tokens of a step, and its gradients in the order of `named`.

        A `trial` takes the step's first shard alone, on this rank alone.
        """
        c, model = self.config, self.model
        begin = streams.starts(
            c.seed, step, c.sequences_per_step, len(self.dataset.train), c.context
        )
        if not model.training:
            model.train()

        def loss(begin: Array, index: int, *derived: mt.Tensor) -> mt.Tensor:
            shard = streams.rows(self.dataset.train, begin, c.context + 1)
            key = mt.fold(c.seed, step, index)
            head = derived[0] if derived else None
            return model.loss(shard[:, :-1], shard[:, 1:], key, head) * (1 / c.tokens_per_step)

        derive = (lambda: [model.head_weight()]) if c.head == "pinv" else None
        value, grads = mt.value_and_grad(
            loss,
            self.parameters,
            cut(begin, c)[:1] if trial else cut(begin, c),
            workers=self.workers,
            derive=derive,
            ranks=None if trial else self.ranks,
        )
        return float(value), grads

    def try_step(self, step: int) -> None:
        """Raise Error if nobody could go on with the weights: finite, but at 1e30, say."""
        with np.errstate(all="ignore"):
            loss, grads = self.gradients(step, trial=True)
            norm = optim.grad_norm(grads)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise Error(self._not_finite(step, loss, grads, "saved"))

    def step(self, step: int) -> tuple[float, float]:
        """One update. Returns the loss before it and the norm of the gradient.

        Raises Error, before anything is changed, if either is not finite; if they are, the weights
        are worth a checkpoint, for which `before_update` is called.
        """
        c = self.config
        with np.errstate(all="ignore"):  # what is not finite is told below, once and by name
            loss, grads = self.gradients(step)
            norm = optim.grad_norm(grads, workers=self.workers)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise Error(self._not_finite(step, loss, grads, "updated"))
        if due(step, c.checkpoint_interval):
            self.compare_ranks(step)
        self.before_update()
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(step) * group.get("lr_scale", 1.0)
        scale = min(1.0, c.grad_clip / (norm + 1e-6)) if c.grad_clip else 1.0
        with np.errstate(all="ignore"):  # what overflows is found before it is saved
            self.optimizer.step(grads, scale=scale, workers=self.workers)
        return loss, norm

    def compare_ranks(self, step: int) -> None:
        """Raise Error, on all ranks, if their weights are not the same."""
        if self.ranks:
            self.ranks.compare_weights(step, [p.data for p in self.parameters])

    def log_of_ranks(self) -> dict[str, Any]:
        """What the log says of the ranks when a run starts or goes on."""
        if not self.ranks:
            return {}
        return {"ranks": self.ranks.size, "reduce": "exact" if self.ranks.exact else "fast"}

    def stopping(self, received: list[int]) -> int:
        """The signal that ends the run, 0 if there is none: all ranks have to stop together."""
        number = received[0] if received else 0
        return self.ranks.most(number) if self.ranks else number

    def _not_finite(self, step: int, loss: float, grads: list[Array], what: str) -> str:
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
            f"step {step}: the loss is {loss:.4g} and {where}; nothing was {what}; try a "
            f"lower lr (now {self.config.lr:g}) or a longer warmup"
        )

    def validate(self) -> float | None:
        """Mean validation loss in nats a token, over evenly spread sequences; None without any."""
        c, stream = self.config, self.dataset.valid
        if len(stream) < 2:
            return None
        length = min(c.context, len(stream) - 1)
        begin = streams.even_starts(c.eval_batches * c.batch_size, len(stream), length)
        shards = cut(streams.rows(stream, begin, length + 1), c)
        model = self.model.eval()
        with mt.no_grad(), np.errstate(all="ignore"):
            head = model.head_weight()

        def loss(shard: Array) -> float:
            with mt.no_grad(), np.errstate(all="ignore"):
                return model.loss(shard[:, :-1], shard[:, 1:], head=head).item()

        return sum_up(self.workers.map(loss, shards)) / (len(begin) * length)

    def sample(self, step: int) -> str:
        """A text from the empty prompt, of at most two contexts and 1,024 tokens."""
        from tinygpt.model.sample import sample_text

        c = self.config
        return sample_text(
            self.model.eval(),
            self.dataset.tokenizer,
            max_new_tokens=min(c.context * 2, 1024),
            seed=mt.fold(c.seed, step) & 0x7FFFFFFF,
        )


def sum_up(losses: list[float]) -> float:
    """The exact sum of numbers, rounded once; NaN where one is not finite."""
    return math.fsum(losses) if all(map(math.isfinite, losses)) else math.nan


def cut(rows: Array, c: Config) -> list[Array]:
    """Sequences (or where they begin) in equal shards of at most `shard_tokens` tokens (but at
    least one sequence).

    Their number is even if there are several, so that two threads finish together.
    """
    most = max(1, c.shard_tokens // c.context)
    shards = -(-len(rows) // most)
    return np.array_split(rows, min(len(rows), shards + (shards > 1) * shards % 2))


class Run:
    """A training run and its folder."""

    def __init__(self, trainer: Trainer, out: Path):
        self.trainer, self.out = trainer, out
        self.config, self.dataset = trainer.config, trainer.dataset
        self.step = 0
        self.shown = False  # whether the events of `step` are already in the log
        self.best = math.inf
        self.seconds = 0.0  # spent before this process
        self.started = time.perf_counter()
        self.slept = asleep()
        self.due = False  # whether a checkpoint of `step` is to be written
        self.saving = 0.0  # seconds of this step that writing it took
        trainer.before_update = self.save_if_due
        self.good = True  # whether the checkpoint in the folder, if any, is worth keeping
        self.sizes = dict.fromkeys(GROWING, 0)  # what the checkpoint knows of these files
        self.journals: dict[str, Journal] = {}
        self.origin: list[dict[str, Any]] = []  # the models that the weights come from, last first
        self.callback: Callable[[dict[str, Any]], Any] = lambda record: None
        self.stopping = False  # whether the callback asked for the end

    # ---- files

    def start_from(self, saved: Saved, origin: list[dict[str, Any]]) -> None:
        """Begin with the weights of a model, before `open`.

        They are put on disk at once: a run that is killed then goes on from them, not from others.
        """
        self.trainer.model.load_state_dict(saved.params)
        self.origin = origin
        self.save()

    def restore(self, saved: Saved) -> None:
        """Go on from a checkpoint; `open` cuts off what was logged after it."""
        t = saved.training
        if t["data_sha256"] != self.dataset.sha256:
            raise Error(
                f"{self.config.data}: not the data that the run in {self.out} was trained "
                "on; give that with --data, or start a new run"
            )
        self.trainer.restore(saved)
        self.step, self.shown, self.seconds = t["step"], t["shown"], t["seconds"]
        self.best = math.inf if t["best"] is None else t["best"]
        self.origin = saved.provenance.get("from", [])
        for name in GROWING:  # and no other name: a checkpoint may come from anywhere
            self.sizes[name] = t["sizes"].get(name, 0)

    def open(self) -> None:
        """Write what describes the run; open log and samples, as long as the checkpoint says."""
        with replacing(self.out / "tokenizer.json") as handle:
            handle.write(json.dumps(self.dataset.tokenizer.to_dict(), ensure_ascii=False).encode())
        with replacing(self.out / "config.json") as handle:
            handle.write(config.dumps(self.config, ".json").encode())
        for name in GROWING:
            self.journals[name] = Journal(self.out / name)
        sync_folder(self.out)
        if not self.journals["log.jsonl"].cut(self.sizes["log.jsonl"]):
            self._tell_what_is_missing()
        self.journals["samples.txt"].cut(self.sizes["samples.txt"])

    def _tell_what_is_missing(self) -> None:
        path = self.out / "log.jsonl"
        steps = [r["step"] for r in read_records(path)[0] if "loss" in r and "step" in r]
        first = int(steps[-1]) + 1 if steps and isinstance(steps[-1], int) else 0
        if first < self.step:
            tell(
                f"{path}: what steps {first:,} to {self.step - 1:,} logged is missing, the file "
                "is shorter than the checkpoint says; the run itself lacks nothing"
            )

    def close(self) -> None:
        """Let go of the files."""
        for journal in self.journals.values():
            journal.close()

    def log(self, **record: Any) -> None:
        """One line of log.jsonl, on its way to disk at once; the callback may ask for the end."""
        self.journals["log.jsonl"].append(as_json(record) + "\n")
        answer = self.callback(record)
        truth = isinstance(answer, (bool, np.bool_)) and bool(answer)
        self.stopping |= truth or (isinstance(answer, str) and answer == "stop")

    def snapshot(self, training: bool) -> Saved:
        """What a model file or a checkpoint holds at this moment.

        Raises Error if weights or moments are not finite: no run could go on with them.
        """
        c, dataset = self.config, self.dataset
        params = {name: p.numpy() for name, p in self.trainer.model.named_parameters()}
        about = checkpoint.provenance(c, dataset.tokenizer, self.step, dataset.sha256)
        if self.origin:
            about["from"] = self.origin
        saved = Saved(c, dataset.tokenizer, params, about)
        if training:
            saved.optim, state = pack_optimizer(self.trainer.optimizer)
            saved.training = {
                "step": self.step,
                "shown": self.shown,
                "optimizer": state,
                "best": self.best if math.isfinite(self.best) else None,
                "seconds": self.elapsed(),
                "data_sha256": dataset.sha256,
                "sizes": {name: journal.sync() for name, journal in self.journals.items()},
            }
        for name, value in [*saved.params.items(), *saved.optim.items()]:
            if not np.isfinite(value).all():
                raise Error(
                    f"step {self.step}: {name} is not finite; nothing was saved; try a lower lr "
                    f"(now {c.lr:g}) or a longer warmup"
                )
        return saved

    def save(self) -> None:
        """Write the checkpoint, keeping the one before, and the model."""
        checkpoint.save(self.out / "checkpoint.npz", self.snapshot(True), keep=self.good)
        self.good = True
        checkpoint.save(self.out / "model.npz", self.snapshot(False))

    def save_if_due(self) -> None:
        """Save before an update, once the loss has shown that the weights are sound."""
        begin = time.perf_counter()
        if self.due:
            self.save()
        self.due, self.saving = False, time.perf_counter() - begin

    def elapsed(self) -> float:
        """Seconds of training, over all the processes of this run."""
        return self.seconds + time.perf_counter() - self.started

    # ---- the loop

    def loop(self) -> int:
        """Train to the end or until a signal. Returns the exit status.

        Raises Error, which tells where the last good checkpoint is, when it cannot go on.
        """
        try:
            return self._loop()
        except Error as error:
            raise Error(f"{error}{kept(self.out)}") from error

    def _loop(self) -> int:
        c = self.config
        if self.step >= c.max_iters:
            tell(f"the run was finished at step {self.step:,}; a larger --max-iters goes on")
        self.log(
            event="resume" if self.step else "start",
            step=self.step,
            recipe=c.name,
            parameters=sum(count(c)),
            threads=self.trainer.workers.threads,
            **self.trainer.log_of_ranks(),
        )
        times = StepTimes(c)
        steps = bar(c.max_iters, "steps", initial=min(self.step, c.max_iters))
        with steps, signals() as received:
            while self.step < c.max_iters:
                if not self.shown:
                    self.show()
                    self.shown = True
                    self.due = self.step == 0 or due(self.step, c.checkpoint_interval)
                loss = self.advance(times)
                now = f"loss {loss:.3f}, {times.rate():,.0f} tokens/s"
                steps.set_postfix_str(now, refresh=False)
                steps.update()
                by = self.trainer.stopping(received)
                if self.step < c.max_iters and (by or self.stopping):
                    return self.stop(by)
            self.trainer.try_step(self.step)  # no other comes to show that the weights are sound
            if not self.shown:
                self.show()
                self.shown = True
            self.trainer.compare_ranks(self.step)
            self.save()
        return self.finish(times)

    def advance(self, times: StepTimes) -> float:
        """One step, logged and timed. Returns its loss."""
        c, step = self.config, self.step
        begin = time.perf_counter()
        loss, norm = self.trainer.step(step)
        self.notice_pause(time.perf_counter() - begin - self.saving, times)
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

    def notice_pause(self, seconds: float, times: StepTimes) -> None:
        """Take in the duration of a step; log a pause if the process stood still in it.

        The clock of `elapsed` stands still while the machine sleeps, but not while the process is
        stopped: that shows as a step far longer than the others, and is taken off.
        """
        usual = times.median() if times.enough_known() else seconds
        idle = seconds - usual if seconds - usual > max(PAUSE, 10 * usual) else 0.0
        slept, self.slept = asleep() - self.slept, asleep()
        times.add(seconds - idle)
        self.started += idle
        if idle + slept > PAUSE:
            self.log(
                event="pause",
                step=self.step,
                paused=round(idle + slept, 1),
                seconds=round(self.elapsed(), 3),
            )
            tell(f"step {self.step:,}: nothing was done for {duration(idle + slept)}; going on")

    def show(self) -> None:
        """Validate and sample, where that is due before this step, or at the end."""
        c, step, end = self.config, self.step, self.step >= self.config.max_iters
        if due(step, c.eval_interval) or end:
            loss = self.trainer.validate()
            if loss is not None:
                bits = self.dataset.bits_per_byte(loss)
                self.log(
                    step=step,
                    valid_loss=round(loss, 6),
                    valid_perplexity=perplexity(loss),
                    valid_bits_per_byte=round(bits, 6),
                    tokens=step * c.tokens_per_step,
                    seconds=round(self.elapsed(), 3),
                )
                say(
                    f"step {step:,}: validation loss {loss:.4f}, perplexity "
                    f"{number(perplexity(loss))}, {bits:.4f} bits per byte"
                )
                if not math.isfinite(loss):
                    raise Error(
                        f"step {step}: the validation loss is not finite; try a lower lr (now "
                        f"{c.lr:g}) or a longer warmup"
                    )
                if loss < self.best:
                    self.best = loss
                    checkpoint.save(self.out / "best.npz", self.snapshot(False))
        if step and (due(step, c.sample_interval) or end):
            text = self.trainer.sample(step)
            self.journals["samples.txt"].append(f"=== step {step} ===\n{text}\n\n")
            say(f"--- a sample at step {step:,} ---\n{text.strip()}\n---")

    def stop(self, number: int) -> int:
        """Save after a signal, or 0 for the callback's wish, and say how to go on.

        Returns the exit status.
        """
        self.log(event="stop", step=self.step, seconds=round(self.elapsed(), 3))
        self.trainer.try_step(self.step)
        self.trainer.compare_ranks(self.step)
        self.save()
        tell(
            f"stopped by {signal.Signals(number).name if number else 'the callback'} and saved at "
            f"step {self.step:,}; "
            f"go on with: tinygpt train --resume --out {shlex.quote(str(self.out))}"
        )
        return 128 + number if number else 0

    def finish(self, times: StepTimes) -> int:
        """Log the end, and say where the model is."""
        self.log(event="end", step=self.step, seconds=round(self.elapsed(), 3))
        if not self.trainer.ranks:
            times.remember(self.trainer.workers.threads)
        tell(
            f"{self.step:,} steps in {duration(self.elapsed())}, peak memory "
            f"{peak_memory()}; the model is {self.out / 'model.npz'}; write with it: "
            f"tinygpt generate {shlex.quote(str(self.out / 'model.npz'))}"
        )
        return 0


def follow(trainer: Trainer, step: int) -> int:
    """Do the steps of a run on a rank that writes nothing, until rank 0's `Run` is done."""
    by = 0
    with signals() as received:
        while step < trainer.config.max_iters and not by:
            trainer.step(step)
            step += 1
            by = trainer.stopping(received)
        trainer.compare_ranks(step)
    return 128 + by if by and step < trainer.config.max_iters else 0


def kept(out: Path) -> str:
    """What an error says of the last good checkpoint, if there is one."""
    good = checkpoint.latest_step(out / "checkpoint.npz")
    return "" if good is None else f"; the last good checkpoint, of step {good}, is in {out}"


def due(step: int, interval: int) -> bool:
    """Whether something done every `interval` steps (0: never) is due at this one."""
    return interval > 0 and step % interval == 0


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second one interrupts at once.

    It raises KeyboardInterrupt, whose argument is the signal's number. Only a process's main thread
    can do so; in others nothing is collected.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def handler(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt(number)
        received.append(number)
        tell("stopping after this step")

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, old in before.items():
            signal.signal(number, old)
