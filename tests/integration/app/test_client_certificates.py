"""The daemon's own client certificate for a source, which expires."""

import base64
import datetime as dt
import json
import re
from pathlib import Path

from milo_discovery import DiscoveryClient, SourceState
from milo_discoveryd.app import Daemon
from milo_discoveryd.config import load
from milo_sandbox import Sandbox
from tests.integration.app.test_daemon import serving
from tests.integration.watchers.api_server import ApiServer, answering
from tests.support.certificates import Authority
from tests.support.eventually import eventually

UNAUTHORIZED = b'{"kind":"Status","code":401,"reason":"Unauthorized","message":"Unauthorized"}'


def kubeconfig(server: ApiServer, life: dt.timedelta) -> str:
    def encoded(content: bytes) -> str:
        return base64.b64encode(content).decode()

    issued = Authority().issue(life=life)
    user = {"client-certificate-data": encoded(issued.certificate), "client-key-data": encoded(issued.key)}
    cluster = {"server": server.url, "certificate-authority-data": encoded(server.pem)}
    return json.dumps(
        {
            "current-context": "x",
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
            "clusters": [{"name": "x", "cluster": cluster}],
            "users": [{"name": "x", "user": user}],
        }
    )


async def test_expiry_of_client_certificate_is_in_the_metric_and_in_the_source_status(tmp_path: Path) -> None:
    """The API server of `eu` accepts the TLS connection and responds 401. The source `us` is not affected."""
    async with ApiServer(answering(UNAUTHORIZED, 401)) as refusing, Sandbox() as sandbox:
        (tmp_path / "eu").write_text(kubeconfig(refusing, -dt.timedelta(minutes=5)))
        sandbox.write_kubeconfig(tmp_path / "us")
        sources = [
            {"name": name, "kind": "project", "discovery_kubeconfig": str(tmp_path / name)} for name in ("eu", "us")
        ]
        file = tmp_path / "settings.json"
        file.write_text(json.dumps({"sources": sources, "http_listen": "127.0.0.1:0"}))
        address = f"unix://{tmp_path}/d.sock"
        daemon = Daemon(load({"listen": (address,)}, {}, file))
        async with serving(daemon) as get, DiscoveryClient(address) as client:
            await eventually(lambda: bool(daemon._fleet.sources[0].status.message))
            await eventually(lambda: daemon._fleet.sources[1].synced)
            statuses = {source.name: source.status for source in (await client.server_info()).sources}
            assert statuses["us"].state is SourceState.STREAMING
            expected = rf"{refusing.url} refused the client certificate of {tmp_path}/eu, which expired at .*: renew it"
            assert re.search(expected, statuses["eu"].message)
            _, metrics = await get("/metrics")
            name = "milo_discoveryd_credential_expiry_timestamp_seconds"
            [(source, expires_at)] = re.findall(rf'\n{name}{{credential_issuer="source (.*)"}} (.*)', metrics)
            assert source == "eu"
            assert abs(float(expires_at) - dt.datetime.now(dt.UTC).timestamp() + 300) < 120
