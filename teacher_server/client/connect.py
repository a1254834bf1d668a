"""Asking a running server from the command line: one channel, errors as they are named on this side."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import grpc

from shared.channel import ChannelConfig
from shared.errors import Unavailable, from_status
from shared.rpc.credentials import Metadata, authorization, open_channel
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc

log = logging.getLogger(__name__)

T = TypeVar("T")

PAUSE_SECONDS = 0.25
"""Between attempts to reach a server that is not ready."""


def patiently(ask: Callable[[], T], wait: float) -> T:
    """What `ask` returns, asked again for `wait` seconds while the server is loading, or nothing listens there.

    Raises:
        TeacherError: as `ask` does; `Unavailable` if the time has passed.
    """
    deadline = time.monotonic() + wait
    for attempt in itertools.count():
        try:
            return ask()
        except Unavailable as error:
            if time.monotonic() + PAUSE_SECONDS > deadline:
                raise
            if attempt == 0:
                log.info("not ready (%s); waiting up to %g s", error, wait)
        time.sleep(PAUSE_SECONDS)
    raise AssertionError  # never reached: the deadline passes


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
