"""Certificate authorities for the cases."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from milo_conformance.daemon import TlsFiles


def name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


@dataclass(frozen=True, slots=True)
class KeyPair:
    certificate: bytes
    key: bytes


class Authority:
    """A certificate authority with its own key."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        # Some TLS libraries choose between CAs by name, so each CA has a different name.
        self._name = name(f"authority {x509.random_serial_number():x}"[:60])
        self._own = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = self._own.public_bytes(serialization.Encoding.PEM)

    def server(self, host: str) -> TlsFiles:
        is_address = host.replace(".", "").isdecimal()
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(host)) if is_address else x509.DNSName(host)])
        pair = self._issue(host, ExtendedKeyUsageOID.SERVER_AUTH, names)
        return TlsFiles(pair.certificate, pair.key)

    def client(self, common: str) -> KeyPair:
        return self._issue(common, ExtendedKeyUsageOID.CLIENT_AUTH)

    def _issue(
        self, common: str, usage: x509.ObjectIdentifier, names: x509.SubjectAlternativeName | None = None
    ) -> KeyPair:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(name(common), key.public_key()).add_extension(
            x509.ExtendedKeyUsage([usage]), critical=False
        )
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        return KeyPair(
            builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=1))
        )
