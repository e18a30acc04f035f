"""The check of the Leases of a shard group."""

import json
from base64 import b64encode
from pathlib import Path

import msgspec
import pytest

from milo_discoveryd.check.api_server import check_leases
from milo_discoveryd.config import Settings
from milo_discoveryd.config.settings import ShardingSettings
from milo_discoveryd.sharding import lease_objects
from milo_discoveryd.sharding.lease_objects import LeaseNames
from milo_discoveryd.sharding.leases import MemberLease
from milo_discoveryd.wiring.configured_source import ConfiguredSource
from milo_discoveryd.wiring.sharding import fleet_digest
from tests.integration.watchers.api_server import ApiServer, answering

ENVIRON = {"POD_NAME": "dns-0", "POD_NAMESPACE": "operators"}


def settings(tmp_path: Path, server: ApiServer) -> Settings:
    kubeconfig = tmp_path / "kubeconfig"
    authority = b64encode(server.pem).decode()
    cluster = {"server": server.url, "certificate-authority-data": authority}
    named = {"cluster": cluster, "user": {"token": "t"}, "context": {"cluster": "x", "user": "x"}}
    lists = {f"{kind}s": [{"name": "x", kind: content}] for kind, content in named.items()}
    kubeconfig.write_text(json.dumps({"current-context": "x", **lists}))
    [source] = Settings().sources
    source = msgspec.structs.replace(source, discovery_kubeconfig=kubeconfig)
    return Settings(sources=(source,), sharding=ShardingSettings(group="dns", kubeconfig=kubeconfig))


def digest(of: Settings) -> str:
    return fleet_digest(ConfiguredSource(source, of, ENVIRON) for source in of.sources)


async def test_check_without_shard_group_skips_leases() -> None:
    assert await check_leases(Settings(), {}) is None


async def test_check_reports_that_leases_can_be_read(tmp_path: Path) -> None:
    async with ApiServer(answering(b'{"items": []}')) as server:
        found = await check_leases(settings(tmp_path, server), ENVIRON)
    assert found is not None
    assert (found.level, found.message) == ("ok", "member dns-0 can read the Leases of group dns (0 members have one)")


async def test_check_warns_of_shard_members_with_different_sources(tmp_path: Path) -> None:
    names = LeaseNames("operators", "dns")
    async with ApiServer(answering(b"")) as server:
        ours = settings(tmp_path, server)
        bodies = []
        selected = msgspec.structs.replace(ours.sources[0], label_selector="env=prod")
        for member, of in (("dns-0", ours), ("dns-1", msgspec.structs.replace(ours, sources=(selected,)))):
            lease = MemberLease(member=member, holder="h", term="t", fleet=digest(of))
            written = json.loads(lease_objects.encode_member(lease, names, 0.0))
            written["metadata"] |= {"uid": "u", "resourceVersion": "1"}
            bodies.append(written)
        server.answer = answering(json.dumps({"items": bodies}).encode())
        found = await check_leases(ours, ENVIRON)
    assert found is not None
    assert (found.level, found.message) == (
        "warn",
        "the sources or selectors of dns-1 in group dns differ from the settings of dns-0",
    )


async def test_check_warns_that_sources_with_an_unreadable_kubeconfig_cannot_be_compared(tmp_path: Path) -> None:
    async with ApiServer(answering(b'{"items": []}')) as server:
        ours = settings(tmp_path, server)
        lost = msgspec.structs.replace(ours.sources[0], discovery_kubeconfig=tmp_path / "lost")
        found = await check_leases(msgspec.structs.replace(ours, sources=(lost,)), ENVIRON)
    assert found is not None
    assert found.level == "warn"
    assert "cannot be compared with those of the other members" in found.message
    assert "lost" in found.message


async def test_check_warns_of_malformed_leases(tmp_path: Path) -> None:
    metadata = {"name": "milo-discovery-dns-dns-1", "uid": "u", "resourceVersion": "1"}
    async with ApiServer(answering(json.dumps({"items": [{"metadata": metadata}]}).encode())) as server:
        found = await check_leases(settings(tmp_path, server), ENVIRON)
    assert found is not None
    assert found.level == "warn"
    assert "Lease operators/milo-discovery-dns-dns-1 of shard group dns is malformed" in found.message


async def test_check_names_missing_permission_on_leases(tmp_path: Path) -> None:
    async with ApiServer(answering(b"{}", status=403)) as server:
        found = await check_leases(settings(tmp_path, server), ENVIRON)
    assert found is not None
    assert found.level == "fail"
    assert "list, create, update and delete on leases" in found.message


@pytest.mark.parametrize("name", ["view", "Upper"])
async def test_check_reports_invalid_name_of_a_shard_member(tmp_path: Path, name: str) -> None:
    async with ApiServer(answering(b"{}")) as server:
        found = await check_leases(settings(tmp_path, server), {**ENVIRON, "POD_NAME": name})
    assert found is not None
    assert found.level == "fail"
