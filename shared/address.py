"""Where a teacher listens, and what callers write to reach one: HOST:PORT, [IPV6]:PORT, unix:PATH, or a gRPC name.

Trainers also take file:PATH, a teacher's answers in a file instead of a teacher.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from pathlib import Path
from typing import Annotated

import pydantic

NAME_SCHEMES = ("dns://", "ipv4:", "ipv6:", "xds://")
"""Beginnings of gRPC names, which may stand for several teachers."""
FILE_SCHEME = "file:"
"""Beginning of what stands for an answers file."""
FORMS = "expected HOST:PORT, [IPV6]:PORT or unix:PATH"
HIGHEST_PORT = 65535
USUAL_PORT = 50051
FILE_ENDINGS = (".safetensors", ".pt", ".pth")
"""Of teachers and weights, which some give in place of an address."""
ENCRYPTED_SCHEMES = frozenset({"https", "grpcs"})


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
        if scheme := re.match(r"(\w[\w+.-]*)://", text):
            advice = ", and set tls=true of the channel" if scheme[1].lower() in ENCRYPTED_SCHEMES else ""
            rest = text[scheme.end() :].rstrip("/")
            raise ValueError(f"an address has no {scheme[0]}; write {rest or f'HOST:{USUAL_PORT}'}{advice}")
        host, colon, port = text.rpartition(":")
        if _is_ipv6(host) or _is_ipv6(text):  # whose last group may be a port
            raise ValueError(f"{FORMS}; an IPv6 address with a port has brackets, as in [::1]:{USUAL_PORT}")
        if not colon or text.endswith("]"):
            example = f"HOST:{text}" if text.isdecimal() else f"{text or 'HOST'}:{USUAL_PORT}"
            raise ValueError(f"{FORMS}; a host or a port is missing, as in {example}")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not (_is_ipv6(bare) if bare != host else re.fullmatch(r"[\w.-]+", host)):
            raise ValueError(f"{FORMS}; {host!r} is no host")
        if not (port.isascii() and port.isdecimal()):
            raise ValueError(f"{FORMS}; {port!r} is no port")
        if int(port) > HIGHEST_PORT:
            raise ValueError(f"port {port} is above {HIGHEST_PORT}")
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


def check_server(text: str) -> str:
    """The address of a server to call, as it was written; raises `ValueError` saying how to write one."""
    if text.endswith(FILE_ENDINGS) and not text.startswith("unix:"):
        raise ValueError(
            f"{text} looks like a file, and this takes the address of a running teacher (serve the file with "
            "`teacher-server serve`), or file:PATH for answers that `teacher-server answer` wrote"
        )
    address = Address.parse(text)
    if not address.path and address.port == 0:
        raise ValueError("port 0 is nowhere; write the port that the teacher says it listens on")
    return text


def addresses_in(text: str) -> list[str]:
    """The addresses of a list, each once; a gRPC name is one, whatever it stands for."""
    if text.startswith(NAME_SCHEMES):
        return [text]
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def answers_path(text: str) -> Path | None:
    """The answers file that stands in place of teachers; None if it is teachers, or none."""
    return Path(text.removeprefix(FILE_SCHEME)) if text.startswith(FILE_SCHEME) else None


def check_teachers(text: str) -> str:
    """None, a list of addresses, a gRPC name or an answers file, as it was written; raises `ValueError` saying how to
    write them."""
    if text == "none":
        return text
    if text.startswith(FILE_SCHEME):
        path = text.removeprefix(FILE_SCHEME)
        if not path.strip("/") or (path.startswith("//") and not path.startswith("///")):
            raise ValueError(f"write file:{path.strip('/') or 'PATH'}, the path as it is")
        return text
    if text.strip().lower() in ("", "none", "null", "off"):
        raise ValueError("write none for no teacher, otherwise HOST:PORT[,HOST:PORT...]")
    if text.startswith("xds://"):  # its server knows what the name is
        return text
    for address in _places_of(text):
        check_server(address)
    return text


def _places_of(text: str) -> list[str]:
    """What has a host and a port, in a list or a name: dns://[SERVER]/HOST:PORT, ipv4:HOST:PORT,..., ipv6:..."""
    if text.startswith("dns://"):
        _, slash, place = text.removeprefix("dns://").partition("/")
        if not slash:
            raise ValueError(f"a DNS name has three slashes: dns:///{text.removeprefix('dns://')}")
        return [place]
    for scheme in ("ipv4:", "ipv6:"):
        if text.startswith(scheme):
            return [part.strip() for part in text.removeprefix(scheme).split(",")]
    found = addresses_in(text)
    if not found:
        raise ValueError(f"{text!r} has no address; expected HOST:PORT[,HOST:PORT...]")
    return found


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


ServerText = Annotated[str, pydantic.AfterValidator(check_server)]
"""Address of a server to call."""
TeachersText = Annotated[str, pydantic.AfterValidator(check_teachers)]
"""Teachers to call, an answers file, or none."""
