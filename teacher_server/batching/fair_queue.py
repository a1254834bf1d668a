"""A queue that many callers share: the one who was served least is next, and of its items the oldest.

Start-time fair queueing: every caller has an account of what it was served. A caller that comes (back) starts at the
account of the one that was served last, so it neither owes nor is owed for the time that it did not wait. Who has a
larger share than others pays less for the same.
"""

from __future__ import annotations

from collections.abc import Callable, KeysView
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")

FORGET_ABOVE = 1000
"""Accounts of callers that have left, before the settled ones are dropped."""


class FairQueue(Generic[ItemT]):
    """Items by caller. What "served" counts is the user's: here it is padded tokens."""

    def __init__(self, share: Callable[[str], float] | None = None) -> None:
        """Empty; every caller's share is 1, or what `share` says, more than 0."""
        self._share = share
        self._waiting: dict[str, dict[ItemT, None]] = {}
        self._served: dict[str, float] = {}
        self._clock = 0.0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def callers(self) -> KeysView[str]:
        """Who has items in it."""
        return self._waiting.keys()

    def push(self, caller: str, item: ItemT) -> None:
        """Puts an item behind the caller's others."""
        if caller not in self._waiting:
            self._waiting[caller] = {}
            self._served[caller] = max(self._served.get(caller, 0.0), self._clock)
            self._forget()
        self._waiting[caller][item] = None
        self._size += 1

    def first(self) -> tuple[str, ItemT]:
        """The next item and its caller; it stays in the queue, which must not be empty."""
        caller = min(self._waiting, key=self._served.__getitem__)
        self._clock = max(self._clock, self._served[caller])
        return caller, next(iter(self._waiting[caller]))

    def charge(self, caller: str, amount: float) -> None:
        """Books what a caller was served."""
        self._served[caller] += amount if self._share is None else amount / self._share(caller)

    def discard(self, caller: str, item: ItemT) -> None:
        """Removes an item; idempotent."""
        items = self._waiting.get(caller)
        if items is None or item not in items:
            return
        del items[item]
        self._size -= 1
        if not items:
            del self._waiting[caller]

    def _forget(self) -> None:
        if len(self._served) <= FORGET_ABOVE + 2 * len(self._waiting):
            return
        self._served = {
            caller: served for caller, served in self._served.items() if caller in self._waiting or served > self._clock
        }
