"""Train a recipe: batches, shards, updates, validation, samples, checkpoints.

A step cuts its sequences into shards of `shard_tokens` tokens. Threads take shards; their gradients
are added in a fixed order, so the bits of a run depend on its configuration and data alone, not on
the number of threads or on where it was interrupted. More accumulation is more shards.

With `warmup_copy` a run begins with so many steps on random sequences that repeat (copying.py).
They are the steps before 0: those on the text are numbered, drawn and scheduled as without them.

The run folder: config.json · tokenizer.json · token_counts.json (how often each token comes in the
text to train on) · log.jsonl · samples.txt · model.npz (last) · best.npz (lowest validation loss) ·
checkpoint.npz (with which a run goes on) and its predecessor. A line of log.jsonl is one of

    {"event": "start" | "resume", "step", "recipe", "parameters", "threads", "machine"}
                                          and on several ranks "ranks", "reduce"; "loss" below
                                          is rank 0's own if this is "local"
    {"step", "copy_loss", "lr", "grad_norm", "tokens", "seconds"}     the same before step 0
    {"step", "loss", "lr", "grad_norm", "tokens", "seconds"}          loss before update `step`
    {"step", "valid_loss", "valid_perplexity", "valid_bits_per_byte", "tokens", "seconds"}
    {"event": "check", "step", "old_loss", "seconds"}                 of what --from MODEL knew
    {"event": "pause", "step", "paused", "seconds"}                   the machine slept, say
    {"event": "stop" | "end", "step", "seconds"}

with losses in nats per token, tokens of the text and seconds since the start (those of pauses left
out), and null for what is not finite.
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
from bpe.terminal import counted
from minitensor import optim
from minitensor.files import sync_folder
from minitensor.parallel import part
from tinygpt import Error
from tinygpt.data import copying, streams
from tinygpt.data.streams import Dataset
from tinygpt.files import replacing
from tinygpt.formats import checkpoint
from tinygpt.formats.checkpoint import Saved
from tinygpt.machine import asleep, describe, peak_memory
from tinygpt.model import config
from tinygpt.model.config import Config
from tinygpt.model.transformer import GPT, count
from tinygpt.progress import bar, say, tell
from tinygpt.ranks import World
from tinygpt.training.journal import Journal, as_json, read_records
from tinygpt.training.optimizers import make_optimizer, pack_optimizer, unpack_optimizer
from tinygpt.training.report import StepTimes, duration, number, perplexity

Array = np.ndarray
Read = Callable[[Array], tuple[Array, Array]]  # what the model reads of a shard, and its targets
GROWING = ("log.jsonl", "samples.txt")
OVERFIT = 1.02  # times the lowest validation loss: what is above it is told
PAUSE = 30.0  # seconds without work that are logged as a pause


class Trainer:
    """A model with its optimiser and data, and the step that ties them together."""

    def __init__(self, c: Config, dataset: Dataset, workers: Any, ranks: World | None = None):
        self.config, self.dataset, self.workers, self.ranks = c, dataset, workers, ranks
        self.model = GPT(c)
        named = dict(self.model.named_parameters())
        self.optimizer = make_optimizer(c, named)
        names = {id(p): name for name, p in named.items()}
        self.in_model = list(named.values())  # in the order in which the forward uses them
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.named = [(names[id(p)], p) for p in self.parameters]  # in the optimiser's order
        order = list(named)
        self.places = [order.index(name) for name, _ in self.named]  # of these in the model's
        self.before_update: Callable[[], None] = lambda: None
        self.start: list[Array] = []  # with local steps: the weights when the replicas last met

    def restore(self, saved: Saved) -> None:
        """Take over the weights and the optimiser's state of a checkpoint."""
        self.model.load_state_dict(saved.params)
        unpack_optimizer(self.optimizer, saved.optim, saved.training["optimizer"])

    def lr(self, step: int) -> float:
        """Learning rate of a step; on the way to copying a falling one would hinder."""
        c = self.config
        if step < 0:
            return optim.constant(step + c.warmup_copy, lr=c.lr, warmup=copying.RISE)
        schedule = getattr(optim, c.schedule)
        return float(schedule(step, lr=c.lr, min_lr=c.min_lr, warmup=c.warmup, total=c.max_iters))

    def batch(self, step: int) -> tuple[list[Array], Read, int]:
        """The shards of a step, what reads one, and how many tokens the step predicts in all."""
        c = self.config
        if step < 0:
            ids, targets = copying.batch(c.seed, step, c.vocab_size, c.context)
            shards = cut(np.arange(len(ids)), c.shard_tokens // ids.shape[1])
            return shards, lambda rows: (ids[rows], targets[rows]), int((targets >= 0).sum())
        stream = self.dataset.train
        begin = streams.starts(c.seed, step, c.sequences_per_step, len(stream), c.context)

        def read(begin: Array) -> tuple[Array, Array]:
            rows = streams.rows(stream, begin, c.context + 1)
            return rows[:, :-1], rows[:, 1:]

        return cut(begin, c.shard_tokens // c.context), read, c.tokens_per_step

    def local(self, step: int) -> bool:
        """Whether each replica makes this update alone; they learn to copy together."""
        return self.config.local_steps > 0 and step >= 0

    def gradients(self, step: int, trial: bool = False) -> tuple[float, list[Array]]:
        """Mean loss over the tokens of a step, and its gradients in the order of `named`.

        A `trial` takes the step's first shard alone, on this rank alone.
        """
        c, model = self.config, self.model
        if not model.training:
            model.train()
        shards, read, tokens = self.batch(step)
        ranks, first = None if trial else self.ranks, 0
        if ranks and self.local(step):  # a replica does its own part alone
            mine = part(len(shards), ranks.rank, ranks.size)
            shards, ranks, first = [shards[i] for i in mine], None, mine.start
            tokens = sum(map(len, shards)) * c.context

        def loss(shard: Array, index: int, *derived: mt.Tensor) -> mt.Tensor:
            ids, targets = read(shard)
            key = mt.fold(c.seed, step, first + index)
            head = derived[0] if derived else None
            return model.loss(ids, targets, key, head) * (1 / tokens)

        derive = (lambda: [model.head_weight()]) if c.head == "pinv" else None
        value, grads = mt.value_and_grad(
            loss,
            self.in_model,
            shards[:1] if trial else shards,
            workers=self.workers,
            derive=derive,
            ranks=ranks,
        )
        return float(value), [grads[i] for i in self.places]

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
        if self.local(step) and step % c.local_steps == 0:
            self.start = [p.data.copy() for p in self.parameters]
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(step) * group.get("lr_scale", 1.0)
        scale = min(1.0, c.grad_clip / (norm + 1e-6)) if c.grad_clip else 1.0
        with np.errstate(all="ignore"):  # what overflows is found before it is saved
            self.optimizer.step(grads, scale=scale, workers=self.workers)
            if self.local(step) and (step + 1) % c.local_steps == 0:
                self.optimizer.meet(self.start, self.ranks, self.workers)
        return loss, norm

    def compare_ranks(self, step: int) -> None:
        """Raise Error, on all ranks, if their weights are not the same."""
        if self.ranks:
            self.ranks.compare_weights(step, [p.data for p in self.parameters])

    def log_of_ranks(self) -> dict[str, Any]:
        """What the log says of the ranks when a run starts or goes on."""
        if not self.ranks:
            return {}
        way = "local" if self.config.local_steps else "exact" if self.ranks.exact else "fast"
        return {"ranks": self.ranks.size, "reduce": way}

    def stopping(self, step: int, received: list[int]) -> int:
        """The signal that ends the run before this step, 0 if there is none: all ranks have to stop
        together, and replicas where they have met."""
        number = received[0] if received else 0
        if self.local(step) and step % self.config.local_steps:
            return 0
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
        """Mean validation loss in nats a token, over evenly spread sequences; None without any.

        Ranks share the sequences out: all of them have to call.
        """
        c, stream = self.config, self.dataset.valid
        if len(stream) < 2:
            return None
        length = min(c.context, len(stream) - 1)
        begin = streams.even_starts(c.eval_batches * c.batch_size, len(stream), length)
        shards = cut(streams.rows(stream, begin, length + 1), c.shard_tokens // c.context)
        model = self.model.eval()
        with mt.no_grad(), np.errstate(all="ignore"):
            head = model.head_weight()

        def loss(shard: Array) -> float:
            with mt.no_grad(), np.errstate(all="ignore"):
                return model.loss(shard[:, :-1], shard[:, 1:], head=head).item()

        if not self.ranks:
            return sum_up(self.workers.map(loss, shards)) / (len(begin) * length)
        mine = part(len(shards), self.ranks.rank, self.ranks.size)
        losses = self.workers.map(lambda i: loss(shards[i]), mine)
        return sum_up(self.ranks.gather(losses)) / (len(begin) * length)

    def validation_due(self, step: int) -> bool:
        """Whether there is to be a validation before this step, or at the end."""
        c = self.config
        return (step >= 0 and due(step, c.eval_interval)) or step >= c.max_iters

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


def cut(rows: Array, most: int) -> list[Array]:
    """Sequences (or where they begin) in equal shards of at most `most` (but at least one).

    Their number is even if there are several, so that two threads finish together.
    """
    shards = -(-len(rows) // max(1, most))
    return np.array_split(rows, min(len(rows), shards + (shards > 1) * shards % 2))


class Run:
    """A training run and its folder."""

    def __init__(self, trainer: Trainer, out: Path):
        self.trainer, self.out = trainer, out
        self.config, self.dataset = trainer.config, trainer.dataset
        self.step = -trainer.config.warmup_copy  # those before 0 are the warm-up on copying
        self.shown = False  # whether the events of `step` are already in the log
        self.best = math.inf  # validation loss
        self.latest = 0.0
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
        with replacing(self.out / "token_counts.json") as handle:
            handle.write(json.dumps(self.dataset.token_counts()).encode())
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
        params = {name: p.data for name, p in self.trainer.model.named_parameters()}
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
            event="resume" if self.step > -c.warmup_copy else "start",
            step=self.step,
            recipe=c.name,
            parameters=sum(count(c)),
            threads=self.trainer.workers.threads,
            machine=describe(),
            **self.trainer.log_of_ranks(),
        )
        times = StepTimes(c.tokens_per_step)
        with signals() as received:
            by = self.steps_to(0, StepTimes(copying.tokens(c.context)), received)
            if by is None:
                by = self.steps_to(c.max_iters, times, received)
            if by is not None:
                return self.stop(by)
            self.trainer.try_step(self.step)  # no other comes to show that the weights are sound
            if not self.shown:
                self.show()
                self.shown = True
            self.trainer.compare_ranks(self.step)
            self.save()
        return self.finish(times)

    def steps_to(self, last: int, times: StepTimes, received: list[int]) -> int | None:
        """Do the steps before `last`, of one kind: of the warm-up, or of the text.

        Returns None, or what is to end the run before its time: a signal's number, 0 for the
        callback.
        """
        c = self.config
        first, kind = (0, "steps") if last > 0 else (-c.warmup_copy, "steps of copying")
        done = min(self.step, last) - first
        with bar(last - first, kind, initial=done, disable=last == 0 <= self.step) as steps:
            while self.step < last:
                if not self.shown:
                    self.show()
                    self.shown = True
                    begins = self.step == -c.warmup_copy
                    self.due = begins or due(self.step, c.checkpoint_interval)
                loss = self.advance(times)
                now = f"loss {loss:.3f}, {times.rate():,.0f} tokens/s"
                steps.set_postfix_str(now, refresh=False)
                steps.update()
                if times.enough():
                    tell(
                        f"a step{kind.removeprefix('steps')} takes {times.median() * 1e3:.0f} ms "
                        f"here: about {duration((last - self.step) * times.median())} to go; "
                        f"memory in use {peak_memory()}"
                    )
                by = self.trainer.stopping(self.step, received)
                if self.step < c.max_iters and (by or self.stopping):
                    return by
        return None

    def advance(self, times: StepTimes) -> float:
        """One step, logged and timed. Returns its loss."""
        c, step = self.config, self.step
        begin = time.perf_counter()
        loss, norm = self.trainer.step(step)
        self.notice_pause(time.perf_counter() - begin - self.saving, times)
        if due(step, c.log_interval):
            self.log(
                step=step,
                **{"copy_loss" if step < 0 else "loss": round(loss, 6)},
                lr=float(f"{self.trainer.lr(step):.6g}"),
                grad_norm=round(norm, 6),
                tokens=max(step, 0) * c.tokens_per_step,
                seconds=round(self.elapsed(), 3),
            )
        self.step, self.shown = step + 1, False
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
        """Validate and sample, where that is due before this step, or at the end; what a model says
        of the text before it has seen any is not worth a look.
        """
        c, step, end = self.config, self.step, self.step >= self.config.max_iters
        if step < 0:
            return
        if self.trainer.validation_due(step):
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
                self.latest = loss
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
        by = signal.Signals(number).name if number else "the callback"
        tell(
            f"stopped by {by} and saved {self.where()}; go on with "
            f"'tinygpt train --resume --out {shlex.quote(str(self.out))}'"
        )
        return 128 + number if number else 0

    def where(self) -> str:
        """How far the run is, in words."""
        c, step = self.config, self.step
        if step < 0:
            return f"after {step + c.warmup_copy:,} of {c.warmup_copy:,} steps of copying"
        return f"at step {step:,}"

    def finish(self, times: StepTimes) -> int:
        """Log the end, and say where the model is."""
        self.log(event="end", step=self.step, seconds=round(self.elapsed(), 3))
        if not self.trainer.ranks:
            times.remember(self.config, self.trainer.workers.threads)
        tell(
            f"{counted(self.step, 'step')} in {duration(self.elapsed())}, peak memory "
            f"{peak_memory()}; the model is {self.out / 'model.npz'}; write with it: "
            f"'tinygpt generate {shlex.quote(str(self.out))}'"
        )
        if self.latest > OVERFIT * self.best:
            tell(
                f"the validation loss was lower before: {self.best:.4f}, where it is "
                f"{self.latest:.4f} now; those weights are in {self.out / 'best.npz'}. The model "
                "learns its text by heart: more text, fewer steps, or a trained one (--from) help"
            )
        return 0


def follow(trainer: Trainer, step: int, shown: bool) -> int:
    """Do the steps of a run on a rank that writes nothing, until rank 0's `Run` is done.

    `shown` is whether the run was judged at this step before it was interrupted.
    """
    by = 0
    with signals() as received:
        while step < trainer.config.max_iters:
            if not shown and trainer.validation_due(step):
                trainer.validate()
            trainer.step(step)
            step, shown = step + 1, False
            by = trainer.stopping(step, received)
            if by and step < trainer.config.max_iters:
                break
        else:
            by = 0
            if not shown:
                trainer.validate()
        trainer.compare_ranks(step)
    return 128 + by if by else 0


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
