"""Where a server listens: HOST:PORT, [IPV6]:PORT or unix:PATH."""

from __future__ import annotations

import dataclasses
import errno
import ipaddress
import os
import socket
import stat
from typing import Annotated

import pydantic

from shared.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Address:
    """A TCP or Unix-domain address.

    Attributes:
        host: name or number, without brackets; empty for a Unix-domain socket.
        port: 0 lets the system choose; 0 for a Unix-domain socket.
        path: of a Unix-domain socket, otherwise empty.
    """

    host: str
    port: int
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Reads an address; raises `ValueError` saying how to write one."""
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            if not path:
                raise ValueError("expected unix:PATH")
            return cls("", 0, path)
        host, _, port = text.rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not bare or (":" in bare and bare == host) or not (port.isascii() and port.isdecimal()):
            raise ValueError("expected HOST:PORT, [IPV6]:PORT or unix:PATH")
        if int(port) > 65535:
            raise ValueError(f"port {port} is above 65535")
        return cls(bare, int(port))

    def with_port(self, port: int) -> Address:
        """The same host at another port."""
        return dataclasses.replace(self, port=port)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return bool(self.path) or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


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
        raise ConfigError(f"cannot listen on {address}: {reason}; choose another address") from None


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
