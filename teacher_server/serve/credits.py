"""Flow control by credits: how many scored positions each stream may have in flight, so that what is sent fits the
queue.

One pool of positions is shared evenly by the open streams. A stream holds what it was granted and has not spent, and
what it has in flight of that; together the streams hold no more than the pool, with one exception: a stream that has
nothing in flight may send one request of any size, so that nobody waits for somebody who is idle. Credits are never
called back: a stream that holds more than its share, because others came, gets fewer as its requests are answered.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class Account:
    """The credits of one stream. Made by `CreditPool.open`."""

    def __init__(self, pool: CreditPool) -> None:
        self._pool = pool
        self.balance = 0
        """Positions granted and not spent; below 0 after a request that was larger than the grant."""
        self.in_flight = 0
        """Positions under way that were granted, or the one request that may be of any size."""
        self.requests = 0
        """Requests under way, granted or not."""

    @property
    def held(self) -> int:
        """Positions that the stream has of the pool."""
        return max(0, self.balance) + self.in_flight

    def spend(self, positions: int) -> bool:
        """A request of so many positions (at least 1) has come; whether it was granted."""
        is_granted = self.requests == 0 or self.balance >= positions
        with self._pool.booking(self):
            self.balance -= positions
            self.requests += 1
            if is_granted:
                self.in_flight += positions
        return is_granted


class CreditPool:
    """The positions that all streams together may have in flight."""

    def __init__(self, positions: int) -> None:
        self._positions = positions
        self.held = 0
        """Positions granted and not answered yet, spent or not."""
        self._accounts: dict[Account, None] = {}  # in the order in which they came

    @property
    def outstanding(self) -> int:
        """Positions granted and not spent, all streams together; any thread."""
        return sum(max(0, account.balance) for account in tuple(self._accounts))

    @contextlib.contextmanager
    def booking(self, account: Account) -> Iterator[None]:
        """Around whatever changes an account: keeps the sum over all of them."""
        before = account.held
        yield
        self.held += account.held - before

    def open(self) -> Account:
        """The account of a new stream. Its first grant comes with the first answer."""
        account = Account(self)
        self._accounts[account] = None
        return account

    def answer(self, account: Account, positions: int, is_granted: bool) -> int:
        """The grant that goes with the answer to a request; positions as they were spent."""
        with self.booking(account):
            account.requests -= 1
            if is_granted:
                account.in_flight -= positions
        return self._grant(account)

    def close(self, account: Account) -> None:
        """Takes a stream's credits back; the others get theirs as they are answered."""
        del self._accounts[account]
        self.held -= account.held

    def _grant(self, account: Account) -> int:
        """Moves a stream towards its share of the pool, as far as there are free positions; never down."""
        share = max(1, self._positions // len(self._accounts))
        free = max(0, self._positions - self.held)
        balance = min(max(0, share - account.in_flight), max(0, account.balance) + free)
        grant = max(0, balance - account.balance)
        with self.booking(account):
            account.balance += grant
        return grant
