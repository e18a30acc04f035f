"""Blocking requests to the sandbox."""

from __future__ import annotations

import base64
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TIMEOUT_S = 10.0
MERGE_PATCH = "application/merge-patch+json"


class RefusedError(Exception):
    """The API server rejected a request. `code` and `reason` are those of its Status."""

    def __init__(self, request: str, code: int, status: Mapping[str, Any]) -> None:
        super().__init__(f"{request}: {code} {status.get('message', '')}".rstrip())
        self.code = code
        self.reason = str(status.get("reason", ""))
        self.status = status


class ObjectNotFoundError(RefusedError):
    """The object or its kind does not exist."""


class KindNotServedError(ObjectNotFoundError):
    """The control plane does not serve the kind, so no object of it can appear. `eventually` raises it at once."""


class SandboxHttp:
    """Sends requests with the administrator's identity, whose token the sandbox renews in a file."""

    def __init__(self, kubeconfig: Path) -> None:
        self._kubeconfig = kubeconfig

    def access(self) -> tuple[str, str, str]:
        """Return the sandbox's URL, its CA as PEM, and the current token."""
        import yaml  # noqa: PLC0415  (a dependency of milo-discoveryd)

        config = yaml.safe_load(self._kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        return cluster["server"], authority, Path(user["tokenFile"]).read_text()

    def request(self, method: str, path: str, body: Any = None, *, content_type: str = "") -> Any:
        """Send a request, and return the JSON of the response. Raises RefusedError."""
        server, authority, token = self.access()
        kind = content_type or (MERGE_PATCH if method == "PATCH" else "application/json")
        request = urllib.request.Request(  # noqa: S310  (the opener below supports only https)
            server + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": kind, "Accept": "application/json"},
        )
        # The sandbox is local, so the environment's proxies are not used.
        context = ssl.create_default_context(cadata=authority)
        opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=context), urllib.request.ProxyHandler({})
        )
        try:
            with opener.open(request, timeout=_TIMEOUT_S) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                status = _status(error.read())
            failure = ObjectNotFoundError if error.code == 404 else RefusedError
            raise failure(f"{method} {path}", error.code, status) from None


def _status(body: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(body)
    except ValueError:
        return {"message": body.decode(errors="replace").strip()}
    return document if isinstance(document, dict) else {}
