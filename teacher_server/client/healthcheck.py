"""A container's health probe: `python -m teacher_server.client.healthcheck ADDRESS`.

Asks a running server's gRPC health service, or at http://HOST:PORT its metrics port, which needs no certificates, and
exits 0 if it serves, 1 otherwise. A draining server does not serve. No token is needed. Imports neither torch nor the
generated code, and gRPC only to speak it, for it runs every few seconds.
"""

from __future__ import annotations

import argparse
import http
import http.client
import sys
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import ReportableError
from shared.flags import Once

if TYPE_CHECKING:
    from shared.channel import ChannelConfig

ADDRESS = "127.0.0.1:50051"
HTTP = "http://"
READY = "/readyz"
"""Where the metrics port says whether the daemon serves."""
LONGEST_BODY = 100
"""Bytes of what it says that are shown."""
TIMEOUT = 3.0
"""Seconds; below the probe's own timeout, so that the reason is printed."""


def status(address: str, timeout: float = TIMEOUT, channel: ChannelConfig | None = None) -> str:
    """What a server says of itself: SERVING, NOT_SERVING ..., or the gRPC code of a failed call."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from shared.channel import ChannelConfig
    from shared.rpc.credentials import open_channel

    with open_channel(address, channel or ChannelConfig()) as opened:
        try:
            answer = health_pb2_grpc.HealthStub(opened).Check(
                health_pb2.HealthCheckRequest(), timeout=timeout, wait_for_ready=True
            )
        except grpc.RpcError as error:
            return str(error.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def http_status(address: str, timeout: float = TIMEOUT) -> str:
    """What a server's metrics port says: SERVING, NOT_SERVING and why, or why it cannot be asked.

    Raises:
        ValueError: the address is not http://HOST:PORT.
    """
    parts = urllib.parse.urlsplit(address)
    if not parts.hostname or parts.port is None or parts.path.rstrip("/"):
        raise ValueError(f"expected http://HOST:PORT of the metrics, got {address}")
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
    try:
        connection.request("GET", READY)
        answer = connection.getresponse()
        said = answer.read(LONGEST_BODY).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return f"UNAVAILABLE ({error})"
    finally:
        connection.close()
    return "SERVING" if answer.status == http.HTTPStatus.OK else f"NOT_SERVING ({said})"


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the status and returns the exit code."""
    parser = argparse.ArgumentParser("healthcheck", description="Asks a teacher whether it serves.")
    places = f"HOST:PORT or unix:PATH (default {ADDRESS}), or http://HOST:PORT of the metrics"
    parser.add_argument("address", nargs="?", default=ADDRESS, help=places)
    for name, meaning in (
        ("ca", "PEM file of the certificate authorities that the teacher's certificate may come from"),
        ("certificate", "PEM file of a certificate for a teacher that asks for one"),
        ("key", "PEM file of its key"),
    ):
        parser.add_argument(f"--{name}", action=Once, type=Path, help=meaning)
    parser.add_argument("--server-name", action=Once, help="name that the teacher's certificate must hold")
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    address = given.pop("address")
    try:
        answer = _ask(address, given)
    except (ValueError, ReportableError) as error:
        parser.error(str(error))
    print(answer)
    return 0 if answer == "SERVING" else 1


def _ask(address: str, channel: dict[str, object]) -> str:
    """What the server says; raises `ValueError` or `ReportableError` if it cannot be asked like that."""
    if address.startswith(HTTP):
        if channel:
            flags = ", ".join("--" + name.replace("_", "-") for name in channel)
            raise ValueError(f"the metrics are not encrypted: leave out {flags}")
        return http_status(address)
    from shared.channel import ChannelConfig

    return status(address, channel=ChannelConfig.model_validate(channel))


if __name__ == "__main__":
    sys.exit(main())
