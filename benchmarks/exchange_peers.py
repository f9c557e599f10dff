"""Do other programs compute what we do with the models we write for them?

    python benchmarks/exchange_peers.py --peers ENV/bin/python --run-c llama2.c/run [MODEL.npz …]

ENV is an environment with torch, transformers and llama-cpp-python; run is llama2.c's run.c,
compiled. Each tiny random model (one a kind of architecture), and each MODEL given, is exported to
every format. Printed: what loaded it, the largest difference of the logits of a prompt, whether a
text is cut into the same tokens, and how many of 200 greedy tokens are the same; or why it was not
written. For run.c, which prints text only, its first greedy text is compared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import bpe
import minitensor as mt
from tinygpt import Error
from tinygpt.data import stories
from tinygpt.formats import checkpoint
from tinygpt.formats.checkpoint import Saved
from tinygpt.formats.exchange import WRITERS
from tinygpt.model.config import Config
from tinygpt.model.sample import generate, sample_text
from tinygpt.model.transformer import layout

NEW = 200  # greedy tokens
LLAMA = {"norm": "rms", "norm_bias": False, "positions": "rope", "ffn": "swiglu",
         "qkv_bias": False, "out_bias": False, "ffn_bias": False}  # fmt: skip
NEO = {"qkv_bias": False, "scale_attention": False}
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {"ffn": "gelu_tanh"},
    "gpt2, exact gelu": {"ffn": "gelu"},
    "gpt2, no biases": {"ffn": "gelu_tanh", "qkv_bias": False, "out_bias": False,
                        "ffn_bias": False, "norm_bias": False},
    "gpt2, sinusoids": {"ffn": "gelu_tanh", "positions": "sinusoidal"},
    "gpt2, untied, unscaled": {"ffn": "gelu_tanh", "head": "untied", "scale_attention": False},
    "gpt-neo, local": {**NEO, "ffn": "gelu_tanh", "windows": (0, 9), "head": "untied"},
    "gpt-neo, tied": {**NEO, "ffn": "gelu", "windows": (5, 0), "out_bias": False},
    "llama": LLAMA,
    "llama, 2 of 4 kv heads": {**LLAMA, "n_kv_head": 2, "head": "untied"},
    "llama, biases": {**LLAMA, "n_kv_head": 1, "qkv_bias": True, "ffn_bias": True,
                      "rope_theta": 500.0},
    "llama, gate bias, pinv": {**LLAMA, "gate_bias": True, "head": "pinv"},
    "llama, local": {**LLAMA, "windows": (4, 0)},
}  # fmt: skip


def tiny(tokenizer: Any, changes: dict[str, Any]) -> Saved:
    """Three layers of random numbers, large enough that no two logits are close."""
    c = Config(vocab_size=tokenizer.vocab_size, context=256, n_layer=3, n_head=4, d_model=32,
               d_ff=48, **changes)  # fmt: skip
    rng = np.random.default_rng(5)
    params = {
        name: (rng.standard_normal(shape) * 0.3 + (len(shape) == 1 and "norm" in name)).astype(
            np.float32
        )
        for name, shape in layout(c).items()
    }
    return Saved(c, tokenizer, params)


class Peer:
    """A worker process that answers one job after the other."""

    def __init__(self, python: str):
        self.process = subprocess.Popen(
            [python, str(Path(__file__).with_name("exchange_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, **job: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


def compare(saved: Saved, to: str, folder: Path, peer: Peer) -> str:
    """A row's last cells: what another program made of a model."""
    out = folder / ("m.gguf" if to == "gguf" else "m")
    try:
        WRITERS[to][0](saved, out)
    except Error as error:
        return f"not written: {error}"
    c, tokenizer, model = saved.config, saved.tokenizer, saved.model()
    text = next(stories.corpus(1, seed=9)).replace(chr(34), "")  # Shakespeare has no such sign
    prompt = tokenizer.encode("Once upon")
    answer = peer.ask(to=to, path=str(out), prompt=prompt, new=min(NEW, c.context - len(prompt)),
                      text=text, logits=str(folder / "logits.npy"))  # fmt: skip
    if "error" in answer:
        return f"FAILED: {answer['error']}"
    with mt.no_grad():
        own = model(np.array([prompt])).numpy()[0]
    theirs = np.load(folder / "logits.npy")[:, : own.shape[1]]
    ours = [*prompt, *generate(model, prompt, max_new_tokens=NEW, temperature=0.0)]
    greedy = answer["greedy"]
    equal = next((n for n, (a, b) in enumerate(zip(ours, greedy, strict=False)) if a != b),
                 len(greedy)) - len(prompt)  # fmt: skip
    same = "same tokens" if answer["tokens"] == tokenizer.encode(text) else "OTHER TOKENS"
    return (
        f"{answer['class']} | {np.abs(own - theirs).max():.1e} of {np.abs(own).max():.1f} | "
        f"{equal} of {len(greedy) - len(prompt)} | {same}"
    )


def compare_run(saved: Saved, to: str, folder: Path, run: str) -> str:
    """The same for run.c: does its greedy text begin as ours?"""
    out = folder / "m.bin"
    try:
        WRITERS[to][0](saved, out)
    except Error as error:
        return f"not written: {error}"
    result = subprocess.run(
        [run, str(out), "-z", str(folder / "tokenizer.bin"), "-t", "0", "-n", str(NEW)],
        capture_output=True,
    )
    theirs = result.stdout.decode("utf-8", "replace").rstrip("\n")
    ours = sample_text(saved, saved.tokenizer, max_new_tokens=NEW - 1, temperature=0.0)
    ours = "".join(ch for ch in ours if ch.isprintable() or ch.isspace()).removeprefix(" ")
    n = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
             min(len(ours), len(theirs)))  # fmt: skip
    return f"run.c | - | first {n} of {len(ours)} characters | -"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL.npz")
    parser.add_argument("--peers", required=True, metavar="PYTHON")
    parser.add_argument("--run-c", metavar="PATH")
    args = parser.parse_args()
    texts = list(stories.corpus(300))
    tokenizers = {"bpe": bpe.train(texts, 400), "char": bpe.CharTokenizer.train(texts)}
    models = {
        f"{kind} ({name})": tiny(tokenizer, changes)
        for kind, changes in KINDS.items()
        for name, tokenizer in tokenizers.items()
        if name == "bpe" or "," not in kind
    }
    models |= {str(path): checkpoint.load(path) for path in args.models}
    peer = Peer(args.peers)
    print("| model | format | loaded by | largest difference of logits | greedy | text |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, saved in models.items():
        for to in ("hf", "gguf", "llama2c"):
            with tempfile.TemporaryDirectory() as folder:
                if to == "llama2c":
                    if not args.run_c:
                        continue
                    cells = compare_run(saved, to, Path(folder), args.run_c)
                else:
                    cells = compare(saved, to, Path(folder), peer)
            print(f"| {name} | {to} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
