"""When certificates end is read as another library reads it, and told."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from support.certificates import Authority

from shared.errors import ConfigError
from teacher_server.metrics import Metrics
from teacher_server.serve import security
from teacher_server.serve.certificates import earliest_end
from teacher_server.serve.config import TlsConfig

KEY = ec.generate_private_key(ec.SECP256R1())
NAME = "teacher_certificate_expiry_timestamp_seconds"


def made(end: datetime.datetime, name: str = "x") -> bytes:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(KEY.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_after(end)
    builder = builder.not_valid_before(datetime.datetime(1951, 1, 1, tzinfo=datetime.UTC))
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize("year", [1952, 1999, 2000, 2049, 2050, 9999])
def test_times_of_both_kinds(year: int) -> None:
    end = datetime.datetime(year, 2, 28, 23, 59, 58, tzinfo=datetime.UTC)
    assert earliest_end(made(end)) == end.timestamp()


def test_the_first_of_several_counts() -> None:
    ends = [datetime.datetime(2030 + years, 1, 1, tzinfo=datetime.UTC) for years in (2, 0, 1)]
    long = made(ends[2], "a" * 60)
    assert earliest_end(b"a comment\n" + made(ends[0]) + made(ends[1]) + long) == ends[1].timestamp()


def test_what_holds_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no certificate"):
        earliest_end(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")


@given(st.binary(max_size=60))
def test_bytes_that_are_no_certificate_are_refused(der: bytes) -> None:
    import ssl

    with pytest.raises(ValueError, match="damaged"):
        earliest_end(ssl.DER_cert_to_PEM_cert(der).encode())


def test_the_metrics_tell_of_both_files_and_follow_them(tmp_path: Path) -> None:
    authority, registry = Authority(tmp_path), CollectorRegistry()
    certificate, key = authority.issue("server", hours=2)
    settings = TlsConfig(certificate=certificate, key=key, client_ca=authority.ca)
    assert security.server_credentials(settings, Metrics(registry)) is not None

    def told(file: str) -> datetime.datetime:
        seconds = registry.get_sample_value(NAME, {"file": file})
        assert seconds is not None
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC)

    for file, path in (("certificate", certificate), ("client_ca", authority.ca)):
        assert told(file) == x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc


def test_authorities_that_are_none_are_refused(tmp_path: Path) -> None:
    authority, ca = Authority(tmp_path), tmp_path / "ca"
    certificate, key = authority.issue("server")
    ca.write_bytes(key.read_bytes())
    with pytest.raises(ConfigError, match=r"tls\.client_ca cannot be used: it holds no certificate"):
        security.server_credentials(
            TlsConfig(certificate=certificate, key=key, client_ca=ca), Metrics(CollectorRegistry())
        )
