"""A group of ranks without any library: what each operation does, a test decides."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class FakeMeeting:
    """Numbers in this process's memory; `failing` is raised by every call."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.failing: RuntimeError | None = None

    def add(self, name: str, amount: int, /) -> int:
        """See `shared.training.heartbeats.Counters`."""
        if self.failing is not None:
            raise self.failing
        self.numbers[name] = self.numbers.get(name, 0) + amount
        return self.numbers[name]

    def set_seconds(self, seconds: float) -> None:
        """See `shared.training.group.Meeting`."""

    def another(self) -> FakeMeeting:
        """See `shared.training.group.Meeting`."""
        return self


class FakeWork:
    """A sum on a device that is done after so many looks, never if None; `looked` is called at each."""

    def __init__(self, looks: int | None, failure: str = "", looked: Callable[[int], None] = lambda _: None) -> None:
        self._looks, self._failure, self._looked = looks, failure, looked
        self._count = itertools.count(1)
        self.is_awaited = False

    def is_completed(self) -> bool:
        """See `shared.training.group.Work`."""
        count = next(self._count)
        self._looked(count)
        return self._looks is not None and count >= self._looks

    def wait(self) -> None:
        """See `shared.training.group.Work`."""
        self.is_awaited = True
        if self._failure:
            raise RuntimeError(self._failure)


class FakeGroup:
    """`shared.training.group.Group`; `work` is what sums on devices begin, `told` what was done, in order."""

    def __init__(self, work: FakeWork, is_asynchronous: bool = True) -> None:
        self.is_asynchronous, self.work, self.meeting = is_asynchronous, work, FakeMeeting()
        self.told: list[str] = []

    def meet(self, rank: int, world: int, seconds: float) -> FakeMeeting:
        """See `shared.training.group.Group`."""
        return self.meeting

    def gather(self, value: T, world: int) -> list[T]:
        """See `shared.training.group.Group`."""
        return [value] * world

    def broadcast(self, value: T) -> T:
        """See `shared.training.group.Group`."""
        return value

    def sum_(self, values: Any) -> FakeWork | None:
        """See `shared.training.group.Group`."""
        self.told.append("device" if values is DEVICE else "host")
        return self.work if values is DEVICE else None

    def abort(self) -> None:
        """See `shared.training.group.Group`."""
        self.told.append("abort")

    def leave(self) -> None:
        """See `shared.training.group.Group`."""
        self.told.append("leave")


DEVICE = object()
"""Stands for a tensor on a device."""
