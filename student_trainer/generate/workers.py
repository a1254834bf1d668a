"""A search in several threads, each with trips of its own under way; compiled code and torch hold no lock meanwhile."""

from __future__ import annotations

import collections
import queue
import threading
from collections.abc import Callable, Iterable, Iterator

from student_trainer.generate.found import Found
from student_trainer.model.device import one_thread

Run = Callable[[Iterable[int]], Iterator[Found]]
"""A search's `run`, to be called once."""


def search(runs: Iterable[Run], todo: Iterable[int]) -> Iterator[Found]:
    """The trips of these pairs, in the order in which they are found.

    Args:
        runs: a search for each thread.
        todo: pairs; each goes to the thread that is the first to have room.

    Raises:
        Exception: what a search raises; the others end with the trip that they are about to find.
    """
    waiting = _Queue(todo)
    found: queue.SimpleQueue[Found | BaseException | None] = queue.SimpleQueue()

    def work(run: Run) -> None:
        try:
            with one_thread():
                for trip in run(waiting):
                    found.put(trip)
                    if waiting.stopped:
                        break
        except BaseException as error:
            found.put(error)
        else:
            found.put(None)

    threads = [threading.Thread(target=work, args=(run,), daemon=True) for run in runs]
    for thread in threads:
        thread.start()
    try:
        working = len(threads)
        while working:
            trip = found.get()
            if isinstance(trip, BaseException):
                raise trip
            if trip is None:
                working -= 1
            else:
                yield trip
    finally:
        waiting.stopped = True
        for thread in threads:
            thread.join()


class _Queue:
    """Pairs that several threads take from."""

    def __init__(self, pairs: Iterable[int]) -> None:
        self._pairs = collections.deque(pairs)
        self.stopped = False

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        try:
            return self._pairs.popleft()
        except IndexError:
            raise StopIteration from None
