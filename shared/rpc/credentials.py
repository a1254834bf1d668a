"""A caller's side of a secured channel: gRPC credentials and metadata from `ChannelConfig`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence

import grpc

from shared.channel import TOKEN_VARIABLE, ChannelConfig, Tokens, check_pair, read_pem
from shared.errors import ConfigError

Metadata = tuple[tuple[str, str], ...]
Option = tuple[str, str | int]


def open_channel(target: str, config: ChannelConfig, options: Sequence[Option] = ()) -> grpc.Channel:
    """A channel, encrypted if the settings say so; files are read anew at each call.

    Raises:
        ConfigError: a file cannot be used; names the setting.
    """
    credentials, options = _credentials(config), [*options, *_options(config)]
    if credentials is None:
        return grpc.insecure_channel(target, options=options)
    return grpc.secure_channel(target, credentials, options=options)


def open_aio_channel(target: str, config: ChannelConfig, options: Sequence[Option] = ()) -> grpc.aio.Channel:
    """The same for asyncio."""
    credentials, options = _credentials(config), [*options, *_options(config)]
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, credentials, options=options)


def _credentials(config: ChannelConfig) -> grpc.ChannelCredentials | None:
    if not config.is_secure:
        return None
    key = certificate = None
    if config.certificate is not None and config.key is not None:
        check_pair(config.certificate, config.key, "channel.certificate")
        key, certificate = read_pem(config.key, "channel.key"), read_pem(config.certificate, "channel.certificate")
    roots = None if config.ca is None else read_pem(config.ca, "channel.ca")
    return grpc.ssl_channel_credentials(roots, key, certificate)


def _options(config: ChannelConfig) -> Sequence[Option]:
    options: list[Option] = [("grpc.enable_http_proxy", 0)]
    if config.server_name:
        options.append(("grpc.ssl_target_name_override", config.server_name))
    return options


def authorization(config: ChannelConfig, targets: Sequence[str]) -> Callable[[], Metadata]:
    """What to send with each call, asked for at each: the token may change.

    Raises:
        ConfigError: the token cannot be read, or would leave this machine unencrypted.
    """
    tokens = Tokens(config.token_file)
    if not tokens:
        return lambda: ()
    exposed = [target for target in targets if not config.is_secure and not _is_here(target)]
    if exposed:
        source = config.token_file or TOKEN_VARIABLE
        raise ConfigError(
            f"the token of {source} would travel unencrypted to {exposed[0]}, for all to read: set channel.tls=true or "
            "channel.ca=FILE, or leave the token out"
        )
    return lambda: (("authorization", f"Bearer {tokens.first}"),)


def _is_here(target: str) -> bool:
    """Whether all that a gRPC target names is this machine."""
    if target.startswith("unix:"):
        return True
    places = re.sub(r"^(dns:(//[^/]*/)?|ipv4:|ipv6:)", "", target).split(",")
    return all(_is_loopback(place.strip()) for place in places)


def _is_loopback(place: str) -> bool:
    host = place.rpartition(":")[0].strip("[]") or place
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
