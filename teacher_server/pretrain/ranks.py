"""The processes ("ranks") that train one teacher together: how their tensors travel (`shared.ranks` has the rest).

Numbers and decisions travel over gloo between hosts' memories, gradients between devices over their own backend.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from shared.group import Work
from shared.launch import is_one_of_several
from shared.ranks import PATIENCE_SECONDS, JoinedRanks, Ranks, joined

T = TypeVar("T")


class TorchGroup:
    """`shared.group.Group` of torch: gloo for the hosts, NCCL for CUDA devices.

    Stands in both packages, which never import each other, while `shared` stays without torch.

    Attributes:
        is_asynchronous: see `shared.group.Group`.
    """

    def __init__(self) -> None:
        self.is_asynchronous = torch.cuda.is_available()

    def meet(self, rank: int, world: int, seconds: float) -> TorchMeeting:
        """See `shared.group.Group`."""
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
        """See `shared.group.Group`."""
        values: list[Any] = [None] * world
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """See `shared.group.Group`."""
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def sum_(self, values: Any) -> Work | None:
        """See `shared.group.Group`."""
        tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
        if not tensor.is_cuda:
            dist.all_reduce(tensor)
            return None
        return TorchWork(dist.all_reduce(tensor, async_op=True))

    def abort(self) -> None:
        """See `shared.group.Group`."""
        dist.distributed_c10d._abort_process_group()

    def leave(self) -> None:
        """See `shared.group.Group`."""
        dist.destroy_process_group()


class TorchMeeting:
    """`shared.group.Meeting` of torch: the store of the rendezvous."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def add(self, name: str, amount: int, /) -> int:
        """See `shared.heartbeats.Counters`."""
        return int(self._store.add(name, amount))

    def set_seconds(self, seconds: float) -> None:
        """See `shared.group.Meeting`."""
        self._store.set_timeout(datetime.timedelta(seconds=seconds))

    def another(self) -> TorchMeeting:
        """See `shared.group.Meeting`."""
        return TorchMeeting(self._store.clone())


class TorchWork:
    """`shared.group.Work` of torch."""

    def __init__(self, work: Any) -> None:
        self._work = work

    def is_completed(self) -> bool:
        """See `shared.group.Work`."""
        return bool(self._work.is_completed())

    def wait(self) -> None:
        """See `shared.group.Work`."""
        self._work.wait()
        failure = self._work.exception()
        if failure is not None:
            raise RuntimeError(str(failure))


@contextlib.contextmanager
def join() -> Iterator[Ranks]:
    """The ranks that this process is one of, by the variables RANK and WORLD_SIZE; without them it is alone.

    An error that a user can mend ends all ranks, with one message.
    """
    if not is_one_of_several():
        yield Ranks()
        return
    with joined(lambda: JoinedRanks(TorchGroup(), PATIENCE_SECONDS)) as ranks:
        yield ranks


def sum_gradients(ranks: Ranks, parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
    """Adds up gradients over ranks; one without any, whose share was empty, takes part with zeros.

    Args:
        ranks: all of them come here.
        parameters: in the same order on every rank.
        loss: float32 [], this rank's part.

    Returns:
        float32 [], the loss of all ranks.
    """
    if ranks.world == 1:
        return loss
    flat = [p.grad.reshape(-1) if p.grad is not None else p.new_zeros(p.numel()) for p in parameters]
    bucket = torch.cat([*flat, loss[None]])
    ranks.sum_(bucket)
    *totals, total_loss = torch.split(bucket, [*(p.numel() for p in parameters), 1])
    for parameter, total in zip(parameters, totals, strict=True):
        parameter.grad = total.view_as(parameter)
    return total_loss[0]


def check_same(ranks: Ranks, model: nn.Module, when: str) -> None:
    """Compares the weights of all ranks, bit for bit; raises `TrainingError` where they differ."""
    if ranks.world == 1:
        return
    sha = hashlib.sha256()
    for tensor in model.parameters():
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    ranks.check_digests(sha.hexdigest(), when)
