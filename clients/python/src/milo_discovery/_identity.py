"""What an API client is made with and keeps: its connections' certificate, as a file for libraries that want one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from milo_discovery._access import Access
from milo_discovery._credential import Credential
from milo_discovery.errors import CertificateRenewed

BEARER = "BearerToken"
"""The name of the token's place in a Configuration."""


class Identity:
    """The credential that a client's connections were made with. A token is none: it goes with each request."""

    def __init__(self, made_with: Credential) -> None:
        self.made_with = made_with

    def authorization(self, access: Access) -> str | None:
        """The header for a request with the newest access. Raises CertificateRenewed where that needs a new client."""
        made, over_at = self.made_with.access, self.made_with.over_at
        if access.token is not None:
            return f"Bearer {access.token}"
        if access.certificate != made.certificate and over_at is not None and datetime.now(UTC) >= over_at:
            raise CertificateRenewed(
                "this API client's certificate is over: close the client, and make another with the renewed certificate"
            )
        return None


@contextmanager
def certificate_file(access: Access) -> Iterator[str | None]:
    """The path of a certificate with its key, for as long as the block lasts; None where a token is all there is."""
    if access.token is not None or access.certificate is None:
        yield None
    elif hasattr(os, "memfd_create"):
        # In memory: it never comes to lie on a disk.
        with os.fdopen(os.memfd_create("milo-discovery", os.MFD_CLOEXEC), "w") as file:
            file.write(f"{access.certificate}\n{access.key}\n")
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
            file.write(f"{access.certificate}\n{access.key}\n")
            file.flush()
            yield file.name
