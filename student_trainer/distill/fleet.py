"""The teachers behind an address, a list of addresses or a name: who is there, and who gets which histories.

`Replicas`  a list: each history goes to one of those that are there, by rendezvous hashing
`Named`     a name: histories are cut into shards, gRPC resolves the name and puts the shards on a hash ring

Both give each history an *endpoint*, a number: of a replica of the list, or of a shard of the name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from shared.address import NAME_SCHEMES, addresses_in
from shared.arrays import Int64, UInt64
from shared.errors import ConfigError, TeacherError
from shared.rpc.credentials import authorization
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.wire import ScoreQuery, ScoreReply, TeacherInfo
from student_trainer.distill.config import ClientConfig
from student_trainer.distill.named import Named
from student_trainer.distill.replicas import Replicas


class Fleet(Protocol):
    """Endpoints that a request can go to. All methods belong to one event loop."""

    async def connect(self, seconds: float) -> TeacherInfo:
        """Waits for a teacher; its weights are the run's from now on.

        Raises:
            Unavailable: none answered in time.
            CompatibilityError: they serve different weights.
        """

    def is_there(self) -> bool:
        """Whether there is an endpoint, so that `route` does not wait."""

    async def route(self, hashes: UInt64, give_up: float) -> Int64:
        """The endpoint of each history, from its hash; waits until there is one, until `give_up` (monotonic seconds).

        Raises:
            TeacherError: nobody was there in time; of the kind of the failure that took the last teacher away.
        """

    async def ask(self, endpoint: int, request: pb.ScoreRequest, query: ScoreQuery, timeout: float) -> ScoreReply:
        """One attempt at a query, whose message the request is; the answer is whole and carries the run's weights."""

    def wants_pause(self, error: TeacherError) -> bool:
        """Whether a failed request will go to the same endpoint again, so that it had better wait."""

    def label(self, endpoint: int | None = None) -> str:
        """What messages call an endpoint, or all of them."""

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
