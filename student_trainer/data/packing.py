"""A batch as one array: one copy to an accelerator instead of one for each tensor, and in shapes that come again.

Integers are int32, which holds every road, token, trip and place that memory has room for; floats are float32; the mask
of candidates follows from their number. On the device one operation widens the integers, and tensors are views.

A batch may be padded further, to one of few shapes, so that what a device does for it can be recorded once and
repeated. What pads a batch changes none of its results: trips of one step that no position is read of, and positions
without a label and with `candidate_length` 0, whose only candidate shares its place among the padded ones with nothing.
Losses, metrics and gradients of these positions are zeros (`Batch.is_real`).

Shapes: B trips, T longest trip in steps, P positions, K candidates, C most candidates of a position.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared import ragged
from shared.arrays import Int32
from student_trainer.data.batch import IGNORED_LABEL, Batch, CandidateLayout

INTEGERS = (
    "trips", "road", "length", "destination", "candidate_length", "candidate_road", "candidate_token", "label",
    "padded_step", "position", "column",
)  # fmt: skip
FLOATS = ("temporal", "distance", "interval", "candidate_distance", "candidate_angle", "seconds")
"""Fields of a batch and of its layout, in the order of the array."""
OF_LAYOUT = ("position", "column")
ALIGNMENT = 4
"""Numbers that a tensor begins at a multiple of: 16 bytes, as vectorised loads want it."""
SHARE = 4
"""Shapes are multiples of this part of the power of two below them: at most so much is added."""
FEW_COLUMNS = 16
"""Candidates of a position up to which all batches have as many columns."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of a batch: see the module."""

    trips: int
    steps: int
    positions: int
    candidates: int
    columns: int

    @classmethod
    def of(cls, batch: Batch) -> Shape:
        """A batch's own shape."""
        trips, steps = batch.road.shape
        positions, columns = batch.layout.exists.shape
        return cls(trips, steps, positions, len(batch.candidate_road), columns)

    @classmethod
    def shared(cls, shapes: Sequence[Shape], most_columns: int) -> Shape:
        """The shape that holds all of these, and that batches of about their size share.

        It has room for a position that pads, and for a candidate of each of these.

        Args:
            shapes: at least one.
            most_columns: candidates that no position has more of.
        """
        positions = _round_up(max(shape.positions for shape in shapes) + 1, 64)
        candidates = max(shape.candidates + positions - shape.positions for shape in shapes)
        columns = max(shape.columns for shape in shapes)
        return cls(
            trips=_round_up(max(shape.trips for shape in shapes), 8),
            steps=_round_up(max(shape.steps for shape in shapes), 8),
            positions=positions,
            candidates=_round_up(candidates, 64),
            columns=min(most_columns, max(FEW_COLUMNS, 1 << (columns - 1).bit_length())),
        )

    def holds(self, other: Shape) -> bool:
        """Whether a batch of the other shape can be padded to this one."""
        if self == other:
            return True
        positions, candidates = self.positions - other.positions, self.candidates - other.candidates
        no_less = self.trips >= other.trips and self.steps >= other.steps and self.columns >= other.columns
        return no_less and positions >= 1 and candidates >= positions

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors by name, in the array's order."""
        trips, steps, pairs = (self.trips,), (self.trips, self.steps), (self.trips, self.steps, self.steps)
        of_trips = {"trips": trips, "road": steps, "length": trips, "destination": trips}
        of_trips |= {"temporal": steps, "distance": pairs, "interval": pairs}
        of_positions = dict.fromkeys(("candidate_length", "label", "padded_step", "seconds"), (self.positions,))
        known = of_trips | of_positions
        return {name: known.get(name, (self.candidates,)) for name in (*INTEGERS, *FLOATS)}

    def places(self) -> dict[str, slice]:
        """Where each tensor lies in the array."""
        found, start = {}, 0
        for name, size in self.sizes().items():
            end = start + math.prod(size)
            found[name] = slice(start, end)
            start = end + -end % ALIGNMENT
        return found

    @property
    def numbers(self) -> int:
        """Of the array."""
        last: int = self.places()[FLOATS[-1]].stop
        return last + -last % ALIGNMENT


def _round_up(number: int, least: int) -> int:
    step: int = max(least, (1 << (number.bit_length() - 1)) // SHARE)
    return -(-number // step) * step


@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
    """A batch in one array.

    Attributes:
        shape: of the batch.
        array: int32 [numbers], the bits of float32 among them.
    """

    shape: Shape
    array: Tensor

    @classmethod
    def of(cls, batch: Batch, shape: Shape | None = None, pinned: bool = False) -> Packed:
        """The host's batch, padded to a shape that holds it, in page-locked memory or not."""
        own = Shape.of(batch)
        shape = shape or own
        if not shape.holds(own):
            raise ValueError(f"a batch of {own} cannot be padded to {shape}")
        values = np.empty(shape.numbers, np.int32)
        _fill(values, batch, own, shape)
        array = torch.from_numpy(values)
        return cls(shape, array.pin_memory() if pinned else array)

    def to(self, device: torch.device) -> Packed:
        """The same on a device, which the host does not wait for if the array is page-locked."""
        return Packed(self.shape, self.array.to(device, non_blocking=True))

    def unpack(self) -> Batch:
        """The batch, where the array is: its floats are views of it."""
        places, sizes = self.shape.places(), self.shape.sizes()
        integers = self.array[: places[FLOATS[0]].start].long()
        tensors = {name: integers[places[name]].view(sizes[name]) for name in INTEGERS}
        floats = self.array.view(torch.float32)
        tensors |= {name: floats[places[name]].view(sizes[name]) for name in FLOATS}
        columns = torch.arange(self.shape.columns, device=self.array.device)
        exists = columns < tensors["candidate_length"].clamp(min=1)[:, None]
        layout = CandidateLayout(tensors.pop("position"), tensors.pop("column"), exists)
        return Batch(layout=layout, **tensors)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The host's batch on a device; on CUDA by one copy, which the host does not wait for."""
    if device.type == "cpu":
        return batch
    return Packed.of(batch, pinned=device.type == "cuda").to(device).unpack()


def together(arrays: Sequence[npt.NDArray], device: torch.device) -> list[Tensor]:
    """The host's arrays on a device: there by one copy, which the host does not wait for on CUDA.

    Args:
        arrays: of whole numbers below 2^31, which are int64 there, or of float32.
        device: on the CPU tensors share the arrays' memory, and have their types.
    """
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    return by_one_copy(arrays, device)


def by_one_copy(arrays: Sequence[npt.NDArray], device: torch.device) -> list[Tensor]:
    """As `together`, of any device."""
    is_float = [array.dtype == np.float32 for array in arrays]
    order = sorted(range(len(arrays)), key=lambda number: is_float[number])
    starts = ragged.offsets(np.array([arrays[number].size + -arrays[number].size % ALIGNMENT for number in order]))
    values = np.empty(starts[-1], np.int32)
    for number, start in zip(order, starts, strict=False):
        part = values[start : start + arrays[number].size]
        (part.view(np.float32) if is_float[number] else part)[:] = arrays[number].reshape(-1)
    array = torch.from_numpy(values)
    there = (array.pin_memory() if device.type == "cuda" else array).to(device, non_blocking=True)
    integers = there[: starts[is_float.count(False)]].long()
    found: dict[int, Tensor] = {}
    for number, start in zip(order, starts, strict=False):
        source = there.view(torch.float32) if is_float[number] else integers
        found[number] = source[start : start + arrays[number].size].view(arrays[number].shape)
    return [found[number] for number in range(len(arrays))]


def _fill(array: Int32, batch: Batch, own: Shape, shape: Shape) -> None:
    """Writes the batch and what pads it."""
    places, sizes = shape.places(), shape.sizes()
    floats = array.view(np.float32)
    for name in (*INTEGERS, *FLOATS):
        values = getattr(batch.layout if name in OF_LAYOUT else batch, name).numpy()
        target = (floats if name in FLOATS else array)[places[name]].reshape(sizes[name])
        if values.shape != target.shape:
            target[...] = _PADS.get(name, 0)
        target[tuple(map(slice, values.shape))] = values
    if shape.steps != own.steps:
        trip, step = divmod(batch.padded_step.numpy(), own.steps)
        array[places["padded_step"]][: own.positions] = trip * shape.steps + step
    pads = shape.positions - own.positions
    if pads:  # a candidate for each; what is left over shares the last one's
        position = np.minimum(np.arange(own.positions, own.positions + shape.candidates - own.candidates),
                              shape.positions - 1)  # fmt: skip
        array[places["position"]][own.candidates :] = position


_PADS = {"length": 1, "label": IGNORED_LABEL, "candidate_token": -1}
"""What pads a tensor where it is not 0."""
