"""The bits of a recipe on several numbers of ranks, killed and gone on with on other numbers.

    python benchmarks/rank_bits.py [--recipe quick] [--steps 8] [--copying 4] [--ranks 1 2 3 4 8]

Trains a few steps on each number of ranks (1 is without MPI), with a few of the warm-up on copying
before them, and prints a hash of the weights. Then one run goes on from number to number: each but
the last is killed (SIGKILL of its last rank) once it has saved again. All hashes must be one. Needs
`pip install 'tinygpt[mpi]'` and POSIX.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tinygpt.formats import checkpoint


def start(n: int, out: Path, said: Path, options: list[str]) -> subprocess.Popen:
    """Train on n ranks, with their words in a file."""
    command = [sys.executable, "-m", "tinygpt", "train", "--out", str(out), "--threads", "1"]
    if n > 1:
        command = ["mpiexec", "-n", str(n), *command]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with said.open("wb") as handle:
        return subprocess.Popen(
            [*command, *options],
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=subprocess.STDOUT,
        )


def digest(out: Path) -> str:
    """SHA-256 of the weights of a finished run."""
    hashed = hashlib.sha256()
    for name, value in checkpoint.load(out / "model.npz").params.items():
        hashed.update(name.encode() + value.tobytes())
    return hashed.hexdigest()[:16]


def newest(out: Path) -> float:
    """The step of the newest checkpoint, which is below 0 in the warm-up; minus infinity: none."""
    step = checkpoint.latest_step(out / "checkpoint.npz")
    return -math.inf if step is None else step


def main() -> None:
    """Run all, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", default="quick")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--copying", type=int, default=4)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3, 4, 8])
    args = parser.parse_args()
    new = [args.recipe, "--max-iters", str(args.steps)]
    new += ["--set", "checkpoint_interval=1", "--set", "eval_batches=2"]
    new += ["--set", f"warmup_copy={args.copying}"]
    hashes = set()
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        for n in args.ranks:
            out = Path(folder) / str(n)
            assert start(n, out, said, new).wait() == 0, said.read_text("utf-8")
            hashes.add(digest(out))
            print(f"{n} ranks: {digest(out)}", flush=True)
        out, options = Path(folder) / "killed", new
        for n in args.ranks[:0:-1]:  # by MPI
            run, before = start(n, out, said, options), newest(out)
            while run.poll() is None and newest(out) < max(before, -args.copying) + 2:
                time.sleep(0.02)
            words = said.read_text("utf-8")
            if run.poll() is None:
                last = re.findall(rf"rank {n - 1} \(.*?, process (\d+)\)", words)
                os.kill(int(last[-1]), signal.SIGKILL)
            assert run.wait() == signal.SIGKILL, words
            print(f"killed on {n} ranks: the checkpoint is of step {newest(out)}", flush=True)
            options = ["--resume"]
        assert start(1, out, said, options).wait() == 0, said.read_text("utf-8")
        hashes.add(digest(out))
        print(f"gone on with on 1: {digest(out)}")
    assert len(hashes) == 1, hashes


if __name__ == "__main__":
    main()
