"""A training step of the recipes, side by side with PyTorch and JAX on the same machine.

    python benchmarks/step.py [ROW ...] [--rounds N] [--threads N] [--json FILE]
    python benchmarks/step.py --table FILE

The sides are programs that stay alive and take turns, step by step; a ratio is that of two steps
next to each other in time, and its median, smallest and largest are printed. The shapes, the
dropout, clipping and AdamW are the same; all learn random tokens. PyTorch and JAX come from the
environment of peers.py. Every step is whole: forward, backward, clipping and update.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from pathlib import Path

import peers
from workers import Worker, spread, times

from tinygpt.model import recipes

MODES = {  # of the peers: (program, its arguments after the configuration and the threads)
    "eager": ("torch_worker.py", ["eager"]),
    "compile": ("torch_worker.py", ["compile"]),
    "jax": ("jax_worker.py", []),
}
PAUSE = 0.05  # seconds in which OpenMP's threads, which wait actively at first, go to sleep
ROWS = {  # row: (recipe, changes, modes)
    "pinv-0.8m": ("pinv-0.8m", {}, ["eager", "compile", "jax"]),
    "pinv-0.8m-no-dropout": ("pinv-0.8m", {"dropout": 0.0}, ["eager", "compile", "jax"]),
    "shakespeare-char": ("shakespeare-char", {}, ["eager", "compile", "jax"]),
    "pretrain-2m": ("pretrain-2m", {"accumulation": 1}, ["eager"]),
    "mini-3m": ("mini-3m", {}, ["eager", "jax"]),
    # All layers global: PyTorch's fast attention knows no window.
    "neo-41m": ("neo-41m", {"accumulation": 1, "batch_size": 4, "windows": (0,)}, ["eager"]),
}


def race(sides, rounds, burst):
    """Seconds a step of each side, by round: a median of `burst` steps in a row."""
    taken = {name: [] for name in sides}
    last = {}
    for _ in range(rounds):
        for name, worker in sides.items():
            time.sleep(PAUSE)
            last[name] = worker.ask(burst)
            taken[name].append(statistics.median(last[name]["seconds"]))
    return taken, {name: answer["peak_mb"] for name, answer in last.items()}


def measure(row, options):
    """One row of the table, as a record."""
    recipe, changes, modes = ROWS[row]
    c = json.dumps(recipes.get(recipe).replace(**changes).to_dict())
    with contextlib.ExitStack() as stack:

        def start(*arguments):
            return stack.enter_context(Worker(*arguments))

        sides = {"tinygpt": start(sys.executable, "tinygpt_worker.py", "step", c, options.threads)}
        if options.threads > 1:
            sides["one thread"] = start(sys.executable, "tinygpt_worker.py", "step", c, 1)
        for mode in options.modes or modes:
            program, more = MODES[mode]
            sides[mode] = start(peers.python(), program, c, options.threads, *more)
        peak = start(sys.executable, "tinygpt_worker.py", "peak", options.threads)
        ours = sides["tinygpt"].ready
        for worker in sides.values():
            assert worker.ready["parameters"] == ours["parameters"], "not the same model"
        slow = sides["tinygpt"].ask()["seconds"][0] > 0.1
        before = peak.ask()["result"]
        taken, memory = race(sides, options.rounds, 1 if slow else 5)
        peaks = [before, peak.ask()["result"]]
    record = {
        "row": row,
        "threads": options.threads,
        "tokens": ours["tokens"],
        "gflop": ours["flops"] / 1e9,
        "sgemm_peak": max(peaks),
        "peak_mb": memory,
        "ms": {name: spread([s * 1e3 for s in all_]) for name, all_ in taken.items()},
    }
    record["ratio"] = {
        name: spread([a / b for a, b in zip(all_, taken["tinygpt"], strict=True)])
        for name, all_ in taken.items()
        if name != "tinygpt"
    }
    record["of_peak"] = record["gflop"] / record["ms"]["tinygpt"]["median"] * 1e3 / max(peaks)
    return record


def show(record):
    """A record as text."""
    print(f"{record['row']}, {record['tokens']:,} tokens a step, {record['threads']} threads")
    for name, ms in record["ms"].items():
        ratio = record["ratio"].get(name)
        print(
            f"  {name:12}{ms['median']:9.1f} ms{record['peak_mb'][name]:8.0f} MB"
            f"{'' if ratio is None else '   tinygpt is faster by ' + times(ratio)}"
        )
    print(
        f"  {record['of_peak']:.0%} of the sgemm peak of {record['sgemm_peak']:.0f} GFLOP/s "
        f"({record['gflop']:.1f} GFLOP a step)",
        flush=True,
    )


def table(records):
    """Records as rows of a Markdown table; of rows measured twice the later one."""
    lines = [
        "| row | tinygpt | peer | ratio | memory | of peak | 2 threads against 1 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    latest = {(r["row"], name): r for r in records for name in r["ms"] if name in MODES}
    for (row, mode), r in latest.items():
        ours, theirs, memory = r["ms"]["tinygpt"], r["ms"][mode], r["peak_mb"]
        threads = r["ratio"].get("one thread")
        lines.append(
            f"| `{row}`, {mode} | {ours['median']:.1f} ms | {theirs['median']:.1f} ms | "
            f"{times(r['ratio'][mode])} | {memory['tinygpt']:.0f} / {memory[mode]:.0f} MB | "
            f"{r['of_peak']:.0%} | {times(threads) if threads else ''} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "rows",
        nargs="*",
        choices=[*ROWS, []],
        metavar="ROW",
        help=f"default: all of {', '.join(ROWS)}",
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--modes", nargs="+", choices=[*MODES], help="of the peers (default: as the row needs)"
    )
    parser.add_argument("--json", type=Path, help="append each row to this file, as a JSON line")
    parser.add_argument("--table", type=Path, metavar="JSON", help="show such a file, and no more")
    options = parser.parse_args()
    if options.table:
        lines = options.table.read_text(encoding="utf-8").splitlines()
        print(table([json.loads(line) for line in lines]))
        return
    for row in options.rows or ROWS:
        record = measure(row, options)
        show(record)
        if options.json:
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
