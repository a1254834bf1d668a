"""A container's health probe: `python -m teacher_server.client.healthcheck ADDRESS`.

Asks a running server's gRPC health service and exits 0 if it serves, 1 otherwise. A
draining server does not serve. No token is needed. Imports neither torch nor the generated code, for it
runs every few seconds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shared.channel import ChannelConfig
from shared.rpc.credentials import open_channel

ADDRESS = "127.0.0.1:50051"
TIMEOUT = 3.0
"""Seconds; below the probe's own timeout, so that the reason is printed."""


def status(address: str, timeout: float = TIMEOUT, channel: ChannelConfig | None = None) -> str:
    """What a server says of itself: SERVING, NOT_SERVING ..., or the gRPC code of a failed call."""
    with open_channel(address, channel or ChannelConfig()) as opened:
        try:
            answer = health_pb2_grpc.HealthStub(opened).Check(
                health_pb2.HealthCheckRequest(), timeout=timeout, wait_for_ready=True
            )
        except grpc.RpcError as error:
            return str(error.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the status and returns the exit code."""
    parser = argparse.ArgumentParser("healthcheck", description="Asks a teacher whether it serves.")
    parser.add_argument("address", nargs="?", default=ADDRESS, help=f"HOST:PORT or unix:PATH (default {ADDRESS})")
    for name, meaning in (
        ("ca", "PEM file of the certificate authorities that the teacher's certificate may come from"),
        ("certificate", "PEM file of a certificate for a teacher that asks for one"),
        ("key", "PEM file of its key"),
    ):
        parser.add_argument(f"--{name}", type=Path, help=meaning)
    parser.add_argument("--server-name", default="", help="name that the teacher's certificate must hold")
    arguments = vars(parser.parse_args(argv))
    answer = status(arguments.pop("address"), channel=ChannelConfig.model_validate(arguments))
    print(answer)
    return 0 if answer == "SERVING" else 1


if __name__ == "__main__":
    sys.exit(main())
