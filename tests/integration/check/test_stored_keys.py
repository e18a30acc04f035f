"""Findings of `check` about stored clusters whose keys the configuration changes."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from milo_discoveryd.check import check
from milo_discoveryd.check.files import check_stored_keys
from milo_discoveryd.config import load
from milo_discoveryd.model.cluster import Target, key_of
from milo_discoveryd.state_file.encoding import StateOrigin, StoredCluster, StoredFleet
from milo_discoveryd.state_file.state_file import FILE, FILE_OF
from milo_sandbox import Sandbox
from tests.support.stored_fleets import encode

MILO, OTHER = StateOrigin("https://milo", "project"), StateOrigin("https://other", "project")


def store(directory: Path, source: str, *names: str, origin: StateOrigin = MILO) -> None:
    targets = (Target(name=key_of(name, source), source=source, uid=name, place=()) for name in names)
    fleet = StoredFleet(origin, 0.0, tuple(StoredCluster(target.uid, target, 0.0) for target in targets))
    (directory / (FILE_OF % source if source else FILE)).write_bytes(encode(fleet))


def found(directory: Path, **configured: StateOrigin) -> list[str]:
    named = [(name.removeprefix("_"), origin) for name, origin in configured.items()]
    return [" ".join(finding.lines()) for finding in check_stored_keys(directory, named)]


def test_stored_clusters_under_unchanged_keys_are_not_reported(tmp_path: Path) -> None:
    store(tmp_path, "", "shop")
    (tmp_path / "fleet-broken.state").write_bytes(b"not a state file")
    assert found(tmp_path, _=MILO) == []
    assert found(tmp_path / "missing", _=MILO) == []


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("", "eu", "4 stored clusters change their keys: a, b, c and 1 more become eu#a, eu#b, eu#c and 1 more"),
        ("eu", "", "eu#a, eu#b, eu#c and 1 more become a, b, c and 1 more"),
        ("eu", "us", "eu#a, eu#b, eu#c and 1 more become us#a, us#b, us#c and 1 more"),
    ],
)
def test_new_keys_of_stored_clusters_are_reported(tmp_path: Path, before: str, after: str, words: str) -> None:
    store(tmp_path, before, "a", "b", "c", "d")
    (finding,) = found(tmp_path, **{after or "_": MILO, "other": OTHER})
    assert words in finding
    assert ("name the source eu" if before else "configure the source by mode, without a name") in finding


def test_stored_clusters_of_a_source_that_is_not_configured_are_reported(tmp_path: Path) -> None:
    store(tmp_path, "eu", "a")
    (finding,) = found(tmp_path, eu=OTHER)
    assert (
        "1 stored clusters (eu#a) are from mode project at https://milo, which no configured source follows" in finding
    )


async def test_check_reports_that_naming_the_source_renames_its_stored_clusters(tmp_path: Path) -> None:
    async with Sandbox(projects=1) as sandbox:
        kubeconfig, state, file = tmp_path / "kubeconfig", tmp_path / "state", tmp_path / "config.yaml"
        kubeconfig.write_text(json.dumps(sandbox.kubeconfig()))
        state.mkdir(0o700)
        store(
            state, "", "shop", origin=StateOrigin(sandbox.kubeconfig()["clusters"][0]["cluster"]["server"], "project")
        )

        async def checked(**given: Any) -> str:
            common = {"state_directory": str(state), "listen": [f"unix://{tmp_path}/d.sock"], "http_listen": "off"}
            file.write_text(json.dumps({**common, **given}))
            out = io.StringIO()
            await check(load({}, {}, file), out, {})
            return out.getvalue()

        assert "stored clusters" not in await checked(discovery_kubeconfig=str(kubeconfig))
        source = {"name": "milo", "kind": "project", "discovery_kubeconfig": str(kubeconfig)}
        assert "1 stored clusters change their keys: shop become milo#shop" in await checked(sources=[source])
