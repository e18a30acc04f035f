"""`milo-discoveryd check --as`: what somebody would get, and by which rule."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from milo_discoveryd.check import caller, standing
from milo_discoveryd.cli import main
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


async def said(folder: Path, identity: str, rights: list[Any] = RIGHTS, **others: object) -> tuple[int, dict[str, str]]:
    file = folder / "config.yaml"
    listen = [{"address": f"unix://{folder}/d.sock", "name": "api"}]
    file.write_text(yaml.safe_dump({"listen": listen, "rights": rights, **others}))
    out = io.StringIO()
    status = await standing(load({}, {}, file), caller(identity), out, {})
    lines = (line.split(None, 1) for line in out.getvalue().splitlines())
    return status, dict(lines)


async def test_the_rule_what_it_gives_and_how_many_clusters_that_is(tmp_path: Path) -> None:
    async with Sandbox(seed=1) as sandbox:
        names = sorted(sandbox.populate(12))
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(json.dumps(sandbox.kubeconfig()))
        few = [{**RIGHTS[1], "clusters": {"names": [names[0], "*none*"]}}, RIGHTS[2]]
        status, told = await said(
            tmp_path,
            "listener=api,group=system:serviceaccounts:shop",
            few,
            discovery_kubeconfig=str(kubeconfig),
        )
        _, everything = await said(
            tmp_path, "san=uri:spiffe://prod/a", few, discovery_kubeconfig=str(kubeconfig), source={"page_size": 5}
        )
    assert status == 0
    assert told["rule"] == "few (item 1 of 2), the first that is met"
    assert told["sees"] == f"names {names[0]}, *none*"
    assert told["kubeconfigs"] == "from any source, asked for at most 300 s, 60000 a minute"
    assert told["what"] == (
        "the project kubeconfig's user gives opens all clusters of its identity, not only those that are seen"
    )
    assert told["streams"] == "2 at once"
    assert told["clusters"] == f"1 of 12 that are ready now: {names[0]}"
    assert everything["kubeconfigs"] == "none"
    assert everything["clusters"].startswith("12 of 12 that are ready now: ")
    assert everything["clusters"].endswith(" and 2 more")


async def test_sources_that_open_more_than_is_seen_are_named(tmp_path: Path) -> None:
    sources = [
        {"name": "file", "type": "token-file", "path": "/token"},
        {"name": "each", "type": "exec", "command": "/bin/mint", "per_cluster": True},
        {"name": "own", "type": "token-file", "path": "/own", "hand_out": False},
    ]
    listener = "listener=api,group=system:serviceaccounts:shop"
    _, told = await said(tmp_path, listener, kubeconfigs={"sources": sources})
    assert told["what"].startswith("file gives opens all clusters")
    _, told = await said(tmp_path, listener, [{**RIGHTS[1], "sources": "each"}], kubeconfigs={"sources": sources})
    assert "what" not in told


async def test_whom_no_rule_is_for_gets_nothing(tmp_path: Path) -> None:
    status, told = await said(tmp_path, "uid=1")
    assert status == 1
    assert told == {"rule": "none: there are 3, and none is for this caller, who is refused"}


async def test_who_is_kept_out_sees_none(tmp_path: Path) -> None:
    status, told = await said(tmp_path, "uid=7")
    assert (status, told["rule"], told["sees"]) == (1, "kept-out (item 1 of 3), the first that is met", "none")
    assert "clusters" not in told


async def test_without_rules_everybody_may_everything(tmp_path: Path) -> None:
    status, told = await said(tmp_path, "uid=1", [], mode="single", discovery_kubeconfig=str(tmp_path / "none"))
    assert (status, told["rule"]) == (0, "there are none, and everybody may everything")


async def test_what_cannot_be_listed_is_not_known(tmp_path: Path) -> None:
    status, told = await said(tmp_path, "san=uri:spiffe://prod/a", discovery_kubeconfig=str(tmp_path / "none"))
    assert status == 0
    assert told["clusters"].startswith("not known: ")


def test_an_identity_is_what_is_known_of_a_caller() -> None:
    text = "listener=api, uid=0,gid=5,gid=7,gid=8,san=uri:spiffe://a/b,san=dns:x,user=system:serviceaccount:ns:name,group=a,group=b"
    assert caller(text) == Caller(
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
        ("uid=root", "its value is a number"),
        ("uid", "say what of the caller is known, and its value"),
        ("name=x", "there is no 'name'"),
        ("uid=1,uid=2", "uid was said before"),
    ],
)
def test_what_is_no_identity_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        caller(text)


def test_the_command_says_it(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"rights": RIGHTS[:1]}))
    run = CliRunner().invoke(main, ["check", "--config", str(file), "--as", "uid=7"])
    assert (run.exit_code, run.stdout.splitlines()[0]) == (
        1,
        "rule         kept-out (item 1 of 1), the first that is met",
    )
    run = CliRunner().invoke(main, ["check", "--config", str(file), "--as", "uid=x"])
    assert run.exit_code == 1
    assert 'milo-discoveryd: --as: "uid=x": its value is a number' in run.stderr
