"""Ranks that are threads of one process: what several do, without starting any."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from student_trainer.train.ranks import RankLost, Ranks

T = TypeVar("T")


class Table:
    """Where threads meet and lay down what they bring."""

    def __init__(self, world: int) -> None:
        self.places: list[Any] = [None] * world
        self.barrier = threading.Barrier(world, timeout=60)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """What everyone has brought, in the order of ranks."""
        try:
            self.places[rank] = value
            self.barrier.wait()
            brought = list(self.places)
            self.barrier.wait()
            return brought
        except threading.BrokenBarrierError:
            raise RankLost("another thread has gone") from None


class ThreadRanks(Ranks):
    """One thread's view; tensors are added up in the order of ranks, so that all get the same bits."""

    def __init__(self, rank: int, table: Table) -> None:
        super().__init__(rank, len(table.places), rank)
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
            ranks[number].table.barrier.abort()  # type: ignore[attr-defined]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
