"""Credentials for tests."""

from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_kube.credential import Credential, Secret


def minted(token: str, issued_at: float, life_s: float = 100.0) -> IssuedCredential:
    return IssuedCredential(
        credential=Credential(token=Secret(token)), issued_at=issued_at, expires_at=issued_at + life_s
    )
