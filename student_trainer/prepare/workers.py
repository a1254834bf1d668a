"""Work on several cores at once, the results in order: numpy and compiled loops hold no lock of the interpreter."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from shared.provenance import cores

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """A pool of threads."""

    def __init__(self, count: int) -> None:
        """A pool of `count` threads; 0: one for each core that this process may use."""
        self.count = count or cores()
        self._pool = ThreadPoolExecutor(self.count, "prepare")

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def in_order(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`function(item)` for every item, in their order; never more than a few items or results are held.

        An exception in the function, or in the items, is raised in its place.
        """
        pending: deque[Future[Result]] = deque()
        for future in self._submitted(function, items):
            pending.append(future)
            if len(pending) > self.count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _submitted(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Future[Result]]:
        iterator = iter(items)
        while True:
            try:
                item = next(iterator)
            except StopIteration:
                return
            except Exception as error:  # raised when what came before it has been consumed
                failed: Future[Result] = Future()
                failed.set_exception(error)
                yield failed
                return
            yield self._pool.submit(function, item)
