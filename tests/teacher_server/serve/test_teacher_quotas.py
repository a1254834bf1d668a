"""Quotas by the names of tokens: how much, how fast, and what is counted."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import prometheus_client
import pytest
from support.clock import Clock

from shared.errors import InvalidRequest, Overloaded, Unavailable
from teacher_server.metrics import Metrics
from teacher_server.serve import callers
from teacher_server.serve.config import QuotaConfig
from teacher_server.serve.quotas import MOST_NAMES, Bucket, Quotas


class Call:
    """As much of a call's context as says who calls."""

    def __init__(self, **metadata: str) -> None:
        self._metadata = [(key.replace("_", "-"), value) for key, value in metadata.items()]

    def invocation_metadata(self) -> list[tuple[str, str]]:
        """See gRPC."""
        return self._metadata

    def peer(self) -> str:
        """See gRPC."""
        return "ipv4:127.0.0.1:1"


def test_who_calls() -> None:
    """A token's name goes before what the caller says, which goes before its connection."""

    def ask(token: str, **metadata: str) -> tuple[str, str]:
        callers.enter(token)
        return callers.caller_of(cast(Any, Call(**metadata))), callers.known()

    asked = [ask("alice", teacher_client="bob"), ask("", teacher_client="bob"), ask("")]
    assert asked == [("alice", "alice"), ("bob", ""), ("ipv4:127.0.0.1:1", "")]
    with pytest.raises(InvalidRequest, match="64 printable"):
        ask("", teacher_client="x" * 65)


@pytest.fixture
def registry() -> prometheus_client.CollectorRegistry:
    return prometheus_client.CollectorRegistry()


def test_a_bucket_gives_its_rate_whatever_the_sizes() -> None:
    """After a second's worth at once; who asks more goes into debt and waits for it."""
    clock = Clock()
    bucket = Bucket(100.0, clock)
    assert bucket.seconds == 0
    bucket.spend(350)
    assert bucket.seconds == 2.5
    clock.now = 2.0
    assert bucket.seconds == 0.5
    clock.now = 2.75
    assert bucket.seconds == 0
    clock.now = 1000.0
    assert bucket.seconds == 0
    bucket.spend(100)  # no more than a second's worth was saved up
    assert bucket.seconds == 0
    bucket.spend(50)
    assert bucket.seconds == 0.5


def quotas_of(registry: prometheus_client.CollectorRegistry, clock: Clock, **rates: float) -> Quotas:
    settings = {name: QuotaConfig(positions_per_second=rate, share=3) for name, rate in rates.items()}
    return Quotas(settings, Metrics(registry), clock)


def test_unary_calls_are_refused_at_once(registry: prometheus_client.CollectorRegistry) -> None:
    clock = Clock()
    quotas = quotas_of(registry, clock, alice=10.0)

    async def ask() -> None:
        await quotas.admit("alice", 30, may_wait=False)
        with pytest.raises(Overloaded, match=r"alice may ask 10 positions a second; try again in 2\.0 s"):
            await quotas.admit("alice", 1, may_wait=False)
        for other in ("bob", ""):
            await quotas.admit(other, 10**9, may_wait=False)
            await quotas.admit(other, 1, may_wait=False)
        clock.now = 2.5
        await quotas.admit("alice", 1, may_wait=False)

    asyncio.run(ask())
    value = registry.get_sample_value
    assert value("teacher_rejected_total", {"reason": "quota"}) == 1
    assert value("teacher_caller_limited_total", {"caller": "alice"}) == 1
    assert value("teacher_caller_positions_total", {"caller": "alice"}) == 32
    assert value("teacher_caller_requests_total", {"caller": "other"}) == 2
    assert (quotas.share("alice"), quotas.share("bob")) == (3.0, 1.0)


def test_streams_wait_in_the_order_in_which_they_came(registry: prometheus_client.CollectorRegistry) -> None:
    """Who goes away while it waits has spent nothing."""
    quotas = Quotas({"alice": QuotaConfig(positions_per_second=1000.0)}, Metrics(registry))
    admitted: list[int] = []

    async def one(number: int) -> None:
        await quotas.admit("alice", 1020, may_wait=True)
        admitted.append(number)

    async def ask() -> None:
        tasks = [asyncio.create_task(one(number)) for number in range(2)]
        gone = asyncio.create_task(quotas.admit("alice", 10**12, may_wait=True))
        await asyncio.sleep(0)
        gone.cancel()
        tasks.append(asyncio.create_task(one(2)))
        await asyncio.gather(*tasks)

    asyncio.run(ask())
    assert admitted == [0, 1, 2]


def test_nobody_waits_for_a_teacher_that_stops(registry: prometheus_client.CollectorRegistry) -> None:
    quotas = quotas_of(registry, Clock(), alice=0.001)

    async def ask() -> None:
        await quotas.admit("alice", 10, may_wait=True)
        waiting = asyncio.create_task(quotas.admit("alice", 10, may_wait=True))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        quotas.stop()
        with pytest.raises(Unavailable, match="stopping"):
            await waiting

    asyncio.run(ask())


def test_names_that_come_and_go_make_no_series_without_end(registry: prometheus_client.CollectorRegistry) -> None:
    quotas = quotas_of(registry, Clock())

    async def ask() -> None:
        for number in range(3 * MOST_NAMES):
            await quotas.admit(f"name-{number}", 1, may_wait=True)

    asyncio.run(ask())
    (family,) = [family for family in registry.collect() if family.name == "teacher_caller_requests"]
    series = [sample for sample in family.samples if sample.name.endswith("_total")]
    assert len(series) == MOST_NAMES + 1
    assert registry.get_sample_value("teacher_caller_requests_total", {"caller": "other"}) == 2 * MOST_NAMES
