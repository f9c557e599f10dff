"""One run on several processes, over MPI: what they send each other, and how they end together.

``mpiexec -n N tinygpt train …`` starts N processes, the ranks. All do the same steps on the same
weights, each on its own part of the shards, and every sum has the order that it has in one process
(`minitensor.parallel`); so a run has the same bits on any number of them. Under ``tinygpt data
prepare`` they `serve` rank 0, which shares out the pieces of a text. Rank 0 alone writes.

A run ends on all ranks or on none. Each sends a sign of life every second, from a thread of its
own, with the number of places that it has come to where ranks wait for each other: a rank that is
not heard from for `patience` seconds, or stays behind for `STALL` times as long, is named, and MPI
ends all processes.
An error on one rank ends all. The weights are compared before every checkpoint.

Only `world` imports MPI.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import hashlib
import os
import pickle
import platform
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import minitensor
from minitensor import kernels
from minitensor.parallel import SPIN, part, wait
from tinygpt import Error, UsageError, __version__
from tinygpt.machine import cores

Array = np.ndarray
PATIENCE = 60.0  # seconds
STALL = 10  # times the patience that a rank may take for a step when the others have done theirs
BEAT = 1.0  # seconds between two signs of life
LEFT = -1  # the last one
LAST_WORDS = 1.0  # seconds in which the launcher can pass on what was said; then it is lost
LATER = 5.0  # seconds that the other ranks let rank 0 tell an error, which may be theirs too
# Which processes there are, in the words of the launchers: PMI (MPICH, Intel, Microsoft, Slurm),
# Open MPI, PMIx (which does not tell how many).
SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")
INSTALL = "install both with: pip install 'tinygpt[mpi]'"


class World:
    """All ranks, seen from one of them; the `Ranks` of `minitensor.parallel`."""

    def __init__(self, mpi: Any, patience: float, exact: bool):
        self.rank, self.size = mpi.COMM_WORLD.rank, mpi.COMM_WORLD.size
        self.patience, self.exact = patience, exact
        self.kept: Callable[[], str] = lambda: ""  # says where the last good checkpoint is
        self._mpi, self._comm, self._life = mpi, mpi.COMM_WORLD.Dup(), mpi.COMM_WORLD.Dup()
        self._sending: list[Any] = []
        self._errors = sys.stderr
        here = (socket.gethostname(), os.getpid(), _processors())
        self._where = self._comm.allgather(here)
        self.reached = 0  # how often this rank has come to a place where ranks wait
        self._leaving = threading.Event()
        self._watch = threading.Thread(target=self._keep_watch, name="signs of life", daemon=True)
        self._watch.start()

    # ---- a step

    def send(self, data: Array, to: int, tag: int) -> None:
        """Send an array, which is kept until it is there."""
        self._sending.append(self._comm.Isend(data, dest=to, tag=tag))

    def receive(self, data: Array, source: int, tag: int) -> Callable[[], bool]:
        """Write what is sent with this tag, of this size, in place."""
        return self._done([self._comm.Irecv(data, source=source, tag=tag)])

    def broadcast(self, data: Array) -> Callable[[], bool]:
        """Write what rank 0 has in place of what all others have."""
        return self._done([self._comm.Ibcast(data, root=0)])

    def add_up(self, arrays: Sequence[Array]) -> Callable[[], bool]:
        """Write the sums over all ranks in place, in the order that MPI chooses."""
        return self._done([self._comm.Iallreduce(self._mpi.IN_PLACE, a) for a in arrays])

    def settle(self) -> None:
        """Wait until everything that was sent is there."""
        self._wait(self._sending)
        self._sending.clear()

    def worked(self) -> None:
        """Take note that this rank has computed its shards of a step."""
        self.reached += 1

    def _done(self, requests: list[Any]) -> Callable[[], bool]:
        return partial(self._mpi.Request.Testall, requests)

    def _wait(self, requests: list[Any]) -> None:
        wait(self._done(requests))

    # ---- work in pieces

    def imap(
        self, make: Callable[..., Callable[[Any], Any]], setup: tuple, jobs: Iterable[Any]
    ) -> Iterator[Any]:
        """On rank 0: yield `make(*setup)(job)` for each of `jobs`, in their order, as
        `bpe.workers.imap` does, computed by all ranks; the others `serve` meanwhile."""
        jobs = list(jobs)
        self.share((make, setup, jobs))
        yield from self._in_rounds(make(*setup), jobs)

    def serve(self) -> None:
        """On all other ranks: do what rank 0 asks for with `imap`, until it calls `dismiss`."""
        while task := self.share(None, idle=True):
            make, setup, jobs = task
            for _ in self._in_rounds(make(*setup), jobs):
                pass

    def dismiss(self) -> None:
        """Let the others go on after `serve`."""
        self.share(None)

    def _in_rounds(self, work: Callable[[Any], Any], jobs: list[Any]) -> Iterator[Any]:
        """The results of all, on rank 0; in a round each rank does one job, as long as they last.

        Jobs are about as long, so little is lost by waiting for the slowest, and rank 0 holds the
        results of one round only.
        """
        for begin in range(self.rank, len(jobs) + self.rank, self.size):
            yield from self._collect([work(job) for job in jobs[begin : begin + 1]])

    def _collect(self, mine: list[Any]) -> list[Any]:
        """The ranks' lists one after the other, on rank 0; the others get nothing."""
        data = np.frombuffer(pickle.dumps(mine), np.uint8)
        sizes = np.empty(self.size, np.int64)
        self._together(self._comm.Iallgather(np.array([data.size]), sizes))
        ends = np.cumsum(sizes)
        every = np.empty(ends[-1] if self.rank == 0 else 0, np.uint8)
        into = [every, sizes, ends - sizes, self._mpi.BYTE] if self.rank == 0 else None
        self._together(self._comm.Igatherv(data, into, root=0))
        parts = np.split(every, ends[:-1]) if self.rank == 0 else []
        return [thing for part in parts for thing in pickle.loads(part.data)]

    # ---- agreement

    def most(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        mine, largest = np.array([number]), np.zeros(1, np.int64)
        self._together(self._comm.Iallreduce(mine, largest, op=self._mpi.MAX))
        return int(largest[0])

    def share(self, thing: Any, idle: bool = False) -> Any:
        """What rank 0 gives, on every rank; `idle` ones have nothing to do until then."""
        data = np.frombuffer(bytearray(pickle.dumps(thing)), np.uint8)
        size = np.array([data.size])
        self._together(self._comm.Ibcast(size, root=0), idle)
        if self.rank:
            data = np.empty(size, np.uint8)
        self._together(self._comm.Ibcast(data, root=0))
        return pickle.loads(data.data)

    def gather(self, mine: list[Any]) -> list[Any]:
        """The ranks' lists one after the other, on every rank."""
        return [thing for theirs in self._gather(mine) for thing in theirs]

    def _gather(self, thing: Any) -> list[Any]:
        """What each rank gives. Not by MPI's own `allgather`: waiting in it would block the
        thread that sends signs of life."""
        data = np.frombuffer(pickle.dumps(thing), np.uint8)
        sizes = np.empty(self.size, np.int64)
        self._together(self._comm.Iallgather(np.array([data.size]), sizes))
        mine = np.zeros(sizes.max(), np.uint8)
        mine[: data.size] = data
        every = np.empty((self.size, mine.size), np.uint8)
        self._together(self._comm.Iallgather(mine, every))
        return [pickle.loads(row[:n].data) for row, n in zip(every, sizes, strict=True)]

    def _together(self, request: Any, idle: bool = False) -> None:
        """Wait for what all ranks have to call, however long it takes if this one is `idle`."""
        self.reached += not idle
        self._wait([request])
        self.reached += idle

    def meet(self) -> None:
        """Wait until every rank is here."""
        self._together(self._comm.Ibarrier())

    def compare_weights(self, step: int, weights: Sequence[Array]) -> None:
        """Raise Error, on every rank, naming those whose weights are not those of the others."""
        mine = np.frombuffer(weights_hash(weights), np.uint8)
        every = np.empty((self.size, len(mine)), np.uint8)
        self._together(self._comm.Iallgather(mine, every))
        odd = strangers([row.tobytes() for row in every])
        if odd:
            names = " and ".join(map(self.name, odd))
            raise Error(
                f"step {step}: the weights of {names} are not those of the other ranks; nothing "
                "was saved; a processor of another kind, or a faulty one?"
            )

    def compare(self, facts: dict[str, str]) -> None:
        """Raise Error, on every rank, at the first fact that a rank does not share with rank 0."""
        first, *others = self._gather(facts)
        for rank, theirs in enumerate(others, 1):
            for what, value in first.items():
                if theirs[what] != value:
                    raise UsageError(
                        f"{what}: {self.name(rank)} has {theirs[what]}, rank 0 has {value}; all "
                        "ranks of a run need the same"
                    )

    # ---- who is here

    def name(self, rank: int) -> str:
        """A rank with its machine and process."""
        host, process, _ = self._where[rank]
        return f"rank {rank} ({host}, process {process})"

    def threads(self) -> int:
        """This rank's share of the processors that it may use with others."""
        return max(1, cores() // sum(self._where[self.rank][::2] == w[::2] for w in self._where))

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Rank 0 first and then all others, who may find in a cache what it made."""
        if self.rank:
            self.meet()
        yield
        if not self.rank:
            self.meet()

    def plan(self, shards: int, local_steps: int = 0) -> list[str]:
        """Who works on what, for a run's first lines."""
        names = ", ".join(map(self.name, range(self.size)))
        busy = sum(bool(part(shards, rank, self.size)) for rank in range(self.size))
        idle = f"; {self.size - busy} of the ranks have nothing to do" if busy < self.size else ""
        lines = [
            f"{self.size} ranks: {names}",
            f"a step has {shards} shards, at most {len(part(shards, 0, self.size))} a rank{idle}",
        ]
        if local_steps:
            lines.append(
                f"local steps: each rank trains a model of its own on its shards, and they meet "
                f"every {local_steps} steps; the bits are those of {self.size} ranks, and of no "
                "other number"
            )
        elif not self.exact:
            lines.append(
                "--reduce fast: MPI adds up the gradients in an order of its own: the bits are not "
                "those of one process, and may be others with another number of ranks"
            )
        return lines

    # ---- the end

    def close(self) -> None:
        """Wait for all others, and end the watch."""
        self.meet()
        self._leaving.set()
        self._watch.join()

    def fail(self, status: int) -> None:
        """Let the command tell its error; MPI then ends all processes with this status."""
        atexit.register(self._abort, status)  # comes before mpi4py's own, which waits for all
        if self.rank:
            time.sleep(LATER)

    def _abort(self, status: int) -> NoReturn:
        time.sleep(LAST_WORDS)
        try:
            self._mpi.COMM_WORLD.Abort(status)
        finally:  # should MPI come back from it
            os._exit(status)

    def _keep_watch(self) -> None:
        """Send signs of life and look for them: all to rank 0, and rank 0 to all.

        A sign is what the rank has `reached`; a last one of `LEFT` says that it leaves. Who was
        stopped himself, as when the machine slept or the whole job was suspended, begins to count
        anew. Only rank 0 hears from all, so it alone tells who is stuck, though it be itself: for
        the others it may stand still only because it waits for that rank.
        """
        others = [0] if self.rank else list(range(1, self.size))
        late = 5 * BEAT if self.rank > 1 else 0  # rank 1 tells of rank 0
        inbox = {rank: np.zeros(1, np.int64) for rank in others}
        awaited = {rank: self._life.Irecv(inbox[rank], source=rank) for rank in others}
        sent: dict[int, tuple[Any, Array]] = {}
        looked = time.monotonic()
        heard, moved, left = dict.fromkeys(others, looked), looked, set[int]()
        reached = dict.fromkeys(range(self.size), 0)
        while len(left) < len(others) or any(not request.Test() for request, _ in sent.values()):
            leaving = self._leaving.wait(BEAT)
            if leaving:
                time.sleep(SPIN)
            now = time.monotonic()
            stopped, looked = now - looked > self.patience / 2, now
            before = dict(reached)
            reached[self.rank] = self.reached
            for rank in others:
                if rank in left:
                    continue
                if stopped:
                    heard[rank] = now
                while rank not in left and awaited[rank].Test():
                    heard[rank] = now
                    if inbox[rank][0] == LEFT:
                        left.add(rank)
                    else:
                        reached[rank] = int(inbox[rank][0])
                        awaited[rank] = self._life.Irecv(inbox[rank], source=rank)
                if now - heard[rank] > self.patience + late:
                    self._lost(rank, f"has given no sign of life for {self.patience:.0f} s")
            behind = None if self.rank else straggler(reached)
            if behind is None or stopped or reached != before:
                moved = now
            elif now - moved > STALL * self.patience and not left:
                self._lost(
                    behind,
                    f"is alive, but does not come to where others have waited for it for "
                    f"{STALL * self.patience:.0f} s",
                )
            self._beat(others, sent, leaving)

    def _beat(self, others: list[int], sent: dict[int, tuple[Any, Array]], leaving: bool) -> None:
        """Send each rank a sign of life, if the one before is on its way; one last when leaving."""
        for rank in others:
            request, sign = sent.get(rank, (None, None))
            if (sign is None or sign[0] != LEFT) and (request is None or request.Test()):
                sign = np.array([LEFT if leaving else self.reached], np.int64)
                sent[rank] = self._life.Isend(sign, dest=rank), sign

    def _lost(self, rank: int, what: str) -> NoReturn:
        print(
            f"tinygpt: error: {self.name(rank)} {what}; the run ends on all ranks{self.kept()}",
            file=self._errors,
            flush=True,
        )
        self._abort(1)


def _processors() -> tuple[int, ...]:
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(cores()))


@contextlib.contextmanager
def world(patience: float = PATIENCE, exact: bool = True) -> Iterator[World | None]:
    """The ranks that this process was started with; None if it is alone.

    All but rank 0 are silent. An error in the block, on any rank, ends all of them.
    """
    if not any(name in os.environ for name in (*SIZES, *RANKS)):
        yield None
        return
    mpi = _load_mpi()
    if mpi.COMM_WORLD.size == 1:
        yield None
        return
    ranks = World(mpi, patience, exact)
    try:
        with contextlib.ExitStack() as stack:
            if ranks.rank:
                silence = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stderr(silence))
            yield ranks
            ranks.close()
    except BaseException as error:
        ranks.fail(_status(error))
        if ranks.rank and isinstance(error, Exception):
            kind = UsageError if isinstance(error, UsageError) else Error
            what = str(error) if isinstance(error, Error) else f"{type(error).__name__}: {error}"
            raise kind(f"{ranks.name(ranks.rank)}: {what}{ranks.kept()}") from error
        raise


def _status(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 128 + int(error.args[0] if error.args else signal.SIGINT)
    return 2 if isinstance(error, UsageError) else 1


def _load_mpi() -> Any:
    """mpi4py's MPI, of the kind that started this process, and fit for threads."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        _let_rank_0_tell()
        what = (
            "mpi4py is missing"
            if isinstance(error, ModuleNotFoundError)
            else f"mpi4py finds no MPI ({error})"
        )
        raise Error(f"started by mpiexec, but {what}: {INSTALL}") from error
    library = MPI.Get_library_version().partition("\n")[0].strip("\0 ")
    size = MPI.COMM_WORLD.size
    told = next((int(os.environ[name]) for name in SIZES if name in os.environ), size)
    if told != size:
        _let_rank_0_tell()
        raise Error(
            f"mpiexec started {told} processes, but mpi4py's MPI ({library}) sees {size}: they "
            f"are of two kinds; use the mpiexec of that MPI, or {INSTALL}"
        )
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise Error(f"{library}: made without MPI_THREAD_MULTIPLE, which is needed; {INSTALL}")
    return MPI


def _let_rank_0_tell() -> None:
    if next((os.environ[name] for name in RANKS if name in os.environ), "0") != "0":
        time.sleep(LATER)


def asked(options: argparse.Namespace, own: Sequence[str]) -> dict[str, str]:
    """The options that all ranks have to share, by their name in an error; each has its `own`."""
    shared = {name: value for name, value in vars(options).items() if name not in own}
    return {f"--{name.replace('_', '-')}": str(value) for name, value in shared.items()}


def software() -> dict[str, str]:
    """What has to be the same on all ranks for the same bits, by its name in an error."""
    code = hashlib.sha256()
    packages = Path(minitensor.__file__).parents[1]
    for name in ("minitensor", "bpe", "tinygpt"):
        for path in sorted((packages / name).rglob("*.py")):
            code.update(path.relative_to(packages).as_posix().encode() + path.read_bytes())
    return {
        "tinygpt": __version__,
        "the code (its SHA-256)": code.hexdigest()[:16],
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "kernels": kernels.backend(),
        "processor": platform.machine(),
    }


def weights_hash(weights: Sequence[Array]) -> bytes:
    """SHA-256 of the weights in their order."""
    digest = hashlib.sha256()
    for w in weights:
        digest.update(np.ascontiguousarray(w).data)
    return digest.digest()


def straggler(reached: dict[int, int]) -> int | None:
    """The rank that has come to fewer places than others, or None if all have come to as many.

    Who waits for a rank has come to one place more, and who waits for him to still another.
    """
    slowest = min(reached, key=lambda rank: reached[rank])
    return slowest if reached[slowest] < max(reached.values()) else None


def strangers(hashes: Sequence[bytes]) -> list[int]:
    """The ranks whose hash is not the one that most have (of two as frequent, rank 0's)."""
    counts = Counter(hashes)
    usual = max(counts, key=lambda h: (counts[h], h == hashes[0]))
    return [rank for rank, h in enumerate(hashes) if h != usual]
