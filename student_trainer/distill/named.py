"""A gRPC name of several teachers: gRPC resolves it, checks their health and balances."""

from __future__ import annotations

import asyncio
import json
import logging
import os

import numpy as np

from shared.arrays import Int64, UInt64
from shared.errors import CompatibilityError, ConfigError, TeacherError
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.wire import ScoreQuery, ScoreReply, TeacherInfo, decode_reply
from student_trainer.distill import connection
from student_trainer.distill.config import ClientConfig
from student_trainer.distill.connection import Connection
from student_trainer.distill.transport import Metadata

log = logging.getLogger(__name__)

RENEW_SECONDS = 60.0
"""How often a name is resolved again, so that teachers that joined it get their share."""
SHARDS = 16
SHARD_KEY = "teacher-shard"
RING_HASH = "GRPC_EXPERIMENTAL_RING_HASH_SET_REQUEST_HASH_KEY"
"""gRPC's switch for a hash ring by metadata without xDS (gRFC A76)."""
SERVICE = pb.DESCRIPTOR.services_by_name["TeacherService"].full_name


class Named:
    """Several teachers behind one name; implements `Fleet`.

    A shard of the histories goes to one teacher while that is there: the shard's number is what gRPC puts on its hash
    ring, whose points are the teachers' addresses.
    """

    def __init__(self, target: str, config: ClientConfig, metadata: Metadata) -> None:
        os.environ.setdefault(RING_HASH, "true")
        self._target, self._config = target, config
        self._metadata = [_of_shard(metadata, shard) for shard in range(config.streams or SHARDS)]
        self._revision = ""
        self._connection = self._dial()
        self._renewal: asyncio.Task[None] | None = None

    async def connect(self, seconds: float) -> TeacherInfo:
        """See `Fleet`; asks the teacher of every shard."""

        async def ask() -> list[connection.Answer]:
            stub = self._connection.stub
            return await asyncio.gather(*(connection.get_info(stub, metadata) for metadata in self._metadata))

        answers = await connection.wait_for_answers(ask, lambda failures: not failures, self._target, seconds)
        infos = [answer for answer in answers if not isinstance(answer, TeacherError)]
        first = connection.same_weights({f"{self._target} (shard {i})": info for i, info in enumerate(infos)})
        self._revision = first.weights_revision
        self._renewal = asyncio.create_task(self._renew())
        shards = len(self._metadata)
        log.info("%s is resolved every %.0f s; its teachers share %d shards", self._target, RENEW_SECONDS, shards)
        return first

    def is_there(self) -> bool:
        """See `Fleet`; a name always has somebody to ask."""
        return True

    async def route(self, hashes: UInt64, give_up: float) -> Int64:
        """See `Fleet`; a name always has somebody to ask."""
        return (hashes % np.uint64(len(self._metadata))).astype(np.int64)

    async def ask(self, endpoint: int, request: pb.ScoreRequest, query: ScoreQuery, timeout: float) -> ScoreReply:
        """See `Fleet`.

        Raises:
            CompatibilityError: a teacher of that name serves other weights.
        """
        response = await self._connection.transports[endpoint].score(request, query.positions, timeout)
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

    def label(self, endpoint: int | None = None) -> str:
        """See `Fleet`."""
        return self._target

    async def close(self) -> None:
        """See `Fleet`."""
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)
        await self._connection.channel.close(None)

    def _dial(self) -> Connection:
        service_config = {
            "loadBalancingConfig": [{"ring_hash_experimental": {"requestHashHeader": SHARD_KEY}}],
            "healthCheckConfig": {"serviceName": SERVICE},
        }
        options = [("grpc.service_config", json.dumps(service_config))]
        return connection.dial(self._target, self._config, self._metadata, options)

    async def _renew(self) -> None:
        """Now and then a new channel, which resolves the name and puts the shards on its ring; the old one finishes."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            old = self._connection
            try:
                self._connection = self._dial()
            except ConfigError as error:
                log.error("%s; the connections that are there stay in use", error)
                continue
            try:
                while old.in_flight:
                    await asyncio.sleep(0.1)
            finally:
                await old.channel.close(None)


def _of_shard(metadata: Metadata, shard: int) -> Metadata:
    return lambda: (*metadata(), (SHARD_KEY, str(shard)))
