"""The order of trips, and work done ahead of the consumer.

Which trips form which step is a pure function of the seed and the step's number, so
resuming at a step needs no loader state. One thread builds batches ahead; numpy does
the work outside the interpreter lock, so no worker processes are needed (forking while
gRPC calls are in flight crashes).
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

import numpy as np

from shared.arrays import Int64

Item = TypeVar("Item")
Result = TypeVar("Result")


class TripOrder:
    """Batches of trips in a seeded order that keeps similar lengths together.

    Each epoch shuffles the trips, takes `bucket_batches` times `batch_size` of them at a time, sorts these by
    length, cuts them into `bucket_batches` batches of about as many steps each, and shuffles all batches. Every trip
    is seen once an epoch; a bucket that has fewer trips makes fewer batches.

    A batch holds `batch_size` trips on average: more short ones, or fewer long ones. Were it always as many, a step of
    a short trip would weigh several times one of a long trip, because the loss is a mean over the steps of a batch;
    and one batch in `bucket_batches` would pad nearly everything to its longest trip.

    Attributes:
        batches_per_epoch: how many batches there are.
        steps_per_epoch: steps of all trips together.
    """

    def __init__(self, trips: Int64, steps: Int64, batch_size: int, bucket_batches: int, seed: int) -> None:
        """Orders `trips` (int64 [n] indices), which have `steps` (int64 [n], each at least 1)."""
        self._trips, self._steps = trips, steps
        self._batch_size, self._bucket, self._seed = batch_size, batch_size * bucket_batches, seed
        self.batches_per_epoch = -(-len(trips) // batch_size)
        self.steps_per_epoch = int(steps.sum())

    def epoch(self, epoch: int) -> list[Int64]:
        """The batches of an epoch."""
        rng = np.random.default_rng((self._seed, epoch))
        order = rng.permutation(len(self._trips))
        batches = [
            batch for i in range(0, len(order), self._bucket) for batch in self._cut(order[i : i + self._bucket])
        ]
        return [self._trips[batches[i]] for i in rng.permutation(len(batches))]

    def _cut(self, bucket: Int64) -> list[Int64]:
        """Splits a bucket's trips, shortest first, into batches of about as many steps; none is empty."""
        bucket = bucket[np.argsort(self._steps[bucket], kind="stable")]
        batches = -(-len(bucket) // self._batch_size)
        until = np.cumsum(self._steps[bucket])
        number = np.arange(1, batches)
        end = np.searchsorted(until, until[-1] * number / batches)
        # Where a trip is longer than a batch's share, two ends may meet: the later one moves on, or the earlier back.
        end = np.maximum.accumulate(np.maximum(end - number, 0)) + number
        end = np.minimum(end, len(bucket) - batches + number)
        return np.split(bucket, end)


def padded_share(batches: Iterable[Int64], power: int = 1) -> float:
    """Share of padding in padded batches, given the steps of each batch's trips.

    Args:
        batches: int64 [B] steps of the trips, for each batch.
        power: 1 for arrays [B, T], 2 for [B, T, T].
    """
    steps = list(batches)
    valid = sum(int((batch**power).sum()) for batch in steps)
    padded = sum(len(batch) * int(batch.max() ** power) for batch in steps)
    return 1 - valid / padded


def by_length(lengths: Int64, batch_size: int) -> list[Int64]:
    """All trips, shortest first, in batches: the order for evaluation, where order is free."""
    order = np.argsort(lengths, kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def one_late(made: Iterable[Item]) -> Iterator[Item]:
    """The same items, each after the next has been made: a device computes that while the host reads this one."""
    before: list[Item] = []
    for item in made:
        yield from before
        before = [item]
    yield from before


class Prefetcher(Generic[Item, Result]):
    """Iterates `function(item)` for every item, computed in order by one thread up to `depth` ahead.

    An exception in the function is raised to the consumer in its place. Leaving the
    context stops the thread.
    """

    def __init__(self, function: Callable[[Item], Result], items: Iterable[Item], depth: int) -> None:
        self._function, self._items = function, items
        self._ready: queue.Queue[Result | _Failure | _End] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)

    def __enter__(self) -> Prefetcher[Item, Result]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._ready.get(timeout=0.05)

    def __iter__(self) -> Iterator[Result]:
        while True:
            result = self._ready.get()
            if isinstance(result, _End):
                return
            if isinstance(result, _Failure):
                raise result.error
            yield result

    def _work(self) -> None:
        try:
            for item in self._items:
                if self._stopped.is_set():
                    return
                self._ready.put(self._function(item))
            self._ready.put(_End())
        except BaseException as error:  # the consumer raises it
            self._ready.put(_Failure(error))


class _End:
    pass


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error
