"""Certificate authorities and certificates for tests of encrypted channels."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shared.channel import ChannelConfig
from shared.rpc.credentials import authorization, open_channel
from support.setting_reads import Setting, recorded_reads

HOUR = datetime.timedelta(hours=1)


class Authority:
    """Signs certificates; its own is in `ca`."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._name, self._key = directory, _named(name), ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(self._name, self._name, self._key.public_key(), hours=24)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.ca = directory / f"{name}.pem"
        self.ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, hours: float = 1, host: str = "127.0.0.1") -> tuple[Path, Path]:
        """Writes a certificate for a host and its key; negative hours: it has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName("teacher.test"), x509.IPAddress(ipaddress.ip_address(host))]
        certificate = (
            _builder(_named(name), self._name, key.public_key(), hours)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        paths = self._directory / f"{name}.crt", self._directory / f"{name}.key"
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return paths


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, hours: float
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 48 * HOUR)
        .not_valid_after(now + hours * HOUR)
    )


def reads_of_a_channel(directory: Path) -> set[Setting]:
    """What a caller's encrypted channel reads."""
    authority, token = Authority(directory / "pki"), directory / "token"
    certificate, key = authority.issue("caller")
    token.write_text("a token of more than 16 characters".replace(" ", "-"))
    config = ChannelConfig(
        ca=authority.ca, certificate=certificate, key=key, server_name="teacher.test", token_file=token
    )
    with recorded_reads() as reads:
        open_channel("127.0.0.1:1", config).close()
        open_channel("127.0.0.1:1", ChannelConfig()).close()
        assert authorization(config, ["teacher.test:1"])()
    return reads
