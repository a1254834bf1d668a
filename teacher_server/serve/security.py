"""Who may call, and over what: the port's credentials, and the check of bearer tokens."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

import grpc

from shared.channel import Tokens, Watched, check_pair, read_pem
from shared.errors import ConfigError, Unauthenticated
from teacher_server.address import Address
from teacher_server.metrics import Metrics, Rejection
from teacher_server.serve import callers, certificates
from teacher_server.serve.config import ServeConfig, TlsConfig
from teacher_server.serve.limits import SERVICE, method_of, refusal, service_of

log = logging.getLogger(__name__)

SCHEME = "bearer"
"""In any case (RFC 9110)."""
REFUSED = (
    "this teacher wants a token that it knows: set client.channel.token_file (trainers), channel.token_file "
    "(info, query) or TEACHER_TOKEN"
)


def check(settings: ServeConfig, tokens: Tokens) -> None:
    """Refuses to serve other machines in the clear unless that was asked for.

    Raises:
        ConfigError: it was not; or tokens would travel unencrypted; or there are quotas for nobody.
    """
    if strangers := sorted(settings.quotas.keys() - tokens.names):
        there = f"there are {', '.join(sorted(tokens.names))}" if tokens.names else "tokens have no names (name: token)"
        raise ConfigError(f"quotas.{strangers[0]}: no token has this name; {there}")
    address = Address.parse(settings.listen)
    if address.is_loopback or settings.tls.certificate is not None:
        return
    if not settings.insecure:
        raise ConfigError(
            f"{address} is reachable from other machines and nothing is encrypted: give tls.certificate and tls.key, "
            "or --insecure if everybody on that network is trusted"
        )
    if tokens:
        raise ConfigError(
            f"tokens would travel unencrypted to {address}, for all to read: give tls.certificate and tls.key"
        )
    log.warning("%s is reachable from other machines; the channel is neither encrypted nor authenticated", address)


def server_credentials(settings: TlsConfig, metrics: Metrics) -> grpc.ServerCredentials | None:
    """The credentials of the port, which follow their files; None: in the clear. `metrics` tell when they end.

    Raises:
        ConfigError: a file cannot be used; names the setting.
    """
    if settings.certificate is None:
        return None
    files = Watched(*(path for path in (settings.certificate, settings.key, settings.client_ca) if path is not None))
    files.changed()
    first = _configuration(settings, metrics)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """Called at every handshake; None keeps what is there."""
        if not files.changed():
            return None
        try:
            fresh = _configuration(settings, metrics)
        except ConfigError as error:
            log.error("%s; the certificate read before stays in use", error)
            return None
        log.info("read the certificate in %s again", settings.certificate)
        return fresh

    return grpc.dynamic_ssl_server_credentials(
        first,
        fetch,  # type: ignore[arg-type]  # None is allowed, the stubs lack it
        require_client_authentication=settings.client_ca is not None,
    )


def _configuration(settings: TlsConfig, metrics: Metrics) -> grpc.ServerCertificateConfiguration:
    assert settings.certificate is not None and settings.key is not None  # the schema demands both
    pair = [(read_pem(settings.key, "tls.key"), read_pem(settings.certificate, "tls.certificate"))]
    check_pair(settings.certificate, settings.key, "tls.certificate")
    roots = None if settings.client_ca is None else read_pem(settings.client_ca, "tls.client_ca")
    files = {"certificate": pair[0][1]} | ({} if roots is None else {"client_ca": roots})
    ends = {name: _end_of(name, content) for name, content in files.items()}
    for name, end in ends.items():
        metrics.certificate_end.labels(name).set(end)
    return grpc.ssl_server_certificate_configuration(pair, roots)


def _end_of(setting: str, content: bytes) -> float:
    try:
        return certificates.earliest_end(content)
    except ValueError as error:
        raise ConfigError(f"tls.{setting} cannot be used: {error}") from None


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Lets callers of the teacher service pass who send a token, by whose name they are known from then on; health
    and reflection tell no secrets.

    A stream is checked when it is opened: it outlives its token.
    """

    def __init__(self, tokens: Tokens, metrics: Metrics) -> None:
        self._tokens, self._metrics = tokens, metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """See `grpc.aio.ServerInterceptor`."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or service_of(handler_call_details) != SERVICE:
            return cast(grpc.RpcMethodHandler, handler)
        name = self._name_of(handler_call_details)
        if name is not None:
            callers.enter(name)
            return cast(grpc.RpcMethodHandler, handler)
        self._metrics.reject(Rejection.UNAUTHENTICATED)
        return refusal(Unauthenticated(REFUSED), self._metrics, method_of(handler_call_details))

    def _name_of(self, details: grpc.HandlerCallDetails) -> str | None:
        """Whose token the call shows; None if it is none that the teacher knows."""
        sent = dict(details.invocation_metadata or ()).get("authorization", "")
        if not isinstance(sent, str):
            return None
        scheme, _, token = sent.partition(" ")
        return self._tokens.name_of(token.strip(" ")) if scheme.lower() == SCHEME else None
