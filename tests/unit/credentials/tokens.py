"""Valid and invalid tokens and certificates."""

import base64
import json
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

CANARY = "CANARY-5f1d"
"""A part of secrets and responses that no message may contain."""


def jwt(**claims: object) -> str:
    parts = ({"alg": "RS256"}, claims, CANARY)
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts)


def certificate(begins: float, ends: float) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.fromtimestamp(begins, UTC))
        .not_valid_after(datetime.fromtimestamp(ends, UTC) + timedelta())
        .sign(key, SHA256())
        .public_bytes(Encoding.PEM)
    )


def with_version(chain: bytes, version: int) -> bytes:
    """Return a certificate in PEM with another X.509 version. Its signature is no longer valid."""
    der = bytearray(base64.b64decode(b"".join(chain.splitlines()[1:-1])))
    der[der.index(bytes.fromhex("a003020102")) + 4] = version - 1
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
