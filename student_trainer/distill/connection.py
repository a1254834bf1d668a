"""One connection to a teacher: its channel, the ways to send a request on it, and what the teacher says it is."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Sequence

import grpc

from shared.address import NAME_SCHEMES, Address, addresses_in
from shared.channel import Watched
from shared.errors import CompatibilityError, TeacherError, Unavailable
from shared.rpc.credentials import open_aio_channel
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from shared.wire import TeacherInfo, decode_info
from student_trainer.distill import retry
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

INFO_SECONDS = 5.0
"""How long a teacher may take to say what it is."""
MESSAGE_BYTES = 512 * 2**20
"""Largest answer accepted; what may be sent is the server's to decide."""
CONNECT_SECONDS = 5.0
"""How long a connection may take to be made before another attempt; gRPC's own 20 s are lost on a stopped process."""

Answer = TeacherInfo | TeacherError
"""What a teacher says it is, or why it does not."""


@dataclasses.dataclass(frozen=True, eq=False)
class Connection:
    """A channel to one address or name.

    Attributes:
        files: certificates that the channel was made with.
        channel: to close in the end.
        stub: for calls that belong to no transport.
        transports: ways to send requests, each with what is in flight on it.
    """

    files: Watched
    channel: grpc.aio.Channel
    stub: rpc.TeacherServiceStub
    transports: list[Transport]

    @property
    def in_flight(self) -> int:
        """Positions under way on all transports."""
        return sum(transport.in_flight for transport in self.transports)


def dial(
    target: str, config: ClientConfig, callers: Sequence[Metadata], options: Sequence[tuple[str, str | int]] = ()
) -> Connection:
    """Opens a channel, with a transport for each of the callers' metadata; nothing is sent yet.

    Args:
        target: address or name, as gRPC takes it.
        config: of the client.
        callers: the metadata of each transport.
        options: of the channel, beside those that every channel has.

    Raises:
        ConfigError: a certificate cannot be read.
    """
    files = config.channel.watched()
    channel = open_aio_channel(target, config.channel, [*_options(config), *options])
    stub = rpc.TeacherServiceStub(channel)
    make = StreamTransport if config.transport == "stream" else UnaryTransport
    return Connection(files, channel, stub, [make(stub, metadata) for metadata in callers])


async def get_info(stub: rpc.TeacherServiceStub, metadata: Metadata) -> Answer:
    """What a teacher says it is, or how it failed to.

    Raises:
        CompatibilityError: it says what cannot be.
    """
    try:
        message = await stub.GetTeacher(pb.GetTeacherRequest(), timeout=INFO_SECONDS, metadata=tuple(metadata()))
        return unreadable() if message is None else decode_info(message)
    except grpc.aio.AioRpcError as error:
        return from_rpc(error)
    except TeacherError as error:
        return error


async def wait_for_answers(
    ask: Callable[[], Awaitable[list[Answer]]],
    is_enough: Callable[[Sequence[TeacherError]], bool],
    where: str,
    seconds: float,
) -> list[Answer]:
    """Asks teachers what they are, again and again, until enough of them answer.

    Args:
        ask: asks all of them once.
        is_enough: whether these failures of one round leave enough answers.
        where: what messages call the teachers.
        seconds: how long to wait.

    Returns:
        The answers of the last round.

    Raises:
        Unavailable: too few answered in time, or none of the failures can heal.
    """
    deadline, announced = time.monotonic() + seconds, False
    for pause in retry.backoff():
        answers = await ask()
        failures = [answer for answer in answers if isinstance(answer, TeacherError)]
        if is_enough(failures):
            break
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not any(failure.retryable for failure in failures):
            listen = "" if where.startswith(NAME_SCHEMES) else f" --listen {addresses_in(where)[0]}"
            raise Unavailable(
                f"no teacher at {where} within {seconds:g} s ({failures[0]}); start one there: "
                f"`teacher-server serve --teacher FILE{listen}`, or raise client.connect_seconds"
            )
        if not announced:
            log.info("waiting up to %.0f s for the teacher at %s", seconds, where)
            announced = True
        await asyncio.sleep(min(pause, remaining, 1.0))
    return answers


async def addresses_of(target: str) -> int:
    """How many addresses a HOST:PORT stands for, of one family at most; 1 if that is not known."""
    try:
        address = Address.parse(target)
        if address.path:
            return 1
        found = await asyncio.get_running_loop().getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (ValueError, OSError):
        return 1
    families = [family for family, *_, place in {(entry[0], entry[4][0]) for entry in found}]
    return max((families.count(family) for family in families), default=1)


def same_weights(infos: dict[str, TeacherInfo]) -> TeacherInfo:
    """The first of what teachers say they are, by what messages call them.

    Raises:
        CompatibilityError: another serves other weights.
    """
    (where, first), *others = infos.items()
    for other, info in others:
        if info.weights_revision != first.weights_revision:
            raise CompatibilityError(
                f"the teachers differ: {where} serves weights {first.weights_revision}, "
                f"{other} serves {info.weights_revision}; all must serve the same teacher file"
            )
    return first


def _options(config: ClientConfig) -> tuple[tuple[str, str | int], ...]:
    """Of a channel: a connection that died unseen is noticed, and a teacher that comes back is found soon."""
    return (
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", round(1000 * config.keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", round(1000 * config.keepalive_seconds / 3)),
        ("grpc.http2.ping_timeout_ms", round(1000 * config.keepalive_seconds / 3)),  # otherwise 60 s come first
        ("grpc.http2.max_pings_without_data", 0),  # gRPC would stop after two
        ("grpc.initial_reconnect_backoff_ms", round(1000 * retry.FIRST_PAUSE_SECONDS)),
        ("grpc.min_reconnect_backoff_ms", round(1000 * CONNECT_SECONDS)),
        ("grpc.max_reconnect_backoff_ms", round(1000 * retry.LONGEST_PAUSE_SECONDS)),
    )
