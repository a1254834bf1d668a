"""The backlog: requests with rows that no batch holds yet, and the batches that are cut from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, KeysView
from typing import Generic, TypeVar

import numpy as np

from shared.arrays import Int64
from teacher_server.answers.table import AnswerTable, PendingAnswer
from teacher_server.batching.fair_queue import FairQueue
from teacher_server.batching.pacing import Pacing
from teacher_server.metrics import CutReason


@dataclasses.dataclass(eq=False)
class Queued:
    """A request in the backlog.

    Attributes:
        pending: its rows.
        caller: whose share of the teacher it takes.
        deadline: on the batcher's clock; None for none.
        tokens: padded tokens not yet cut, of the rows that were new when they were asked for.
    """

    pending: PendingAnswer
    caller: str
    deadline: float | None
    tokens: int


QueuedT = TypeVar("QueuedT", bound=Queued)


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """Rows for a batch.

    Attributes:
        slots: int64 [n], where they are in the table.
        tokens: padded tokens of all.
        requests: how many requests they are of.
        reason: why there are no more.
    """

    slots: Int64
    tokens: int
    requests: int
    reason: CutReason


class Backlog(Generic[QueuedT]):
    """Requests by caller, the least served caller first.

    Attributes:
        tokens: padded tokens that wait to be cut.
    """

    def __init__(
        self, answers: AnswerTable, pacing: Pacing, most_rows: int, share: Callable[[str], float] | None = None
    ) -> None:
        """Empty.

        Args:
            answers: the table of the rows.
            pacing: how much a batch may hold.
            most_rows: of a batch.
            share: of each caller; none: all have the same.
        """
        self._answers = answers
        self._pacing = pacing
        self._queue: FairQueue[QueuedT] = FairQueue(share)
        self._slots = np.empty(most_rows, np.int64)
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def callers(self) -> KeysView[str]:
        """Who waits."""
        return self._queue.callers

    def push(self, request: QueuedT) -> None:
        """Appends a request to its caller's others."""
        self._queue.push(request.caller, request)
        self.tokens += request.tokens

    def discard(self, request: QueuedT) -> None:
        """Removes a request; idempotent."""
        self._queue.discard(request.caller, request)
        self.tokens -= request.tokens
        request.tokens = 0

    def cut(self, now: float, is_draining: bool, drop: Callable[[QueuedT, float], bool]) -> Cut:
        """Takes rows for a batch. It may hold none, if all requests drop out.

        A batch that holds rows of a request with a deadline is kept so short that it should end before.

        Args:
            now: on the batcher's clock.
            is_draining: whether no more requests will come.
            drop: removes a request that nobody waits for any more, and says whether it did.
        """
        limit = self._pacing.budget(self.callers, now)
        reason = CutReason.DRAIN if is_draining else CutReason.IDLE
        is_short = False
        count = tokens = requests = 0
        while self._queue:
            caller, request = self._queue.first()
            if drop(request, now):
                continue
            before = count
            count, spent = self._answers.take(request.pending, max(0, int(limit) - tokens), self._slots, count)
            tokens += spent
            requests += count > before
            self._charge(caller, request, spent)
            if request.pending.taken < len(request.pending.slots):
                reason = CutReason.DEADLINE if is_short else CutReason.FULL
                break
            self.discard(request)
            if request.deadline is not None:
                in_time = max(tokens, self._pacing.tokens_in(request.deadline - now))
                is_short, limit = (True, in_time) if in_time < limit else (is_short, limit)
        if reason is CutReason.IDLE and tokens >= limit:
            reason = CutReason.FULL
        return Cut(self._slots[:count].copy(), tokens, requests, reason)

    def _charge(self, caller: str, request: QueuedT, spent: int) -> None:
        """Books what a request was served. Rows that others had queued first are not among its own tokens."""
        self._queue.charge(caller, spent)
        own = min(spent, request.tokens)
        self.tokens -= own
        request.tokens -= own
