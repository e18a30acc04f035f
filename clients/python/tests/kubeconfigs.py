"""Kubeconfigs of the form that the daemon writes, and a fake API server that accepts them."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import trustme

from milo_discovery import Kubeconfig
from milo_discovery.v1 import discovery_pb2 as pb

MINUTE = timedelta(minutes=1)


def text(
    server: str = "https://alpha.test",
    *,
    name: str = "alpha",
    authorities: bytes | None = None,
    tls_server_name: str | None = None,
    **user: str,
) -> bytes:
    """Return a kubeconfig. `user` has the fields of its user entry, with underscores for dashes, such as token="t"."""
    cluster: dict[str, Any] = {"server": server}
    if authorities is not None:
        cluster["certificate-authority-data"] = base64.b64encode(authorities).decode()
    if tls_server_name is not None:
        cluster["tls-server-name"] = tls_server_name
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": name, "user": {key.replace("_", "-"): value for key, value in user.items()}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "current-context": name,
        }
    ).encode()


def value(content: bytes, *, now: datetime, age: timedelta = timedelta(), life: timedelta = 10 * MINUTE) -> Kubeconfig:
    """Return a Kubeconfig that was issued `age` ago, and is due for renewal after half its lifetime."""
    issued = now - age
    return Kubeconfig(
        cluster="alpha",
        kubeconfig=content,
        issued_at=issued,
        refresh_after=issued + life / 2,
        expires_at=issued + life,
    )


def message(content: bytes, *, age: timedelta = timedelta(), life: timedelta = 10 * MINUTE) -> pb.Kubeconfig:
    """Return the protobuf message of a kubeconfig."""
    given = value(content, now=datetime.now(UTC), age=age, life=life)
    made = pb.Kubeconfig(cluster="alpha", kubeconfig=content)
    assert given.issued_at is not None
    assert given.refresh_after is not None
    assert given.expires_at is not None
    made.issued_at.FromDatetime(given.issued_at)
    made.refresh_after.FromDatetime(given.refresh_after)
    made.expires_at.FromDatetime(given.expires_at)
    return made


def issued(
    content: bytes, *, age: timedelta = timedelta(), life: timedelta = 10 * MINUTE
) -> pb.IssueKubeconfigResponse:
    return pb.IssueKubeconfigResponse(kubeconfig=message(content, age=age, life=life))


class ControlPlane:
    """A fake API server over TLS without objects. It records the credentials of each request."""

    def __init__(self, authority: trustme.CA) -> None:
        self.authority = authority
        self.url = ""
        self.asked_with: list[str | None] = []
        self.certificates: list[str] = []
        self.refused: set[str] = set()
        """Authorization headers to which the server responds with 401."""
        self.redirect_to: str | None = None
        """The base URL to which requests are redirected, if set."""
        self.acting: list[str | None] = []
        """The users that requests impersonated."""
        self.paths: list[str] = []
        self.connections = 0
        self.barrier: threading.Barrier | None = None
        """If set, responses wait until as many requests as the barrier's parties have arrived."""

    def kubeconfig(self, **user: str) -> bytes:
        return text(self.url, authorities=self.authority.cert_pem.bytes(), tls_server_name="alpha.test", **user)

    def answer(self, header: str | None, certificate: dict[str, Any] | None) -> tuple[int, bytes]:
        """Return status and body for a request with these credentials."""
        self.asked_with.append(header)
        self.certificates += [
            value for ((key, value),) in (certificate or {}).get("subject", ()) if key == "commonName"
        ]
        if self.redirect_to is not None:
            return 307, b""
        if header in self.refused:
            return 401, b'{"kind": "Status", "code": 401}'
        return 200, b'{"kind": "NamespaceList", "apiVersion": "v1", "metadata": {}, "items": []}'


@contextmanager
def control_plane() -> Iterator[ControlPlane]:
    """Run a server on loopback with a certificate that is only valid for alpha.test."""
    plane = ControlPlane(trustme.CA())

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            plane.connections += 1

        def do_GET(self) -> None:
            assert isinstance(self.connection, ssl.SSLSocket)
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            if plane.barrier is not None:
                plane.barrier.wait()
            plane.paths.append(self.path)
            plane.acting.append(self.headers["Impersonate-User"])
            status, body = plane.answer(self.headers["Authorization"], self.connection.getpeercert())
            self.send_response(status)
            if plane.redirect_to is not None:
                self.send_header("Location", f"{plane.redirect_to}{self.path}")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if status == 401:
                time.sleep(0.05)  # over a network, the body can arrive after its headers
            self.wfile.write(body)

        do_POST = do_DELETE = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the name in the base class)
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 256

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    plane.authority.issue_cert("alpha.test").configure_cert(context)
    plane.authority.configure_trust(context)
    context.verify_mode = ssl.CERT_OPTIONAL
    with Server(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        serving = threading.Thread(target=lambda: server.serve_forever(0.01))
        serving.start()
        plane.url = f"https://127.0.0.1:{server.server_port}/projects/alpha"
        try:
            yield plane
        finally:
            server.shutdown()
            serving.join()
