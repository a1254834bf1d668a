"""The gRPC server: what it serves, behind which interceptors, with which options, on which port."""

from __future__ import annotations

import os

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from shared.channel import Tokens
from shared.errors import ConfigError
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from teacher_server.address import Address, check_free
from teacher_server.metrics import Metrics
from teacher_server.serve import limits, security
from teacher_server.serve.config import ServeConfig
from teacher_server.serve.health import HEALTH, Health
from teacher_server.serve.interceptors import TeacherInterceptor
from teacher_server.serve.limits import SERVICE, PublicInterceptor
from teacher_server.serve.service import TeacherService

DESCRIBED = (SERVICE, HEALTH, reflection.SERVICE_NAME)
"""What reflection tells of."""


def build(
    settings: ServeConfig,
    service: TeacherService,
    health: Health,
    metrics: Metrics,
    tokens: Tokens | None = None,
    connections: int | None = None,
) -> tuple[grpc.aio.Server, Address]:
    """The gRPC server, bound but not started, and where it listens.

    Args:
        tokens: that callers must show; none: they need not.
        connections: that it may have; none: as many as the settings say.

    Raises:
        ConfigError: the address is taken or not of this machine, or a file of `tls` cannot be used, or the socket's
            permissions cannot be set.
    """
    connections = connections or settings.max_connections
    interceptors: list[grpc.aio.ServerInterceptor] = [
        TeacherInterceptor(metrics, settings.max_calls),
        PublicInterceptor(connections),
    ]
    if tokens:
        interceptors.insert(0, security.TokenInterceptor(tokens, metrics))
    options = limits.options(settings, connections, settings.max_message_bytes)
    server = grpc.aio.server(interceptors=interceptors, options=options)
    rpc.add_TeacherServiceServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    if settings.reflection:
        reflection.enable_server_reflection(DESCRIBED, server)
    address = _bind(server, settings.listen, security.server_credentials(settings.tls, metrics))
    if settings.socket_mode is not None:
        _permit(address, settings.socket_mode)
    return server, address


def _permit(address: Address, mode: str) -> None:
    """Before the server starts: until it listens nobody can connect."""
    try:
        os.chmod(address.path, int(mode, 8))
    except OSError as error:
        raise ConfigError(f"cannot give {address} the permissions {mode}: {error.strerror}") from None


def _bind(server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials | None) -> Address:
    address = Address.parse(listen)
    check_free(address)
    try:
        if credentials is None:
            port = server.add_insecure_port(str(address))
        else:
            port = server.add_secure_port(str(address), credentials)
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {address}: {error}; choose another address") from None
    return address if address.path else address.with_port(port)
