"""The order of trips, and the prefetcher."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from student_trainer.data.loader import Prefetcher, TripOrder, by_length


@given(st.integers(1, 200), st.integers(1, 17), st.integers(1, 5), st.integers(0, 99))
def test_every_trip_once_an_epoch(trips: int, batch_size: int, bucket: int, seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(2, 50, trips)
    order = TripOrder(np.arange(trips) + 1000, lengths, batch_size, bucket, seed)
    batches = order.epoch(3)
    assert len(batches) == order.batches_per_epoch
    assert sorted(np.concatenate(batches)) == list(range(1000, 1000 + trips))
    assert max(len(batch) for batch in batches) <= batch_size


def test_order_is_a_function_of_seed_and_epoch() -> None:
    lengths = np.arange(100) % 13 + 2

    def epoch(seed: int, number: int) -> list[list[int]]:
        return [batch.tolist() for batch in TripOrder(np.arange(100), lengths, 8, 4, seed).epoch(number)]

    assert epoch(1, 0) == epoch(1, 0)
    assert epoch(1, 0) != epoch(1, 1) != epoch(2, 1)


def test_bucketing_pads_less() -> None:
    lengths = np.random.default_rng(0).integers(2, 60, 2000)

    def padded(bucket: int) -> int:
        return sum(int(lengths[b].max()) * len(b) for b in TripOrder(np.arange(2000), lengths, 32, bucket, 0).epoch(0))

    assert padded(16) < 0.75 * padded(1)


def test_by_length_covers_all() -> None:
    lengths = np.array([5, 3, 9, 2])
    assert [batch.tolist() for batch in by_length(lengths, 3)] == [[3, 1, 0], [2]]


def test_prefetcher_keeps_order_and_stays_within_its_depth() -> None:
    started = []
    gate = threading.Semaphore(0)

    def work(item: int) -> int:
        started.append(item)
        gate.acquire()
        return item * item

    with Prefetcher(work, range(10), depth=2) as results:
        gate.release()
        iterator = iter(results)
        assert next(iterator) == 0
        gate.release(20)
        assert list(iterator) == [n * n for n in range(1, 10)]
    assert started == list(range(10))


def test_prefetcher_raises_in_place() -> None:
    def work(item: int) -> float:
        return 1 / item

    with Prefetcher(work, [2, 0, 4], depth=1) as results:
        iterator = iter(results)
        assert next(iterator) == 0.5
        with pytest.raises(ZeroDivisionError):
            next(iterator)


def test_prefetcher_stops_when_left_early() -> None:
    before = threading.active_count()
    with Prefetcher(lambda n: n, range(10**9), depth=3) as results:
        assert next(iter(results)) == 0
    assert threading.active_count() == before
