"""Client certificates that the daemon signs: name, lifetime, and acceptance by a server."""

import time
from pathlib import Path

import aiohttp
import pytest
import trustme
from cryptography import x509
from cryptography.x509.oid import NameOID

from milo_discoveryd.credentials.issued_credential import SKEW_S
from milo_discoveryd.credentials.issuers.client_certificate import ClientCertificateIssuer
from milo_discoveryd.credentials.issuers.issuer import MintRequest, Scope
from milo_discoveryd.daemon_errors import BackendError, UnfitError
from milo_discoveryd.model.cluster import Target
from milo_kube.credential import CredentialError
from milo_kube.file_content import FileContent
from milo_kube.tls_identity import TlsIdentity
from tests.integration.watchers.api_server import ApiServer, answering
from tests.support.renamed_file import replace
from tests.unit.credentials.backend import engaged

WANTED = MintRequest(ttl_s=300, cluster=engaged())


def mounted(directory: Path, ca: trustme.CA, **differing: object) -> ClientCertificateIssuer:
    replace(directory / "ca.pem", ca.cert_pem.bytes())
    replace(directory / "ca.key", ca.private_key_pem.bytes())
    given = {"common_name": "operator:{name}", "organizations": ["milo", "{uid}"]} | differing
    return ClientCertificateIssuer(
        "signed",
        authority=FileContent(directory / "ca.pem"),
        key=FileContent(directory / "ca.key"),
        **given,  # type: ignore[arg-type]
    )


async def test_client_certificate_has_configured_names_and_requested_lifetime(tmp_path: Path) -> None:
    minted = await mounted(tmp_path, trustme.CA()).mint(WANTED)
    assert minted.credential.certificate is not None
    made = x509.load_pem_x509_certificate(minted.credential.certificate.chain)
    names = [(attribute.oid, attribute.value) for attribute in made.subject]
    assert names == [
        (NameOID.COMMON_NAME, "operator:alpha"),
        (NameOID.ORGANIZATION_NAME, "milo"),
        (NameOID.ORGANIZATION_NAME, "uid-alpha"),
    ]
    assert 298 < minted.expires_at - time.time() <= 300
    assert made.not_valid_before_utc.timestamp() <= time.time() - SKEW_S + 1


async def test_client_certificate_is_accepted_by_server_that_trusts_its_ca(tmp_path: Path) -> None:
    ca = trustme.CA()
    minted = await mounted(tmp_path, ca).mint(WANTED)
    async with ApiServer(answering(b"hello"), wants_client_certificate_of=ca) as server:
        context = TlsIdentity(authorities=server.pem, certificate=minted.credential.certificate).context()
        async with aiohttp.ClientSession() as session, session.get(server.url, ssl=context) as response:
            assert await response.read() == b"hello"


@pytest.mark.parametrize(
    ("names", "scope"),
    [
        ({"common_name": "operator", "organizations": []}, Scope.IDENTITY),
        ({"common_name": "operator:{name}", "organizations": []}, Scope.CLUSTER),
        ({"common_name": "operator", "organizations": ["{uid}"]}, Scope.CLUSTER),
    ],
)
async def test_client_certificate_has_cluster_scope_only_if_its_names_contain_placeholders(
    tmp_path: Path, names: dict[str, object], scope: Scope
) -> None:
    source = mounted(tmp_path, trustme.CA(), **names)
    assert source.scope is scope
    wanted = MintRequest(ttl_s=60) if scope is Scope.IDENTITY else WANTED
    assert (await source.mint(wanted)).credential.certificate is not None


async def test_certificate_does_not_outlive_ca(tmp_path: Path) -> None:
    authority = trustme.CA()
    ends = authority._certificate.not_valid_after_utc.timestamp()
    source = mounted(tmp_path, authority, clock=lambda: ends - 20)
    assert (await source.mint(WANTED)).expires_at <= ends
    with pytest.raises(BackendError, match="has expired"):
        await mounted(tmp_path, authority, clock=lambda: ends + 1).mint(WANTED)


async def test_client_certificate_is_signed_by_new_ca_after_ca_files_are_replaced(tmp_path: Path) -> None:
    source = mounted(tmp_path, trustme.CA(organization_name="old"))
    await source.mint(WANTED)
    mounted(tmp_path, trustme.CA(organization_name="the new one"))
    minted = await source.mint(WANTED)
    assert minted.credential.certificate is not None
    issuer = x509.load_pem_x509_certificate(minted.credential.certificate.chain).issuer.rfc4514_string()
    assert "the new one" in issuer


async def test_name_too_long_for_certificate_is_rejected(tmp_path: Path) -> None:
    long = Target(name="a" * 63, uid="u", place=("https://a",))
    with pytest.raises(UnfitError, match="has 72 characters"):
        await mounted(tmp_path, trustme.CA()).mint(MintRequest(ttl_s=60, cluster=engaged(long)))


async def test_invalid_ca_or_key_is_reported(tmp_path: Path) -> None:
    source = mounted(tmp_path, trustme.CA())
    replace(tmp_path / "ca.key", trustme.CA().private_key_pem.bytes())
    with pytest.raises(CredentialError, match="does not match the certificate"):
        await source.mint(WANTED)
    replace(tmp_path / "ca.key", b"no key")
    with pytest.raises(CredentialError, match="are not a CA certificate and its unencrypted key"):
        await source.mint(WANTED)
