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
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Protocol, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from minitensor.tape import Array, mode, set_mode
from minitensor.tensor import Tensor, grad

T = TypeVar("T")
R = TypeVar("R")


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
        modes = {name: getattr(mode, name) for name in ("grad", "anomaly", "observer")}

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
    """Adds up values that arrive in any order, always in the same pairwise order."""

    def __init__(self, n: int, add: Callable[[Any, Any], Any]):
        self.n, self.add, self.lock = n, add, threading.Lock()
        self.waiting: dict[tuple[int, int], Any] = {}  # (level, index) -> a sum without its pair

    def put(self, index: int, value: Any, level: int = 0) -> None:
        """Add the value of leaf `index` (or of sum `index` of a higher level), and every sum that
        it completes but the last of all."""
        size = -(-self.n >> level)
        while size > 2:
            if index % 2 == 0 and index == size - 1:  # an odd one out goes up alone
                index, size, level = index // 2, (size + 1) // 2, level + 1
                continue
            with self.lock:
                other = self.waiting.pop((level, index ^ 1), None)
                if other is None:
                    self.waiting[level, index] = value
                    return
            value = self.add(value, other) if index % 2 == 0 else self.add(other, value)
            index, size, level = index // 2, (size + 1) // 2, level + 1
        self.waiting[level, index] = value

    def rest(self) -> list[Any]:
        """The two halves of the total, or the total itself if there was but one leaf."""
        return [self.waiting[key] for key in sorted(self.waiting)]


def _add(left: tuple[float, list[Array]], right: tuple[float, list[Array]]) -> Any:
    for a, b in zip(left[1], right[1], strict=True):
        a += b
    return left[0] + right[0], left[1]


class Ranks(Protocol):
    """Processes that work on one step, each with the same parameters; this is number `rank`.

    Arrays are C-contiguous. What one rank sends to another arrives in the order of sending.
    """

    rank: int
    size: int
    exact: bool  # whether sums go up the tree; if not, `add_up` makes them

    def send(self, arrays: Sequence[Array], to: int) -> None:
        """Send arrays, which will not be written to any more, without waiting until they are
        there."""

    def receive(self, arrays: Sequence[Array], source: int) -> None:
        """Wait for arrays of these shapes and dtypes and write them in place."""

    def broadcast(self, arrays: Sequence[Array]) -> None:
        """Write the arrays of rank 0 in place of those of all others; every rank calls it."""

    def add_up(self, arrays: Sequence[Array]) -> None:
        """Write the sums over all ranks in place, added in any order; every rank calls it."""


BUCKET = 1 << 20  # numbers that travel together: while some are on their way, others are added


def part(shards: int, rank: int, size: int) -> range:
    """The shards that a rank works on: neighbours, and no rank has more than it must.

    Rounding up leaves the last ranks with less, but gives the others parts that begin where sums
    of the tree do, so that fewer halves have to travel.
    """
    share = -(-shards // size)
    return range(min(rank * share, shards), min((rank + 1) * share, shards))


def _meetings(shards: int, size: int) -> Iterator[tuple[int, int, int, int]]:
    """(level, index, owner, other) of each sum, the leaves' first, whose halves `index` and
    `index` + 1 of that level lie with two ranks. A sum lies with the owner of its first shard."""
    owners = [rank for rank in range(size) for _ in part(shards, rank, size)]
    level = 0
    while len(owners) > 1:
        for index in range(0, len(owners) - 1, 2):
            if owners[index] != owners[index + 1]:
                yield level, index, owners[index], owners[index + 1]
        owners, level = owners[::2], level + 1


def _across(
    ranks: Ranks, tree: _Tree, like: Sequence[Array], add: Callable[[list[Array], list[Array]], Any]
) -> list[Array] | None:
    """Go on adding along the tree where its sums meet between ranks: the total, on rank 0.

    `tree` holds this rank's sums, lists of arrays such as `like`. Bucket by bucket, so that a sum
    goes up the tree while the next is on its way to it.
    """
    meetings = list(_meetings(tree.n, ranks.size))
    total: list[Array] = []
    for bucket in _buckets(like):
        small = _Tree(tree.n, add)
        small.waiting = {key: value[bucket] for key, value in tree.waiting.items()}
        for level, index, owner, other in meetings:
            if other == ranks.rank:
                ranks.send(small.waiting.pop((level, index + 1)), owner)
            elif owner == ranks.rank:
                arrived = [np.empty(a.shape, a.dtype) for a in like[bucket]]
                ranks.receive(arrived, other)
                small.put(index // 2, add(small.waiting.pop((level, index)), arrived), level + 1)
        if ranks.rank == 0:
            left, *right = small.rest()
            total += add(left, right[0]) if right else left
    return total if ranks.rank == 0 else None


def _at_once(ranks: Ranks, tree: _Tree, like: Sequence[Array]) -> list[Array]:
    """The total, on every rank, in an order that is not the tree's between them."""
    total = [np.zeros(a.shape, a.dtype) for a in like]
    for _, arrays in sorted(tree.waiting.items()):
        for a, b in zip(total, arrays, strict=True):
            a += b
    ranks.add_up(total)
    return total


def _buckets(arrays: Sequence[Array]) -> list[slice]:
    """Runs of neighbours of at least `BUCKET` numbers, but for the last."""
    ends, size = [0], 0
    for i, a in enumerate(arrays, 1):
        size += a.size
        if size >= BUCKET or i == len(arrays):
            ends.append(i)
            size = 0
    return [slice(*ends[i : i + 2]) for i in range(len(ends) - 1)]


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
    """
    if not shards:
        raise ValueError("value_and_grad: no shards; the batch is empty")
    derived = list(derive()) if derive is not None else []
    leaves = [t.detach().requires_grad_() for t in derived]
    wanted = [*parameters, *leaves]
    tree = _Tree(len(shards), _add)

    def one(index: int) -> None:
        loss = loss_fn(shards[index], index, *leaves)
        value = loss.item()
        tree.put(index, (value, grad(loss, wanted, materialize_grads=True)))

    def add_together(left: list[Array], right: list[Array]) -> list[Array]:
        """left += right, shared out to all threads: for when there is nothing else to do."""
        workers.map(
            lambda pair: np.add(*pair, out=pair[0]),
            zip(left, right, strict=True),
            lambda pair: pair[0].size,
            2**20,
        )
        return left

    def finish(grads: list[Array]) -> list[Array]:
        """The gradients of the parameters alone, those of what was derived gone back to them."""
        own, through = grads[: len(parameters)], grads[len(parameters) :]
        if derived:
            back = grad(derived, parameters, through, materialize_grads=True)
            for a, b in zip(own, back, strict=True):
                np.add(a, b, out=a)
        return own

    if ranks is None:
        workers.map(one, range(len(shards)))
        (value, grads), *other = tree.rest()
        for more, right in other:
            value += more
            add_together(grads, right)
        return value, finish(grads)

    workers.map(one, part(len(shards), ranks.rank, ranks.size))
    for key, (value, grads) in tree.waiting.items():  # the loss travels with the gradients
        tree.waiting[key] = [np.array([value]), *map(np.ascontiguousarray, grads)]
    like = [np.empty(1), *(t.data for t in wanted)]
    if not ranks.exact:
        (loss, *grads) = _at_once(ranks, tree, like)
        return float(loss[0]), finish(grads)
    total = _across(ranks, tree, like, add_together)
    if total is None:
        total = [np.empty(1), *(np.empty(p.shape, p.dtype) for p in parameters)]
    else:
        total = [total[0], *finish(total[1:])]
    ranks.broadcast(total)
    return float(total[0][0]), total[1:]
