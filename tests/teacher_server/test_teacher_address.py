"""The check that nobody listens at an address."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from shared.address import Address
from shared.errors import ConfigError
from teacher_server.address import check_free


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
