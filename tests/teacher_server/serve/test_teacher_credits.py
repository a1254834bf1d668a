"""The arithmetic of credits, and what no order of events may break."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from teacher_server.serve.credits import Account, CreditPool


def opened(pool: CreditPool) -> tuple[Account, int]:
    """A stream after its first request of one position, and the grant that came with the answer."""
    account = pool.open()
    assert account.spend(1), "nothing is in flight"
    return account, pool.answer(account, 1, True)


def test_a_lone_stream_is_granted_the_whole_pool_and_again_what_it_spends() -> None:
    pool = CreditPool(100)
    account, grant = opened(pool)
    assert grant == 1 + 100, "what it owed, and the pool"
    assert account.spend(30) and account.spend(70)
    assert pool.outstanding == 0
    assert pool.answer(account, 30, True) == 30
    assert pool.answer(account, 70, True) == 70


def test_a_second_stream_gets_its_half_as_the_first_is_answered() -> None:
    pool = CreditPool(100)
    first, _ = opened(pool)
    for _ in range(4):
        assert first.spend(25)
    second = pool.open()
    assert second.spend(1)  # nothing in flight: one may go
    assert pool.answer(first, 25, True) == 0
    assert pool.answer(second, 1, True) == 1 + 25, "what it owed, and what is free"
    assert pool.answer(first, 25, True) == 0
    assert pool.answer(first, 25, True) == 25
    assert (first.held, second.held) == (50, 25)


def test_a_stream_that_ends_leaves_its_share_to_the_others() -> None:
    pool = CreditPool(100)
    first, second = opened(pool)[0], pool.open()
    pool.close(first)
    assert pool.held == 0
    assert second.spend(10)
    assert pool.answer(second, 10, True) == 10 + 100


def test_one_request_of_any_size_may_go_and_is_paid_back() -> None:
    pool = CreditPool(10)
    account, _ = opened(pool)
    assert account.spend(50)
    assert not account.spend(1), "it has something in flight and nothing left"
    assert pool.answer(account, 1, False) == 41, "the debt, nothing on top"
    assert pool.answer(account, 50, True) == 10


@given(st.integers(1, 50), st.integers(1, 60))
def test_shares_are_even_once_everybody_has_been_answered(pool_size: int, streams: int) -> None:
    pool = CreditPool(pool_size)
    accounts = [pool.open() for _ in range(streams)]
    for _ in range(2):
        for account in accounts:
            granted = account.spend(max(1, account.balance))
            pool.answer(account, max(1, account.in_flight), granted)
    share = max(1, pool_size // streams)
    assert pool.held <= pool_size
    if streams <= pool_size:
        assert [account.balance for account in accounts] == [share] * streams


@dataclasses.dataclass(eq=False)
class Caller:
    """A caller that keeps to the contract, and what it believes."""

    account: Account
    balance: int
    sent: list[tuple[int, bool]] = dataclasses.field(default_factory=list)


class Streams(RuleBasedStateMachine):
    """Streams open, send, are answered in any order and close."""

    callers = Bundle("callers")

    @initialize(size=st.integers(1, 200))
    def make(self, size: int) -> None:
        self.size = size
        self.pool = CreditPool(size)
        self.open: dict[Account, Caller] = {}

    @rule(target=callers)
    def connect(self) -> Caller:
        account = self.pool.open()
        caller = Caller(account, 0)
        self.open[account] = caller
        return caller

    @rule(caller=callers, positions=st.integers(1, 300))
    def send(self, caller: Caller, positions: int) -> None:
        if caller.sent and caller.balance < positions:
            return
        granted = caller.account.spend(positions)
        assert granted, "who keeps to the credits is never refused"
        caller.balance -= positions
        caller.sent.append((positions, granted))

    @rule(caller=callers, positions=st.integers(1, 300))
    def send_regardless(self, caller: Caller, positions: int) -> None:
        caller.balance -= positions
        caller.sent.append((positions, caller.account.spend(positions)))

    @rule(caller=callers, which=st.integers(0, 10))
    def answer(self, caller: Caller, which: int) -> None:
        if caller.sent:
            positions, granted = caller.sent.pop(which % len(caller.sent))
            caller.balance += self.pool.answer(caller.account, positions, granted)
            assert caller.balance >= 0, "whoever is answered may send"

    @rule(caller=consumes(callers))
    def disconnect(self, caller: Caller) -> None:
        del self.open[caller.account]
        self.pool.close(caller.account)

    @invariant()
    def holds(self) -> None:
        callers = list(self.open.values())
        assert all(caller.balance == caller.account.balance for caller in callers), "both sides count alike"
        # A stream's first request may be of any size; all else is within the pool.
        beyond = sum(max((p for p, granted in caller.sent if granted), default=0) for caller in callers)
        assert self.pool.held <= self.size + beyond
        assert self.pool.outstanding <= self.size
        assert self.pool.held == sum(caller.account.held for caller in callers)
        for caller in callers:
            assert caller.account.in_flight == sum(p for p, granted in caller.sent if granted)


TestStreams = Streams.TestCase
