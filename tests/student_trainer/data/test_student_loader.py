"""The order of trips, and the prefetcher."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from student_trainer.data.loader import Prefetcher, TripOrder, by_length, padded_share


@given(st.integers(1, 200), st.integers(1, 17), st.integers(1, 5), st.integers(0, 99), st.sampled_from([0, 1000]))
def test_every_trip_once_an_epoch(trips: int, batch_size: int, bucket: int, seed: int, outlier: int) -> None:
    """Also with a trip that is longer than all others together."""
    steps = np.random.default_rng(seed).integers(1, 50, trips)
    steps[seed % trips] += outlier
    order = TripOrder(np.arange(trips) + 1000, steps, batch_size, bucket, seed)
    batches = order.epoch(3)
    assert len(batches) == order.batches_per_epoch == math.ceil(trips / batch_size)
    assert sorted(np.concatenate(batches)) == list(range(1000, 1000 + trips))
    assert min(len(batch) for batch in batches) >= 1
    if bucket == 1:
        assert max(len(batch) for batch in batches) <= batch_size


def test_order_is_a_function_of_seed_and_epoch() -> None:
    lengths = np.arange(100) % 13 + 2

    def epoch(seed: int, number: int) -> list[list[int]]:
        return [batch.tolist() for batch in TripOrder(np.arange(100), lengths, 8, 4, seed).epoch(number)]

    assert epoch(1, 0) == epoch(1, 0)
    assert epoch(1, 0) != epoch(1, 1) != epoch(2, 1)


def skewed_steps(trips: int) -> np.ndarray:
    """Most trips are short, a few are very long, as trips of taxis are."""
    return np.random.default_rng(0).lognormal(3.3, 0.5, trips).astype(np.int64) + 1


def test_bucketing_pads_less() -> None:
    steps = skewed_steps(4000)

    def padded(bucket: int) -> float:
        return padded_share([steps[batch] for batch in TripOrder(np.arange(4000), steps, 32, bucket, 0).epoch(0)])

    assert padded(1) > 0.5
    assert padded(32) < 0.06


def test_batches_have_about_as_many_steps() -> None:
    """So a step weighs the same whatever trip it is of: batches of as many trips would differ by a factor of 7."""
    steps = skewed_steps(4096)
    sums = [int(steps[batch].sum()) for batch in TripOrder(np.arange(4096), steps, 32, 32, 0).epoch(0)]
    assert max(sums) < 1.3 * min(sums)


def test_every_epoch_has_other_batches() -> None:
    """Trips share a batch by chance, not by length alone."""
    steps = skewed_steps(1024)
    order = TripOrder(np.arange(1024), steps, 16, 8, 0)
    pairs = [{(int(a), int(b)) for batch in order.epoch(n) for a in batch for b in batch if a < b} for n in (0, 1)]
    assert len(pairs[0] & pairs[1]) < 0.2 * len(pairs[0])


def test_padded_share_by_hand() -> None:
    batches = [np.array([1, 3]), np.array([4])]
    assert padded_share(batches) == pytest.approx(1 - 8 / 10)
    assert padded_share(batches, power=2) == pytest.approx(1 - 26 / 34)


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
