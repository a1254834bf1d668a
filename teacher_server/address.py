"""Whether a server can listen at an address."""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import Annotated

import pydantic

from shared.address import Address as Address
from shared.errors import ConfigError


def check_address(text: str) -> str:
    """The text as it is; raises `ValueError` saying how to write an address."""
    Address.parse(text)
    return text


AddressText = Annotated[str, pydantic.AfterValidator(check_address)]
"""An address in a setting."""


def check_free(address: Address) -> None:
    """Tries to bind, so that a refusal has a reason; gRPC's own failure says little, and it takes over a
    Unix-domain socket that another server listens on.

    Raises:
        ConfigError: the address is taken, not of this machine or not permitted.
    """
    try:
        if address.path:
            _check_path(address.path)
        else:
            _check_port(address)
    except OSError as error:
        reason = "it is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
        raise ConfigError(
            f"cannot listen on {address}: {reason}; choose another with --listen, or --metrics-listen for metrics"
        ) from None


def _check_port(address: Address) -> None:
    """gRPC listens on every address of a name and is content with one; all of them must be free."""
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    refused: list[OSError] = []
    for family, kind, protocol, _, place in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(place)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise
            refused.append(error)
    if len(refused) == len(found):
        raise refused[0]


def _check_path(path: str) -> None:
    if not os.path.lexists(path):
        if not os.access(os.path.dirname(path) or ".", os.W_OK):
            raise OSError(errno.ENOENT, "its directory does not exist or is not writable")
        return
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise OSError(errno.EEXIST, "a file that is not a socket is in the way")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return  # left behind by a server that died
    raise OSError(errno.EADDRINUSE, "in use")
