"""The check of the Leases of a shard group."""

import json
from base64 import b64encode
from pathlib import Path

import pytest

from milo_discoveryd.check import sharding
from milo_discoveryd.config import Settings
from milo_discoveryd.config.settings import ShardingSettings
from tests.integration.watchers.api_server import ApiServer, answering

ENVIRON = {"POD_NAME": "dns-0", "POD_NAMESPACE": "operators"}


def settings(tmp_path: Path, server: ApiServer) -> Settings:
    kubeconfig = tmp_path / "kubeconfig"
    authority = b64encode(server.pem).decode()
    cluster = {"server": server.url, "certificate-authority-data": authority}
    named = {"cluster": cluster, "user": {"token": "t"}, "context": {"cluster": "x", "user": "x"}}
    lists = {f"{kind}s": [{"name": "x", kind: content}] for kind, content in named.items()}
    kubeconfig.write_text(json.dumps({"current-context": "x", **lists}))
    return Settings(sharding=ShardingSettings(group="dns", kubeconfig=kubeconfig))


async def test_check_without_shard_group_skips_leases() -> None:
    assert await sharding.check_leases(Settings(), {}) is None


async def test_check_reports_that_leases_can_be_read(tmp_path: Path) -> None:
    async with ApiServer(answering(b'{"items": []}')) as server:
        found = await sharding.check_leases(settings(tmp_path, server), ENVIRON)
    assert found is not None
    assert (found.level, found.message) == ("ok", "member dns-0 can read the Leases of group dns, which has 0 members")


async def test_check_names_missing_right_on_leases(tmp_path: Path) -> None:
    async with ApiServer(answering(b"{}", status=403)) as server:
        found = await sharding.check_leases(settings(tmp_path, server), ENVIRON)
    assert found is not None
    assert found.level == "fail"
    assert "list, create, update and delete on leases" in found.message


@pytest.mark.parametrize("name", ["view", "Upper"])
async def test_check_reports_invalid_name_of_a_shard_member(tmp_path: Path, name: str) -> None:
    async with ApiServer(answering(b"{}")) as server:
        found = await sharding.check_leases(settings(tmp_path, server), {**ENVIRON, "POD_NAME": name})
    assert found is not None
    assert found.level == "fail"
