"""What ranks cost: a step predicted from its parts and measured, over memory and shaped networks.

    python benchmarks/rank_cost.py turns [RECIPE ...]        2 ranks of a thread, 1 of 2, in turn
    python benchmarks/rank_cost.py net RATE N [RECIPE ...]   RATE: memory, 1gbit, 10gbit, …
    python benchmarks/rank_cost.py table RATE LATENCY FILE   for 8 to 256 ranks, from lines of `net`
                                                         (bytes a second, seconds)

With a RATE each rank has a network namespace of its own, joined by a bridge and shaped with tc
(this needs root and iproute2), and MPICH is told to use TCP. A line of JSON has, in seconds,

    alone    a step of a rank's own shards, and the update, without any exchange, until all have it
    step     the same with it, in turn with `alone`
    late     `step` with everything in one bucket, which no backward hides
    latency  the time that a single number takes from rank to rank and back, halved
    one      the same of a bucket
    stream   the time of a bucket when many follow each other
    cpu      what of it are processors at work, at both ends
    predicted  what `model` makes of these but `step` and `late`

For `turns` both live in the same two processes, and take a few steps each, again and again: who
waits meanwhile sleeps. The ratio is that of neighbours; below 1 the ranks are faster.

Needs `pip install 'tinygpt[mpi]'` and Linux.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import minitensor as mt
from minitensor import parallel
from tinygpt import ranks
from tinygpt.machine import cores
from tinygpt.model import recipes
from tinygpt.model.config import Config
from tinygpt.training import bench
from tinygpt.training.train import Trainer, cut

CHANGES = {"neo-41m": {"accumulation": 1, "batch_size": 8}}  # half of one of five micro-batches
RECIPES = ("pinv-0.8m", "mini-3m", "neo-41m")
TURNS = 8
MANY = (8, 16, 32, 64, 128, 256)
BACKWARD = 2 / 3  # of a shard's time: twice as many products as in the forward
BRIDGE = f"ranks{os.getpid()}"  # its own: what an earlier one had goes away when the kernel likes


def model(m: dict[str, Any], n: int) -> float:
    """Seconds of a step of n ranks, from what was measured of its parts.

    The sum of rank 0 takes ⌈log₂ n⌉ others into it, one after the other through one link, while
    what is complete goes out again through the other direction, as often. As long as the last
    shard's backward takes is hidden; but the gradient of the embedding is complete at its very end,
    and has the way up and down to itself. Nor are processors free that have shards to compute:
    what they spend on sending and receiving comes on top (of `processors`, if the ranks share a
    machine; else each has one).
    """
    levels = math.ceil(math.log2(n))
    work = m["alone"] - m["update"]
    shards = math.ceil(m["shards"] / n)
    compute = work * shards / m["shards_alone"]
    buckets = m["bytes"] / m["bucket"]
    last = 2 * levels * (m["latency"] + m["last"] / m["bucket"] * m["stream"])
    exchange = levels * buckets * m["stream"] + last
    hidden = BACKWARD * compute / shards
    shared = m["processors"]
    passings = 2 * (n - 1) / shared if shared else levels  # of a bucket, for one processor
    return compute + max(exchange - hidden, last, passings * buckets * m["cpu"]) + m["update"]


# --------------------------------------------------------------------------------------- a process


def chosen(recipe: str) -> Config:
    """A recipe, with a step that does not take minutes."""
    return recipes.get(recipe).replace(**CHANGES.get(recipe, {}))


def seconds(work: Callable[[], Any], meet: Callable[[], Any] = lambda: None) -> float:
    """How long it takes, once all are here."""
    meet()
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def transport(world: ranks.World) -> dict[str, float]:
    """What a number and a bucket cost between two ranks, and a bucket in a row of 32; seconds."""
    number, array = np.zeros(1, np.float32), np.zeros(parallel.BUCKET, np.float32)
    many, tag = 32, 9000

    def to_and_fro(array: np.ndarray) -> None:
        if world.rank == 0:
            world.send(array, 1, tag)
            parallel.wait(world.receive(array, 1, tag))
        elif world.rank == 1:
            parallel.wait(world.receive(array, 0, tag))
            world.send(array, 0, tag)
        world.settle()

    def row() -> None:
        if world.rank == 1:
            for _ in range(many):
                world.send(array, 0, tag)
            world.settle()
        elif world.rank == 0:
            for letter in [world.receive(np.empty_like(array), 1, tag) for _ in range(many)]:
                parallel.wait(letter)

    def median(work: Callable[[], None], times: int) -> float:
        return statistics.median(seconds(work, world.meet) for _ in range(times))

    before = time.process_time()
    row()
    mine = time.process_time() - before
    return {
        "cpu": sum(world.gather([mine])[:2]) / many,
        "latency": median(partial(to_and_fro, number), 25) / 2,
        "one": median(partial(to_and_fro, array), 9) / 2,
        "stream": median(row, 5) / many,
    }


def work(recipe: str, limit: float) -> None:
    """Steps as a rank of one thread, for about `limit` seconds."""
    c = chosen(recipe)
    with ranks.world() as world, mt.Workers(1) as workers:
        assert world, "one of several ranks"
        whole = Trainer(c, bench.random_dataset(c), workers, world)
        never = {"eval_interval": 0, "sample_interval": 0, "checkpoint_interval": 0}
        forever = {"max_iters": 1 << 40, "local_steps": 1 << 40, "replicas": world.size}
        apart = Trainer(c.replace(**never, **forever), whole.dataset, workers, world)
        kinds: dict[str, list[float]] = {"alone": [], "step": [], "late": [], "update": []}
        bucket, number, begin = parallel.BUCKET, 0, time.perf_counter()
        going = True

        def all_alone(number: int) -> None:
            """With the wait for the slowest: a step cannot end before it."""
            apart.step(number)
            world.meet()

        while going:
            number += 1
            grads = [np.zeros_like(p.data) for p in whole.parameters]
            kinds["alone"].append(seconds(partial(all_alone, number), world.meet))
            kinds["step"].append(seconds(partial(whole.step, number), world.meet))
            parallel.BUCKET = 1 << 60
            kinds["late"].append(seconds(partial(whole.step, number), world.meet))
            parallel.BUCKET = bucket
            update = partial(whole.optimizer.step, grads, scale=1.0, workers=workers)
            kinds["update"].append(seconds(update, world.meet))
            going = bool(world.most(int(time.perf_counter() - begin < limit or number < 3)))
        network = transport(world)
        shards = len(cut(np.empty(c.sequences_per_step), c.shard_tokens // c.context))
        mine = len(parallel.part(shards, 0, world.size))
        if world.rank == 0:
            sent = sum(p.data.nbytes for p in whole.parameters)
            sent += whole.model.embedding.weight.data.nbytes * (c.head == "pinv")
            m = {name: statistics.median(values[1:]) for name, values in kinds.items()}
            m |= {"recipe": recipe, "ranks": world.size, "shards": shards, "shards_alone": mine}
            m |= {**network, "bytes": sent, "bucket": 4 * bucket, "processors": cores()}
            m["last"] = max(whole.parameters[0].data.nbytes, 4 * bucket)
            m["predicted"] = model(m, world.size)
            print(json.dumps(m), flush=True)


def take_turns(recipe: str, limit: float, wake: str) -> None:
    """Two ranks of one thread, and on rank 0 two threads, in turn, for about `limit` seconds. Rank
    1 sleeps until rank 0 opens the pipe `wake`."""
    c = chosen(recipe)
    with ranks.world() as world, mt.Workers(1) as one, mt.Workers(2) as two:
        assert world, "one of several ranks"
        dataset = bench.random_dataset(c)
        as_ranks = Trainer(c, dataset, one, world)
        as_threads = Trainer(c, dataset, two) if world.rank == 0 else None
        done, steps, going = 0, 1, True
        times: dict[str, list[float]] = {"ranks": [], "threads": []}
        begin = time.perf_counter()

        def some(trainer: Trainer) -> float:
            return seconds(lambda: [trainer.step(done + i) for i in range(steps)]) / steps

        while going:
            if as_threads:
                times["threads"].append(some(as_threads))
            with open(wake, "rb" if world.rank else "wb"):  # opens when the other does
                pass
            world.meet()
            times["ranks"].append(some(as_ranks))
            done += steps
            spent = time.perf_counter() - begin
            if len(times["ranks"]) == 2:  # what is compiled, and what is cold
                steps = world.most(max(1, round(limit / TURNS / 2 / times["ranks"][-1])))
            going = bool(world.most(int(spent < limit or len(times["ranks"]) < TURNS)))
        if as_threads:
            pairs = zip(as_ranks.parameters, as_threads.parameters, strict=True)
            assert all(np.array_equal(a.data, b.data) for a, b in pairs), "the bits differ"
            ratios = [a / b for a, b in list(zip(*times.values(), strict=True))[2:]]
            m = {name: statistics.median(values[2:]) for name, values in times.items()}
            m |= {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
            print(json.dumps({"recipe": recipe, **m, "turns": len(ratios), "steps": steps}))


# -------------------------------------------------------------------------------------- the driver


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(Path(__file__).resolve()), *map(str, arguments)]


def launch(words: list[str], **environment: str) -> dict[str, Any]:
    """The line of JSON that a command prints."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        words,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PATH": path, **environment},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def network(n: int, rate: str) -> Iterator[list[list[str]]]:
    """The beginnings of commands that run in namespaces of their own, joined at this rate."""

    def ip(words: str, check: bool = True) -> None:
        subprocess.run(["ip", *words.split()], check=check, stderr=subprocess.DEVNULL)

    names = [f"{BRIDGE}-{i}" for i in range(n)]
    try:
        ip(f"link add {BRIDGE} type bridge")
        ip(f"link set {BRIDGE} up")
        for i, name in enumerate(names):
            ip(f"netns add {name}")
            ip(f"link add {name} type veth peer name eth0 netns {name}")
            ip(f"link set {name} master {BRIDGE} up")
            ip(f"-n {name} addr add 10.77.0.{i + 1}/24 dev eth0")
            ip(f"-n {name} link set eth0 up")
            ip(f"-n {name} link set lo up")
            for where in ([], ["-n", name]):
                device = "eth0" if where else name
                shape = f"qdisc add dev {device} root tbf rate {rate} burst 256kb latency 50ms"
                subprocess.run(["tc", *where, *shape.split()], check=True)
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in names:
            ip(f"netns del {name}", check=False)
        ip(f"link del {BRIDGE}", check=False)


def on_network(rate: str, n: int, recipe: str, limit: float) -> dict[str, Any]:
    """`work` on n ranks."""
    mine = command("work", recipe, limit)
    if rate == "memory":
        return launch(["mpiexec", "-n", str(n), *mine])
    tcp = {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "eth0", "MPIR_CVAR_NOLOCAL": "1"}
    with network(n, rate) as places:
        words = ["mpiexec"]
        for place in places:
            words += ["-n", "1", *place, *mine, ":"]
        return launch(words[:-1], **tcp)


def turns(recipe: str, limit: float) -> dict[str, Any]:
    """`take_turns`, in two processes."""
    with tempfile.TemporaryDirectory() as folder:
        wake = Path(folder) / "wake"
        os.mkfifo(wake)
        return launch(["mpiexec", "-n", "2", *command("take-turns", recipe, limit, wake)])


def half(m: dict[str, Any], n: int, shards: int) -> bool:
    """Whether n ranks of so many shards each exchange for longer than they compute."""
    compute = (m["alone"] - m["update"]) / m["shards_alone"] * shards
    return model({**m, "shards": n * shards}, n) > 2 * compute + m["update"]


def table(rate: float, latency: float, lines: list[str]) -> str:
    """What `model` says of a recipe's own steps on machines of their own: with how many ranks the
    exchange takes half of a step, how much faster 8 to 256 ranks are than one, and how many shards
    each needs to compute half of the time."""
    head = ["recipe", "bytes", "shards", "one rank", "limit", *(f"{n} ranks" for n in MANY)]
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for line in lines:
        m = json.loads(line)
        c = recipes.get(m["recipe"])
        m |= {"stream": m["bucket"] / rate, "latency": latency, "processors": 0}
        shard = (m["alone"] - m["update"]) / m["shards_alone"]
        m["shards"] = len(cut(np.empty(c.sequences_per_step), c.shard_tokens // c.context))
        one = shard * m["shards"] + m["update"]
        limit = next(n for n in range(2, 1 << 20) if half(m, n, math.ceil(m["shards"] / n)))
        cells = [f"`{m['recipe']}`", f"{m['bytes'] / 1e6:.1f} MB", m["shards"], f"{one:.2f} s"]
        cells.append(limit)
        for n in MANY:
            enough = next(shards for shards in itertools.count(1) if not half(m, n, shards))
            cells.append(f"{one / model(m, n):.1f}; {enough}")
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["turns", "net", "table", "work", "take-turns"])
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    args = parser.parse_args()
    given = args.arguments
    if args.what == "work":
        work(given[0], float(given[1]))
    elif args.what == "take-turns":
        take_turns(given[0], float(given[1]), given[2])
    elif args.what == "table":
        print(table(float(given[0]), float(given[1]), Path(given[2]).read_text().splitlines()))
    elif args.what == "turns":
        for recipe in given or RECIPES:
            print(json.dumps(turns(recipe, args.seconds)), flush=True)
    else:
        for recipe in given[2:] or RECIPES:
            m = on_network(given[0], int(given[1]), recipe, args.seconds)
            m |= {"rate": given[0], "error": m["predicted"] / m["step"] - 1}
            print(json.dumps(m), flush=True)


if __name__ == "__main__":
    main()
