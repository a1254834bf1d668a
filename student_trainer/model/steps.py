"""Steps of paths in one table, which a decoder and the searches share. M steps, R paths, W most steps of a path."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from shared.arrays import Int32, Int64
from student_trainer.model import step_kernels


class StepTable:
    """Steps of paths and what later steps read of them; grows as needed.

    Attributes:
        parent: int64 [M] the step before, -1 for none.
        road, time: int64 [M]; log_prob: float64 [M] of the path up to the step.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("parent", "road", "time", "log_prob")
    """Names of the arrays or tensors [M, ...]; a student whose steps leave more behind adds its own."""
    LISTS: ClassVar[tuple[str, ...]] = ()
    """Names of lists of such."""

    def __init__(self, capacity: int = 1024) -> None:
        self.parent, self.road, self.time = np.zeros((3, capacity), np.int64)
        self.log_prob = np.zeros(capacity)
        self._free = np.arange(capacity)[::-1]
        self._count = capacity

    @property
    def capacity(self) -> int:
        """M."""
        return len(self.road)

    @property
    def free(self) -> int:
        """How many more steps there is room for."""
        return self._count

    @property
    def used(self) -> int:
        """Steps that are kept."""
        return self.capacity - self._count

    def take(self, count: int) -> Int64:
        """Places for new steps."""
        if count > self._count:
            self._grow(count - self._count)
        self._count -= count
        return self._free[self._count : self._count + count].copy()

    def paths(self, place: Int64, length: Int64) -> Int32:
        """The steps of the paths that end at places [R] and have so many: int32 [R, W]."""
        path = np.zeros((len(place), int(length.max())), np.int32)
        step_kernels.trace(path, self.parent, place, length)
        return path

    def roads_and_times(self, place: int) -> tuple[Int64, Int64]:
        """Of the path that ends at a place."""
        steps = []
        while place >= 0:
            steps.append(place)
            place = int(self.parent[place])
        return self.road[steps[::-1]], self.time[steps[::-1]]

    def release(self, places: Int64) -> None:
        """Gives places back."""
        self._free[self._count : self._count + len(places)] = places
        self._count += len(places)

    def keep(self, *places: Int64) -> None:
        """Gives back all places but those of the paths that end at these; -1 is none."""
        alive = np.zeros(self.capacity, np.bool_)
        for ends in places:
            step_kernels.mark(alive, self.parent, ends)
        free = np.flatnonzero(~alive)[::-1]
        self._free[: len(free)] = free
        self._count = len(free)

    def _grow(self, missing: int) -> None:
        old = self.capacity
        more = max(old, missing)

        def grown(array: Any) -> Any:
            if isinstance(array, Tensor):
                return torch.cat([array, array.new_zeros(more, *array.shape[1:])])
            return np.concatenate([array, np.zeros((more, *array.shape[1:]), array.dtype)])

        for name in self.COLUMNS:
            setattr(self, name, grown(getattr(self, name)))
        for name in self.LISTS:
            arrays = getattr(self, name)
            arrays[:] = [grown(array) for array in arrays]
        free = np.empty(old + more, np.int64)
        free[:more] = np.arange(old + more - 1, old - 1, -1)
        free[more : more + self._count] = self._free[: self._count]
        self._free, self._count = free, self._count + more
