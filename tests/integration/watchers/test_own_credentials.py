"""Requests with a credential whose renewal hangs or fails: real kubeconfigs, real plugins and a real server."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from milo_discoveryd.watchers.transport import Transport
from milo_kube import credential_providers
from milo_kube.http.errors import TransportError
from milo_kube.upstream import Upstream, load_kubeconfig
from tests.integration.watchers.api_server import ApiServer
from tests.support.eventually import LIMIT_S, eventually
from tests.support.renamed_file import replace

V1 = "client.authentication.k8s.io/v1"
SLOW_S = 5.0
"""Well below a plugin's timeout, and far above the time that a request takes."""


async def accept(request: web.Request) -> web.Response:
    """Answer with the token, or with 401 if it is empty or ends with "refused"."""
    token = request.headers.get("Authorization", "").removeprefix("Bearer ")
    return web.Response(text=token, status=401 if not token or token.endswith("refused") else 200)


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    async with ApiServer(accept) as server:
        yield server


class Plugin:
    """A plugin that prints a token at its first run, and hangs afterwards."""

    def __init__(self, directory: Path) -> None:
        self.path, self._runs = directory / "login", directory / "runs"

    def write(self, token: str, life_s: float) -> None:
        expires = datetime.now(UTC) + timedelta(seconds=life_s)
        status = {"token": token, "expirationTimestamp": f"{expires:%Y-%m-%dT%H:%M:%S.%fZ}"}
        answer = json.dumps({"apiVersion": V1, "kind": "ExecCredential", "status": status})
        script = f"#!/bin/sh\necho run >>'{self._runs}'\n[ $(wc -l <'{self._runs}') = 1 ] || exec sleep 1000\n"
        self.path.write_text(f"{script}cat <<'JSON'\n{answer}\nJSON\n")
        self.path.chmod(0o700)

    @property
    def runs(self) -> int:
        return self._runs.read_text().count("run") if self._runs.exists() else 0


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    return Plugin(tmp_path)


def kubeconfig(server: ApiServer, user: dict[str, Any], url: str = "") -> str:
    cluster = {"server": url or server.url, "certificate-authority-data": base64.b64encode(server.pem).decode()}
    return json.dumps(
        {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": cluster}],
            "users": [{"name": "u", "user": user}],
        }
    )


Open = Callable[[dict[str, Any]], Transport]


@pytest.fixture
async def open_transport(server: ApiServer, tmp_path: Path) -> AsyncIterator[Open]:
    async with AsyncExitStack() as closing:

        def opened(user: dict[str, Any]) -> Transport:
            path = tmp_path / "kubeconfig"
            path.write_text(kubeconfig(server, user))
            upstream: Upstream = load_kubeconfig(path, ["*"])
            closing.push_async_exit(aclosing(upstream))
            transport = Transport(upstream)
            closing.push_async_exit(aclosing(transport))
            return transport

        yield opened


async def sent(transport: Transport, timeout_s: float = LIMIT_S) -> tuple[int, str]:
    async with asyncio.timeout(SLOW_S):
        answer = await transport.get("/version", timeout_s=timeout_s)
    return answer.status, answer.body.decode()


async def test_requests_are_not_delayed_while_a_plugin_hangs_and_its_credential_is_valid(
    open_transport: Open, plugin: Plugin
) -> None:
    transport = open_transport({"exec": {"apiVersion": V1, "command": str(plugin.path)}})
    plugin.write("valid", life_s=11.0)
    assert await sent(transport) == (200, "valid")
    async with asyncio.timeout(LIMIT_S):
        while plugin.runs < 2:
            assert await sent(transport) == (200, "valid")
    assert [await sent(transport) for _ in range(3)] == 3 * [(200, "valid")]


async def test_requests_end_within_their_own_timeout_while_a_plugin_hangs_and_nothing_valid_is_held(
    open_transport: Open, plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credential_providers, "REPEAT_AFTER_S", 0.0)
    transport = open_transport({"exec": {"apiVersion": V1, "command": str(plugin.path)}})
    plugin.write("refused", life_s=3600.0)

    async def failure() -> str:
        with pytest.raises(TransportError) as raised:
            await sent(transport, timeout_s=1.0)
        assert raised.value.cause == "credential"
        return str(raised.value)

    found = await asyncio.gather(*(failure() for _ in range(10)))
    assert all(f"exec plugin {plugin.path} of kubeconfig" in text for text in found)
    assert plugin.runs == 2  # the second one is still running


async def test_liveness_probe_reaches_the_server_while_there_is_no_credential(
    open_transport: Open, plugin: Plugin, server: ApiServer
) -> None:
    plugin.path.write_text("#!/bin/sh\nexec sleep 1000\n")
    plugin.path.chmod(0o700)
    transport = open_transport({"exec": {"apiVersion": V1, "command": str(plugin.path)}})
    with pytest.raises(TransportError, match="has not answered"):
        await sent(transport, timeout_s=0.1)
    async with asyncio.timeout(SLOW_S):
        answer = await transport.get_at_once("/livez", timeout_s=SLOW_S)
    assert answer.status == 401
    assert [request.path for request in server.requests] == ["/livez"]


@pytest.mark.parametrize("replacement", ["nonsense: yes", "another server", "{"])
async def test_requests_use_the_last_good_kubeconfig_until_it_is_refused(
    open_transport: Open, server: ApiServer, tmp_path: Path, replacement: str
) -> None:
    transport = open_transport({"token": "good"})
    assert await sent(transport) == (200, "good")
    if replacement == "another server":
        replacement = kubeconfig(server, {"token": "elsewhere"}, "https://elsewhere.test")
    replace(tmp_path / "kubeconfig", replacement)
    await eventually(lambda: transport._upstream.credentials.origin.problem)  # type: ignore[attr-defined]
    assert [await sent(transport) for _ in range(3)] == 3 * [(200, "good")]

    async def refuse(request: web.Request) -> web.Response:
        token = request.headers["Authorization"].removeprefix("Bearer ")
        return web.Response(text=token, status=200 if token == "renewed" else 401)

    server.answer = refuse
    with pytest.raises(TransportError, match=r"now names a different server|its new content is invalid"):
        await sent(transport)
    replace(tmp_path / "kubeconfig", kubeconfig(server, {"token": "renewed"}))
    assert await sent(transport) == (200, "renewed")
