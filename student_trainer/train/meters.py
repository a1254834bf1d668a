"""Running sums on the device, and wall-clock shares of a step."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import defaultdict
from collections.abc import Iterator

from torch import Tensor


class Sums:
    """Sums and counts by name; values stay on their device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, name: str, total: Tensor | float, count: int) -> None:
        """Adds a sum over `count` things; accumulates in float64."""
        value = total.detach().double() if isinstance(total, Tensor) else total
        self._sums[name] = self._sums[name] + value
        self._counts[name] += count

    def add_fields(self, record: object, count: int) -> None:
        """Adds the sum of every field of a dataclass of tensors [count]."""
        for field in dataclasses.fields(record):  # type: ignore[arg-type]
            self.add(field.name, getattr(record, field.name).sum(), count)

    def count(self, name: str) -> int:
        """How many things were added under a name."""
        return self._counts[name]

    def means(self) -> dict[str, float]:
        """The mean of everything that was counted."""
        return {name: float(total) / self._counts[name] for name, total in self._sums.items() if self._counts[name]}


class Stopwatch:
    """Wall-clock seconds spent in named parts of a step, as the host sees them.

    An accelerator works asynchronously: its time shows in the part that waits for it.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time of the block to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start
