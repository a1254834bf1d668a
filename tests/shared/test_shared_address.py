"""Addresses as people type them."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.address import Address, addresses_in, answers_path, check_server, check_teachers


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


WRONG = {
    "http://host:1": "an address has no http://; write host:1$",
    "https://host:1/": "an address has no https://; write host:1, and set tls=true of the channel",
    "grpc://host:1": "an address has no grpc://; write host:1$",
    "grpcs://host:1": "tls=true",
    "tcp://": "an address has no tcp://; write HOST:50051",
    "host": "a host or a port is missing, as in host:50051",
    "[::1]": r"a host or a port is missing, as in \[::1\]:50051",
    "50051": "a host or a port is missing, as in HOST:50051",
    "host:": "'' is no port",
    "host:http": "'http' is no port",
    "host:99999": "port 99999 is above 65535",
    "host:0": "port 0 is nowhere",
    "::1:50051": r"an IPv6 address with a port has brackets, as in \[::1\]:50051",
    "2001:db8::7": "an IPv6 address with a port has brackets",
    "[host]:1": r"'\[host\]' is no host",
    "host/path:1": "'host/path' is no host",
    "a b:1": "'a b' is no host",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items(), ids=WRONG)
def test_what_is_no_server_is_refused_with_what_would_be(text: str, message: str) -> None:
    for check in (check_server, check_teachers):
        with pytest.raises(ValueError, match=message):
            check(text)
    with pytest.raises(ValueError, match=message):
        check_teachers(f"good:1, {text}")


@pytest.mark.parametrize(
    "text", ["host:1", "[::1]:65535", "under_score.example:50051", "127.0.0.1:1", "unix:/run/a b", "unix:///run/a"]
)
def test_servers_and_lists_of_them_are_as_they_were_written(text: str) -> None:
    assert check_server(text) == check_teachers(text) == text
    assert check_teachers(f"{text}, other:2") == f"{text}, other:2"
    assert addresses_in(f" {text}, other:2,{text},") == [text, "other:2"]


@pytest.mark.parametrize(
    "text",
    [
        "none",
        "dns:///teachers:50051",
        "dns://8.8.8.8/teachers:1",
        "ipv4:10.0.0.1:1,10.0.0.2:2",
        "ipv6:[::1]:1",
        "xds:///a",
    ],
)
def test_names_and_none_are_teachers(text: str) -> None:
    assert check_teachers(text) == text
    assert addresses_in(text) == [text]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("None", "write none for no teacher"),
        ("null", "write none for no teacher"),
        ("", "write none for no teacher"),
        (" , ", "has no address"),
        ("dns://teachers:1", "three slashes: dns:///teachers:1"),
        ("dns:///teachers", "a host or a port is missing, as in teachers:50051"),
        ("dns:///teachers:99999", "above 65535"),
        ("ipv4:10.0.0.1", "a host or a port is missing"),
    ],
)
def test_what_is_no_teacher_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_teachers(text)


@pytest.mark.parametrize(
    "text", ["file:runs/answers", "file:/runs/a, b.safetensors", "file:///runs/answers", "file:none"]
)
def test_an_answers_file_is_in_place_of_teachers(text: str) -> None:
    assert check_teachers(text) == text
    assert answers_path(text) == Path(text.removeprefix("file:"))


@pytest.mark.parametrize("text", ["none", "host:1", "unix:/run/file:a", "dns:///file:1", "files:1"])
def test_what_is_no_answers_file_has_no_path(text: str) -> None:
    assert check_teachers(text) == text
    assert answers_path(text) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [("file:", "write file:PATH"), ("file://", "write file:PATH"), ("file://runs/a", "write file:runs/a,")],
)
def test_a_file_without_a_path_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_teachers(text)


def test_a_server_is_no_file() -> None:
    with pytest.raises(ValueError, match="is no port"):
        check_server("file:runs/answers")
