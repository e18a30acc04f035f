"""Signs JWTs with a private key. A token endpoint accepts them as assertions (RFC 7523)."""

import base64
import secrets
from collections.abc import Mapping

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from milo_kube.credential import CredentialError

LIFE_S = 60
_KEY_BITS = 2048
_P256_BYTES = 32

SigningKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def load_key(pem: bytes, origin: str) -> SigningKey:
    """Load a private key. Raises CredentialError, whose message names `origin` and quotes no data."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CredentialError(f"{origin} is not an unencrypted PEM key") from None
    match key:
        case rsa.RSAPrivateKey() if key.key_size >= _KEY_BITS:
            return key
        case ec.EllipticCurvePrivateKey(curve=ec.SECP256R1()):
            return key
        case _:
            raise CredentialError(
                f"{origin} is neither an RSA key of at least {_KEY_BITS} bits nor an ECDSA key of curve P-256"
            )


def assertion(key: SigningKey, key_id: str, *, subject: str, audience: str, now: float) -> str:
    """Return a JWT, valid for a minute, that authenticates `subject` to `audience`."""
    is_rsa = isinstance(key, rsa.RSAPrivateKey)
    header = {"alg": "RS256" if is_rsa else "ES256", "typ": "JWT"} | ({"kid": key_id} if key_id else {})
    claims = {
        "iss": subject,
        "sub": subject,
        "aud": audience,
        "iat": int(now),
        "exp": int(now) + LIFE_S,
        "jti": secrets.token_hex(16),
    }
    signed = f"{_encoded(header)}.{_encoded(claims)}"
    return f"{signed}.{_base64(_signature(key, signed.encode()))}"


def _signature(key: SigningKey, signed: bytes) -> bytes:
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(signed, padding.PKCS1v15(), SHA256())
    r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(SHA256())))
    return r.to_bytes(_P256_BYTES, "big") + s.to_bytes(_P256_BYTES, "big")


def _encoded(part: Mapping[str, object]) -> str:
    return _base64(msgspec.json.encode(part))


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
