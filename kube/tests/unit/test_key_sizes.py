"""Limits on the algorithms and sizes of keys: what is accepted, and that nothing large reaches OpenSSL."""

import datetime as dt
import time
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from milo_kube import key_sizes
from milo_kube.key_sizes import MOST, OWN_BITS, RECEIVED_BITS, KeySizeError
from tests.support.certificates import CA, Authority
from tests.support.giant_keys import BITS, INTEGER, OCTETS, OID, SEQUENCE, GiantPair, field, traditional_key
from tests.support.giant_keys import pem as block

ACCEPTED = {
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "P-521": ec.generate_private_key(ec.SECP521R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    "RSA 2048": rsa.generate_private_key(65537, 2048),
}
OTHERS = {
    "P-224": ec.generate_private_key(ec.SECP224R1()),
    "Brainpool": ec.generate_private_key(ec.BrainpoolP512R1()),
    "Ed448": ed448.Ed448PrivateKey.generate(),
    "DSA": dsa.generate_private_key(1024),
}


GIANT = GiantPair(9_000)


def check(text: bytes, bits: int) -> list[str]:
    """Return the algorithms of what is in the text."""
    return [found.algorithm for found in key_sizes.check(text, bits)]


def certificate_with(key: Any, *extensions: x509.ExtensionType) -> bytes:
    """Return a certificate that is signed with its own key."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a.test")])
    now = dt.datetime.now(dt.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + dt.timedelta(days=1))
    for extension in extensions:
        made = made.add_extension(extension, critical=True)
    hashed = None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()
    return made.sign(key, hashed).public_bytes(Encoding.PEM)


def pem(key: object, form: PrivateFormat = PrivateFormat.PKCS8) -> bytes:
    return key.private_bytes(Encoding.PEM, form, NoEncryption())  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("name", ACCEPTED)
def test_certificate_and_key_of_accepted_algorithm_are_accepted(name: str) -> None:
    key = ACCEPTED[name]
    algorithm = "RSA" if name.startswith("RSA") else "EC" if name.startswith("P-") else name
    assert check(pem(key), RECEIVED_BITS) == [algorithm]
    assert check(b"# Pr\xc3\xbcfstelle\n" + certificate_with(key) + pem(key), RECEIVED_BITS) == [algorithm] * 2
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        assert check(pem(key, PrivateFormat.TraditionalOpenSSL), RECEIVED_BITS) == [algorithm]


def test_chain_of_trustme_and_text_without_pem_are_accepted() -> None:
    issued = trustme.CA().issue_cert("a.test")
    assert check(issued.private_key_and_cert_chain_pem.bytes(), RECEIVED_BITS) == ["EC", "EC"]
    assert check(b"no PEM at all", RECEIVED_BITS) == []
    assert check(b"", RECEIVED_BITS) == []


def test_block_is_encoded_anew_without_text_around_it() -> None:
    text = certificate_with(ACCEPTED["RSA 2048"])
    odd = b"Subject: a\n" + text.replace(b"\n", b" \r\n \r\n") + b"the end"
    [found] = key_sizes.check(odd, RECEIVED_BITS)
    assert found.pem != odd
    assert x509.load_pem_x509_certificate(found.pem) == x509.load_pem_x509_certificate(text)


@pytest.mark.parametrize("name", OTHERS)
def test_other_algorithms_and_curves_are_refused(name: str) -> None:
    with pytest.raises(KeySizeError, match=r"of another algorithm|on another elliptic curve"):
        check(pem(OTHERS[name]), RECEIVED_BITS)


@pytest.mark.parametrize("bits", [4_097, 8_193, 20_000, 30_000])
def test_giant_rsa_key_is_refused_in_certificates_and_keys(bits: int) -> None:
    giant = GiantPair(bits)
    began = time.process_time()
    for text in (giant.certificate, giant.key, giant.key_in_pkcs8):
        with pytest.raises(KeySizeError, match=rf"has an RSA key with numbers of {bits} bits: accepted are"):
            check(text, RECEIVED_BITS)
    assert time.process_time() - began < 0.1


def test_larger_own_keys_are_accepted() -> None:
    giant = GiantPair(OWN_BITS)
    assert check(giant.certificate + giant.key, OWN_BITS) == ["RSA", "RSA"]


@pytest.mark.parametrize("place", range(1, 9))
def test_each_number_of_an_rsa_key_is_limited(place: int) -> None:
    numbers = [0, (1 << 2047) | 1, 65537, *[3] * 6]
    numbers[place] = (1 << 4096) | 1
    with pytest.raises(KeySizeError, match="numbers of"):
        check(traditional_key(numbers), RECEIVED_BITS)


def test_rsa_key_with_more_than_two_primes_is_refused() -> None:
    numbers = [1, (1 << 2047) | 1, 65537, *[3] * 6]
    with pytest.raises(KeySizeError, match="cannot be read"):
        check(traditional_key(numbers), RECEIVED_BITS)


def test_certificate_of_version_1_is_accepted_but_not_with_fields_that_are_missing_or_left_over() -> None:
    key = field(SEQUENCE, field(SEQUENCE, field(OID, bytes.fromhex("2b6570"))), field(BITS, bytes(33)))
    signed = field(SEQUENCE, field(INTEGER, b"\1"), *[field(SEQUENCE)] * 4, key)
    whole = field(SEQUENCE, signed, field(SEQUENCE), field(BITS, b"\0"))
    assert check(block("CERTIFICATE", whole), RECEIVED_BITS) == ["Ed25519"]
    for wrong in (whole[:-1], whole + b"\0", b"", field(SEQUENCE, key)):
        with pytest.raises(KeySizeError, match="cannot be read"):
            check(block("CERTIFICATE", wrong), RECEIVED_BITS)


@pytest.mark.parametrize("length", [b"\x80", b"\x81\x7f", b"\x82\0\x80", b"\x81"])
def test_length_that_der_forbids_is_refused(length: bytes) -> None:
    """OpenSSL reads such lengths too, so nothing else may be taken for what it reads."""
    with pytest.raises(KeySizeError, match="cannot be read"):
        check(block("CERTIFICATE", b"\x30" + length + bytes(0x80)), RECEIVED_BITS)


def test_number_of_certificates_is_limited() -> None:
    assert check(CA.encode() * MOST, OWN_BITS) == ["Ed25519"] * MOST
    with pytest.raises(KeySizeError, match="has 51 certificates and keys: at most 50 are accepted"):
        check(CA.encode() * (MOST + 1), OWN_BITS)


def test_name_constraints_of_a_certificate_are_limited() -> None:
    """A server of a tenant sends up to 32 KiB of names: OpenSSL compares each of them with each constraint."""
    names, key = [x509.DNSName("a.test")] * 1_000, ACCEPTED["P-256"]
    few, many = (x509.NameConstraints(None, names[:count]) for count in (100, 1_000))
    for accepted in (few, x509.SubjectAlternativeName(names)):
        assert check(certificate_with(key, accepted) * 4, RECEIVED_BITS) == ["EC"] * 4
    with pytest.raises(KeySizeError, match=r"name constraints and \d+ bytes: at most 4096 are accepted"):
        check(certificate_with(key, many), RECEIVED_BITS)


def test_elliptic_curve_key_that_is_longer_than_its_curve_is_refused() -> None:
    key = field(SEQUENCE, field(INTEGER, b"\1"), field(OCTETS, bytes(67)))
    with pytest.raises(KeySizeError, match="cannot be read"):
        check(block("EC PRIVATE KEY", key), RECEIVED_BITS)


def test_encrypted_keys_and_other_pem_are_refused() -> None:
    """OpenSSL would derive the key from the password, with as many rounds as the text states."""
    encrypted = ACCEPTED["P-256"].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password"))
    with pytest.raises(KeySizeError, match='"ENCRYPTED PRIVATE KEY" instead of'):
        check(encrypted, RECEIVED_BITS)
    traditional = ACCEPTED["RSA 2048"].private_bytes(
        Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"password")
    )
    with pytest.raises(KeySizeError, match="malformed PEM, or an encrypted key"):
        check(traditional, RECEIVED_BITS)
    trusted = Authority().pem.replace(b"CERTIFICATE", b"TRUSTED CERTIFICATE")
    with pytest.raises(KeySizeError, match='"TRUSTED CERTIFICATE" instead of'):
        check(trusted, RECEIVED_BITS)
    with pytest.raises(KeySizeError, match="malformed PEM"):
        check(b"-----BEGIN RSA PRIVATE KEY-----\nMII", RECEIVED_BITS)


@given(st.integers(0, 2), st.integers(0, 4_000), st.binary(max_size=3), st.integers(0, 3))
def test_changed_bytes_of_a_giant_key_never_make_it_loadable(kind: int, place: int, put: bytes, gone: int) -> None:
    """What passes the check is what OpenSSL loads: it either refuses the text, or finds a small key."""
    text = (GIANT.key, pem(ACCEPTED["P-256"]), certificate_with(ACCEPTED["RSA 2048"]))[kind]
    at = place % len(text)
    changed = text[:at] + put + text[at + gone :]
    try:
        found = check(changed, RECEIVED_BITS)
    except KeySizeError:
        return
    if not found:
        with pytest.raises(ValueError, match=""):
            load_pem_private_key(changed, None)
    elif kind == 2:
        loaded = x509.load_pem_x509_certificate(changed).public_key()
        assert not isinstance(loaded, rsa.RSAPublicKey) or loaded.key_size <= RECEIVED_BITS


@given(st.binary(max_size=200), st.sampled_from(["CERTIFICATE", "PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"]))
def test_arbitrary_content_of_pem_is_refused(content: bytes, label: str) -> None:
    with pytest.raises(KeySizeError):
        check(block(label, content), RECEIVED_BITS)
