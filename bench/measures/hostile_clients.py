"""The effect of hostile clients: the latency of a well-behaved subscriber beside them.

All use the same listener: a client with a narrow rule that guesses names; one with forged or foreign revisions;
handshakes with untrusted or expired certificates; a client without a rule; and malformed HTTP/2. The figures are for
each kind, for all kinds that must be rejected, and for all kinds together.

Hostile clients use part of the machine in any case. The figures are therefore compared with the latency of the same
subscriber while the clients attack another daemon on the machine.
"""

import datetime as dt
import json
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from statistics import median

import trustme

from bench import daemon as daemons
from bench.daemon import Daemon
from bench.hostile_clients import ATTACKS, HostileClients, hostile_clients
from bench.milo import Milo
from bench.process import free_port
from bench.setting import Samples, Setting
from bench.subscribers import synced
from bench.writes import Writes, read_by, subscriber
from milo_discovery import ClientCredentials, DiscoveryClient

ALONE = "alone"
REFUSED = "refused"
ALL = "all"
_CUTS = (("p50", 50), ("p99", 99))


async def measure(setting: Setting) -> Samples:
    scale, directory = setting.scale, setting.directory
    refused = tuple(kind for kind in ATTACKS if kind != "junk")
    company = {**{kind: (kind,) for kind in ATTACKS}, REFUSED: refused, ALL: tuple(ATTACKS)}
    samples: dict[str, list[float]] = defaultdict(list)
    certificates(directory)
    async with AsyncExitStack() as stack:
        here = f"127.0.0.1:{free_port()}"
        milo, daemon = await stack.enter_async_context(
            setting.daemon(scale.clusters, config=_config(directory, directory, here), listens=False)
        )
        elsewhere, another = directory / "elsewhere", f"127.0.0.1:{free_port()}"
        elsewhere.mkdir()
        config = _config(directory, elsewhere, another)
        await stack.enter_async_context(daemons.daemon(milo.access.kubeconfig, elsewhere, config=config, listens=False))
        measured = MeasuredSubscriber(milo, daemon, setting, here)
        await measured.take_foreign_revision()
        bad = await stack.enter_async_context(hostile_clients(here, directory))
        bad_elsewhere = await stack.enter_async_context(hostile_clients(another, directory))
        for _ in range(scale.rounds):
            for figure, value in (await measured.beside(bad, ())).items():
                samples[f"hostile_clients.{ALONE}.{figure}"].append(value)
            for name, kinds in company.items():
                control = await measured.beside(bad_elsewhere, kinds)
                for percentile, _ in _CUTS:
                    samples[f"hostile_clients.{name}.elsewhere_{percentile}_ms"].append(control[f"{percentile}_ms"])
                for figure, value in (await measured.beside(bad, kinds)).items():
                    samples[f"hostile_clients.{name}.{figure}"].append(value)
    for name in company:
        for percentile, _ in _CUTS:
            ours, others = (
                median(samples[f"hostile_clients.{name}.{variant}{percentile}_ms"]) for variant in ("", "elsewhere_")
            )
            samples[f"hostile_clients.{name}.{percentile}_ratio"] = [ours / others]
    return dict(sorted(samples.items()))


class MeasuredSubscriber:
    """A well-behaved subscriber and its latency."""

    def __init__(self, milo: Milo, daemon: Daemon, setting: Setting, address: str) -> None:
        self._milo = milo
        self._daemon = daemon
        self._scale = setting.scale
        self._directory = setting.directory
        self._address = address
        self._marks = count(step=setting.scale.latency_writes)
        self._credentials = ClientCredentials(
            ca_file=self._directory / "ca.pem",
            certificate_file=self._directory / "friend.crt",
            key_file=self._directory / "friend.key",
        )

    async def take_foreign_revision(self) -> None:
        """Save a valid revision of another caller, which the hostile clients use."""
        async with synced(self._daemon.address, 1) as [caller]:
            (self._directory / "stolen-revision").write_text(caller.revision)

    async def beside(self, bad: HostileClients, kinds: tuple[str, ...]) -> dict[str, float]:
        async with bad.beside(kinds) as turned_away:
            began = time.perf_counter()
            figures = await self._figures()
            took_s = time.perf_counter() - began
        return figures | ({"turned_away_per_s": turned_away.total() / took_s} if kinds else {})

    async def _figures(self) -> dict[str, float]:
        scale = self._scale
        writes = Writes(self._milo, scale.latency_writes, scale.writes_per_s, scale.clusters, next(self._marks))
        async with (
            DiscoveryClient(self._address, credentials=self._credentials) as client,
            client.watch() as watch,
        ):
            await watch.synced()
            spent, began = self._daemon.cpu_s, time.perf_counter()
            await read_by(lambda writes, ready: subscriber(watch, writes, ready), writes)
            took_s = time.perf_counter() - began
            busy = 100 * (self._daemon.cpu_s - spent) / took_s
        return {**{f"{name}_ms": writes.at(cut) for name, cut in _CUTS}, "daemon_cpu_percent": busy}


def certificates(directory: Path) -> None:
    """Write the certificates of the daemons and of all clients."""
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    an_hour_ago = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    shown = {
        "server": server,
        "friend": authority.issue_cert("friend.example.com"),
        "guest": authority.issue_cert("guest.example.com"),
        "nobody": authority.issue_cert("nobody.example.com"),
        "stranger": trustme.CA().issue_cert("friend.example.com"),
        "expired": authority.issue_cert("friend.example.com", not_after=an_hour_ago),
    }
    authority.cert_pem.write_to_path(directory / "ca.pem")
    for name, pair in shown.items():
        pair.private_key_pem.write_to_path(directory / f"{name}.key")
        (directory / f"{name}.crt").write_bytes(b"".join(certificate.bytes() for certificate in pair.cert_chain_pems))


def _config(papers: Path, directory: Path, address: str) -> Path:
    """Write the configuration as JSON, which is YAML, and return its path."""
    tls = {
        "certificate": str(papers / "server.crt"),
        "key": str(papers / "server.key"),
        "client_ca": str(papers / "ca.pem"),
    }
    config = {
        "listen": [
            {"name": "network", "address": address, "tls": tls},
            # `Daemon.listens` waits for the last socket; the other exists by then.
            {"name": "local", "address": f"unix://{directory}/daemon.sock"},
        ],
        "rights": [
            {"name": "guests", "who": {"san": "dns:guest.example.com"}, "clusters": {"names": ["*0"]}},
            {"name": "friends", "who": {"san": "dns:friend.example.com"}, "clusters": "all"},
            {"name": "local", "who": {"listener": "local"}, "clusters": "all"},
        ],
        "audit": {"file": str(directory / "audit.jsonl")},
    }
    path = directory / "hostile_clients.yaml"
    path.write_text(json.dumps(config))
    return path
