"""A long run needs no more at its end than at its beginning, and a pause is in its log.

    python benchmarks/long_run.py [--steps 20000] [--tokens 1000000] [--threads N]

Trains a tiny model with samples, validations and checkpoints, then generates, and looks at this
process's memory, descriptors and threads on the way (Linux: /proc). Then it stops a training
process with SIGSTOP for a few seconds, and finds the pause in its log, told once and not counted as
training.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the module beside this one
from tiny_runs import tiny, train
from tqdm import tqdm

from tinygpt.formats import checkpoint
from tinygpt.model.sample import generate_many
from tinygpt.training import train as training
from tinygpt.training.train import Trainer

tqdm.monitor_interval = 0  # its thread may hold a lock while a process is forked
LOOKS = 20
GROWTH = 3.0  # MB that the second half of a run may add to memory: the allocator's, not a leak


def resources() -> tuple[float, int, int]:
    """Resident memory in MB, open descriptors, threads."""
    status = Path("/proc/self/status").read_text("utf-8")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    memory = int(fields["VmRSS"].split()[0]) / 1e3
    return memory, len(os.listdir("/proc/self/fd")), int(fields["Threads"])


def judge(what: str, looks: list[tuple[float, int, int]]) -> None:
    """Print what was seen in the second half; AssertionError where it grows."""
    first, later = looks[: len(looks) // 2], looks[len(looks) // 2 :]
    memory = [look[0] for look in later]
    print(
        f"{what}: {memory[0]:.1f} MB at the middle, {memory[-1]:.1f} at the end; descriptors "
        f"{sorted({look[1] for look in later})}, threads {sorted({look[2] for look in later})}",
        flush=True,
    )
    more = any(max(look[i] for look in later) > max(look[i] for look in first) for i in (1, 2))
    if memory[-1] - memory[0] > GROWTH or more:
        raise AssertionError(f"{what}: not flat: {looks}")


def train_long(folder: Path, steps: int, threads: int) -> None:
    """Train for so many steps, looking `LOOKS` times."""
    c = tiny("quick", steps).replace(
        eval_interval=500, sample_interval=1000, checkpoint_interval=250, lr=1e-4
    )
    looks: list[tuple[float, int, int]] = []
    plain = Trainer.step

    def step(self: Trainer, number: int) -> tuple[float, float]:
        if number % max(1, steps // LOOKS) == max(1, steps // LOOKS) - 1:
            gc.collect()
            looks.append(resources())
        return plain(self, number)

    with mock.patch.object(Trainer, "step", step):
        status, told = train(c, folder / "long", threads)
    if status:
        raise AssertionError(told[-500:])
    judge(f"{steps:,} steps", looks)


def generate_long(model: Path, tokens: int) -> None:
    """Draw so many tokens, 64 sequences at a time, looking `LOOKS` times."""
    saved = checkpoint.load(model)
    looks = []
    each = tokens // (LOOKS * 64)
    for n in range(LOOKS):
        for _ in generate_many(saved, [[1]] * 64, max_new_tokens=each, seed=n):
            pass
        gc.collect()
        looks.append(resources())
    judge(f"{each * 64 * LOOKS:,} tokens", looks)


def pause(folder: Path, seconds: float = 4.0) -> None:
    """Stop a training process for a while, and read of it in its log."""
    c = tiny("quick", 2000).replace(eval_interval=0, sample_interval=0, checkpoint_interval=0)
    out = folder / "paused"
    pid = os.fork()
    if pid == 0:
        with mock.patch.object(training, "PAUSE", seconds / 2):
            os._exit(train(c, out)[0])
    log = out / "log.jsonl"
    while not (log.exists() and '{"step": 100, "loss"' in log.read_text("utf-8")):
        time.sleep(0.01)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)
    _, status = os.waitpid(pid, 0)
    records = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    paused = [r["paused"] for r in records if r.get("event") == "pause"]
    print(f"stopped for {seconds} s: the log has a pause of {paused} s")
    if status or len(paused) != 1 or abs(paused[0] - seconds) > seconds / 2:
        raise AssertionError(f"status {status}, pauses {paused}")


def main() -> None:
    """All three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000, metavar="N")
    parser.add_argument("--tokens", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        pause(folder)
        train_long(folder, args.steps, args.threads)
        generate_long(folder / "long" / "model.npz", args.tokens)


if __name__ == "__main__":
    main()
