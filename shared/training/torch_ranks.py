"""The processes ("ranks") that train one model together: how their tensors travel (`ranks` has the rest).

Numbers and decisions travel over gloo between hosts' memories, gradients between devices over their own backend.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from shared.training import ranks
from shared.training.group import Work
from shared.training.launch import is_one_of_several
from shared.training.ranks import PATIENCE_SECONDS, JoinedRanks, RankLost

__all__ = ["ALONE", "ProcessRanks", "RankLost", "Ranks", "TorchGroup", "join"]

T = TypeVar("T")


class Ranks(ranks.Ranks):
    """One process that trains alone; see `shared.training.ranks.Ranks`."""

    def sum_gradients(self, parameters: Sequence[nn.Parameter], number: Tensor) -> Tensor:
        """Adds up gradients over ranks; a rank without any takes part with zeros.

        Gradients and the number travel as one tensor, which gradients exist between the hosts' memories, so that no
        accelerator is waited for. A parameter that has a gradient on no rank is left without.

        Args:
            parameters: in the same order on every rank.
            number: [], to be added up, too.

        Returns:
            [], its sum.
        """
        if self.world == 1:
            return number
        exists = self.sums(*(int(p.grad is not None) for p in parameters))
        flat = [p.grad.reshape(-1) if p.grad is not None else p.new_zeros(p.numel()) for p in parameters]
        bucket = torch.cat([*flat, number.to(flat[0].dtype)[None]])
        self.sum_(bucket)
        *totals, total = torch.split(bucket, [*(p.numel() for p in parameters), 1])
        for parameter, gradient, there in zip(parameters, totals, exists, strict=True):
            parameter.grad = gradient.view_as(parameter) if there else None
        return total[0]

    def check_same(self, tensors: Iterable[Tensor], when: str) -> None:
        """Compares what should be the same everywhere.

        Raises:
            TrainingError: it differs, bit for bit, between ranks.
        """
        if self.world > 1:
            self.check_digests(_digest(tensors), when)


ALONE = Ranks()


class TorchGroup:
    """`shared.training.group.Group` of torch: gloo for the hosts, NCCL for CUDA devices.

    Attributes:
        is_asynchronous: see `shared.training.group.Group`.
    """

    def __init__(self) -> None:
        self.is_asynchronous = torch.cuda.is_available()

    def meet(self, rank: int, world: int, seconds: float) -> TorchMeeting:
        """See `shared.training.group.Group`."""
        # If this is imported later, as torch.optim does, its functions hold the group as the default of an argument, so
        # that gloo's threads outlive `leave`; and a process that ends with these is now and then aborted.
        importlib.import_module("torch.distributed.nn.functional")
        # An error within NCCL ends its operation, not the process: that has a checkpoint to write.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
        timeout = datetime.timedelta(seconds=seconds)
        store, *_ = next(rendezvous("env://", rank, world, timeout=timeout))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if self.is_asynchronous else "gloo",
            store=dist.PrefixStore("ranks", store),  # type: ignore[attr-defined]
            rank=rank,
            world_size=world,
            timeout=timeout,
        )
        return TorchMeeting(store)

    def gather(self, value: T, world: int) -> list[T]:
        """See `shared.training.group.Group`."""
        values: list[Any] = [None] * world
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """See `shared.training.group.Group`."""
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def sum_(self, values: Any) -> Work | None:
        """See `shared.training.group.Group`."""
        tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
        if not tensor.is_cuda:
            dist.all_reduce(tensor)
            return None
        return TorchWork(dist.all_reduce(tensor, async_op=True))

    def abort(self) -> None:
        """See `shared.training.group.Group`."""
        dist.distributed_c10d._abort_process_group()

    def leave(self) -> None:
        """See `shared.training.group.Group`."""
        dist.destroy_process_group()


class TorchMeeting:
    """`shared.training.group.Meeting` of torch: the store of the rendezvous."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def add(self, name: str, amount: int, /) -> int:
        """See `shared.training.heartbeats.Counters`."""
        return int(self._store.add(name, amount))

    def set_seconds(self, seconds: float) -> None:
        """See `shared.training.group.Meeting`."""
        self._store.set_timeout(datetime.timedelta(seconds=seconds))

    def another(self) -> TorchMeeting:
        """See `shared.training.group.Meeting`."""
        return TorchMeeting(self._store.clone())


class TorchWork:
    """`shared.training.group.Work` of torch."""

    def __init__(self, work: Any) -> None:
        self._work = work

    def is_completed(self) -> bool:
        """See `shared.training.group.Work`."""
        return bool(self._work.is_completed())

    def wait(self) -> None:
        """See `shared.training.group.Work`."""
        self._work.wait()
        failure = self._work.exception()
        if failure is not None:
            raise RuntimeError(str(failure))


class ProcessRanks(JoinedRanks, Ranks):
    """Processes that `torchrun`, or whoever sets the same variables, has started."""

    def __init__(self, patience: float) -> None:
        """Meets the others.

        Raises:
            TrainingError: they did not come.
        """
        super().__init__(TorchGroup(), patience)


@contextlib.contextmanager
def join(teacher_seconds: float = 0.0) -> Iterator[Ranks]:
    """The ranks that this process is one of, by the variables RANK and WORLD_SIZE; without them it is alone.

    An error that a user can mend ends all ranks, with one message.

    Args:
        teacher_seconds: how long the settings let a rank wait for a teacher, while the others wait for it.
    """
    if not is_one_of_several():
        yield ALONE
        return
    with ranks.joined(lambda: ProcessRanks(PATIENCE_SECONDS + teacher_seconds)) as joined:
        yield joined


def _digest(tensors: Iterable[Tensor]) -> str:
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
