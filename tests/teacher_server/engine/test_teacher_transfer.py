"""What a batch needs in one copy there, and its results in one copy back: without an accelerator."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from teacher_server.engine.streams import Direct
from teacher_server.engine.transfer import ALIGNED, KEPT, LEAST, Part, Receiver, Sender

CPU = torch.device("cpu")


class Counted(Direct):
    """Counts copies."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.uploads: list[int] = []
        self.downloads: list[int] = []

    def upload(self, here: torch.Tensor, there: torch.Tensor) -> object:
        """See `Streams`."""
        self.uploads.append(len(here))
        return super().upload(here, there)

    def download(self, there: torch.Tensor, here: torch.Tensor) -> None:
        """See `Streams`."""
        self.downloads.append(len(there))
        super().download(there, here)


def test_arrays_arrive_in_one_copy_aligned_with_zeros_after_them() -> None:
    streams = Counted()
    sender = Sender(streams)
    square, row = np.arange(12, dtype=np.int32).reshape(3, 4), np.arange(5, dtype=np.int64)
    for _ in range(2):  # the second time memory holds the first one's numbers
        parcel = sender.send([Part([square, row], 20), Part([], 0), Part([row[::-1]], 7), Part([], 40)])
        assert [part.tolist() for part in parcel.parts] == [
            [*range(12), *range(5), 0, 0, 0], [], [4, 3, 2, 1, 0, 0, 0], [0] * 40,
        ]  # fmt: skip
        starts = [part.storage_offset() for part in parcel.parts]
        assert starts == [0, ALIGNED, ALIGNED, 2 * ALIGNED]
        with torch.inference_mode():
            parcel.memory.there.fill_(-1)
        parcel.memory.numbers.fill(-1)
        sender.take_back(parcel)
    assert streams.uploads == [ALIGNED * 4] * 2


def test_memory_is_used_again_once_it_was_taken_back_and_not_before() -> None:
    sender = Sender(Direct(CPU))
    first, second = (sender.send([Part([np.full(3, i)], 3)]) for i in range(2))
    assert first.memory is not second.memory
    assert (first.parts[0].tolist(), second.parts[0].tolist()) == ([0] * 3, [1] * 3)
    sender.take_back(first)
    assert sender.send([Part([], LEAST)]).memory is first.memory
    assert len(sender.send([Part([], LEAST + 1)]).memory.numbers) == 2 * LEAST


def test_little_memory_is_kept() -> None:
    sender = Sender(Direct(CPU))
    parcels = [sender.send([Part([], LEAST << i)]) for i in range(KEPT + 2)]
    for parcel in parcels:
        sender.take_back(parcel)
    again = [sender.send([Part([], 1)]).memory for _ in range(KEPT + 1)]
    assert [memory is parcel.memory for memory, parcel in zip(again, parcels[2:], strict=False)] == [True] * KEPT
    assert all(again[-1] is not parcel.memory for parcel in parcels)


@pytest.mark.parametrize("count", [0, 3, LEAST + 1])
def test_results_come_back_in_one_copy_and_are_the_caller_s(count: int) -> None:
    streams = Counted()
    receiver = Receiver(streams)
    receiver.space(count).copy_(torch.arange(count))
    found = receiver.receive(count)
    receiver.space(count).zero_()
    receiver.receive(count)
    np.testing.assert_array_equal(found, np.arange(count, dtype=np.float32))
    assert streams.downloads == [count] * 2
