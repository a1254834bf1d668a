"""The processes ("ranks") that train one student together, as `torchrun` starts them.

Every rank holds the whole student and takes its share of every micro-batch. The loss is normalised by the positions
of the whole step, so that gradients add up: after the sum all ranks make the same update, and what is learned does
not depend on how many they are, but for rounding. Rank 0 writes files and speaks for all.

Numbers and decisions travel over gloo between hosts' memories, gradients between devices over their own backend.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import logging
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from shared import log as logs
from shared.arrays import Int64
from shared.errors import ReportableError, TrainingError
from student_trainer.train.launch import is_one_of_several

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_SECONDS = 600.0
"""How long a rank waits for the others beyond what its own settings let a teacher take."""


class RankLost(TrainingError):
    """Another rank has gone: the run goes on from its checkpoint only."""


class Ranks:
    """One process that trains alone; what several do together is what this does with its own values.

    Attributes:
        rank: which one this is, 0 first.
        world: how many there are.
        local: which of those on its host this is.
    """

    def __init__(self, rank: int = 0, world: int = 1, local: int = 0) -> None:
        self.rank, self.world, self.local = rank, world, local

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files and speaks for all."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks."""
        return [value]

    def broadcast(self, value: T) -> T:
        """The first rank's value."""
        return value

    def sum_(self, tensor: Tensor) -> None:
        """Replaces a tensor by its sum over ranks, the same bits on each."""

    def share(self, trips: Int64, lengths: Int64) -> Int64:
        """This rank's share of a micro-batch; the shares of all are the whole.

        Longest first, trips are dealt to and fro (0 1 2 2 1 0 0 1 ...), so that shares are even in number and length.

        Args:
            trips: int64 [B].
            lengths: int64 [B], theirs.

        Returns:
            int64, in the micro-batch's order; empty where trips are fewer than ranks.
        """
        if self.world == 1:
            return trips
        turn = np.arange(len(trips)) % (2 * self.world)
        dealt_to = np.minimum(turn, 2 * self.world - 1 - turn)
        mine = np.argsort(-lengths, kind="stable")[dealt_to == self.rank]
        share: Int64 = trips[np.sort(mine)]
        return share

    def sums(self, *values: int) -> list[int]:
        """Each value's sum over ranks."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.int64)
        self.sum_(total)
        return [int(value) for value in total]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on a rank."""
        return self.sums(int(flag))[0] > 0

    def sum_gradients(self, parameters: Sequence[nn.Parameter], finite: Tensor) -> Tensor:
        """Adds up gradients over ranks; a rank without any takes part with zeros.

        Gradients and `finite` travel as one tensor, which gradients exist between the hosts' memories, so that no
        accelerator is waited for. A parameter that has a gradient on no rank is left without.

        Args:
            parameters: in the same order on every rank.
            finite: bool [], whether this rank's losses were.

        Returns:
            bool [], whether they were on every rank; gradients are of no use otherwise.
        """
        if self.world == 1:
            return finite
        exists = self.sums(*(int(p.grad is not None) for p in parameters))
        flat = [p.grad.reshape(-1) if p.grad is not None else p.new_zeros(p.numel()) for p in parameters]
        bucket = torch.cat([*flat, (~finite).to(flat[0].dtype)[None]])
        self.sum_(bucket)
        *totals, bad = torch.split(bucket, [*(p.numel() for p in parameters), 1])
        for parameter, total, there in zip(parameters, totals, exists, strict=True):
            parameter.grad = total.view_as(parameter) if there else None
        return bad[0] == 0

    def check_same(self, tensors: dict[str, Tensor], when: str) -> None:
        """Compares what should be the same everywhere.

        Raises:
            TrainingError: it differs, bit for bit, between ranks.
        """
        if self.world == 1:
            return
        digests = self.gather(_digest(tensors))
        if len(set(digests)) > 1:
            others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
            raise TrainingError(
                f"{when} the weights of ranks {others} differ from those of rank 0: is the software the same on "
                "every host, and the memory sound? Go on with --resume from the last checkpoint"
            )

    def together(self, work: Callable[[], T]) -> T:
        """Does something on every rank; where it fails on one, none goes on.

        Raises:
            ReportableError: with the message of the first rank that failed.
        """
        if self.world == 1:
            return work()
        result: list[T] = []
        failure = ""
        try:
            result.append(work())
        except ReportableError as error:
            failure = str(error)
        failures = [(rank, message) for rank, message in enumerate(self.gather(failure)) if message]
        if failures:
            rank, message = failures[0]
            raise ReportableError(message if rank == 0 else f"on rank {rank}: {message}")
        return result[0]


ALONE = Ranks()


class ProcessRanks(Ranks):
    """Processes that `torchrun`, or whoever sets the same variables, has started."""

    def __init__(self, patience: float) -> None:
        """Meets the others.

        Raises:
            TrainingError: they did not come.
        """
        super().__init__(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE")))
        self.local = int(os.environ.get("LOCAL_RANK", 0))
        self._has_spoken = False
        timeout = datetime.timedelta(seconds=patience)
        try:
            self._store, *_ = next(rendezvous("env://", self.rank, self.world, timeout=timeout))
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                store=dist.PrefixStore("ranks", self._store),  # type: ignore[attr-defined]
                rank=self.rank,
                world_size=self.world,
                timeout=timeout,
            )
        except (RuntimeError, ValueError) as error:
            raise TrainingError(f"the {self.world} ranks did not find each other: {_reason(error)}") from None

    def gather(self, value: T) -> list[T]:
        """See `Ranks`."""
        values: list[Any] = [None] * self.world
        with self._contact():
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """See `Ranks`."""
        values = [value]
        with self._contact():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def sum_(self, tensor: Tensor) -> None:
        """See `Ranks`."""
        with self._contact():
            dist.all_reduce(tensor)

    @contextlib.contextmanager
    def _contact(self) -> Iterator[None]:
        """Raises `RankLost`, said aloud by one rank for all, if the others are not there."""
        try:
            yield
        except RuntimeError as error:
            lost = RankLost(
                f"rank {self.rank} of {self.world} lost contact with another rank, which was killed, failed or hangs "
                f"({_reason(error)}); all ranks end. Start the same command again with --resume"
            )
            self.speak(lost)
            raise lost from None

    def speak(self, error: BaseException) -> None:
        """Logs an error that ends all ranks, unless another rank has done so; the launcher's signal waits for that."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not self._has_spoken and self._is_chosen():
            log.error("%s", error)
        self._has_spoken = True

    def _is_chosen(self) -> bool:
        try:
            self._store.set_timeout(datetime.timedelta(seconds=5))
            return int(self._store.add("spoken", 1)) == 1
        except RuntimeError:
            return True  # whoever kept the store has gone: better said twice than not at all

    def end(self, error: BaseException) -> None:
        """Ends this rank with one message for all of them; returns if the error is a bug, whose traceback is wanted.

        Raises:
            SystemExit: with the exit code of `shared.cli`.
        """
        if isinstance(error, KeyboardInterrupt) and not self._has_spoken:
            if not self.is_first:
                raise SystemExit(130) from None
        elif isinstance(error, ReportableError | OSError | KeyboardInterrupt):
            self.speak(error)
            raise SystemExit(1 if isinstance(error, OSError) else 2) from None


@contextlib.contextmanager
def join(teacher_seconds: float) -> Iterator[Ranks]:
    """The ranks that this process is one of, by the variables RANK and WORLD_SIZE; without them it is alone.

    An error that a user can mend ends all ranks, with one message.

    Args:
        teacher_seconds: how long the settings let a rank wait for a teacher, while the others wait for it.
    """
    if not is_one_of_several():
        yield ALONE
        return
    if rank := int(os.environ["RANK"]):
        logs.as_rank(rank)
    ranks = ProcessRanks(PATIENCE_SECONDS + teacher_seconds)
    try:
        yield ranks
    except BaseException as error:
        ranks.end(error)
        raise
    dist.destroy_process_group()


def _digest(tensors: dict[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for tensor in tensors.values():
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _reason(error: Exception) -> str:
    """The first sentence of an error, without the place in gloo's sources."""
    text = re.sub(r"^\[[^]]*\] *", "", str(error).strip()) or type(error).__name__
    return text.splitlines()[0].split(". ")[0]
