"""Asking a running server from the command line: one channel, errors as they are named on this side."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import grpc

from shared.errors import from_status
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc


@contextlib.contextmanager
def dialled(address: str) -> Iterator[rpc.TeacherServiceStub]:
    """The methods of the server at an address, without transport security.

    Raises:
        TeacherError: a call failed; `Unavailable` if nothing listens there. Names the address.
    """
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            yield rpc.TeacherServiceStub(channel)
        except grpc.RpcError as error:
            raise from_status(error.code().name, f"{address}: {error.details()}") from None
