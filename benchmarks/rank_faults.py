"""Faults on ranks: a run on several processes loses nothing, hangs nowhere, and says it failed.

    python benchmarks/rank_faults.py [--faults 20] [--seed S]

A tiny run goes on and on with 2 to 4 ranks, another number each time, and each time a random rank
is killed (SIGKILL) or stopped (SIGSTOP) at a random moment, in a save too: it saves before every
step. The run must end within a minute with a status that is not 0, and its checkpoint must load.
At the end it goes on without MPI, and its weights must be those of a run of one process that
nothing happened to. Needs `pip install 'tinygpt[mpi]'` and POSIX.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the module beside this one
from tiny_runs import tiny, train

from tinygpt.formats import checkpoint
from tinygpt.model import config

PATIENCE = 4


def start(n: int, out: Path, said: Path, *options: str) -> subprocess.Popen:
    """Train on n ranks, with their words in a file."""
    command = ["mpiexec", "-n", str(n), sys.executable, "-m", "tinygpt", "train", "--out", str(out)]
    command += ["--threads", "1", "--patience", str(PATIENCE), *options]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with said.open("wb") as handle:
        return subprocess.Popen(
            command,
            env={**os.environ, "MINITENSOR_KERNELS": "numpy", "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=subprocess.STDOUT,
        )


def processes(said: Path, launcher: subprocess.Popen) -> list[int]:
    """The ranks' processes, once the run's first lines tell them."""
    while launcher.poll() is None:
        found = re.findall(r"rank \d+ \(.*?, process (\d+)\)", said.read_text("utf-8"))
        if found:
            return [int(process) for process in found]
        time.sleep(0.02)
    raise AssertionError(said.read_text("utf-8"))


def main() -> None:
    """Run the faults, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng, counts = random.Random(args.seed), Counter[str]()
    os.environ["MINITENSOR_KERNELS"] = "numpy"
    with tempfile.TemporaryDirectory() as folder:
        out, said, recipe = (Path(folder) / name for name in ("run", "said", "c.json"))
        changes = {"checkpoint_interval": 1, "eval_interval": 50, "sample_interval": 50}
        c = tiny("pinv-0.8m").replace(schedule="constant", max_iters=10**6, **changes)
        config.save(c, recipe)
        for fault in range(args.faults):
            n = rng.choice([2, 3, 4])
            options = ["--resume"] if out.exists() else ["--config", str(recipe)]
            launcher = start(n, out, said, *options)
            ranks = processes(said, launcher)
            time.sleep(rng.uniform(0, 2))
            kind, rank = (
                rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP]),
                rng.randrange(n),
            )
            os.kill(ranks[rank], kind)
            begin = time.monotonic()
            status = launcher.wait(timeout=60)
            words = said.read_text("utf-8")
            assert status != 0, words
            assert kind != signal.SIGSTOP or f"rank {rank} (" in words.partition("no sign of")[0]
            assert "Traceback" not in words, words
            saved = checkpoint.load_latest(out / "checkpoint.npz")
            step = saved.training["step"] if saved else 0
            counts[kind.name] += 1
            print(
                f"{fault + 1}: {kind.name} of rank {rank} of {n}: status {status} after "
                f"{time.monotonic() - begin:.1f} s, saved at step {step}",
                flush=True,
            )
        end = ["--max-iters", str(step + 3)]
        subprocess.run(
            [sys.executable, "-m", "tinygpt", "train", "--resume", "--out", str(out), *end],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        whole = Path(folder) / "whole"
        assert train(c.replace(max_iters=step + 3), whole)[0] == 0
        mine, other = (checkpoint.load(path / "model.npz").params for path in (out, whole))
        assert mine.keys() == other.keys()
        assert all(mine[name].tobytes() == other[name].tobytes() for name in mine)
    print(dict(counts), "the same bits")


if __name__ == "__main__":
    main()
