"""Subject alternative names of certificates."""

from ipaddress import IPv4Address

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from milo_discoveryd.identity.certificate_names import certificate_names
from tests.support.certificates import EDI_PARTY_NAME, Authority


def test_certificate_names_are_prefixed_with_their_kind() -> None:
    names = (
        x509.DNSName("Operator.Example"),
        x509.UniformResourceIdentifier("spiffe://example.com/ns/milo/sa/operator"),
        x509.RFC822Name("Ops@example.com"),
        x509.IPAddress(IPv4Address("192.0.2.1")),
    )
    assert certificate_names(Authority().issue(*names).der).sans == (
        "dns:operator.example",
        "uri:spiffe://example.com/ns/milo/sa/operator",
        "email:Ops@example.com",
        "ip:192.0.2.1",
    )


def test_certificate_names_of_unsupported_kinds_are_ignored() -> None:
    other = x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "operator")]))
    assert certificate_names(Authority().issue(other, x509.DNSName("a")).der).sans == ("dns:a",)


def test_certificate_common_name_is_ignored() -> None:
    assert certificate_names(Authority().issue(common_name="operator").der).sans == ()


def test_certificate_expiry_is_read_together_with_its_names() -> None:
    pair = Authority().issue()
    assert certificate_names(pair.der).expires_at == x509.load_der_x509_certificate(pair.der).not_valid_after_utc


def test_malformed_certificate_raises_value_error() -> None:
    with pytest.raises(ValueError, match="asn1"):
        certificate_names(b"junk")


def test_certificate_with_a_name_that_cannot_be_read_raises_value_error() -> None:
    with pytest.raises(ValueError, match="not supported"):
        certificate_names(Authority().issue(encoded_names=EDI_PARTY_NAME).der)


def test_certificate_of_very_many_names_is_refused() -> None:
    """Found by an attacker: 450 connections of one with 1,000 delayed all new callers by 9 s."""
    names = [x509.IPAddress(IPv4Address(number)) for number in range(101)]
    assert len(certificate_names(Authority().issue(*names[:100]).der).sans) == 100
    with pytest.raises(ValueError, match="has 101 names: at most 100 are accepted"):
        certificate_names(Authority().issue(*names).der)
