"""Limits the algorithms and the sizes of keys, in certificates and private keys, before a TLS library loads them.

OpenSSL signs with an RSA key of any size, and derives the password of an encrypted key with any number of rounds: one
signature with a key of 30,000 bits takes seconds, for which the event loop stops. It also compares each name in the
chain that a server sends with each name constraint of a CA. Pure.
"""

import base64
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

RECEIVED_BITS: Final = 4_096
"""Maximum size of an RSA key that another user wrote."""
OWN_BITS: Final = 8_192
"""Maximum size of an RSA key of the user that runs the program."""
MOST: Final = 50
"""Maximum number of certificates and keys together: a TLS library needs 0.1 to 0.5 ms to load one."""

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----([A-Za-z0-9+/=\s]*)-----END \1-----")
_EXPONENT_BITS = 64
"""OpenSSL has the same limit, but not for keys of up to 3,072 bits."""
_INTEGER, _BITS, _OCTETS, _OID, _SEQUENCE, _VERSION, _CURVE = 0x02, 0x03, 0x04, 0x06, 0x30, 0xA0, 0xA0
_RSA = bytes.fromhex("2a864886f70d010101")
_EC = bytes.fromhex("2a8648ce3d0201")
_ED25519 = bytes.fromhex("2b6570")
_CURVES: Final = frozenset(map(bytes.fromhex, ("2a8648ce3d030107", "2b81040022", "2b81040023")))
"""P-256, P-384 and P-521."""
_LONGEST_EC_KEY = 66
_NAME_CONSTRAINTS = bytes.fromhex("551d1e")
_CONSTRAINED_BYTES = 4 << 10
"""Maximum size of a certificate with name constraints: the 6,500 that fit into 44 KiB make a handshake take 1.3 s. A
chain ends at the first certificate that is trusted (VERIFY_X509_PARTIAL_CHAIN), so several of them do not add up."""
_ACCEPTED = "accepted are EC keys on P-256, P-384 and P-521, Ed25519 keys, and RSA keys of up to {} bits"


class KeySizeError(ValueError):
    """A certificate or a key is refused. The message is a predicate without a subject, and quotes no key."""


class Block(NamedTuple):
    """A certificate, a private key, or the parameters of one."""

    label: bytes
    content: bytes
    """DER"""
    algorithm: str
    """EC, Ed25519 or RSA"""

    @property
    def pem(self) -> bytes:
        return b"-----BEGIN %b-----\n%b-----END %b-----\n" % (self.label, base64.encodebytes(self.content), self.label)


def check(pem: bytes, bits: int) -> list[Block]:
    """Check and return every certificate and private key in the text.

    Raises KeySizeError for anything that a TLS library could load, but that is not known to be small. Text without
    certificates and keys is accepted: no library loads anything from it.
    """
    if b"-----" in _BLOCK.sub(b"", pem):
        raise KeySizeError("has malformed PEM, or an encrypted key")
    found: list[Block] = []
    blocks = _BLOCK.findall(pem)
    if len(blocks) > MOST:
        raise KeySizeError(f"has {len(blocks)} certificates and keys: at most {MOST} are accepted")
    for label, encoded in blocks:
        if label not in _READERS:
            raise KeySizeError(f'has a PEM block "{label.decode()}" instead of certificates or an unencrypted key')
        try:
            content = base64.b64decode(b"".join(encoded.split()), validate=True)
            found.append(Block(label, content, _READERS[label](_Fields(content), bits)))
        except KeySizeError:
            raise
        except (ValueError, IndexError):
            raise KeySizeError(f"has a key that cannot be read: {_ACCEPTED.format(bits)}") from None
    return found


class _Fields:
    """The fields of an ASN.1 structure in DER. Errors are ValueError or IndexError."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    @property
    def next_tag(self) -> int:
        """The tag of the next field; -1 at the end."""
        return self._content[self._at] if self._at < len(self._content) else -1

    def take(self, tag: int) -> bytes:
        """Return the content of the next field, which must have this tag."""
        if self._content[self._at] != tag:
            raise ValueError("another field was expected")
        start, size = self._at + 2, self._content[self._at + 1]
        if size >= 0x80:
            start, size = start + size - 0x80, int.from_bytes(self._content[start : start + size - 0x80])
            if size < 0x80 or self._content[self._at + 2] == 0:  # OpenSSL also reads the indefinite length of BER
                raise ValueError("a length is not that of DER")
        self._at = start + size
        if self._at > len(self._content):
            raise ValueError("truncated")
        return self._content[start : self._at]

    def inner(self, tag: int = _SEQUENCE) -> "_Fields":
        return _Fields(self.take(tag))

    def skip(self, *tags: int) -> None:
        for tag in tags:
            self.take(tag)

    def integers(self) -> Iterator[int]:
        while self.next_tag == _INTEGER:
            yield int.from_bytes(self.take(_INTEGER))

    def end(self) -> None:
        if self._at != len(self._content):
            raise ValueError("has more fields than expected")


def _certificate(fields: _Fields, bits: int) -> str:
    whole = fields.take(_SEQUENCE)
    fields.end()
    if len(whole) > _CONSTRAINED_BYTES and _NAME_CONSTRAINTS in whole:
        problem = f"has a certificate with name constraints and {len(whole)} bytes"
        raise KeySizeError(f"{problem}: at most {_CONSTRAINED_BYTES} are accepted")
    signed = _Fields(whole).inner()
    if signed.next_tag == _VERSION:
        signed.take(_VERSION)
    signed.skip(_INTEGER, *[_SEQUENCE] * 4)  # serial number, signature algorithm, issuer, validity and subject
    key = signed.inner()
    algorithm = _algorithm(key.inner(), bits)
    public = key.take(_BITS)
    if algorithm == "RSA":
        numbers = _Fields(public[1:])
        modulus, exponent = numbers.inner().integers()
        numbers.end()
        _check_rsa([modulus], exponent, bits)
    return algorithm


def _pkcs8(fields: _Fields, bits: int) -> str:
    info = fields.inner()
    fields.end()
    info.take(_INTEGER)
    algorithm = _algorithm(info.inner(), bits)
    key = _Fields(info.take(_OCTETS))
    if algorithm == "RSA":
        _rsa(key, bits)
    elif algorithm == "EC":
        _ec(key, bits)
    return algorithm


def _rsa(fields: _Fields, bits: int) -> str:
    key = fields.inner()
    fields.end()
    version, modulus, exponent, *others = key.integers()
    key.end()
    if version != 0:
        raise ValueError("the RSA key has more than two primes")
    _check_rsa([modulus, *others], exponent, bits)
    return "RSA"


def _ec(fields: _Fields, bits: int) -> str:
    key = fields.inner()
    fields.end()
    key.take(_INTEGER)
    if len(key.take(_OCTETS)) > _LONGEST_EC_KEY:
        raise ValueError("the EC key is longer than those on P-521")
    if key.next_tag == _CURVE:
        _parameters(key.inner(_CURVE), bits)
    return "EC"


def _parameters(fields: _Fields, bits: int) -> str:
    if fields.take(_OID) not in _CURVES:
        raise KeySizeError(f"has a key on another elliptic curve: {_ACCEPTED.format(bits)}")
    return "EC"


def _algorithm(fields: _Fields, bits: int) -> str:
    match fields.take(_OID):
        case identifier if identifier == _EC:
            return _parameters(fields, bits)
        case identifier if identifier == _RSA:
            return "RSA"
        case identifier if identifier == _ED25519:
            return "Ed25519"
        case _:
            raise KeySizeError(f"has a key of another algorithm: {_ACCEPTED.format(bits)}")


def _check_rsa(numbers: list[int], exponent: int, bits: int) -> None:
    largest = max(number.bit_length() for number in numbers)
    if largest > bits or exponent.bit_length() > _EXPONENT_BITS:
        raise KeySizeError(f"has an RSA key with numbers of {largest} bits: {_ACCEPTED.format(bits)}")


_READERS: Final[Mapping[bytes, Callable[[_Fields, int], str]]] = {
    b"CERTIFICATE": _certificate,
    b"PRIVATE KEY": _pkcs8,
    b"RSA PRIVATE KEY": _rsa,
    b"EC PRIVATE KEY": _ec,
    b"EC PARAMETERS": _parameters,
}
