"""Asking a running server from the command line: one channel, errors as they are named on this side."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import grpc

from shared.channel import ChannelConfig
from shared.errors import from_status
from shared.rpc.credentials import Metadata, authorization, open_channel
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc


@contextlib.contextmanager
def dialled(address: str, config: ChannelConfig) -> Iterator[tuple[rpc.TeacherServiceStub, Metadata]]:
    """The methods of the server at an address, and the metadata of their calls.

    Raises:
        ConfigError: a file of the channel's settings cannot be used.
        TeacherError: a call failed; `Unavailable` if nothing listens there. Names the address.
    """
    metadata = authorization(config, [address])()
    with open_channel(address, config) as channel:
        try:
            yield rpc.TeacherServiceStub(channel), metadata
        except grpc.RpcError as error:
            raise from_status(error.code().name, f"{address}: {error.details()}") from None
