"""A few cells of the matrix, and the proxy that they rest on."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY

from tests.chaos.faults import FAULTS
from tests.chaos.kills import run_kills
from tests.chaos.matrix import TRAINERS, TRANSPORTS, Cell, Found, Lab, cells, write
from tests.chaos.proxy import Proxy


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("chaos"))


@pytest.mark.integration
@pytest.mark.parametrize(
    "cell",
    [
        Cell("kill -9", "stream/sequence", "1"),
        Cell("corrupt 1 %", "unary/window", "1"),
        Cell("wrong revision", "stream/window", "1"),
    ],
    ids=lambda cell: cell.fault,
)
def test_a_cell_ends_as_it_should(lab: Lab, cell: Cell) -> None:
    found = lab.run(cell, seconds_of_stop=1)
    assert found.is_good, found
    assert (found.refused_after is not None) == FAULTS[cell.fault].is_refused


@pytest.mark.integration
def test_a_trainer_killed_at_random_steps_ends_with_the_same_bits(lab: Lab) -> None:
    assert len(run_kills(lab, times=2)) == 2


def test_the_matrix_has_every_cell_and_can_be_narrowed() -> None:
    assert len(list(cells({}))) == len(FAULTS) * len(TRANSPORTS) * len(TRAINERS) == 132
    some = list(cells({"fault": ["reset"], "trainers": ["1", "4"]}))
    assert len(some) == 8 and {cell.fault for cell in some} == {"reset"}


def test_a_cell_that_ended_otherwise_shows(tmp_path: Path) -> None:
    cell = next(cells({}))
    different, failed = Found(cell, 3, 0.1, 1.0, 2.0), Found(cell, trouble="exit codes [1]", is_equal=True)
    good = Found(cell, 3, None, 1.0, 0.0, is_equal=True)
    assert [found.is_good for found in (different, failed, good)] == [False, False, True]
    write(tmp_path / "matrix", [different, good])
    page = (tmp_path / "matrix.md").read_text()
    assert "| DIFFERENT |" in page and "| equal |" in page


def test_the_documented_matrix_is_a_page_of_this_program_with_every_cell(tmp_path: Path) -> None:
    everything = [Found(cell, is_equal=True) for cell in cells({})]
    write(tmp_path / "matrix", everything)
    documented = (REPOSITORY / "docs" / "reliability" / "matrix.md").read_text().splitlines()
    made = (tmp_path / "matrix.md").read_text().splitlines()
    names = 3  # columns that name the cell; the others are measured
    assert [line.split(" | ")[:names] for line in documented] == [line.split(" | ")[:names] for line in made]


@pytest.fixture
def echo() -> Iterator[str]:
    """A server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                while data := connection.recv(65536):
                    connection.sendall(data)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def dialled(echo: str) -> Iterator[tuple[Proxy, socket.socket]]:
    host, _, port = echo.partition(":")
    assert host and port
    with contextlib.closing(Proxy(echo)) as proxy:
        address, _, number = proxy.address.partition(":")
        with socket.create_connection((address, int(number)), timeout=30) as connection:
            yield proxy, connection


def back(connection: socket.socket, data: bytes) -> bytes:
    """What comes back of what is sent."""
    connection.sendall(data)
    got = b""
    while len(got) < len(data):
        got += connection.recv(65536)
    return got


def test_the_proxy_passes_everything_on(echo: str) -> None:
    with dialled(echo) as (_, connection):
        data = bytes(range(256)) * 4000
        assert back(connection, data) == data


def test_the_proxy_delays_each_way(echo: str) -> None:
    with dialled(echo) as (proxy, connection):
        proxy.weather.delay = 0.2
        begin = time.monotonic()
        assert back(connection, b"x") == b"x"
        assert time.monotonic() - begin >= 0.4


def test_the_proxy_is_as_slow_as_it_should_be(echo: str) -> None:
    with dialled(echo) as (proxy, connection):
        proxy.weather.bits_per_second = 1e6
        begin = time.monotonic()
        back(connection, bytes(50_000))
        assert time.monotonic() - begin >= 0.4


def test_the_proxy_flips_one_bit_of_a_chunk(echo: str) -> None:
    with dialled(echo) as (proxy, connection):
        proxy.weather.corrupt = 1.0
        data = back(connection, bytes(100))
        assert (proxy.corrupted == 2 and 1 <= sum(byte.bit_count() for byte in data) <= 2) or not any(data)


def test_the_proxy_resets(echo: str) -> None:
    with dialled(echo) as (proxy, connection):
        assert back(connection, b"x") == b"x"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_the_proxy_swallows_and_never_says_so(echo: str) -> None:
    with dialled(echo) as (proxy, connection):
        assert back(connection, b"x") == b"x"
        proxy.swallow()
        connection.settimeout(0.5)
        connection.sendall(b"y")
        with pytest.raises(TimeoutError):
            connection.recv(1)
        with dialled(proxy.address) as (_, fresh):
            assert back(fresh, b"z") == b"z"
