"""The teachers behind an address, a list of addresses or a name: who is there, and who gets which rows.

`Replicas`  a list: each row goes to one of those that are there, by rendezvous hashing
`Named`     a name: rows are cut into shards, gRPC resolves the name and places the shards on a hash ring
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import logging
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

import grpc
import numpy as np

from shared.address import NAME_SCHEMES, addresses_in
from shared.channel import Watched
from shared.errors import CompatibilityError, ConfigError, InternalError, Overloaded, TeacherError, Unavailable
from shared.rpc.credentials import authorization, open_aio_channel
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from shared.wire import ScoreQuery, ScoreReply, TeacherInfo, decode_info, decode_reply
from student_trainer.distill import routing
from student_trainer.distill.config import ClientConfig
from student_trainer.distill.transport import (
    Metadata,
    StreamTransport,
    Transport,
    UnaryTransport,
    from_rpc,
    unreadable,
)

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 10.0
INFO_SECONDS = 5.0
"""How long a teacher may take to say what it is."""
RENEW_SECONDS = 60.0
"""How often a name is resolved again, so that teachers that joined it get their share."""
MESSAGE_BYTES = 512 * 2**20
"""Largest answer accepted; what may be sent is the server's to decide."""
CONNECT_SECONDS = 5.0
"""How long a connection may take to be made before another attempt; gRPC's own 20 s are lost on a stopped process."""
SHARDS = 16
SHARD_KEY = "teacher-shard"
RING_HASH = "GRPC_EXPERIMENTAL_RING_HASH_SET_REQUEST_HASH_KEY"
"""gRPC's switch for a hash ring by metadata without xDS (gRFC A76)."""
SERVICE = pb.DESCRIPTOR.services_by_name["TeacherService"].full_name


class Fleet(Protocol):
    """Places that a request can go to. All methods belong to one event loop."""

    async def connect(self, seconds: float) -> TeacherInfo:
        """Waits for a teacher; its weights are the run's from now on.

        Raises:
            Unavailable: none answered in time.
            CompatibilityError: they serve different weights.
        """

    async def places(self, rows: routing.UInt64, give_up: float) -> routing.Int64:
        """The place of each row, from its hash; waits until there is one, until `give_up` (monotonic seconds)."""

    async def ask(self, place: int, request: pb.ScoreRequest, query: ScoreQuery, timeout: float) -> ScoreReply:
        """One attempt at a query, whose message the request is; the answer is whole and carries the run's weights."""

    def wants_pause(self, error: TeacherError) -> bool:
        """Whether a failed request will go to the same place again, so that it had better wait."""

    def label(self, place: int | None = None) -> str:
        """What messages call a place, or all of them."""

    async def close(self) -> None:
        """Frees the connections."""


def open_fleet(text: str, config: ClientConfig, caller: str) -> Fleet:
    """What `--teacher` names.

    Raises:
        ConfigError: it names nothing, or the channel's settings cannot be used for it.
    """
    is_name = text.startswith(NAME_SCHEMES)
    addresses = addresses_in(text)
    token = authorization(config.channel, addresses)

    def metadata() -> Sequence[tuple[str, str]]:
        return (("teacher-client", caller), *token())

    if is_name:
        return Named(text, config, metadata)
    if not addresses:
        raise ConfigError(f"teacher: {text!r} has no address; expected HOST:PORT[,HOST:PORT...]")
    return Replicas(addresses, config, metadata)


def pauses(failures: int = 0) -> Iterator[float]:
    """Pauses before the next attempts, seconds: doubling, capped, drawn from their upper half."""
    for i in itertools.count(failures):
        yield min(FIRST_PAUSE_SECONDS * 2 ** min(i, 20), LONGEST_PAUSE_SECONDS) * random.uniform(0.5, 1)  # noqa: S311 - jitter


@dataclasses.dataclass(eq=False)
class _Replica:
    address: str
    files: Watched
    channel: grpc.aio.Channel
    stub: rpc.TeacherServiceStub
    transports: list[Transport]
    state: Literal["in", "out", "refused"] = "out"
    failures: int = 0
    reason: str = ""


class Replicas:
    """A list of addresses. One that fails is out until it answers again with the run's weights."""

    def __init__(self, addresses: list[str], config: ClientConfig, metadata: Metadata) -> None:
        self._replicas = [_dial_replica(address, config, metadata) for address in addresses]
        self._config, self._metadata = config, metadata
        self._names = routing.seeds(addresses)
        self._revision = ""
        self._changed = asyncio.Event()
        self._probes: set[asyncio.Task[None]] = set()

    async def connect(self, seconds: float) -> TeacherInfo:
        """See `Fleet`; warns of addresses that do not answer if another does."""
        addresses = self.label()
        deadline, announced = time.monotonic() + seconds, False
        for pause in pauses():
            found = await asyncio.gather(*(_try_info(replica.stub, self._metadata) for replica in self._replicas))
            infos = {
                replica.address: info
                for replica, info in zip(self._replicas, found, strict=True)
                if not isinstance(info, TeacherError)
            }
            if infos:
                break
            failures = [failure for failure in found if isinstance(failure, TeacherError)]
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not any(failure.retryable for failure in failures):
                raise _nobody(addresses, seconds, failures[0])
            if not announced:
                log.info("waiting up to %.0f s for the teacher at %s", seconds, addresses)
                announced = True
            await asyncio.sleep(min(pause, remaining, 1.0))
        first = _same_weights(infos)
        self._revision = first.weights_revision
        for replica, info in zip(self._replicas, found, strict=True):
            if isinstance(info, TeacherError):
                replica.reason = str(info)
                self._probe(replica)
            else:
                replica.state = "in"
        absent = [f"{replica.address} ({replica.reason})" for replica in self._replicas if replica.state == "out"]
        if absent:
            log.warning("going on without the teachers that do not answer yet: %s", ", ".join(absent))
        return first

    async def places(self, rows: routing.UInt64, give_up: float) -> routing.Int64:
        """See `Fleet`.

        Raises:
            CompatibilityError: every teacher now serves another model.
            Unavailable: none came back in time.
        """
        while True:
            present = np.flatnonzero([replica.state == "in" for replica in self._replicas])
            if len(present):
                return routing.rendezvous(rows, self._names, present)
            self._check_some_left()
            try:
                remaining = give_up - time.monotonic()
                async with asyncio.timeout(None if math.isinf(remaining) else remaining):
                    await self._changed.wait()
            except TimeoutError:
                raise Unavailable(f"no teacher is left: {self._reasons()}") from None

    async def ask(self, place: int, request: pb.ScoreRequest, query: ScoreQuery, timeout: float) -> ScoreReply:
        """See `Fleet`."""
        replica = self._replicas[place]
        transport = min(replica.transports, key=lambda transport: transport.in_flight)
        try:
            reply = decode_reply(await transport.score(request, query.positions, timeout), query, request)
        except TeacherError as error:
            if error.retryable and not isinstance(error, Overloaded):
                self._lose(replica, error)
            raise
        if reply.weights_revision != self._revision:
            if replica.state != "refused":
                was_in = replica.state == "in"
                self._refuse(replica, reply.weights_revision)
                if was_in:
                    self._probe(replica)
            self._check_some_left()
            raise Unavailable(replica.reason)
        replica.failures = 0
        return reply

    def wants_pause(self, error: TeacherError) -> bool:
        """See `Fleet`: a full queue keeps its rows, for the teacher's cache knows them."""
        return isinstance(error, Overloaded)

    def label(self, place: int | None = None) -> str:
        """See `Fleet`."""
        replicas = self._replicas if place is None else [self._replicas[place]]
        return ",".join(replica.address for replica in replicas)

    async def close(self) -> None:
        """See `Fleet`."""
        for task in self._probes:
            task.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)
        await asyncio.gather(*(replica.channel.close(None) for replica in self._replicas))

    def _reasons(self) -> str:
        return "; ".join(f"{replica.address}: {replica.reason}" for replica in self._replicas)

    def _check_some_left(self) -> None:
        if all(replica.state == "refused" for replica in self._replicas):
            raise CompatibilityError(f"{self._reasons()}; serve the old file again")

    def _lose(self, replica: _Replica, error: TeacherError) -> None:
        if replica.state != "in":
            return
        level = logging.DEBUG if len(self._replicas) == 1 else logging.WARNING  # a single one is an outage: see there
        log.log(level, "teacher at %s is out: %s", replica.address, error)
        replica.state, replica.reason = "out", str(error)
        self._probe(replica)

    def _refuse(self, replica: _Replica, revision: str) -> None:
        reason = (
            f"the teacher at {replica.address} changed its weights from {self._revision} to {revision} during the run "
            "(a revision is of weights, vocabulary and grid)"
        )
        if replica.reason != reason:
            log.error("%s; it is asked nothing", reason)
        replica.state, replica.reason = "refused", reason
        self._notify()

    def _probe(self, replica: _Replica) -> None:
        task = asyncio.create_task(self._until_back(replica))
        self._probes.add(task)
        task.add_done_callback(self._probes.discard)

    async def _until_back(self, replica: _Replica) -> None:
        label = replica.address
        for pause in pauses(replica.failures):
            replica.failures += 1
            await asyncio.sleep(pause)
            await self._renew(replica)
            try:
                info = await _try_info(replica.stub, self._metadata)
            except CompatibilityError as error:
                info = InternalError(str(error))  # nonsense now may be sense later
            if isinstance(info, TeacherError):
                if replica.state == "out":
                    replica.reason = str(info)
            elif info.weights_revision != self._revision:
                self._refuse(replica, info.weights_revision)
            else:
                log.log(logging.INFO if len(self._replicas) > 1 else logging.DEBUG, "teacher at %s is back", label)
                replica.state, replica.reason = "in", ""
                self._notify()
                return

    async def _renew(self, replica: _Replica) -> None:
        """Dials one that is out anew if certificates have changed since: the old ones may be why."""
        if not replica.files.changed():
            return
        try:
            fresh = _dial_replica(replica.address, self._config, self._metadata)
        except ConfigError as error:  # replaced by halves, or damaged; the next change may mend it
            replica.reason = str(error)
            return
        old = replica.channel
        replica.channel, replica.stub, replica.transports = fresh.channel, fresh.stub, fresh.transports
        await old.close(None)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Named:
    """A gRPC name of several teachers. gRPC resolves it, checks their health and balances.

    A shard of the rows goes to one teacher while that is there: the shard's number is what gRPC places on its hash
    ring, whose points are the teachers' addresses.
    """

    def __init__(self, target: str, config: ClientConfig, metadata: Metadata) -> None:
        os.environ.setdefault(RING_HASH, "true")
        self._target, self._config = target, config
        self._metadata = [_of_shard(metadata, shard) for shard in range(config.streams or SHARDS)]
        self._revision = ""
        self._channel, self._transports = self._dial()
        self._renewal: asyncio.Task[None] | None = None

    async def connect(self, seconds: float) -> TeacherInfo:
        """See `Fleet`; asks the teacher of every shard."""
        stub, deadline, announced = rpc.TeacherServiceStub(self._channel), time.monotonic() + seconds, False
        for pause in pauses():
            found = await asyncio.gather(*(_try_info(stub, metadata) for metadata in self._metadata))
            failures = [failure for failure in found if isinstance(failure, TeacherError)]
            if not failures:
                break
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not failures[0].retryable:
                raise _nobody(self._target, seconds, failures[0])
            if not announced:
                log.info("waiting up to %.0f s for the teachers at %s", seconds, self._target)
                announced = True
            await asyncio.sleep(min(pause, remaining, 1.0))
        infos = [info for info in found if not isinstance(info, TeacherError)]
        first = _same_weights({f"{self._target} (shard {i})": info for i, info in enumerate(infos)})
        self._revision = first.weights_revision
        self._renewal = asyncio.create_task(self._renew())
        return first

    async def places(self, rows: routing.UInt64, give_up: float) -> routing.Int64:
        """See `Fleet`."""
        return (rows % np.uint64(len(self._metadata))).astype(np.int64)

    async def ask(self, place: int, request: pb.ScoreRequest, query: ScoreQuery, timeout: float) -> ScoreReply:
        """See `Fleet`.

        Raises:
            CompatibilityError: a teacher of that name serves other weights.
        """
        response = await self._transports[place].score(request, query.positions, timeout)
        reply = decode_reply(response, query, request)
        if reply.weights_revision != self._revision:
            raise CompatibilityError(
                f"a teacher of {self._target} serves weights {reply.weights_revision}, the run has "
                f"{self._revision}; take it out of the name"
            )
        return reply

    def wants_pause(self, error: TeacherError) -> bool:
        """See `Fleet`."""
        return True

    def label(self, place: int | None = None) -> str:
        """See `Fleet`."""
        return self._target

    async def close(self) -> None:
        """See `Fleet`."""
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)
        await self._channel.close(None)

    def _dial(self) -> tuple[grpc.aio.Channel, list[Transport]]:
        service_config = {
            "loadBalancingConfig": [{"ring_hash_experimental": {"requestHashHeader": SHARD_KEY}}],
            "healthCheckConfig": {"serviceName": SERVICE},
        }
        options = [*_options(self._config), ("grpc.service_config", json.dumps(service_config))]
        channel = open_aio_channel(self._target, self._config.channel, options)
        make = _transport_of(self._config)
        return channel, [make(rpc.TeacherServiceStub(channel), metadata) for metadata in self._metadata]

    async def _renew(self) -> None:
        """Now and then a new channel, which resolves the name and places the shards anew; the old one finishes."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            channel, transports = self._channel, self._transports
            try:
                self._channel, self._transports = self._dial()
            except ConfigError as error:
                log.error("%s; the connections that are there stay in use", error)
                continue
            try:
                while any(transport.in_flight for transport in transports):
                    await asyncio.sleep(0.1)
            finally:
                await channel.close(None)


def _options(config: ClientConfig) -> tuple[tuple[str, str | int], ...]:
    """Of a channel: a connection that died unseen is noticed, and a teacher that comes back is found soon."""
    return (
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", round(1000 * config.keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", round(1000 * config.keepalive_seconds / 3)),
        ("grpc.http2.ping_timeout_ms", round(1000 * config.keepalive_seconds / 3)),  # otherwise 60 s come first
        ("grpc.http2.max_pings_without_data", 0),  # gRPC would stop after two
        ("grpc.initial_reconnect_backoff_ms", round(1000 * FIRST_PAUSE_SECONDS)),
        ("grpc.min_reconnect_backoff_ms", round(1000 * CONNECT_SECONDS)),
        ("grpc.max_reconnect_backoff_ms", round(1000 * LONGEST_PAUSE_SECONDS)),
    )


def _transport_of(config: ClientConfig) -> Callable[[rpc.TeacherServiceStub, Metadata], Transport]:
    return StreamTransport if config.transport == "stream" else UnaryTransport


def _of_shard(metadata: Metadata, shard: int) -> Metadata:
    return lambda: (*metadata(), (SHARD_KEY, str(shard)))


def _dial_replica(address: str, config: ClientConfig, metadata: Metadata) -> _Replica:
    files = config.channel.watched()
    channel = open_aio_channel(address, config.channel, _options(config))
    stub = rpc.TeacherServiceStub(channel)
    make = _transport_of(config)
    return _Replica(address, files, channel, stub, [make(stub, metadata) for _ in range(config.streams or 1)])


async def _try_info(stub: rpc.TeacherServiceStub, metadata: Metadata) -> TeacherInfo | TeacherError:
    try:
        message = await stub.GetTeacher(pb.GetTeacherRequest(), timeout=INFO_SECONDS, metadata=tuple(metadata()))
        return unreadable() if message is None else decode_info(message)
    except grpc.aio.AioRpcError as error:
        return from_rpc(error)
    except TeacherError as error:
        return error


def _nobody(where: str, seconds: float, failure: TeacherError) -> Unavailable:
    listen = "" if where.startswith(NAME_SCHEMES) else f" --listen {addresses_in(where)[0]}"
    return Unavailable(
        f"no teacher at {where} within {seconds:g} s ({failure}); start one there: "
        f"`teacher-server serve --teacher FILE{listen}`, or raise client.connect_seconds"
    )


def _same_weights(infos: dict[str, TeacherInfo]) -> TeacherInfo:
    """The first of them; raises if another serves other weights."""
    (place, first), *others = infos.items()
    for other, info in others:
        if info.weights_revision != first.weights_revision:
            raise CompatibilityError(
                f"the teachers differ: {place} serves weights {first.weights_revision}, "
                f"{other} serves {info.weights_revision}; all must serve the same teacher file"
            )
    return first
