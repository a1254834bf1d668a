"""When certificates end, read from their DER encoding (X.690); signatures are the TLS library's business."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime

UTC_TIME, GENERALIZED_TIME, VERSION = 0x17, 0x18, 0xA0
"""Tags; `VERSION` is the context's own."""
BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def earliest_end(pem: bytes) -> float:
    """When the first of the certificates in a PEM file ends, seconds of the Unix epoch.

    Raises:
        ValueError: there is none, or one is damaged.
    """
    ends = [_end(ssl.PEM_cert_to_DER_cert(block.decode("ascii"))) for block in BLOCK.findall(pem)]
    if not ends:
        raise ValueError("it holds no certificate")
    return min(ends)


def _end(der: bytes) -> float:
    """Certificate ::= { tbs { [0] version?, serial, algorithm, issuer, { notBefore, notAfter }, ... }, ... }."""
    try:
        ((_, certificate),) = _elements(der)
        _, to_sign = next(_elements(certificate))
        parts = [(tag, content) for tag, content in _elements(to_sign) if tag != VERSION]
        _, validity = parts[3]
        (_, _), (kind, end) = _elements(validity)
        return _time(kind, end.decode("ascii"))
    except (IndexError, StopIteration, ValueError) as error:
        raise ValueError(f"it holds a damaged certificate ({error})") from None


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tags and contents of the elements that stand one after another."""
    at = 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(der[at : at + size]), at + size
        if at + length > len(der):
            raise ValueError("an element is cut off")
        yield tag, der[at : at + length]
        at += length


def _time(kind: int, text: str) -> float:
    """YYMMDDHHMMSSZ, years 1950 to 2049, or YYYYMMDDHHMMSSZ, as RFC 5280 has them."""
    if kind == UTC_TIME:
        text = ("19" if text >= "5" else "20") + text
    elif kind != GENERALIZED_TIME:
        raise ValueError("its validity is no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
