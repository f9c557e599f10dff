"""Work shared out to threads: nothing is lost, nothing is done twice, and the order is kept."""

import queue
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minitensor as mt
from minitensor import parallel
from minitensor.parallel import _runs

SIZES = st.lists(st.integers(0, 50), max_size=20)


@given(SIZES, st.integers(1, 5))
def test_runs_are_neighbours_of_about_the_same_size(sizes, count):
    items = list(range(len(sizes)))
    runs = _runs(items, sizes, count)
    assert len(runs) == count and [i for run in runs for i in run] == items
    for run in runs:
        assert sum(sizes[i] for i in run) <= sum(sizes) / count + max(sizes, default=0)


@pytest.mark.parametrize("size, light", [(None, 0), (int, 0), (int, 10**6)])
def test_map_keeps_the_order(size, light):
    with mt.Workers(3) as workers:
        assert workers.map(lambda x: x * x, range(40), size, light) == [x * x for x in range(40)]
        assert workers.map(str, [], size, light) == []


def test_the_threads_take_part():
    meet = threading.Barrier(3, timeout=10)  # broken, if fewer than three threads come
    with mt.Workers(3) as workers:
        assert len(set(workers.map(lambda _: meet.wait(), range(3), lambda _: 1))) == 3
        assert len(set(workers.map(lambda _: meet.wait(), range(3)))) == 3


def test_an_error_in_a_thread_reaches_the_caller():
    with mt.Workers(2) as workers, pytest.raises(ZeroDivisionError):
        workers.map(lambda x: 1 / x, [1, 2, 0, 4], lambda _: 1)


@pytest.mark.parametrize("large", [1, 2**20])
def test_threads_do_not_change_a_bit_of_the_gradients(large):
    p = mt.Tensor(np.linspace(-1, 1, large, dtype=np.float32), requires_grad=True)
    shards = [np.float32(x) for x in (0.3, 1.7, -2.1, 0.9, 3.3)]

    def loss(shard, index):
        return (p * p * shard).sum()

    results = []
    for threads in (1, 3):
        with mt.Workers(threads) as workers:
            value, (g,) = mt.value_and_grad(loss, [p], shards, workers=workers)
        results.append((value, g))
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1], results[1][1])


# ------------------------------------------------------------------------------ several processes


class Letters:
    """Ranks as threads of this process: what is sent lies in a box for its receiver."""

    def __init__(self, rank, size, boxes):
        self.rank, self.size, self.boxes, self.exact = rank, size, boxes, True
        self.sent, self.calls, self.steps = 0, 0, 0  # messages; calls that all ranks make; steps

    def send(self, data, to, tag):
        assert data.dtype == np.uint8 and data.flags.c_contiguous
        self.sent += 1
        self.boxes[self.rank, to, tag].put([data.copy()])

    def receive(self, data, source, tag):
        return self.all_of([(source, tag)], lambda letter: fill([data], letter))

    def broadcast(self, data):
        self.calls += 1
        if self.rank:
            return self.receive(data, 0, ("all", self.calls))
        for rank in range(1, self.size):
            self.boxes[0, rank, ("all", self.calls)].put([data.copy()])
        return lambda: True

    def add_up(self, arrays):
        self.calls += 1
        for rank in range(self.size):
            self.boxes[self.rank, rank, ("sum", self.calls)].put([a.copy() for a in arrays])
        return self.all_of(
            [(rank, ("sum", self.calls)) for rank in range(self.size)],
            lambda *letters: fill(arrays, [sum(parts) for parts in zip(*letters, strict=True)]),
        )

    def all_of(self, awaited, then):
        """A test of whether the letters are there; then they are opened."""
        got, deadline = [], time.monotonic() + 20  # for when another rank has failed

        def done():
            assert time.monotonic() < deadline
            while len(got) < len(awaited):
                source, tag = awaited[len(got)]
                try:
                    got.append(self.boxes[source, self.rank, tag].get_nowait())
                except queue.Empty:
                    return False
                if len(got) == len(awaited):
                    then(*got)
            return True

        return done

    def settle(self):
        pass  # what was sent is a copy

    def worked(self):
        self.steps += 1


def fill(arrays, letter):
    for a, b in zip(arrays, letter, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype and a.flags.c_contiguous
        a[...] = b


def on_ranks(size, work):
    """[work(ranks) of each rank], at the same time."""
    boxes = defaultdict(queue.Queue)
    ranks = [Letters(rank, size, boxes) for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        return ranks, list(pool.map(work, ranks))


@pytest.fixture(scope="module")
def one_thread():
    with mt.Workers(1) as workers:
        yield workers


def step(count, seed, workers, ranks=None):
    """A step on `count` shards with gradients of every magnitude, whose sum shows its order."""
    draw = np.random.default_rng(seed)
    a = mt.Tensor(draw.normal(size=(3, 4)).astype(np.float32), requires_grad=True)
    b = mt.Tensor(draw.normal(size=(5,)), requires_grad=True)
    shards = [np.float32(x) for x in draw.normal(size=count) * 10.0 ** draw.integers(-4, 4, count)]

    def derive():
        return [(a * a).transpose(1, 0)]  # not in C order, as a pseudo-inverse may be

    def loss(shard, index, a_squared):
        return (a_squared * shard).sum() * (index + 1) + (b * b * float(shard)).sum() + a.sum()

    return mt.value_and_grad(loss, [a, b], shards, workers=workers, derive=derive, ranks=ranks)


@pytest.mark.slow
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 30), st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_ranks_do_not_change_a_bit_of_the_gradients(one_thread, count, size, bucket, seed):
    value, grads = step(count, seed, one_thread)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "BUCKET", bucket)
        _, results = on_ranks(size, lambda ranks: step(count, seed, one_thread, ranks))
    for other_value, other_grads in results:
        assert other_value == value
        for mine, other in zip(grads, other_grads, strict=True):
            assert mine.dtype == other.dtype and mine.tobytes() == other.tobytes()


def test_a_gradient_travels_while_others_are_still_computed(one_thread, monkeypatch):
    """Rank 1 has the last layer's gradient sent before it may compute that of the first."""
    monkeypatch.setattr(parallel, "BUCKET", 1)
    first, last = (mt.Tensor(np.ones(3), requires_grad=True) for _ in range(2))

    def work(ranks):
        def hold(gradient):
            if ranks.rank == 1:
                sent.append(ranks.sent)

        def loss(shard, index):
            hidden = first * shard
            hidden.register_hook(hold)
            return (hidden * last).sum()

        return mt.value_and_grad(loss, [first, last], [2.0, 3.0], workers=one_thread, ranks=ranks)

    sent: list[int] = []
    _, results = on_ranks(2, work)
    assert sent == [2]  # the loss, and the gradient of `last`
    for value, grads in results:
        assert value == 15 and [g.tolist() for g in grads] == [[5.0] * 3] * 2


def test_an_error_in_a_shard_ends_the_step(one_thread):
    def work(ranks):
        return mt.value_and_grad(
            lambda shard, index: 1 / 0, [mt.Tensor(1.0, requires_grad=True)], [1, 2, 3],
            workers=one_thread, ranks=ranks,
        )  # fmt: skip

    with pytest.raises(ZeroDivisionError):
        on_ranks(2, work)


@pytest.mark.parametrize("count, size", [(1, 1), (7, 3), (16, 4), (2, 5)])
def test_ranks_that_need_not_be_exact_give_the_sum_to_rounding(one_thread, count, size):
    def work(ranks):
        ranks.exact = False
        return step(count, 3, one_thread, ranks)

    value, grads = step(count, 3, one_thread)
    _, results = on_ranks(size, work)
    for other_value, other_grads in results:
        assert other_value == pytest.approx(value, rel=1e-6)
        for mine, other in zip(grads, other_grads, strict=True):
            np.testing.assert_allclose(other, mine, rtol=1e-5)


@given(st.integers(0, 300), st.integers(1, 40))
def test_every_shard_has_one_rank_and_none_has_more_than_it_must(shards, size):
    parts = [parallel.part(shards, rank, size) for rank in range(size)]
    assert [i for run in parts for i in run] == list(range(shards))
    assert max(map(len, parts)) == -(-shards // size)


@pytest.mark.parametrize("shards, size", [(16, 2), (16, 4), (64, 8), (12, 3)])
def test_parts_that_fit_the_tree_send_one_sum_each(one_thread, shards, size):
    ranks, _ = on_ranks(size, lambda ranks: step(shards, 0, one_thread, ranks))
    assert [r.sent for r in ranks[1:]] == [1] * (size - 1)
    assert [r.steps for r in ranks] == [1] * size
