"""The cost of authentication: calls and snapshots on a plain socket, and on listeners that authenticate callers.

The daemon accepts connections itself and passes their bytes on to gRPC, which costs a further copy. With TLS, Python's
ssl module encrypts them, not gRPC.
"""

import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import quantiles

import trustme

from bench.setting import Samples, Setting
from milo_discovery import ClientCredentials, DiscoveryClient

CALLS = 1000


async def measure(setting: Setting) -> Samples:
    certificates = _certificates(setting.directory)
    places = _places(setting.directory, certificates)
    config = setting.directory / "listeners.json"
    config.write_text(json.dumps({"listen": list(places.values())}))
    shown = {"tls": ClientCredentials(**{name: certificates[name] for name in _SHOWN})}
    calls = min(CALLS, setting.scale.clusters)
    samples: Samples = {}
    async with setting.daemon(setting.scale.clusters, config=config, listens=False):
        for _ in range(setting.scale.rounds):
            for name, place in places.items():
                credentials = shown.get(name, ClientCredentials())
                async with DiscoveryClient(str(place["address"]), credentials=credentials) as client:
                    for key, value in (await _figures(client, calls)).items():
                        samples.setdefault(f"listeners.{name}.{key}", []).append(value)
    return samples


async def _figures(client: DiscoveryClient, calls: int) -> Mapping[str, float]:
    await client.server_info()
    took_ms = []
    for _ in range(calls):
        began = time.perf_counter()
        await client.server_info()
        took_ms.append((time.perf_counter() - began) * 1000)
    began = time.perf_counter()
    async with client.watch() as watch:
        await watch.synced()
        snapshot_s = time.perf_counter() - began
        clusters = len(watch.clusters)
    cuts = quantiles(took_ms, n=100)
    return {"call_p50_ms": cuts[49], "call_p99_ms": cuts[98], "snapshot_clusters_per_s": clusters / snapshot_s}


def _places(directory: Path, certificates: Mapping[str, Path]) -> dict[str, dict[str, object]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    tls = {name: str(certificates[name]) for name in ("certificate", "key", "client_ca")}
    return {
        # `Daemon.listens` waits for the last socket; the others exist by then.
        "peers": {"address": f"unix://{directory}/peers.sock", "peer_credentials": True},
        "tls": {"address": f"127.0.0.1:{port}", "tls": tls},
        "plain": {"address": f"unix://{directory}/daemon.sock"},
    }


_SHOWN = ("ca_file", "certificate_file", "key_file")


def _certificates(directory: Path) -> Mapping[str, Path]:
    authority = trustme.CA()
    server, client = authority.issue_cert("127.0.0.1"), authority.issue_cert("bench.example.com")
    files = {
        "certificate": server.cert_chain_pems[0],
        "key": server.private_key_pem,
        "client_ca": authority.cert_pem,
        "ca_file": authority.cert_pem,
        "certificate_file": client.cert_chain_pems[0],
        "key_file": client.private_key_pem,
    }
    for name, content in files.items():
        (directory / name).write_bytes(content.bytes())
    return {name: directory / name for name in files}
