"""Ranks that are threads of one process: what several do, without starting any."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar
from unittest import mock

from torch import Tensor

from shared.training.torch_ranks import RankLost, Ranks
from student_trainer.train import session as sessions
from student_trainer.train.session import Session

T = TypeVar("T")


class Table:
    """Where threads lay down what they bring, meeting by meeting."""

    def __init__(self, world: int) -> None:
        self.world = world
        self._meetings: list[dict[int, Any]] = []
        self._met = [0] * world
        self._gone: set[int] = set()
        self._changed = threading.Condition()

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """What everyone brings to this rank's next meeting, in the order of ranks; a rank that has gone brings none."""
        with self._changed:
            number = self._met[rank]
            self._met[rank] += 1
            if number == len(self._meetings):
                self._meetings.append({})
            brought = self._meetings[number]
            brought[rank] = value
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(brought) == self.world or self._gone - brought.keys(), timeout=60)
            if len(brought) < self.world:
                raise RankLost("another thread has gone")
            return [brought[other] for other in range(self.world)]

    def leave(self, rank: int) -> None:
        """Lets nobody wait for this rank any more."""
        with self._changed:
            self._gone.add(rank)
            self._changed.notify_all()


class ThreadRanks(Ranks):
    """One thread's view; tensors are added up in the order of ranks, so that all get the same bits."""

    def __init__(self, rank: int, table: Table) -> None:
        super().__init__(rank, table.world, rank)
        self.table = table

    def gather(self, value: T) -> list[T]:
        """See `Ranks`."""
        return self.table.exchange(self.rank, value)

    def broadcast(self, value: T) -> T:
        """See `Ranks`."""
        return self.gather(value)[0]

    def sum_(self, tensor: Tensor) -> None:
        """See `Ranks`."""
        first, *others = self.gather(tensor.clone())
        for other in others:
            first = first + other
        tensor.copy_(first)


def thread_ranks(world: int) -> list[Ranks]:
    """Ranks that know each other."""
    table = Table(world)
    return [ThreadRanks(rank, table) for rank in range(world)]


def run_together(works: Sequence[Callable[[], T]], ranks: Sequence[Ranks]) -> list[T | BaseException]:
    """Each rank's result or error; a rank that fails is lost to the others."""
    results: list[Any] = [None] * len(works)

    def run(number: int) -> None:
        try:
            results[number] = works[number]()
        except BaseException as error:
            results[number] = error
            ranks[number].table.leave(number)  # type: ignore[attr-defined]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def build_together(build: Callable[[Ranks], Session], ranks: Sequence[Ranks]) -> list[Session]:
    """Each rank's session, built at the same time, for they meet while they are built.

    Threads share torch's generator, which processes do not: initial weights are drawn by one after the other.
    """
    lock, plain = threading.Lock(), sessions._new_student

    def one_at_a_time(*given: Any) -> Any:
        with lock:
            return plain(*given)

    with mock.patch.object(sessions, "_new_student", one_at_a_time):
        built = run_together([partial(build, rank) for rank in ranks], ranks) if len(ranks) > 1 else [build(ranks[0])]
    for result in built:
        if isinstance(result, BaseException):
            raise result
    return built  # type: ignore[return-value]
