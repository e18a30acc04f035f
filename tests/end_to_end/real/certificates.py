"""Certificates and keys of a set of servers, valid for loopback only."""

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

INSIDE = "cluster.test"
"""The domain of server names that resolve in the installation's own network (tests/end_to_end/real/inside.py)."""
LIFETIME = datetime.timedelta(days=7)
_Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class Authority:
    """A certificate authority in memory; `directory` receives the files for servers."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("milo-discoveryd real test servers")
        builder = _builder(self._name, self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.pem = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        self.file = _write(directory / "ca.crt", self.pem)

    def server(self, name: str, *more: str) -> tuple[Path, Path]:
        """Issue a server certificate for loopback, for every name of the internal domain, and for `more` names."""
        names = [_alternative(host) for host in ("localhost", f"*.{INSIDE}", "127.0.0.1", *more)]
        return self._issue(name, _name(name), ExtendedKeyUsageOID.SERVER_AUTH, names)

    def client(self, user: str, groups: Sequence[str], *, lifetime: datetime.timedelta = LIFETIME) -> tuple[Path, Path]:
        """Issue a client certificate of this user in these groups."""
        return self._issue(user, _name(user, groups), ExtendedKeyUsageOID.CLIENT_AUTH, [], lifetime)

    def key_file(self) -> Path:
        """Write the authority's own key, for signers."""
        return _write(self._directory / "ca.key", _pem(self._key))

    def signing_key(self, name: str) -> Path:
        """Write a private key that signs service account tokens."""
        return _write(self._directory / f"{name}.key", _pem(ec.generate_private_key(ec.SECP256R1())))

    def _issue(
        self,
        name: str,
        subject: x509.Name,
        usage: x509.ObjectIdentifier,
        alternatives: Sequence[x509.GeneralName],
        lifetime: datetime.timedelta = LIFETIME,
    ) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(subject, self._name, key, lifetime).add_extension(
            x509.ExtendedKeyUsage([usage]), critical=False
        )
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        return (
            _write(self._directory / f"{name}.crt", certificate),
            _write(self._directory / f"{name}.key", _pem(key)),
        )


class ClientAuthority:
    """A certificate authority for clients only, with an RSA key, which is the only kind that some platforms read."""

    def __init__(self, name: str) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.key_pem = _pem(key)
        builder = _builder(_name(name), _name(name), key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: _Key, lifetime: datetime.timedelta = LIFETIME
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + lifetime)
    )


def _name(common: str, organizations: Sequence[str] = ()) -> x509.Name:
    groups = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in organizations]
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common), *groups])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: _Key) -> bytes:
    # PKCS #1, the only form that API servers accept for service account keys.
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes) -> Path:
    path.touch(mode=0o600)
    path.write_bytes(content)
    return path
