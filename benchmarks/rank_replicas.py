"""The loss of replicas beside that of exact steps, at the same number of tokens.

    python benchmarks/rank_replicas.py --data shakespeare.txt [--recipe shakespeare-char]
        [--steps 1000] [--replicas 2 4] [--local-steps 10 50 250] [--optimizers adamw muon]

Every run takes the same steps of the same batches, which replicas share out among them: so each of
them sees its part of a batch only. The first row is of exact steps with several seeds, and tells
how much of a difference is chance. Takes as many processors as there are replicas, or as long.
Needs `pip install 'tinygpt[mpi]'`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tinygpt.model import recipes
from tinygpt.training.journal import read_records


def final_loss(out: Path, replicas: int, options: list[str], seed: int = 0) -> float:
    """Train on as many ranks as there are replicas; the last validation loss."""
    command = [sys.executable, "-m", "tinygpt", "train", *options, "--out", str(out)]
    command += ["--threads", "1", "--seed", str(seed)]
    if replicas > 1:
        command = ["mpiexec", "-n", str(replicas), *command]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    subprocess.run(
        command,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PATH": path},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    records, _ = read_records(out / "log.jsonl")
    return [record["valid_loss"] for record in records if "valid_loss" in record][-1]


def main() -> None:
    """Run all, and print the rows of a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", default="shakespeare-char")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3, help="of the exact runs")
    parser.add_argument("--replicas", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--local-steps", type=int, nargs="+", default=[10, 50, 250])
    parser.add_argument("--optimizers", nargs="+", default=["adamw", "muon"])
    args = parser.parse_args()
    c = recipes.get(args.recipe)
    parts = max(args.replicas)  # of a batch: each replica needs a shard of its own
    settings = {
        "shard_tokens": -(-c.batch_size // parts) * c.context,
        "checkpoint_interval": 0,
        "sample_interval": 0,
        "eval_interval": args.steps // 2,
    }
    with tempfile.TemporaryDirectory() as folder:
        for optimizer in args.optimizers:
            same = [args.recipe, "--data", str(args.data), "--max-iters", str(args.steps)]
            for key, value in {**settings, "optimizer": optimizer}.items():
                same += ["--set", f"{key}={value}"]
            out = Path(folder) / optimizer
            losses = [final_loss(out / f"exact{seed}", 1, same, seed) for seed in range(args.seeds)]
            told = ", ".join(f"{loss:.4f}" for loss in losses)
            print(f"| `{optimizer}` | exact | | {told} |", flush=True)
            for replicas in args.replicas:
                for local_steps in args.local_steps:
                    here = out / f"{replicas}-{local_steps}"
                    mine = ["--set", f"replicas={replicas}", "--set", f"local_steps={local_steps}"]
                    loss = final_loss(here, replicas, [*same, *mine])
                    print(f"| | {replicas} replicas | {local_steps} | {loss:.4f} |", flush=True)


if __name__ == "__main__":
    main()
