"""Requests to the API server that the objects are written to, in threads, on connections that are kept alive.

Built on the standard library: the kubernetes package is an extra of this client, and is not in the daemon's image.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

from milo_discovery.publishing.errors import InvalidTarget, TargetRefused, TargetUnavailable
from milo_discovery.publishing.objects import MANAGER, Document, Identity, ObservedObject, Resource
from milo_discovery.publishing.target import Target

_TIMEOUT_S = 20.0
_PAGE_SIZE = 500
_APPLY = "application/apply-patch+yaml"
_JSON = "application/json"
_MAX_RESPONSE = 256 << 20
_NOT_FOUND = 404
_GONE = 410


class ApiServer:
    """The objects of one resource in the target's namespace."""

    def __init__(self, target: Target, resource: Resource, *, concurrency: int) -> None:
        self._target = target
        self._collection = resource.path(target.namespace)
        self._resource = resource
        self._url = urlsplit(target.server)
        self._local = threading.local()
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="publish")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def list(self, identity: Identity) -> list[ObservedObject]:
        """Return all objects with the labels of a publisher."""
        items: list[ObservedObject] = []
        token = ""
        while True:
            query = {"labelSelector": identity.selector(), "limit": str(_PAGE_SIZE)}
            try:
                page = await self._call("GET", self._collection, query | ({"continue": token} if token else {}))
            except TargetRefused as error:
                if error.status != _GONE or not token:
                    raise
                items, token = [], ""  # the list expired: begin again
                continue
            # Items of a list have no type, and a decision compares it.
            kind = {"apiVersion": self._resource.api_version, "kind": self._resource.kind}
            items.extend(ObservedObject.of({**kind, **each}) for each in page.get("items") or ())
            token = (page.get("metadata") or {}).get("continue") or ""
            if not token:
                return items

    async def get(self, name: str) -> ObservedObject | None:
        try:
            return ObservedObject.of(await self._call("GET", self._path(name)))
        except TargetRefused as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    async def create(self, body: Document) -> ObservedObject:
        return ObservedObject.of(await self._call("POST", self._collection, {"fieldManager": MANAGER}, body))

    async def apply(self, body: Document, uid: str, *, subresource: str = "") -> ObservedObject:
        """Apply on the server, as the only manager of these fields; only to the object with this UID."""
        path = self._path(body["metadata"]["name"]) + subresource
        identified = {**body, "metadata": {**body["metadata"], "uid": uid}}
        query = {"fieldManager": MANAGER, "force": "true"}
        return ObservedObject.of(await self._call("PATCH", path, query, identified, _APPLY))

    async def delete(self, name: str, uid: str, resource_version: str) -> None:
        """Delete the object, if it is still this version. One that does not exist is no error."""
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        try:
            await self._call("DELETE", self._path(name), {}, {"preconditions": preconditions})
        except TargetRefused as error:
            if error.status != _NOT_FOUND:
                raise

    def _path(self, name: str) -> str:
        return f"{self._collection}/{name}"

    async def _call(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None, content: str = _JSON
    ) -> Document:
        url = self._url.path.rstrip("/") + path + (f"?{urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body).encode()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._send, method, url, data, content)

    def _send(self, method: str, url: str, data: bytes | None, content: str) -> Document:
        headers = {"Accept": _JSON, "User-Agent": "milo-discovery-publish"}
        if data is not None:
            headers["Content-Type"] = content
        if (token := self._target.token()) is not None:
            headers["Authorization"] = f"Bearer {token}"
        try:
            status, retry_after, text = self._exchange(method, url, data, headers)
        except (OSError, http.client.HTTPException) as error:
            self._close()
            raise TargetUnavailable(f"{self._target.server}: {_cause(error)}") from error
        return _document(f"{method} {url.partition('?')[0]}", status, retry_after, text)

    def _exchange(
        self, method: str, url: str, data: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, str | None, bytes]:
        """Send one request. On a kept connection that the server has closed it is sent once more on another.

        All requests may be repeated: the second creation or deletion is answered as a conflict or as not found.
        """
        connection, reused = self._connection()
        try:
            connection.request(method, url, data, dict(headers))
            response = connection.getresponse()
        except (ConnectionError, http.client.RemoteDisconnected, http.client.CannotSendRequest):
            self._close()
            if not reused:
                raise
            connection, _ = self._connection()
            connection.request(method, url, data, dict(headers))
            response = connection.getresponse()
        text = response.read(_MAX_RESPONSE)
        if response.will_close:
            self._close()
        return response.status, response.headers.get("Retry-After"), text

    def _connection(self) -> tuple[http.client.HTTPConnection, bool]:
        """Return this thread's connection, and whether it served a request before.

        It is opened again when the CA or the client certificate changed.
        """
        security = self._target.authorities(), self._target.certificate()
        known: tuple[object, http.client.HTTPConnection] | None = getattr(self._local, "connection", None)
        if known is not None and known[0] == security:
            return known[1], True
        self._close()
        connection = self._open(*security)
        self._local.connection = security, connection
        return connection, False

    def _open(self, authorities: str | None, certificate: tuple[str, str] | None) -> http.client.HTTPConnection:
        host = self._url.hostname or ""
        if self._url.scheme == "http":
            return http.client.HTTPConnection(host, self._url.port, timeout=_TIMEOUT_S)
        try:
            context = ssl.create_default_context(cadata=authorities)
            if certificate is not None:
                with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:  # mode 0600
                    file.write("\n".join(certificate))
                    file.flush()
                    context.load_cert_chain(file.name)
        except (ssl.SSLError, ValueError) as error:
            raise InvalidTarget(f"{self._target.server}: the CA or the client certificate is not valid PEM") from error
        connection = http.client.HTTPSConnection(host, self._url.port, timeout=_TIMEOUT_S, context=context)
        # Opened here, since the name that the certificate must have can differ from the host's.
        plain = socket.create_connection((host, self._url.port or http.client.HTTPS_PORT), _TIMEOUT_S)
        try:
            connection.sock = context.wrap_socket(plain, server_hostname=self._target.tls_server_name or host)
        except BaseException:
            plain.close()
            raise
        return connection

    def _close(self) -> None:
        known = getattr(self._local, "connection", None)
        self._local.connection = None
        if known is not None:
            known[1].close()


def _document(request: str, status: int, retry_after: str | None, text: bytes) -> Document:
    try:
        document = json.loads(text)
    except ValueError:
        document = {}
    if not isinstance(document, dict):
        document = {}
    if status < http.client.BAD_REQUEST:
        return document
    message = f"{request}: {status} {document.get('message') or http.client.responses.get(status, '')}"
    if status == http.client.TOO_MANY_REQUESTS or status >= http.client.INTERNAL_SERVER_ERROR:
        seconds = int(retry_after) if retry_after is not None and retry_after.isdigit() else None
        raise TargetUnavailable(message, None if seconds is None else timedelta(seconds=seconds))
    raise TargetRefused(message, status)


def _cause(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate was not accepted: {error.verify_message}"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
