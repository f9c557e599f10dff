"""The training step: a batch in shards, shards spread over threads, gradients in a fixed tree.

One thread works on one shard at a time, with single-threaded BLAS and kernels that release the GIL:
a shard's activations stay in a core's own cache, and the memory they take is that of a shard and
not of a batch. The gradients of shards 2k and 2k+1 are added, then those of pairs, and so on: the
order of every addition depends on the number of shards alone, so one thread and sixteen give the
same bits (and pairwise sums round less than running ones).

Several processes share out the shards in the same way: each has a run of neighbours and adds them
up as far as they go, and where a sum has its halves on two processes, one sends its half to the
other. How they send is not known here: see `Ranks`.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Protocol, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from minitensor.gradients import grad
from minitensor.tape import Array, mode, set_mode
from minitensor.tensor import Tensor

T = TypeVar("T")
R = TypeVar("R")


def current_modes() -> dict[str, Any]:
    """The modes of this thread that one which works for it takes over."""
    return {name: getattr(mode, name) for name in ("grad", "anomaly", "observer")}


class Workers:
    """`threads` threads for shards, and BLAS kept to one thread meanwhile; a context manager.

    `blas_limited` says whether the limit took hold: threadpoolctl cannot reach every BLAS (not
    Accelerate on macOS), and then the step is right but slower.
    """

    def __init__(self, threads: int = 1):
        if threads < 1:
            raise ValueError(f"Workers: threads is {threads}; it must be at least 1")
        self.threads = threads
        self.blas_limited = False
        self._stack = ExitStack()
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Workers:
        _keep_freed_memory()
        controller = ThreadpoolController()
        self.blas_limited = any(lib["user_api"] == "blas" for lib in controller.info())
        self._stack.enter_context(controller.limit(limits=1, user_api="blas"))
        if self.threads > 1:
            self._pool = self._stack.enter_context(ThreadPoolExecutor(self.threads - 1))
            # A thread that waits for the GIL asks for it after this long; the default of 5 ms is
            # an age when ops take 50 µs.
            self._stack.callback(sys.setswitchinterval, sys.getswitchinterval())
            sys.setswitchinterval(1e-4)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        self._pool = None

    def run(self, work: Callable[[], None], count: int | None = None) -> None:
        """Run `work` on every thread at once (on at most `count`), the calling one included.

        The workers take over the caller's modes (no_grad, anomaly, observer). The first exception
        is raised here once all have stopped.
        """
        modes = current_modes()

        def helper() -> None:
            with set_mode(**modes):
                work()

        extra = min(self.threads, count or self.threads) - 1 if self._pool is not None else 0
        assert self._pool is not None or extra == 0
        futures = [self._pool.submit(helper) for _ in range(extra)] if self._pool else []
        try:
            work()
        finally:
            errors = [f.exception() for f in futures]
        for error in errors:
            if error is not None:
                raise error

    def map(
        self,
        fn: Callable[[T], R],
        items: Iterable[T],
        size: Callable[[T], int] | None = None,
        light: int = 0,
    ) -> list[R]:
        """[fn(item) for item in items], spread over the threads; the order is kept.

        A thread takes the next item when it is free; given `size`, for many short items, each
        takes a single run of neighbours, and the runs are of about the same size. If all together
        are smaller than `light`, waking threads would take longer: the calling one does it alone.
        """
        todo = list(items)
        if size is not None:
            sizes = [size(item) for item in todo]
            if sum(sizes) < light:
                return [fn(item) for item in todo]
            runs = _runs(todo, sizes, self.threads)
            return [y for ys in self.map(lambda run: [fn(x) for x in run], runs) for y in ys]
        results: list[Any] = [None] * len(todo)
        take = _Counter(len(todo))

        def work() -> None:
            while (i := take()) is not None:
                try:
                    results[i] = fn(todo[i])
                except BaseException:
                    take.stop()
                    raise

        self.run(work, len(todo))
        return results


def _runs(items: list[T], sizes: list[int], count: int) -> list[list[T]]:
    """The items in `count` runs of about the same size."""
    runs: list[list[T]] = [[] for _ in range(count)]
    total, done = max(sum(sizes), 1), 0
    for item, size in zip(items, sizes, strict=True):
        runs[min((2 * done + size) * count // (2 * total), count - 1)].append(item)  # its middle
        done += size
    return runs


def _keep_freed_memory() -> None:
    """Tell glibc's malloc to reuse large freed blocks instead of returning them to the system.

    Activations are allocated and freed by the thousand each step; without this each one would be
    mapped again and its pages cleared one fault at a time, a tenth of a step. No effect elsewhere.
    """
    if sys.platform == "linux":
        try:
            mallopt = ctypes.CDLL(None).mallopt
        except (OSError, AttributeError):  # another C library
            return
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


class _Counter:
    """Hands out 0, 1, … n−1, each to one thread."""

    def __init__(self, n: int):
        self.next, self.n, self.lock = 0, n, threading.Lock()

    def __call__(self) -> int | None:
        with self.lock:
            if self.next >= self.n:
                return None
            self.next += 1
            return self.next - 1

    def stop(self) -> None:
        with self.lock:
            self.next = self.n


class _Tree:
    """Adds up values that arrive in any order, always in the same pairwise order.

    A sum is `index` of its `level`, and a leaf one of level 0. Sums go up until there are `keep`;
    one that `pass_on` takes goes no further here.
    """

    def __init__(
        self,
        n: int,
        add: Callable[[Any, Any], Any],
        keep: int = 2,
        pass_on: Callable[[int, int, Any], bool] = lambda level, index, value: False,
    ):
        self.n, self.add, self.keep, self.pass_on = n, add, keep, pass_on
        self.lock = threading.Lock()
        self.waiting: dict[tuple[int, int], Any] = {}  # (level, index) -> a sum without its pair

    def put(self, index: int, value: Any, level: int = 0) -> None:
        """Add a value, and every sum that it completes."""
        size = -(-self.n >> level)
        while size > self.keep:
            if index % 2 == 0 and index == size - 1:  # an odd one out goes up alone
                index, size, level = index // 2, (size + 1) // 2, level + 1
                continue
            if self.pass_on(level, index, value):
                return
            with self.lock:
                other = self.waiting.pop((level, index ^ 1), None)
                if other is None:
                    self.waiting[level, index] = value
                    return
            value = self.add(value, other) if index % 2 == 0 else self.add(other, value)
            index, size, level = index // 2, (size + 1) // 2, level + 1
        self.waiting[level, index] = value

    def total(self) -> Any:
        """The sum of all, or None as long as it is not known (of a tree that keeps one)."""
        return self.waiting.get(((self.n - 1).bit_length(), 0))

    def rest(self) -> list[Any]:
        """The `keep` sums that are left of all, or the total itself if there was but one leaf."""
        return [self.waiting[key] for key in sorted(self.waiting)]


def _add(left: tuple[float, list[Array]], right: tuple[float, list[Array]]) -> Any:
    return left[0] + right[0], _add_in_place(left[1], right[1])


def _add_in_place(left: list[Array], right: list[Array]) -> list[Array]:
    for a, b in zip(left, right, strict=True):
        a += b
    return left


# ------------------------------------------------------------------------------ several processes

BUCKET = 1 << 17  # numbers that travel together: half a megabyte of float32
LINE = 64  # bytes
POLL = 5e-4  # seconds between two looks at what has arrived, while shards are computed
SPIN = 2e-3  # seconds of a wait in which nothing but other threads may run; then it sleeps


class Ranks(Protocol):
    """Processes that work on one step, each with the same parameters; this is number `rank`.

    What is sent are bytes in one piece, (n,) uint8. Nothing here waits, and any thread may call it;
    but what all ranks have to call, they call in the same order. What is returned tells whether it
    is done.
    """

    rank: int
    size: int
    exact: bool  # whether sums go up the tree; if not, `add_up` makes them

    def send(self, data: Array, to: int, tag: int) -> None:
        """Send what will not be written to any more."""

    def receive(self, data: Array, source: int, tag: int) -> Callable[[], bool]:
        """Write what is sent with this tag, as many bytes, in place."""

    def broadcast(self, data: Array) -> Callable[[], bool]:
        """Write what rank 0 has in place of what all others have; every rank calls it."""

    def add_up(self, arrays: Sequence[Array]) -> Callable[[], bool]:
        """Write the sums over all ranks in place, added in any order, of arrays in C order; every
        rank calls it."""

    def settle(self) -> None:
        """Wait until everything that was sent is there."""

    def worked(self) -> None:
        """Take note that this rank has computed its shards of a step."""


def part(shards: int, rank: int, size: int) -> range:
    """The shards that a rank works on: neighbours, and no rank has more than it must.

    Rounding up leaves the last ranks with less, but gives the others parts that begin where sums
    of the tree do, so that fewer halves have to travel.
    """
    share = -(-shards // size)
    return range(min(rank * share, shards), min((rank + 1) * share, shards))


def wait(done: Callable[[], bool]) -> None:
    """Wait without MPI's own loop, which would take a whole processor from those at work."""
    begin = time.perf_counter()
    while not done():
        time.sleep(_doze(time.perf_counter() - begin))


def _doze(waited: float) -> float:
    """Seconds until one looks again: a fiftieth of the wait, so that long ones take no processor
    from others, but never so long that a transfer would stand still."""
    return 0 if waited < SPIN else min(waited / 50, 1e-3)


@dataclass
class Letter:
    """A sum of a bucket that another rank sends."""

    arrived: Callable[[], bool]
    bucket: int
    level: int
    index: int
    arrays: list[Array]


class _Exchange:
    """The sums of one step on one rank: a tree for each bucket, whose sums travel between ranks.

    The items of a shard are its loss and the gradients of what is wanted, the last first, as a
    backward yields them: so buckets, which are runs of neighbours, are complete one after the other
    while the backward goes on. A sum lies with the rank of its first shard. Where its halves lie
    with two ranks, the right one is sent as soon as it is complete, and the left one waits for it.
    """

    def __init__(self, ranks: Ranks, shards: int, items: Sequence[Array]):
        self.ranks, self.items = ranks, items
        self.buckets = _buckets(items)
        self.of_item = [b for b, bucket in enumerate(self.buckets) for _ in items[bucket]]
        self.owners = [rank for rank in range(ranks.size) for _ in part(shards, rank, ranks.size)]
        self.trees = [
            _Tree(shards, _add_in_place, 1, partial(self._pass_on, b))
            for b in range(len(self.buckets))
        ]
        self.started, self.computing, self.given_up = threading.Event(), True, False

    def run(
        self,
        compute: Callable[[], Any],
        derived: int,
        back: Callable[[list[Array]], list[Array | None]],
    ) -> list[Array]:
        """Compute this rank's shards, while a thread listens; returns the totals (see `listen`)."""
        modes = current_modes()

        def listen() -> list[Array]:
            with set_mode(**modes):
                return self.listen(derived, back)

        with ThreadPoolExecutor(1, "exchange") as pool:
            totals = pool.submit(listen)
            try:
                compute()
                self.ranks.worked()
                self.computing = False
                self.started.set()
                return totals.result()
            except BaseException:
                self.given_up = True
                self.started.set()
                raise

    # ---- the threads that compute

    def shard(self, index: int) -> Callable[[int, Array], None]:
        """What takes the items of a shard, by their numbers in any order."""
        boxes: list[dict[int, Array]] = [{} for _ in self.buckets]

        def take(number: int, value: Array) -> None:
            b = self.of_item[number]
            boxes[b][number] = value
            numbers = range(len(self.items))[self.buckets[b]]
            if len(boxes[b]) == len(numbers):
                self.trees[b].put(index, [boxes[b].pop(i) for i in numbers])

        return take

    def _pass_on(self, bucket: int, level: int, index: int, value: list[Array]) -> bool:
        """Send a right half whose left one lies with another rank."""
        owner = self.owners[index - index % 2 << level]
        across = owner != self.owners[(index | 1) << level]
        if across:
            self.started.set()
        if not across or owner == self.ranks.rank:
            return False
        self.ranks.send(_packed(value), owner, self._tag(bucket, level))
        return True

    def _tag(self, bucket: int, level: int) -> int:
        return level * len(self.buckets) + bucket  # two ranks meet once a level at most

    # ---- the thread that listens

    def listen(
        self, derived: int, back: Callable[[list[Array]], list[Array | None]]
    ) -> list[Array]:
        """Put what arrives into the trees, and send the totals of rank 0 to all; returns them.

        The items after the loss are of `derived` tensors: their totals go no further than rank 0,
        where ``back(totals)`` says what they add to each of the items that follow.
        """
        numbers = range(len(self.items))
        kept = [[i for i in numbers[b] if not 0 < i <= derived] for b in self.buckets]
        totals: list[list[Array]] = []
        under_way: deque[Callable[[], bool]] = deque()
        if self.ranks.rank:
            for mine in kept:
                data, arrays = _boxes([self.items[i] for i in mine])
                totals.append(arrays)
                under_way.append(self.ranks.broadcast(data))
        expected = self._expect()
        sums: list[Array] = []
        through: list[Array | None] = []

        self.started.wait()
        moved = time.perf_counter()
        while any(expected) or len(totals) < len(kept) or under_way:
            if self.given_up:
                return []
            before = moved
            for letters in expected:
                while letters and letters[0].arrived():
                    letter = letters.popleft()
                    self.trees[letter.bucket].put(letter.index, letter.arrays, letter.level)
                    moved = time.perf_counter()
            while len(totals) < len(kept) and (total := self.trees[len(totals)].total()):
                had, sums = len(sums), sums + total
                if had <= derived < len(sums):
                    through = back(sums[1 : derived + 1])
                mine = kept[len(totals)]
                for i in mine:
                    extra = through[i - derived - 1] if i else None
                    if extra is not None:
                        np.add(sums[i], extra, out=sums[i])
                totals.append([sums[i] for i in mine])
                under_way.append(self.ranks.broadcast(_packed(totals[-1])))
                moved = time.perf_counter()
            while under_way and under_way[0]():
                under_way.popleft()
                moved = time.perf_counter()
            if moved == before:
                waited = time.perf_counter() - moved
                time.sleep(POLL if self.computing else _doze(waited))
        self.ranks.settle()
        return [a for arrays in totals for a in arrays]

    def _expect(self) -> list[deque[Letter]]:
        """Begin to receive the right halves of this rank's sums: of each, bucket by bucket."""
        expected: list[deque[Letter]] = []
        for level, index, owner, other in _meetings(self.owners):
            if owner == self.ranks.rank:
                expected.append(deque())
                for b, bucket in enumerate(self.buckets):
                    data, arrays = _boxes(self.items[bucket])
                    done = self.ranks.receive(data, other, self._tag(b, level))
                    expected[-1].append(Letter(done, b, level, index + 1, arrays))
        return expected


def _meetings(owners: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """(level, index, owner, other) of each sum, the leaves' first, whose halves `index` and
    `index` + 1 of that level lie with two ranks; `owners` says whose each leaf is."""
    level = 0
    while len(owners) > 1:
        for index in range(0, len(owners) - 1, 2):
            if owners[index] != owners[index + 1]:
                yield level, index, owners[index], owners[index + 1]
        owners, level = owners[::2], level + 1


def _buckets(arrays: Sequence[Array]) -> list[slice]:
    """Runs of neighbours of at least `BUCKET` numbers, but for the last."""
    ends, size = [0], 0
    for i, a in enumerate(arrays, 1):
        size += a.size
        if size >= BUCKET or i == len(arrays):
            ends.append(i)
            size = 0
    return [slice(*ends[i : i + 2]) for i in range(len(ends) - 1)]


def _boxes(like: Sequence[Array]) -> tuple[Array, list[Array]]:
    """A buffer, and arrays of these shapes and dtypes in it; each begins a line of the cache."""
    begins = [0, *itertools.accumulate(-(-a.nbytes // LINE) * LINE for a in like)]
    data = np.empty(begins[-2] + like[-1].nbytes if like else 0, np.uint8)
    parts = (data[i : i + a.nbytes] for i, a in zip(begins, like, strict=False))
    return data, [d.view(a.dtype).reshape(a.shape) for d, a in zip(parts, like, strict=True)]


def _packed(arrays: Sequence[Array]) -> Array:
    """The arrays in one buffer, which is quicker to send than many: no copy if it is one alone."""
    if len(arrays) == 1:
        return arrays[0].reshape(-1).view(np.uint8)
    data, boxes = _boxes(arrays)
    for box, a in zip(boxes, arrays, strict=True):
        box[...] = a
    return data


def sum_of_ranks(arrays: Sequence[Array], ranks: Ranks) -> list[Array]:
    """The sums of the ranks' arrays, on every rank, added pairwise in the order of the ranks.

    The arrays, in C order, are changed: what is worth keeping must be a copy.
    """
    exchange = _Exchange(ranks, ranks.size, arrays)
    take = exchange.shard(ranks.rank)

    def give() -> None:
        for i, a in enumerate(arrays):
            take(i, a)

    return exchange.run(give, 0, lambda totals: [None] * len(arrays))


# ----------------------------------------------------------------------------------------- a step


def value_and_grad(
    loss_fn: Callable[..., Tensor],
    parameters: Sequence[Tensor],
    shards: Sequence[Any],
    *,
    workers: Workers,
    derive: Callable[[], Sequence[Tensor]] | None = None,
    ranks: Ranks | None = None,
) -> tuple[float, list[Array]]:
    """The sum over shards of ``loss_fn(shard, index, *derived)`` and its gradients.

    Each call returns a scalar Tensor (so divide by the whole batch's size inside it). Gradients
    come as arrays aligned with `parameters`; no ``.grad`` is touched. `derive` computes tensors
    that depend on the parameters alone, such as a pseudo-inverse: once a step, not once a shard.
    The shards see them as leaves, and the sum of their gradients goes back through `derive` once.
    The result does not depend on the number of threads, to the last bit.

    With `ranks`, every one of these processes calls with all shards and works on its own `part`;
    all are given the result, which does not depend on their number either, if they are `exact`.
    The gradients of the last parameters travel first, so `parameters` should come in the order in
    which the forward uses them.
    """
    if not shards:
        raise ValueError("value_and_grad: no shards; the batch is empty")
    derived = list(derive()) if derive is not None else []
    leaves = [t.detach().requires_grad_() for t in derived]
    wanted = [*parameters, *leaves]

    def back(totals: list[Array]) -> list[Array | None]:
        """What the gradients of the derived tensors add to those of the parameters."""
        if not derived:
            return [None] * len(parameters)
        return [*grad(derived, parameters, totals, allow_unused=True)]

    def add_together(left: list[Array], right: list[Array]) -> list[Array]:
        """left += right, shared out to all threads: for when there is nothing else to do."""
        workers.map(
            lambda pair: np.add(*pair, out=pair[0]),
            zip(left, right, strict=True),
            lambda pair: pair[0].size,
            2**19,
        )
        return left

    if ranks is not None and ranks.exact:
        items = [np.empty(1), *(t.data for t in reversed(wanted))]
        exchange = _Exchange(ranks, len(shards), items)

        def item_by_item(index: int) -> None:
            loss = loss_fn(shards[index], index, *leaves)
            take = exchange.shard(index)
            take(0, np.array([loss.item()]))
            last = len(wanted)
            grad(loss, wanted, materialize_grads=True, ready=lambda i, g: take(last - i, g))

        mine = part(len(shards), ranks.rank, ranks.size)
        total, *grads = exchange.run(
            lambda: workers.map(item_by_item, mine),
            len(leaves),
            lambda totals: back(totals[::-1])[::-1],
        )
        return float(total[0]), grads[::-1]

    tree = _Tree(len(shards), _add)

    def one(index: int) -> None:
        loss = loss_fn(shards[index], index, *leaves)
        value = loss.item()
        tree.put(index, (value, grad(loss, wanted, materialize_grads=True)))

    if ranks is None:
        workers.map(one, range(len(shards)))
        (value, grads), *other = tree.rest()
        for more, right in other:
            value += more
            add_together(grads, right)
    else:
        workers.map(one, part(len(shards), ranks.rank, ranks.size))
        ranks.worked()
        loss, *grads = [np.zeros(1), *(np.zeros(t.shape, t.dtype) for t in wanted)]
        for more, right in tree.rest():
            loss += more
            add_together(grads, right)
        wait(ranks.add_up([loss, *grads]))
        value = float(loss[0])
    through = back(grads[len(parameters) :])
    for own, extra in zip(grads, through, strict=False):
        if extra is not None:
            np.add(own, extra, out=own)
    return value, grads[: len(parameters)]
