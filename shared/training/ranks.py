"""The processes ("ranks") that train one model together, as `torchrun` starts them: what they say and decide.

Every rank holds the whole model and takes its share of every batch. Losses are divided by what the whole batch holds,
so that gradients add up: after the sum all ranks make the same update. Rank 0 writes files and speaks for all.

How numbers and tensors travel is the business of a `Group`, torch's in `torch_ranks`: this knows no torch.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from shared import log as logs
from shared.arrays import Int64
from shared.errors import ReportableError, TrainingError
from shared.training.group import Group, Work
from shared.training.heartbeats import Heartbeats

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_SECONDS = 600.0
"""How long a rank waits for the others beyond what its own settings let it wait for anybody else."""
POLL_SECONDS = 0.0005
"""Between two looks whether an accelerator has done its part."""
SPEAK_SECONDS = 5.0
"""How long a rank asks whether another has said it already."""
ABORT_SECONDS = 10.0
"""How long a library may take to give up what it has begun."""
EXIT_SECONDS = 30
"""How long the libraries of an accelerator may take to end with a process whose work has failed."""


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

    def sum_(self, tensor: Any) -> None:
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
        return [sum(column) for column in zip(*self.gather(values), strict=True)]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on a rank."""
        return self.sums(int(flag))[0] > 0

    def check_digests(self, digest: str, when: str) -> None:
        """Compares what should be the same everywhere, by its digest.

        Raises:
            TrainingError: it differs between ranks.
        """
        digests = self.gather(digest)
        if len(set(digests)) > 1:
            others = [rank for rank, other in enumerate(digests) if other != digests[0]]
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


class JoinedRanks(Ranks):
    """Processes that `torchrun`, or whoever sets the same variables, has started."""

    def __init__(self, group: Group, patience: float) -> None:
        """Meets the others.

        Args:
            group: how they talk.
            patience: seconds that a rank waits for the others.

        Raises:
            TrainingError: they did not come.
        """
        super().__init__(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE")))
        self.local = int(os.environ.get("LOCAL_RANK", 0))
        self._group, self._patience, self._has_spoken = group, patience, False
        self._heartbeats: Heartbeats | None = None
        try:
            self._meeting = group.meet(self.rank, self.world, patience)
            if group.is_asynchronous:
                self._heartbeats = Heartbeats(self._meeting.another(), self.rank, self.world)
                self._heartbeats.start()
        except (RuntimeError, ValueError) as error:
            raise TrainingError(f"the {self.world} ranks did not find each other: {_reason(error)}") from None

    def gather(self, value: T) -> list[T]:
        """See `Ranks`."""
        with self._contact():
            return self._group.gather(value, self.world)

    def broadcast(self, value: T) -> T:
        """See `Ranks`."""
        with self._contact():
            return self._group.broadcast(value)

    def sums(self, *values: int) -> list[int]:
        """See `Ranks`."""
        total = np.array(values, np.int64)
        self.sum_(total)
        return [int(value) for value in total]

    def sum_(self, tensor: Any) -> None:
        """See `Ranks`. Nobody goes on before all have the sum: what a lost rank leaves undone is in no weights."""
        with self._contact():
            work = self._group.sum_(tensor)
            if work is not None:
                self._await(work)
                self._group.sum_(np.ones(1, np.int64))

    def _await(self, work: Work) -> None:
        """Waits for a device, and for the others' devices through it.

        By looking: a library that waits itself hangs with a rank that has died, and then no signal is heard, no
        checkpoint written. What is still to be computed with the sum has not been asked for yet, so the device goes on
        to do whatever else it is asked for, such as handing out the weights.
        """
        give_up = time.monotonic() + self._patience
        while not work.is_completed():
            loss = self._heartbeats.loss() if self._heartbeats is not None else ""
            if loss or time.monotonic() > give_up:
                raise RuntimeError(loss or f"a sum on the devices took longer than {self._patience:.0f} s")
            time.sleep(POLL_SECONDS)
        work.wait()

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
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not self._has_spoken and self._is_chosen():
            log.error("%s", error)
        self._has_spoken = True

    def _is_chosen(self) -> bool:
        try:
            self._meeting.set_seconds(SPEAK_SECONDS)
            return self._meeting.add("spoken", 1) == 1
        except RuntimeError:
            return True  # whoever kept the meeting place has gone: better said twice than not at all

    def end(self, error: BaseException) -> None:
        """Ends this rank with one message for all of them; returns if the error is a bug, whose traceback is wanted.

        Raises:
            SystemExit: with the exit code of `shared.cli`.
        """
        if self._group.is_asynchronous:
            self._end_by_force()
        try:
            self._tell(error)
        finally:
            if not self._group.is_asynchronous:
                self._group.leave()  # when all is said: to the others this is the loss of a rank

    def _tell(self, error: BaseException) -> None:
        """Says an error, and ends the process unless it is a bug."""
        if isinstance(error, KeyboardInterrupt) and not self._has_spoken:
            if not self.is_first:
                raise SystemExit(130) from None
        elif isinstance(error, ReportableError | OSError | KeyboardInterrupt):
            self.speak(error)
            raise SystemExit(1 if isinstance(error, OSError) else 2) from None

    def _end_by_force(self) -> None:
        """What an accelerator's library has begun, and cannot end, does not keep the process alive."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(EXIT_SECONDS)
        if self._heartbeats is not None:
            self._heartbeats.stop()
        aborting = threading.Thread(target=self._group.abort, name="abort", daemon=True)
        aborting.start()
        aborting.join(ABORT_SECONDS)

    def leave(self) -> None:
        """Ends the company of ranks that are all done."""
        if self._heartbeats is not None:
            self._heartbeats.stop()
        self._group.leave()


R = TypeVar("R", bound=JoinedRanks)


@contextlib.contextmanager
def joined(make: Callable[[], R]) -> Iterator[R]:
    """Ranks while the block runs; an error that a user can mend ends all of them, with one message.

    Args:
        make: meets the others.
    """
    if rank := int(os.environ["RANK"]):
        logs.as_rank(rank)
    ranks = make()
    try:
        yield ranks
    except BaseException as error:
        ranks.end(error)
        raise
    ranks.leave()


def _reason(error: Exception) -> str:
    """The first sentence of an error, without the place in gloo's sources."""
    text = re.sub(r"^\[[^]]*\] *", "", str(error).strip()) or type(error).__name__
    return text.splitlines()[0].split(". ")[0]
