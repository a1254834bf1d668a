"""A container's health probe: `python -m teacher_server.healthcheck ADDRESS`.

Asks a running server's gRPC health service and exits 0 if it serves, 1 otherwise. A
draining server does not serve. Imports neither torch nor the generated code, for it
runs every few seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

ADDRESS = "127.0.0.1:50051"
TIMEOUT = 3.0
"""Seconds; below the probe's own timeout, so that the reason is printed."""


def status(address: str, timeout: float = TIMEOUT) -> str:
    """What a server says of itself: SERVING, NOT_SERVING ..., or the gRPC code of a failed call."""
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=timeout, wait_for_ready=True
            )
        except grpc.RpcError as error:
            return str(error.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the status and returns the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    answer = status(arguments[0] if arguments else ADDRESS)
    print(answer)
    return 0 if answer == "SERVING" else 1


if __name__ == "__main__":
    sys.exit(main())
