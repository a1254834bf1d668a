"""A list of teachers, each with a connection of its own: who is there, and why the others are not."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import time
from typing import Literal

import numpy as np

from shared.arrays import Int64, UInt64
from shared.errors import CompatibilityError, ConfigError, InternalError, Overloaded, TeacherError, Unavailable
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.wire import ScoreQuery, ScoreReply, TeacherInfo, decode_reply
from student_trainer.distill import connection, retry, routing
from student_trainer.distill.config import ClientConfig
from student_trainer.distill.connection import Connection
from student_trainer.distill.transport import Metadata

log = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class _Replica:
    """One address.

    Attributes:
        state: in: it is asked. out: it failed, and is probed until it answers. refused: it serves other weights.
        failures: in a row.
        cause: what took it out; later failures of probes do not replace it.
        reason: the newest of its failures, for messages.
    """

    address: str
    connection: Connection
    state: Literal["in", "out", "refused"] = "out"
    failures: int = 0
    cause: TeacherError | None = None
    reason: str = ""


class Replicas:
    """A list of addresses; implements `Fleet`. One that fails is out until it answers again with the run's weights."""

    def __init__(self, addresses: list[str], config: ClientConfig, metadata: Metadata) -> None:
        self._config, self._metadata = config, metadata
        self._replicas = [_Replica(address, self._dial(address)) for address in addresses]
        self._seeds = routing.seeds(addresses)
        self._revision = ""
        self._cause: TeacherError | None = None
        self._changed = asyncio.Event()
        self._probes: set[asyncio.Task[None]] = set()

    async def connect(self, seconds: float) -> TeacherInfo:
        """See `Fleet`; warns of addresses that do not answer if another does."""
        replicas = self._replicas

        async def ask() -> list[connection.Answer]:
            return await asyncio.gather(*(self._info(replica) for replica in replicas))

        answers = await connection.wait_for_answers(
            ask, lambda failures: len(failures) < len(replicas), self.label(), seconds
        )
        infos: dict[str, TeacherInfo] = {}
        for replica, answer in zip(replicas, answers, strict=True):
            if isinstance(answer, TeacherError):
                replica.reason = str(answer)
                self._probe(replica)
            else:
                replica.state = "in"
                infos[replica.address] = answer
        first = connection.same_weights(infos)
        self._revision = first.weights_revision
        absent = [f"{replica.address} ({replica.reason})" for replica in replicas if replica.state == "out"]
        if absent:
            log.warning("going on without the teachers that do not answer yet: %s", ", ".join(absent))
        await self._warn_of_names()
        return first

    async def _warn_of_names(self) -> None:
        """gRPC keeps to one of the addresses that a plain HOST:PORT stands for."""
        for replica in self._replicas:
            count = await connection.addresses_of(replica.address)
            if count > 1:
                log.warning(
                    "%s stands for %d addresses, of which one is asked; write dns:///%s to ask all of them",
                    replica.address, count, replica.address,
                )  # fmt: skip

    def is_there(self) -> bool:
        """See `Fleet`."""
        return any(replica.state == "in" for replica in self._replicas)

    async def route(self, hashes: UInt64, give_up: float) -> Int64:
        """See `Fleet`.

        Raises:
            CompatibilityError: every teacher now serves another model.
            TeacherError: none came back in time; of the kind of the failure that took the last one away, however
                often it was probed since.
        """
        while True:
            present = np.flatnonzero([replica.state == "in" for replica in self._replicas])
            if len(present):
                return routing.rendezvous(hashes, self._seeds, present)
            self._check_some_left()
            try:
                remaining = give_up - time.monotonic()
                async with asyncio.timeout(None if math.isinf(remaining) else remaining):
                    await self._changed.wait()
            except TimeoutError:
                raise self._nobody() from None

    async def ask(self, endpoint: int, request: pb.ScoreRequest, query: ScoreQuery, timeout: float) -> ScoreReply:
        """See `Fleet`."""
        replica = self._replicas[endpoint]
        transport = min(replica.connection.transports, key=lambda transport: transport.in_flight)
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
        """See `Fleet`: a full queue keeps its histories, for the teacher's cache knows them."""
        return isinstance(error, Overloaded)

    def label(self, endpoint: int | None = None) -> str:
        """See `Fleet`."""
        replicas = self._replicas if endpoint is None else [self._replicas[endpoint]]
        return ",".join(replica.address for replica in replicas)

    async def close(self) -> None:
        """See `Fleet`."""
        for task in self._probes:
            task.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)
        await asyncio.gather(*(replica.connection.channel.close(None) for replica in self._replicas))

    def _dial(self, address: str) -> Connection:
        return connection.dial(address, self._config, [self._metadata] * (self._config.streams or 1))

    async def _info(self, replica: _Replica) -> connection.Answer:
        return await connection.get_info(replica.connection.stub, self._metadata)

    def _nobody(self) -> TeacherError:
        """That nobody is there: of the kind of, and saying, what took the last one away."""
        reasons = [f"{replica.address}: {replica.cause or replica.reason}" for replica in self._replicas]
        kind = Unavailable if self._cause is None else type(self._cause)
        return kind(f"no teacher is left: {'; '.join(reasons)}")

    def _check_some_left(self) -> None:
        if all(replica.state == "refused" for replica in self._replicas):
            reasons = "; ".join(replica.reason for replica in self._replicas)
            raise CompatibilityError(f"{reasons}; serve the old file again")

    def _lose(self, replica: _Replica, error: TeacherError) -> None:
        if replica.state != "in":
            return
        level = logging.DEBUG if len(self._replicas) == 1 else logging.WARNING  # a single one is an outage: see there
        log.log(level, "teacher at %s is out: %s", replica.address, error)
        replica.state, replica.cause, replica.reason = "out", error, str(error)
        self._cause = error
        self._probe(replica)

    def _refuse(self, replica: _Replica, revision: str) -> None:
        reason = (
            f"the teacher at {replica.address} changed its weights from {self._revision} to {revision} during the run "
            "(a revision is of weights, vocabulary and grid)"
        )
        if replica.reason != reason:
            log.error("%s; it is asked nothing", reason)
        replica.state, replica.cause, replica.reason = "refused", None, reason
        self._notify()

    def _probe(self, replica: _Replica) -> None:
        task = asyncio.create_task(self._until_back(replica))
        self._probes.add(task)
        task.add_done_callback(self._probes.discard)

    async def _until_back(self, replica: _Replica) -> None:
        for pause in retry.backoff(replica.failures):
            replica.failures += 1
            await asyncio.sleep(pause)
            await self._renew(replica)
            try:
                answer = await self._info(replica)
            except CompatibilityError as error:
                answer = InternalError(str(error))  # nonsense now may be sense later
            if isinstance(answer, TeacherError):
                if replica.state == "out":
                    replica.reason = str(answer)
                    log.debug("teacher at %s is still out: %s", replica.address, answer)
            elif answer.weights_revision != self._revision:
                self._refuse(replica, answer.weights_revision)
            else:
                level = logging.INFO if len(self._replicas) > 1 else logging.DEBUG
                log.log(level, "teacher at %s is back", replica.address)
                replica.state, replica.cause, replica.reason = "in", None, ""
                self._notify()
                return

    async def _renew(self, replica: _Replica) -> None:
        """Dials one that is out anew if certificates have changed since: the old ones may be why."""
        if not replica.connection.files.changed():
            return
        try:
            fresh = self._dial(replica.address)
        except ConfigError as error:  # replaced by halves, or damaged; the next change may mend it
            replica.reason = str(error)
            return
        old, replica.connection = replica.connection, fresh
        await old.channel.close(None)

    def _notify(self) -> None:
        """Wakes whoever waits for a change of who is there."""
        self._changed.set()
        self._changed = asyncio.Event()
