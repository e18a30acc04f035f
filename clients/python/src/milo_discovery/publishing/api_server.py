"""Requests to the API server that the objects are written to."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import urlencode

from milo_discovery._connection_credential import certificate_file
from milo_discovery._kubeconfig_access import KubeconfigAccess
from milo_discovery.publishing.errors import InvalidTarget, TargetRefused, TargetUnavailable
from milo_discovery.publishing.objects import MANAGER, Document, Identity, ObservedObject, Resource
from milo_discovery.publishing.target import Target
from milo_kube import retry_after
from milo_kube.http.client import Client
from milo_kube.http.errors import TransportError

_TIMEOUT_S = 20.0
_PAGE_SIZE = 500
_APPLY = "application/apply-patch+yaml"
_JSON = "application/json"


class ApiServer:
    """The objects of one resource in the target's namespace."""

    def __init__(self, target: Target, resource: Resource, *, concurrency: int) -> None:
        self._target = target
        self._collection = resource.path(target.namespace)
        self._resource = resource
        self._in_flight = asyncio.Semaphore(concurrency)
        self._security: tuple[str | None, tuple[str, str] | None] | None = None
        self._client: Client | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def list(self, identity: Identity) -> list[ObservedObject]:
        """Return all objects with the labels of a publisher."""
        items: list[ObservedObject] = []
        token = ""
        while True:
            query = {"labelSelector": identity.selector(), "limit": str(_PAGE_SIZE)}
            try:
                page = await self._call("GET", self._collection, query | ({"continue": token} if token else {}))
            except TargetRefused as error:
                if error.status != HTTPStatus.GONE or not token:
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
            if error.status == HTTPStatus.NOT_FOUND:
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
            if error.status != HTTPStatus.NOT_FOUND:
                raise

    def _path(self, name: str) -> str:
        return f"{self._collection}/{name}"

    async def _call(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None, content: str = _JSON
    ) -> Document:
        headers = {"Accept": _JSON}
        if body is not None:
            headers["Content-Type"] = content
        if (token := self._target.token()) is not None:
            headers["Authorization"] = f"Bearer {token}"
        url = self._target.server + path + (f"?{urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body).encode()
        try:
            async with self._in_flight, asyncio.timeout(_TIMEOUT_S):
                client = await self._current_client()
                async with client.request(
                    method, url, headers=headers, body=data, connect_timeout_s=_TIMEOUT_S
                ) as response:
                    text = b""
                    while part := await response.read():
                        text += part
        except TimeoutError:
            raise TargetUnavailable(f"{self._target.server} did not answer in time") from None
        except TransportError as error:
            raise TargetUnavailable(str(error)) from error
        return _document(f"{method} {path}", response.status, response.headers.get("Retry-After", ""), text)

    async def _current_client(self) -> Client:
        """Return the client, which is made again when the CA or the client certificate changed."""
        security = self._target.authorities(), self._target.certificate()
        if self._client is None or security != self._security:
            former = self._client
            self._client = Client(
                self._context(*security),
                user_agent="milo-discovery-publish",
                tls_server_name=self._target.tls_server_name,
                idle_s=5.0,  # a write on a connection that the server closed meanwhile is not repeated by the client
            )
            self._security = security
            if former is not None:
                await former.aclose()
        return self._client

    def _context(self, authorities: str | None, certificate: tuple[str, str] | None) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cadata=authorities)
            if certificate is not None:
                access = KubeconfigAccess(server=self._target.server, certificate=certificate[0], key=certificate[1])
                with certificate_file(access) as file:
                    assert file is not None
                    context.load_cert_chain(file)
        except (ssl.SSLError, ValueError) as error:
            raise InvalidTarget(f"{self._target.server}: the CA or the client certificate is not valid PEM") from error
        return context


def _document(request: str, status: int, retry: str, text: bytes) -> Document:
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {}
    if status < HTTPStatus.BAD_REQUEST:
        return document
    message = f"{request}: {status} {document.get('message') or ''}".rstrip()
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        seconds = retry_after.seconds(retry, datetime.now(UTC)) if retry else None
        raise TargetUnavailable(message, None if seconds is None else timedelta(seconds=max(seconds, 0)))
    raise TargetRefused(message, status)
