"""A certificate authority for tests, which also issues invalid certificates."""

import datetime as dt
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA = """\
-----BEGIN CERTIFICATE-----
MIIBLjCB4aADAgECAhQvxL56DS1pcdfn8oeDfe2WkuhBhzAFBgMrZXAwDDEKMAgG
A1UEAwwBYTAgFw0yNjExMjgwMzEwMjJaGA8yMDUxMDcyMDAzMTAyMlowDDEKMAgG
A1UEAwwBYTAqMAUGAytlcAMhAJ82AHW6YcfnpAntymAv4sUTHjCe39rVWcfDPmXM
k4OGo1MwUTAdBgNVHQ4EFgQUrj+5GBi9pI9JyiteTfaHhzbWDYYwHwYDVR0jBBgw
FoAUrj+5GBi9pI9JyiteTfaHhzbWDYYwDwYDVR0TAQH/BAUwAwEB/zAFBgMrZXAD
QQBdh1HFscbqLao6CQadSDjplB2+3LCKgHeavUUZU5miF9xar8yt0KAtmaB0oRZc
TyeDTPFBHQrouDSXRlnivT8L
-----END CERTIFICATE-----
"""
ANOTHER_CA = """\
-----BEGIN CERTIFICATE-----
MIIBLjCB4aADAgECAhQ9e1JaENmbU78SnbzUWCwY/8ErejAFBgMrZXAwDDEKMAgG
A1UEAwwBYjAgFw0yNjExMjgwMzEwMjJaGA8yMDUxMDcyMDAzMTAyMlowDDEKMAgG
A1UEAwwBYjAqMAUGAytlcAMhALFB1fVX0KklU25ElRnpqIsx5Lr0x26J1m0LA8Tg
Swm8o1MwUTAdBgNVHQ4EFgQUV8DA0MVrgfj67spr17A6FJCJqSAwHwYDVR0jBBgw
FoAUV8DA0MVrgfj67spr17A6FJCJqSAwDwYDVR0TAQH/BAUwAwEB/zAFBgMrZXAD
QQC0Wsu7jBFRCcqT9DT/BEzgMnyaZaGhfe7pq1eRidWLpxKKk+NNIHL35smO8GR4
h1F4kgQgjPB62DdC8Jnlc+gI
-----END CERTIFICATE-----
"""
"""CAs for tests that need the same certificate in each run, valid until 2051. Their keys were not kept."""

_SIGNING = x509.KeyUsage(
    digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
    key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
)  # fmt: skip
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
EDI_PARTY_NAME = bytes.fromhex("300c820178a507a1050c03616263")
"""Subject alternative names: a DNS name, and a name of a kind that `cryptography` does not read."""
LOOPBACK = (x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1")))


class Pair:
    """A certificate and its key, in PEM."""

    def __init__(self, certificate: x509.Certificate, key: Key) -> None:
        self.der = certificate.public_bytes(serialization.Encoding.DER)
        self.certificate = certificate.public_bytes(serialization.Encoding.PEM)
        self.key = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def write(self, directory: Path, name: str) -> tuple[Path, Path]:
        certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
        certificate.write_bytes(self.certificate)
        key.write_bytes(self.key)
        return certificate, key


class Authority:
    def __init__(self, name: str = "a CA", *, life: dt.timedelta = dt.timedelta(days=1)) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        now = dt.datetime.now(dt.UTC)
        made = self._builder(self._name, self._key, now - dt.timedelta(days=1), now + life)
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        made = made.add_extension(_SIGNING, critical=True)
        self.pem = made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        self.key = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def issue(
        self,
        *names: x509.GeneralName,
        common_name: str = "somebody",
        life: dt.timedelta = dt.timedelta(hours=1),
        begins_in: dt.timedelta = dt.timedelta(hours=-1),
        use: x509.ObjectIdentifier | None = None,
        key: Key | None = None,
        encoded_names: bytes = b"",
    ) -> Pair:
        """Issue a certificate that has been valid for an hour, or is valid after `begins_in`. With a negative `life`
        it has expired. `encoded_names` replace the names."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        made = self._builder(_name(common_name), key, min(now, now + life) + begins_in, now + life)
        if names:
            made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if encoded_names:
            names_of_any_kind = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, encoded_names)
            made = made.add_extension(names_of_any_kind, critical=False)
        if use is not None:
            made = made.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        return Pair(made.sign(self._key, hashes.SHA256()), key)

    def server(self, life: dt.timedelta = dt.timedelta(hours=1)) -> Pair:
        return self.issue(*LOOPBACK, common_name="server", life=life, use=ExtendedKeyUsageOID.SERVER_AUTH)

    def _builder(self, subject: x509.Name, key: Key, begin: dt.datetime, end: dt.datetime) -> x509.CertificateBuilder:
        """Begin a certificate with what Python requires since 3.13."""
        return (
            x509.CertificateBuilder()
            .issuer_name(self._name)
            .subject_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
