"""What ranks need of a library of collective operations; torch's is in `torch_ranks`."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from shared.training.heartbeats import Counters

T = TypeVar("T")


class Work(Protocol):
    """A collective operation that has begun."""

    def is_completed(self) -> bool:
        """Whether it is over, well or not."""
        ...

    def wait(self) -> None:
        """Lets what follows see the result; raises `RuntimeError` if it failed."""
        ...


class Meeting(Counters, Protocol):
    """Where ranks have met, and which they all reach."""

    def set_seconds(self, seconds: float) -> None:
        """How long a call may take."""
        ...

    def another(self) -> Counters:
        """The same with a connection of its own, for another thread."""
        ...


class Group(Protocol):
    """Collective operations of a library; `RuntimeError` where another rank has gone.

    Attributes:
        is_asynchronous: whether sums on devices are waited for by looking, rather than inside the library, which would
            not tell that another rank has died.
    """

    is_asynchronous: bool

    def meet(self, rank: int, world: int, seconds: float) -> Meeting:
        """Waits so long for all ranks; operations may then take as long."""
        ...

    def gather(self, value: T, world: int) -> list[T]:
        """Every rank's value."""
        ...

    def broadcast(self, value: T) -> T:
        """The first rank's value."""
        ...

    def sum_(self, values: Any) -> Work | None:
        """Begins to replace a tensor, or an int64 array in the host's memory, by its sum; None where that is done."""
        ...

    def abort(self) -> None:
        """Gives up what has begun and will not end."""
        ...

    def leave(self) -> None:
        """Ends it well."""
        ...
