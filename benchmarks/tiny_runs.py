"""Small variants of all recipes, and what must be equal of two runs of one (for the harnesses)."""

from __future__ import annotations

import contextlib
import io
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from tinygpt import cli
from tinygpt.formats import checkpoint
from tinygpt.model import config, recipes
from tinygpt.model.config import Config
from tinygpt.training.train import Trainer

BEFORE = -(1 << 53)  # all steps, those of a warm-up too


def tiny(name: str, steps: int = 12) -> Config:
    """A recipe with its own architecture, optimiser and tokenizer, but steps of milliseconds."""
    c = recipes.get(name)
    heads = 2 if c.n_head % 2 == 0 else c.n_head
    reduced = c.tokenizer == "reduced"
    return c.replace(
        name=f"tiny-{name}",
        vocab_size=290 if reduced else 300,
        reduced_from=300 if reduced else 0,
        context=16,
        n_layer=2,
        n_head=heads,
        n_kv_head=min(c.n_kv_head, heads),
        d_model=8 * heads,
        d_ff=24,
        windows=tuple(min(w, 8) for w in c.windows),
        batch_size=4,
        accumulation=min(c.accumulation, 2),
        shard_tokens=32,
        warmup=2,
        warmup_copy=min(c.warmup_copy, 4),
        max_iters=steps,
        data="stories",
        valid_fraction=0.1,
        max_documents=60,
        eval_interval=4,
        eval_batches=2,
        sample_interval=4,
        checkpoint_interval=3,
    )


def train(c: Config, out: Path, threads: int = 1, resume: bool = False) -> tuple[int, str]:
    """Train in this process. Returns the exit status and what standard error got."""
    args = ["train", "--out", str(out), "--threads", str(threads)]
    if resume:
        args.append("--resume")
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        path = out.with_name(f"{out.name}.config.json")
        config.save(c, path)
        args += ["--config", str(path)]
    messages = io.StringIO()
    with contextlib.redirect_stderr(messages), contextlib.redirect_stdout(io.StringIO()):
        status = cli.main(args)
    return status, messages.getvalue()


@contextlib.contextmanager
def interrupted(step: int) -> Iterator[None]:
    """Press Ctrl-C within the step of that number."""
    plain = Trainer.step

    def work(self: Trainer, number: int) -> tuple[float, float]:
        if number == step:
            signal.raise_signal(signal.SIGINT)
        return plain(self, number)

    with mock.patch.object(Trainer, "step", work):
        yield


def outcome(out: Path) -> dict[str, Any]:
    """All of a finished run that may not depend on what happened to it on its way."""
    saved = checkpoint.load(out / "checkpoint.npz")
    arrays = {f"param/{k}": v for k, v in saved.params.items()}
    arrays |= {f"optim/{k}": v for k, v in saved.optim.items()}
    log = [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]
    return {
        "step": saved.training["step"],
        "bits": {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in arrays.items()},
        "model": {k: v.tobytes() for k, v in checkpoint.load(out / "model.npz").params.items()},
        "best": {k: v.tobytes() for k, v in checkpoint.load(out / "best.npz").params.items()},
        "samples": (out / "samples.txt").read_bytes(),
        "losses": [(r["step"], r["loss"]) for r in log if "loss" in r],
        "copy": [(r["step"], r["copy_loss"]) for r in log if "copy_loss" in r],
        "valid": [(r["step"], r["valid_loss"]) for r in log if "valid_loss" in r],
        "litter": sorted(p.name for p in out.iterdir() if p.name.startswith(".")),
    }


def difference(mine: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What two outcomes differ in; "" if nothing."""
    return ", ".join(key for key in wanted if mine[key] != wanted[key])


def newest_step(out: Path) -> int:
    """The step of the newest checkpoint of a run that can be read; BEFORE all if there is none."""
    step = checkpoint.latest_step(out / "checkpoint.npz")
    return BEFORE if step is None else step
