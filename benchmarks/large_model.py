"""A model of GPT-2's size comes in, and a run goes on from it: memory and seconds.

    python benchmarks/large_model.py [--dtype float32] [--shards 1] [--steps 2]

Writes a folder of Hugging Face with random weights of GPT-2's shape (124 million parameters: 498 MB
as float32), as one file or in shards with an index. Then `tinygpt import`, and `tinygpt train
--from` with a short text, each in a process of its own, whose peak memory the system tells.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np

import bpe
from tinygpt.data import stories
from tinygpt.formats import families
from tinygpt.formats.huggingface import INDEX, library
from tinygpt.model.config import Config
from tinygpt.model.transformer import layout

GPT2 = Config(
    name="gpt2",
    vocab_size=50_257,
    context=1024,
    n_layer=12,
    n_head=12,
    d_model=768,
    d_ff=3072,
    ffn="gelu_tanh",
    head="tied",
)


def write(folder: Path, dtype: str, shards: int) -> None:
    """A folder as others write it, without our configuration."""
    rng = np.random.default_rng(0)
    own = {
        name: np.ones(shape, np.float32)
        if "norm.weight" in name
        else 0.02 * rng.standard_normal(shape, np.float32)
        for name, shape in layout(GPT2).items()
    }
    tensors = families.to_foreign(families.GPT2, GPT2, own)
    names = sorted(tensors)
    folder.mkdir(parents=True)
    save = library("safetensors.numpy").save_file
    places = {}
    for n in range(shards):
        file = (
            "model.safetensors" if shards == 1 else f"model-{n + 1:05}-of-{shards:05}.safetensors"
        )
        mine = names[n::shards]
        save({name: tensors[name].astype(dtype) for name in mine}, folder / file)
        places |= dict.fromkeys(mine, file)
    if shards > 1:
        (folder / INDEX).write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    (folder / "config.json").write_text(
        json.dumps({**families.GPT2.describe(GPT2), "vocab_size": GPT2.vocab_size}),
        encoding="utf-8",
    )
    bpe.train(stories.corpus(200), 1000).save(folder / "tokenizer.json", format="huggingface")


def timed(*command: str) -> tuple[float, float]:
    """Run a command of tinygpt; its seconds and its peak memory in MB."""
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "tinygpt", *command])
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"tinygpt {' '.join(command)}: failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1e3 * 1.024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2, help="of training; 0: none (default: 2)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # In a process of its own: a child's peak begins with what its parent held at the fork.
        job = get_context("spawn").Process(
            target=write, args=(folder / "hf", args.dtype, args.shards)
        )
        job.start()
        job.join()
        size = sum(path.stat().st_size for path in (folder / "hf").glob("*.safetensors"))
        seconds, peak = timed("import", str(folder / "hf"), "--out", str(folder / "model.npz"))
        print(
            f"import of {size / 1e6:.0f} MB as {args.dtype} in {args.shards} "
            f"file{'s' * (args.shards > 1)}: {seconds:.1f} s, at most {peak:,.0f} MB",
            flush=True,
        )
        if args.steps:
            text = "\n<|endoftext|>\n".join(stories.corpus(120))
            (folder / "mine.txt").write_text(text, encoding="utf-8")
            options = ["--data", str(folder / "mine.txt"), "--out", str(folder / "run")]
            options += ["--max-iters", str(args.steps)]
            seconds, peak = timed("train", "--from", str(folder / "hf"), *options)
            print(f"{args.steps} steps from it: {seconds:.1f} s, at most {peak:,.0f} MB")


if __name__ == "__main__":
    main()
