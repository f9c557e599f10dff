"""How the time of a step grows with the tokens in it, width, layers, context and vocabulary.

    python benchmarks/scaling.py [--threads N] [--steps N] [--out docs/img/scaling.png]

One thing is changed at a time, from a llama-style model of 4 layers, width 128, context 128 and
512 tokens of vocabulary, at 4,096 tokens a step. A slope is that of the last doublings on both
logarithmic axes: 1 means twice the time for twice the size. Needs the extra 'plot'.
"""

import argparse
import math
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

import minitensor as mt
from tinygpt.model import recipes
from tinygpt.training import bench

TOKENS = 4096
BASE = recipes.get("quick").replace(
    windows=(0,),
    vocab_size=512,
    context=128,
    n_layer=4,
    d_model=128,
    n_head=4,
    d_ff=352,
    batch_size=TOKENS // 128,
)
LINES = {  # what is changed: (its values, the configuration of a value, the slope to expect)
    "tokens per step": (
        [512, 1024, 2048, 4096, 8192, 16384],
        lambda n: BASE.replace(batch_size=n // 128),
        "1: all work is by token",
    ),
    "width": (
        [64, 128, 256, 512],
        lambda n: BASE.replace(d_model=n, n_head=n // 32, d_ff=n * 11 // 4),
        "towards 2: matrices are width × width",
    ),
    "layers": ([1, 2, 4, 8, 16], lambda n: BASE.replace(n_layer=n), "1: one layer after another"),
    "context": (
        [32, 64, 128, 256, 512, 1024, 2048],
        lambda n: BASE.replace(context=n, batch_size=TOKENS // n),
        "towards 1 at equal tokens: attention",
    ),
    "vocabulary": (
        [512, 1024, 2048, 4096, 8192, 16384],
        lambda n: BASE.replace(vocab_size=n),
        "towards 1: the output layer",
    ),
}


def slope(x, y):
    """Growth over the last two doublings, as an exponent."""
    return math.log(y[-1] / y[-3]) / math.log(x[-1] / x[-3])


def measure(options):
    """Milliseconds a step for every value of every line."""
    found = {}
    with mt.Workers(options.threads) as workers:
        for name, (values, make, _) in LINES.items():
            found[name] = []
            for value in values:
                seconds = bench.step_seconds(make(value), workers, options.steps)
                found[name].append(statistics.median(seconds) * 1e3)
            ms = ", ".join(f"{v:,}: {t:.0f}" for v, t in zip(values, found[name], strict=True))
            print(f"{name} (ms a step): {ms}; slope {slope(values, found[name]):.2f}", flush=True)
    return found


def draw(found, path, threads):
    """All lines as panels of one picture."""
    figure, axes = plt.subplots(2, 3, figsize=(11, 6.4), sharey=True, layout="constrained")
    plain = FuncFormatter(lambda value, _: f"{value:,.0f}")
    for ax, (name, (values, _, expected)) in zip(axes.flat, LINES.items(), strict=False):
        ax.loglog(values, found[name], "o-", color="#20639b", markersize=5)
        ax.set_title(f"{name}: slope {slope(values, found[name]):.2f}", fontsize=11)
        ax.text(0.04, 0.93, expected, transform=ax.transAxes, fontsize=8.5, va="top", color="#555")
        ax.set_xticks(values, [f"{v:,}" for v in values], fontsize=8, rotation=30)
        ax.minorticks_off()
        ax.yaxis.set_major_formatter(plain)
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.grid(True, which="major", color="#ddd", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("ms a step")
    axes[-1, -1].axis("off")
    text = (
        "One thing changed at a time, from 4 layers,\nwidth 128, context 128, vocabulary 512\n"
        f"and 4,096 tokens a step; {threads} threads.\n\nSlope: of the last two doublings,\n"
        "on both logarithmic axes."
    )
    axes[-1, -1].text(0.05, 0.5, text, va="center", fontsize=10, transform=axes[-1, -1].transAxes)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--out", type=Path, default=Path("docs/img/scaling.png"))
    options = parser.parse_args()
    draw(measure(options), options.out, options.threads)


if __name__ == "__main__":
    main()
