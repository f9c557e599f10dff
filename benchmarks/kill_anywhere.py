"""SIGKILL at random moments: no bit, no line of the log and no sample is lost or told twice.

    python benchmarks/kill_anywhere.py [--kills 500] [--seed S] [RECIPE ...]

Tiny variants of all recipes are trained in processes that are killed again and again: two thirds of
the times after a random while, one third at a random file operation of a save. Each goes on with
another number of threads. At the end weights, moments, the best model, losses and samples must be
those of a run that nothing happened to, and no temporary file is left. POSIX only: the processes
are forked, so that a kill costs no start of Python.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the two modules beside this one
from tiny_runs import BEFORE, difference, newest_step, outcome, tiny, train
from tqdm import tqdm
from watched_files import Call, watched

from tinygpt.model import recipes
from tinygpt.model.config import Config
from tinygpt.training.train import Run

# Bars have a lock that forked processes share: whoever is killed with it would hold up the others.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0  # and a thread, which may hold a lock while a process is forked
IN_SAVE = 60  # a save of a tiny run has about so many file operations


def child(c: Config, out: Path, threads: int, at: int) -> None:
    """Train in a forked process, which kills itself at the file operation `at` of its saves."""
    count, saving = 0, False

    def before(call: Call) -> None:
        nonlocal count
        count += saving
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

    plain = Run.save

    def save(self: Run) -> None:
        nonlocal saving
        saving = True
        plain(self)
        saving = False

    Run.save = save  # type: ignore[method-assign]
    resume = (out / "config.json").exists()
    if at:
        with watched([out], before=before):
            status, told = train(c, out, threads, resume)
    else:
        status, told = train(c, out, threads, resume)
    if status:
        sys.stderr.write(told)
    os._exit(status)


def killed(c: Config, out: Path, threads: int, at: int, after: float) -> bool:
    """Train until a kill comes, after so many seconds if not `at` an operation; if it came."""
    pid = os.fork()
    if pid == 0:
        try:
            child(c, out, threads, at)
        finally:
            os._exit(1)
    deadline = time.monotonic() + after
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if not at and time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            break
        time.sleep(0.001)
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        raise AssertionError(f"{out}: exit status {os.WEXITSTATUS(status)}")
    return False


def kill_runs(c: Config, folder: Path, kills: int, rng: random.Random) -> Counter[str]:
    """Kill runs of a configuration so many times; raise AssertionError where one ends otherwise."""
    counts: Counter[str] = Counter()
    train(c, folder / "whole")  # fills the caches
    shutil.rmtree(folder / "whole")
    begin = time.monotonic()
    train(c, folder / "whole")
    seconds = time.monotonic() - begin
    wanted = outcome(folder / "whole")
    while counts["kills"] < kills:
        out = folder / f"run{counts['runs']}"
        out.parent.mkdir(exist_ok=True)
        step = BEFORE
        while True:
            in_save = counts["kills"] % 3 == 2
            at = rng.randint(1, IN_SAVE) if in_save and counts["kills"] < kills else 0
            after = rng.uniform(0, seconds) if counts["kills"] < kills else 600.0
            if not killed(c, out, rng.randint(1, 3), at, after):
                if at and counts["kills"] < kills:  # its saves had fewer operations than `at`
                    counts["ended before its kill"] += 1
                break
            counts["kills"] += 1
            counts["in a save"] += bool(at)
            now = newest_step(out)
            if now < step:
                raise AssertionError(f"{out}: the checkpoint went back from step {step} to {now}")
            step = now
        counts["runs"] += 1
        if wrong := difference(outcome(out), wanted):
            raise AssertionError(f"{c.name}, {out}: other {wrong}")
        shutil.rmtree(out)
    return counts


def main() -> None:
    """All recipes, and their counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="default: all")
    parser.add_argument("--kills", type=int, default=500, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    args = parser.parse_args()
    names = args.recipes or list(recipes.RECIPES)
    rng = random.Random(args.seed)
    total: Counter[str] = Counter()
    for n, name in enumerate(names):
        kills = args.kills * (n + 1) // len(names) - args.kills * n // len(names)
        with tempfile.TemporaryDirectory() as folder:
            counts = kill_runs(tiny(name), Path(folder).resolve(), kills, rng)
        print(f"{name:18}", dict(counts), flush=True)
        total += counts
    print(f"{'all':18}", dict(total))


if __name__ == "__main__":
    main()
