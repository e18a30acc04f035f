"""`milo-discoveryd check --as`: the effective rights of a caller, and the rule that grants them."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from milo_discoveryd.check import parse_caller, print_effective_rights
from milo_discoveryd.cli import command
from milo_discoveryd.config import load
from milo_discoveryd.daemon_errors import ConfigError
from milo_discoveryd.identity.caller import Caller
from milo_sandbox import Sandbox

RIGHTS: list[dict[str, Any]] = [
    {"name": "kept-out", "who": {"uid": 7}, "clusters": "none"},
    {
        "name": "few",
        "who": {"listener": "api", "group": "system:serviceaccounts:shop"},
        "clusters": {"names": "project-1*"},
        "kubeconfigs": True,
        "max_ttl": "5m",
        "streams": 2,
    },
    {"name": "all", "who": {"san": "uri:spiffe://prod/*"}, "clusters": "all"},
]


async def check_as(
    directory: Path, identity: str, rights: list[Any] = RIGHTS, **others: object
) -> tuple[int, dict[str, str]]:
    file = directory / "config.yaml"
    listen = [{"address": f"unix://{directory}/d.sock", "name": "api"}]
    file.write_text(yaml.safe_dump({"listen": listen, "rights": rights, **others}))
    out = io.StringIO()
    status = await print_effective_rights(load({}, {}, file), parse_caller(identity), out, {})
    lines = (line.split(None, 1) for line in out.getvalue().splitlines())
    return status, dict(lines)


@pytest.mark.parametrize("mode", ["project", "project-control-plane"])
async def test_check_as_prints_rule_terms_and_visible_clusters(tmp_path: Path, mode: str) -> None:
    async with Sandbox(seed=1) as sandbox:
        names = sorted(sandbox.populate(12))
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(json.dumps(sandbox.kubeconfig()))
        few = [{**RIGHTS[1], "clusters": {"names": [names[0], "*none*"]}}, RIGHTS[2]]
        status, lines = await check_as(
            tmp_path,
            "listener=api,group=system:serviceaccounts:shop",
            few,
            mode=mode,
            discovery_kubeconfig=str(kubeconfig),
            kubeconfigs={"issuers": [{"name": "own", "type": "project-kubeconfig", "share_discovery_identity": True}]},
        )
        _, everything = await check_as(
            tmp_path,
            "san=uri:spiffe://prod/a",
            few,
            mode=mode,
            discovery_kubeconfig=str(kubeconfig),
            watch={"page_size": 5},
        )
    assert status == 0
    assert lines["rule"] == "few (item 1 of 2), the first that matches"
    assert lines["sees"] == f"names {names[0]}, *none*"
    assert lines["kubeconfigs"] == "from any issuer, for at most 300 s, 60000 per minute"
    assert lines["credentials"] == (
        "of own are valid for all clusters that their identity can access, even if the caller cannot see them"
    )
    assert lines["streams"] == "2 concurrent"
    assert lines["clusters"] == f"1 of 12 ready clusters: {names[0]}"
    assert everything["kubeconfigs"] == "none"
    assert everything["clusters"].startswith("12 of 12 ready clusters: ")
    assert everything["clusters"].endswith(" and 2 more")


async def test_check_as_reports_issuers_whose_credentials_are_valid_outside_the_scope(tmp_path: Path) -> None:
    sources = [
        {"name": "file", "type": "token-file", "path": "/token"},
        {"name": "each", "type": "exec", "command": "/bin/mint", "per_cluster": True},
        {"name": "own", "type": "token-file", "path": "/own", "hand_out": False},
    ]
    listener = "listener=api,group=system:serviceaccounts:shop"
    _, lines = await check_as(tmp_path, listener, kubeconfigs={"issuers": sources})
    assert lines["credentials"].startswith("of file are valid for all clusters")
    _, lines = await check_as(tmp_path, listener, [{**RIGHTS[1], "issuers": "each"}], kubeconfigs={"issuers": sources})
    assert "credentials" not in lines


async def test_check_as_without_a_matching_rule_is_denied(tmp_path: Path) -> None:
    status, lines = await check_as(tmp_path, "uid=1")
    assert status == 1
    assert lines == {"rule": "none of the 3 authorization rules matches this caller: its calls are denied"}


async def test_check_as_with_an_empty_scope_sees_no_clusters(tmp_path: Path) -> None:
    status, lines = await check_as(tmp_path, "uid=7")
    assert (status, lines["rule"], lines["sees"]) == (1, "kept-out (item 1 of 3), the first that matches", "none")
    assert "clusters" not in lines


async def test_check_as_without_rules_has_full_access(tmp_path: Path) -> None:
    status, lines = await check_as(tmp_path, "uid=1", [], mode="single", discovery_kubeconfig=str(tmp_path / "none"))
    assert (status, lines["rule"]) == (0, "no rules are configured: every caller sees all clusters")


async def test_check_as_without_the_kubeconfig_of_the_source_reports_unknown_clusters(tmp_path: Path) -> None:
    status, lines = await check_as(tmp_path, "san=uri:spiffe://prod/a", discovery_kubeconfig=str(tmp_path / "none"))
    assert status == 0
    assert lines["clusters"].startswith("unknown: ")


def test_caller_is_parsed_from_key_value_pairs() -> None:
    text = "listener=api, uid=0,gid=5,gid=7,gid=8,san=uri:spiffe://a/b,san=dns:x,user=system:serviceaccount:ns:name,group=a,group=b"
    assert parse_caller(text) == Caller(
        listener="api",
        uid=0,
        gid=5,
        gids=(7, 8),
        sans=("uri:spiffe://a/b", "dns:x"),
        user="system:serviceaccount:ns:name",
        groups=("a", "b"),
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("uid=root", "the value must be a number"),
        ("uid", "expected KEY=VALUE"),
        ("name=x", "unknown key 'name'"),
        ("uid=1,uid=2", "uid is repeated"),
    ],
)
def test_invalid_caller_raises_config_error(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse_caller(text)


def test_check_as_command_prints_the_rule_and_sets_the_exit_status(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"rights": RIGHTS[:1]}))
    run = CliRunner().invoke(command, ["check", "--config", str(file), "--as", "uid=7"])
    assert (run.exit_code, run.stdout.splitlines()[0]) == (
        1,
        "rule         kept-out (item 1 of 1), the first that matches",
    )
    run = CliRunner().invoke(command, ["check", "--config", str(file), "--as", "uid=x"])
    assert run.exit_code == 1
    assert 'milo-discoveryd: --as: "uid=x": the value must be a number' in run.stderr
