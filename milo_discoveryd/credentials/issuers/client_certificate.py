"""Client certificates that the daemon signs with a mounted CA key, for API servers with `--client-ca-file`."""

import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from milo_discoveryd.credentials.issued_credential import SKEW_S, IssuedCredential, validate
from milo_discoveryd.credentials.issuers.issuer import MintRequest, Scope
from milo_discoveryd.credentials.issuers.settings import IssuerContext, IssuerSettings, RequiredFile
from milo_discoveryd.daemon_errors import BackendError, ConfigError, UnfitError
from milo_discoveryd.schema import values
from milo_discoveryd.schema.fields import ListOf
from milo_kube.credential import ClientCertificate, Credential, Secret
from milo_kube.file_content import FileContent

MAX_NAME = 64
"""The longest common name or organization (X.520)."""
_PLACEHOLDER = re.compile(r"\{(?:name|uid)\}")
_Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


class ClientCertificateIssuer:
    type = "client-certificate"
    takes_ttl = True

    def __init__(
        self,
        name: str,
        *,
        authority: FileContent,
        key: FileContent,
        common_name: str,
        organizations: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`{name}` and `{uid}` in the names are those of the project. Without these variables, one certificate
        serves all projects."""
        self.name = name
        self.scope = Scope.CLUSTER if _has_placeholder(common_name, *organizations) else Scope.IDENTITY
        self._authority = authority
        self._key = key
        self._common_name = common_name
        self._organizations = tuple(organizations)
        self._clock = clock
        self._loaded: tuple[bytes, bytes, x509.Certificate, _Key] | None = None

    async def mint(self, request: MintRequest) -> IssuedCredential:
        now = self._clock()
        authority, authority_key = self._load()
        ends_at = min(now + request.ttl_s, authority.not_valid_after_utc.timestamp())
        if ends_at <= now:
            raise BackendError(f"the CA certificate {self._authority.path} has expired")
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(self._subject(request))
            .issuer_name(authority.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            # Valid a little earlier, for servers whose clock is behind.
            .not_valid_before(_moment(now - SKEW_S))
            .not_valid_after(_moment(ends_at))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_SIGNATURES_ONLY, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
            .sign(authority_key, None if isinstance(authority_key, ed25519.Ed25519PrivateKey) else SHA256())
        )
        pair = ClientCertificate(
            chain=certificate.public_bytes(Encoding.PEM),
            key=Secret(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()),
        )
        return validate(Credential(certificate=pair), now, origin=self.name)

    def _subject(self, request: MintRequest) -> x509.Name:
        names = [
            (NameOID.COMMON_NAME, self._common_name),
            *((NameOID.ORGANIZATION_NAME, organization) for organization in self._organizations),
        ]
        filled = [(kind, self._filled(template, request)) for kind, template in names]
        return x509.Name([x509.NameAttribute(kind, value) for kind, value in filled])

    def _filled(self, template: str, request: MintRequest) -> str:
        target = None if request.cluster is None else request.cluster.target
        if target is not None:
            template = template.replace("{name}", target.local_name).replace("{uid}", target.uid)
        if not 0 < len(template) <= MAX_NAME:
            raise UnfitError(
                f"{self.name}: a name that begins with {template[:MAX_NAME]!r} has {len(template)} characters; a name "
                f"in a certificate must have 1 to {MAX_NAME} characters: change `common_name` or `organizations`"
            )
        return template

    def _load(self) -> tuple[x509.Certificate, _Key]:
        certificate_pem, key_pem = self._authority.read(), self._key.read()
        if self._loaded is None or self._loaded[:2] != (certificate_pem, key_pem):
            self._loaded = (certificate_pem, key_pem, *self._read(certificate_pem, key_pem))
        return self._loaded[2:]

    def _read(self, certificate_pem: bytes, key_pem: bytes) -> tuple[x509.Certificate, _Key]:
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem)
            key = load_pem_private_key(key_pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise BackendError(
                f"{self._authority.path} and {self._key.path} are not a CA certificate and its unencrypted key in PEM"
            ) from None
        if not isinstance(key, _Key):
            raise BackendError(f"{self._key.path} is not an RSA, ECDSA or Ed25519 key")
        raw = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if certificate.public_key().public_bytes(*raw) != key.public_key().public_bytes(*raw):
            raise BackendError(f"the key {self._key.path} does not match the certificate {self._authority.path}")
        return certificate, key


_SIGNATURES_ONLY = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


def _has_placeholder(*templates: str) -> bool:
    return any(map(_PLACEHOLDER.search, templates))


def _moment(wall: float) -> datetime:
    return datetime.fromtimestamp(wall, UTC)


class ClientCertificateSettings(IssuerSettings, frozen=True, kw_only=True):
    ca_certificate: RequiredFile
    """File with the CA certificate, reloaded when it changes."""
    ca_key: RequiredFile
    """File with the CA's private key, reloaded when it changes."""
    common_name: Annotated[str, values.subject_template]
    """User name (common name) in the certificate; `{name}` and `{uid}` are the project's."""
    organizations: Annotated[tuple[str, ...], ListOf(values.subject_template)] = ()
    """Groups (organizations) in the certificate; `{name}` and `{uid}` are the project's."""

    @property
    def is_per_cluster(self) -> bool:
        return _has_placeholder(self.common_name, *self.organizations)

    def issuer(self, context: IssuerContext) -> ClientCertificateIssuer:
        """Build the issuer.

        Raises ConfigError if clusters with the same name in different sources would have the same identity.
        """
        names = (self.common_name, *self.organizations)
        if len(context.served) > 1 and any("{name}" in template for template in names):
            raise ConfigError(
                [
                    f"kubeconfigs.issuers: {self.name} would use the same identity for clusters that have the same name"
                    " in different sources: use {uid} instead of {name}, or configure an issuer per source"
                ]
            )
        return ClientCertificateIssuer(
            self.name,
            authority=FileContent(self.ca_certificate),
            key=FileContent(self.ca_key),
            common_name=self.common_name,
            organizations=self.organizations,
        )
