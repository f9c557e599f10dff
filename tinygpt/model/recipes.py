"""The published systems, and the default recipe, as configurations.

Each says where its figures come from. "Published" is what the system's own page, code or log
states; what a page leaves open is marked "ours". Fields stand in groups, as in `Config`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bpe.untrusted import parse_json, shown
from tinygpt import Error, UsageError
from tinygpt.data import copying
from tinygpt.model.config import (
    Config,
    blaming,
    coerce,
    dumps,
    explained,
    fields_of,
    from_dict,
    read,
    unknown,
)

# The default: the embedded stories, in about two minutes on two cores. A llama-style block, a
# context that holds a whole story, and Muon for the matrices. Every other layer sees four tokens
# only: what has just been said need not be looked for among all the rest. It learns to copy first
# (docs/copying.md): without, it would not keep to a name; the steps take as long as 1,000 without.
# With 1,152 tokens a name is one of them wherever it stands.
QUICK = Config(
    name="quick",
    vocab_size=1152, context=256, n_layer=4, n_head=4, d_model=128, d_ff=256,
    norm="rms", norm_bias=False, positions="rope", ffn="swiglu", qkv_bias=False,
    out_bias=False, ffn_bias=False, head="untied", init="unit", windows=(4, 0),
    optimizer="muon", lr=2e-3, embedding_lr=8.0, min_lr=0.0, warmup=30, warmup_copy=320,
    max_iters=880, beta2=0.98, batch_size=16,
    max_documents=12_000, valid_fraction=0.02,
    eval_interval=100, eval_batches=8, sample_interval=500, checkpoint_interval=100,
)  # fmt: skip

# The four-layer tiny transformer training run (June 2024), a fork of llama2.c: a bias on the
# SwiGLU gate, and the unembedding is the pseudo-inverse of the embedding. 834,644 parameters.
# Published: loss 13.09 at step 0, about 2.0 at step 720, 0.75 to 0.86 around step 53,100.
# The loss at the start depends on the draw of the embedding: 12.8 ± 0.4 over seeds, hence this one.
PINV = Config(
    name="pinv-0.8m",
    vocab_size=361, context=128, n_layer=4, n_head=16, d_model=128, d_ff=341,
    norm="rms", norm_eps=1e-5, norm_bias=False, positions="rope", rope_theta=10000.0,
    ffn="swiglu", gate_bias=True, qkv_bias=False, out_bias=False, ffn_bias=False,
    head="pinv", dropout=0.15, init="llama2c",
    tokenizer="char",
    lr=3e-4, min_lr=0.0, warmup=2500, schedule="cosine", max_iters=100_000, beta1=0.9,
    beta2=0.99, weight_decay=0.1, grad_clip=1.0, batch_size=64,
    valid_fraction=0.05,
    eval_interval=500, sample_interval=1000, checkpoint_interval=250,
    seed=2562,
)  # fmt: skip

# Mini GPT in three sizes: LayerNorm, GELU, fixed sinusoidal positions, tied head, BPE of 3,000.
# Published: perplexity 17.75, 10.23 and 8.08 after 104M tokens. Ours: the learning rate and its
# floor, batch and dropout; max_iters x 4,096 tokens is the published 104M.
MINI_1M = Config(
    name="mini-1m",
    vocab_size=3000, context=256, n_layer=5, n_head=8, d_model=128, d_ff=256,
    norm="layer", positions="sinusoidal", ffn="gelu", head="tied", dropout=0.1,
    lr=1e-3, min_lr=1e-4, warmup=500, max_iters=25_400, beta1=0.9, beta2=0.999,
    weight_decay=0.1, grad_clip=1.0, batch_size=16, shard_tokens=1024,
    valid_fraction=0.05,
    eval_interval=500, sample_interval=1000, checkpoint_interval=250,
)  # fmt: skip
MINI_3M = MINI_1M.replace(name="mini-3m", d_model=256, d_ff=512)
MINI_7M = MINI_1M.replace(name="mini-7m", d_model=384, d_ff=768)

# The pre-training project: GPT with learned positions and biases, on the first 50,000 TinyStories.
# Published: train loss about 1.8, validation perplexity 25 to 35, untrained about 8,000.
# 1,850,112 parameters. Ours: the schedule's floor.
PRETRAIN = Config(
    name="pretrain-2m",
    vocab_size=8000, context=256, n_layer=4, n_head=4, d_model=128, d_ff=512,
    norm="layer", positions="learned", ffn="gelu", head="tied", dropout=0.1,
    lr=3e-4, min_lr=3e-5, warmup=500, max_iters=10_000, beta1=0.9, beta2=0.95,
    weight_decay=0.1, grad_clip=1.0, batch_size=16, accumulation=16, shard_tokens=1024,
    max_documents=50_000, valid_fraction=0.05,
    eval_interval=250, sample_interval=500, checkpoint_interval=50,
)  # fmt: skip

# The GPT-Neo style model: global and local attention in turn, unscaled scores, untied head, and
# a vocabulary reduced to the 8,000 most frequent tokens of GPT-2's size and one unknown.
# Published: batch 16 x 5, one epoch, train loss about 1.4, validation about 1.5. 41,026,560
# parameters. Ours: the optimiser's settings.
NEO = Config(
    name="neo-41m",
    vocab_size=8001, context=512, n_layer=4, n_head=16, d_model=768, d_ff=3072,
    norm="layer", positions="learned", ffn="gelu_tanh", qkv_bias=False, windows=(0, 256),
    scale_attention=False, head="untied",
    tokenizer="reduced", reduced_from=50_257,
    lr=5e-4, min_lr=5e-5, warmup=200, max_iters=11_000, beta1=0.9, beta2=0.95,
    weight_decay=0.1, grad_clip=1.0, batch_size=16, accumulation=5, shard_tokens=1024,
    valid_fraction=0.02,
    eval_interval=200, eval_batches=4, sample_interval=200, checkpoint_interval=20,
)  # fmt: skip

# nanoGPT's CPU example: characters of tinyshakespeare. 804,096 parameters (nanoGPT prints 0.80M).
# Published: validation loss 1.88.
SHAKESPEARE = Config(
    name="shakespeare-char",
    vocab_size=65, context=64, n_layer=4, n_head=4, d_model=128, d_ff=512,
    norm="layer", norm_bias=False, positions="learned", ffn="gelu", qkv_bias=False,
    out_bias=False, ffn_bias=False, head="tied", dropout=0.0,
    tokenizer="char-plain",
    lr=1e-3, min_lr=1e-4, warmup=100, max_iters=2000, beta1=0.9, beta2=0.99,
    weight_decay=0.1, grad_clip=1.0, batch_size=12,
    valid_fraction=0.1,
    eval_interval=250, eval_batches=200, sample_interval=1000, checkpoint_interval=250,
)  # fmt: skip

# The same text, split and context, and nanoGPT's 1.88 in the least time that two cores take: with
# few parameters a second holds more text, and it is text that is short. 157,344 parameters.
# Published: Muon (Jordan et al., 2024) and one key/value head for all queries (Shazeer, 2019,
# arXiv:1911.02150). Ours: the rest, chosen on the last tenth of the training text, but for the
# number of steps, which leaves a margin below 1.88 on the validation text for four seeds.
SHAKESPEARE_FAST = SHAKESPEARE.replace(
    name="shakespeare-fast",
    n_layer=2, n_kv_head=1, d_model=96, d_ff=256,
    windows=(4, 0), norm="rms", positions="rope", rope_theta=100.0, head="untied",
    init="unit",
    optimizer="muon", lr=6e-3, min_lr=0.0, warmup=5, schedule="linear", max_iters=280,
    beta2=0.98, batch_size=24, shard_tokens=768,
    eval_interval=0, eval_batches=73, sample_interval=0, checkpoint_interval=0,
)  # fmt: skip

# Each with what it is for, and the text that it was published with, by the name under which
# `tinygpt data fetch` brings it. Those without one are made for the embedded stories.
LISTED: list[tuple[Config, str, str]] = [
    (QUICK, "the default: embedded stories", ""),
    (PINV, "TinyStories by characters", "tinystories"),
    (MINI_1M, "TinyStories, small", "tinystories"),
    (MINI_3M, "TinyStories, medium", "tinystories"),
    (MINI_7M, "TinyStories, large", "tinystories"),
    (PRETRAIN, "50,000 TinyStories, big batches", "tinystories"),
    (NEO, "TinyStories, as GPT-Neo", "tinystories"),
    (SHAKESPEARE, "nanoGPT's example for a CPU", "shakespeare"),
    (SHAKESPEARE_FAST, "as good as it, in seconds", "shakespeare"),
]
RECIPES = {recipe.name: recipe for recipe, _, _ in LISTED}
PURPOSE = {recipe.name: purpose for recipe, purpose, _ in LISTED}
TEXTS = {recipe.name: text for recipe, _, text in LISTED if text}
DEFAULT = "quick"


def get(name: str) -> Config:
    """The recipe of this name (``_`` and ``-`` are the same). Raises UsageError."""
    recipe = RECIPES.get(name.replace("_", "-"))
    if recipe is None:
        if os.path.exists(name) or name.endswith(".txt"):  # False for what no file can be called
            raise UsageError(f"unknown recipe {shown(name)}; a text is given with --data")
        if "=" in name:
            raise UsageError(f"unknown recipe {shown(name)}; each setting has a --set before it")
        raise unknown("recipe", name, RECIPES)
    return recipe


def lay(base: Config, values: Mapping[str, Any]) -> Config:
    """`base` with `values` laid over it, and what follows from them for fields they do not name.

    The default recipe's number of documents counts embedded stories: of another text all are
    taken. A run of fewer steps than the warm-up on copying leaves it out: cut short it would form
    nothing. Where a tokenizer of characters replaces one of longer tokens, or the reverse, the
    recipe's vocabulary size means nothing: it goes back to the default, for which a tokenizer of
    characters takes what it needs.
    """
    changes = fields_of(values)
    follows: dict[str, Any] = {}
    if "max_iters" in changes and coerce("max_iters", changes["max_iters"]) < base.warmup_copy:
        follows["warmup_copy"] = 0
    counts_stories = base.name not in TEXTS and base.max_documents == QUICK.max_documents
    if counts_stories and base.data == "stories" and changes.get("data", "stories") != "stories":
        follows["max_documents"] = 0
    kinds = (base.tokenizer, str(changes.get("tokenizer", base.tokenizer)))
    if len({kind.startswith("char") for kind in kinds}) == 2:
        follows["vocab_size"] = Config.vocab_size
    return from_dict({**follows, **changes}, base)


def load(path: str | Path, recipe: str | None = None) -> tuple[Config, set[str]]:
    """The configuration in a file, and the fields that stand in it.

    What does not stand in it is as in `recipe`, or in the recipe that the file names with ``base``
    or, like the config.json of a run, as its own ``name``; else as in the default one.
    """
    with blaming(path):
        values = read(path)
        named = values.pop("base", None)
        if recipe and named and get(str(named)) != get(recipe):
            raise UsageError(f"base: {shown(named)}, but the recipe asked for is {recipe}")
        own = str(values.get("name"))
        c = lay(get(str(recipe or named or (own if own in RECIPES else DEFAULT))), values)
        return c, set(fields_of(values))


def differences(c: Config) -> tuple[str, dict[str, Any]]:
    """The recipe that `c` is, or is most like, and what it has otherwise: the recipe's values.

    That it takes all documents of another text than the recipe's goes without saying.
    """

    def from_recipe(recipe: Config) -> dict[str, Any]:
        mine, its = c.to_dict(), recipe.to_dict()
        silent = ["name", "data"]
        if c.data != recipe.data and not c.max_documents:
            silent.append("max_documents")
        return {k: v for k, v in its.items() if mine[k] != v and k not in silent}

    like = RECIPES.get(c.name) or min(RECIPES.values(), key=lambda r: len(from_recipe(r)))
    return like.name, from_recipe(like)


# --------------------------------------------------------------------- times on this machine


def is_recipe(c: Config) -> bool:
    """Whether a step of this configuration is one of the recipe of its name."""
    recipe = RECIPES.get(c.name)
    if recipe is None:
        return False
    free = {
        "name", "data", "seed", "valid_fraction", "max_documents", "lr", "embedding_lr", "min_lr",
        "warmup", "warmup_copy", "schedule", "max_iters",
    } | {key for key in c.to_dict() if key.endswith("_interval")}  # fmt: skip
    wanted = recipe.to_dict()
    return all(value == wanted[key] for key, value in c.to_dict().items() if key not in free)


def work(c: Config, step: int | None = None) -> float:
    """The steps of a run, or those from `step` on; those of the warm-up on copying, which come
    before 0, by the tokens that they have.
    """
    step = -c.warmup_copy if step is None else step
    to_copy = max(0, -step) * copying.tokens(c.context) / c.tokens_per_step
    return max(0, c.max_iters - max(0, step)) + to_copy


MAX_TIMES = 1 << 14  # bytes of times.json
A_DAY = 86_400.0  # no step takes longer; what says so, or NaN, was not measured


def times() -> dict[str, float]:
    """Seconds a step took on this machine, by recipe; empty where nothing was measured."""
    from tinygpt.files import cache_folder

    try:
        with (cache_folder() / "times.json").open("rb") as file:
            read = parse_json(file.read(MAX_TIMES))
    except (OSError, ValueError):
        return {}
    return {
        name: float(value)
        for name, value in (read.items() if isinstance(read, dict) else ())
        if name in RECIPES and type(value) in (int, float) and 0 < value < A_DAY
    }


def remember_time(config: Config, seconds: float) -> None:
    """Keep the time of a step, if it was a step of the recipe as it stands, and the shortest yet:
    a machine that was busy says little about the next run."""
    from tinygpt.files import cache_folder, replacing

    if not is_recipe(config):
        return
    folder = cache_folder()
    with contextlib.suppress(OSError, Error):  # a nicety: it may fail
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "times.json") as handle:
            known = times()
            shortest = min(round(seconds, 5), known.get(config.name, A_DAY))
            handle.write(json.dumps({**known, config.name: shortest}).encode())


# ------------------------------------------------------------------------------- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``tinygpt recipes``."""
    parser.add_argument("name", nargs="?", help="show this recipe's configuration")
    parser.add_argument(
        "--table", action="store_true", help="parameters by component, with their share"
    )
    parser.add_argument(
        "--format",
        choices=("toml", "json", "yaml"),
        default="toml",
        help="how a configuration is printed (default: toml)",
    )


def main(args: argparse.Namespace) -> int:
    """Run ``tinygpt recipes``."""
    if args.name and not args.table and args.format == "toml":
        print(explained(get(args.name)), end="")
    elif args.name and not args.table:
        print(dumps(get(args.name), f".{args.format}"), end="")
    elif args.name:
        print("\n\n".join(table(c) for c in _columns(get(args.name))))
    elif args.table:
        print("\n\n".join(table(c) for c in RECIPES.values()))
    else:
        print(listing())
    return 0


def listing() -> str:
    """All recipes: parameters, steps, the time here if a step was measured, and what it is for."""
    from tinygpt.model.transformer import count

    measured = times()
    lines = [f"{'recipe':16}{'parameters':>11}{'steps':>8}{'time here':>12}  what for"]
    for name, c in RECIPES.items():
        time = duration(measured[name] * work(c)) if name in measured else "-"
        lines.append(f"{name:16}{sum(count(c)):11,}{c.max_iters:8,}{time:>12}  {PURPOSE[name]}")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds in readable form."""
    if 0 < seconds < 1:
        return "less than 1 s"
    seconds = round(seconds)
    if seconds < 90:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _columns(c: Config) -> list[Config]:
    """A recipe with a reduced vocabulary is shown with the full one as well."""
    if c.tokenizer != "reduced":
        return [c]
    return [c.replace(tokenizer="bpe", vocab_size=c.reduced_from), c]


def table(c: Config) -> str:
    """Parameters by component and share, then by the three groups of the whole."""
    from tinygpt.model.transformer import components

    parts = dict(components(c))
    total = sum(parts.values())
    groups = {
        "embedding (tokens + positions)": ("token embedding", "positions"),
        "blocks": ("attention norms", "attention", "feed-forward norms", "feed-forward"),
        "output (final norm + head)": ("final norm", "head"),
    }
    lines = [f"{c.name}, {c.vocab_size:,} tokens"]
    for group, members in groups.items():
        n = sum(parts.get(member, 0) for member in members)
        lines.append(f"{group:34}{n:14,}{n / total:8.1%}")
        lines += [
            f"  {member:32}{parts[member]:14,}{parts[member] / total:8.1%}"
            for member in members
            if member in parts
        ]
    return "\n".join([*lines, f"{'total':34}{total:14,}{1:8.1%}"])
