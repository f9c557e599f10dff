"""Work shared out to threads: nothing is lost, nothing is done twice, and the order is kept."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minitensor as mt
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
