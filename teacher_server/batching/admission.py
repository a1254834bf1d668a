"""Admission: what may wait for the model. A request beyond the limits is refused at once, which is backpressure.

Flow control keeps well-behaved streams below the limits: they are granted positions beforehand, and what was granted
is admitted. Candidates are limited for everybody, since they bound the memory.
"""

from __future__ import annotations

from teacher_server.batching.config import BatchingConfig


class Admission:
    """Counts what is admitted and not yet answered.

    Attributes:
        positions: scored positions that had no answer when they were asked for.
        candidates: candidates of all positions of these requests.
    """

    def __init__(self, settings: BatchingConfig) -> None:
        """Nothing is admitted yet."""
        self._settings = settings
        self.positions = 0
        self.candidates = 0

    def refusal(self, positions: int, candidates: int, is_granted: bool) -> str:
        """Why a request of this size has no room; empty if it has."""
        limits = [("candidates", self.candidates, candidates, self._settings.max_queued_candidates)]
        if not is_granted:
            limits.append(("positions", self.positions, positions, self._settings.max_queued_positions))
        for what, there, more, limit in limits:
            if there + more > limit:
                return f"{there} {what} wait, {more} more would exceed {limit}"
        return ""

    def add(self, positions: int, candidates: int) -> None:
        """Admits a request."""
        self.positions += positions
        self.candidates += candidates

    def remove(self, positions: int, candidates: int) -> None:
        """Gives a request's room back."""
        self.add(-positions, -candidates)
