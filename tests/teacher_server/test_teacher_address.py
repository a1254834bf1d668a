"""Addresses as people type them, and the check that nobody listens there."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from shared.errors import ConfigError
from teacher_server.address import Address, check_free


@pytest.mark.parametrize(
    ("text", "address", "is_loopback"),
    [
        ("127.0.0.1:50051", Address("127.0.0.1", 50051), True),
        ("localhost:0", Address("localhost", 0), True),
        ("[::1]:80", Address("::1", 80), True),
        ("0.0.0.0:1", Address("0.0.0.0", 1), False),
        ("[::]:1", Address("::", 1), False),
        ("teacher.example:65535", Address("teacher.example", 65535), False),
        ("unix:/run/teacher.sock", Address("", 0, "/run/teacher.sock"), True),
    ],
)
def test_parse_and_print_are_inverse(text: str, address: Address, is_loopback: bool) -> None:
    assert Address.parse(text) == address
    assert str(address) == text
    assert address.is_loopback == is_loopback


@pytest.mark.parametrize("text", ["", "50051", ":50051", "localhost", "::1:80", "host:", "host:-1", "host:8x", "unix:"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Address.parse(text)


def test_port_above_the_range_is_refused() -> None:
    with pytest.raises(ValueError, match="above 65535"):
        Address.parse("localhost:65536")


def test_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for host in ("127.0.0.1", "localhost", "0.0.0.0"):
            with pytest.raises(ConfigError, match="it is in use"):
                check_free(Address(host, port))
    check_free(Address("127.0.0.1", port))


def test_foreign_address() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:50051"):
        check_free(Address("192.0.2.1", 50051))


def test_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "teacher.sock"
    address = Address("", 0, str(path))
    check_free(address)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        check_free(address)  # left behind: nobody listens
        server.listen()
        with pytest.raises(ConfigError, match="it is in use"):
            check_free(address)
    path.unlink()
    path.write_text("precious")
    with pytest.raises(ConfigError, match="not a socket"):
        check_free(address)
    with pytest.raises(ConfigError, match="does not exist"):
        check_free(Address("", 0, str(tmp_path / "none" / "teacher.sock")))
