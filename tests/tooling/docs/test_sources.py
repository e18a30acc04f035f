"""The sample kind of docs/adding-a-kind.md, installed as a package with an entry point."""

import json
import re
import sys
import tomllib
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import ModuleType

import pytest

from milo_discoveryd.app import Daemon
from milo_discoveryd.config import load
from milo_sandbox import Sandbox
from milo_sandbox.resources import CONFIG_MAPS
from tests.integration.app.test_daemon import serving
from tests.support.eventually import eventually

PAGE = Path("docs/adding-a-kind.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> str:
    """Install the package of the page; return the kind's name."""
    [(group, entries)] = tomllib.loads(block("toml"))["project"]["entry-points"].items()
    [(name, value)] = entries.items()
    module = ModuleType(value.partition(":")[0])
    exec(compile(block("python"), "docs/adding-a-kind.md", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("importlib.metadata.entry_points", EntryPoints([EntryPoint(name, value, group)]).select)
    return name


async def test_source_kind_from_another_package_engages_clusters_described_by_its_objects(
    installed: str, tmp_path: Path
) -> None:
    async with Sandbox() as sandbox:
        sandbox.projects.create("platform", ready=True)
        store = sandbox.control_plane("platform")

        def write(name: str, *, labels: dict[str, str] | None = None, **data: str) -> None:
            metadata = {"name": name, "labels": {"example.com/clusters": ""} if labels is None else labels}
            store.create(CONFIG_MAPS, {"metadata": metadata, "data": data}, namespace="default")

        write("eu", shop="shop.example.com", bank="bank.example.com")
        write("other", labels={}, hidden="hidden.example.com")
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(json.dumps(sandbox.kubeconfig(project="platform")))
        flags = {
            "mode": installed,
            "discovery_kubeconfig": str(kubeconfig),
            "listen": (f"unix://{tmp_path}/d.sock",),
            "http_listen": "off",
        }
        daemon = Daemon(load(flags, {}, None))
        async with serving(daemon):

            def engaged() -> dict[str, str]:
                return {cluster.target.name: cluster.target.endpoint for cluster in daemon._fleet.clusters()}

            shop, bank = {"shop": "https://shop.example.com"}, {"bank": "https://bank.example.com"}
            await eventually(lambda: engaged() == shop | bank)
            write("us", bank="elsewhere.example.com", farm="farm.example.com")
            await eventually(lambda: engaged() == shop | bank | {"farm": "https://farm.example.com"})
            store.delete(CONFIG_MAPS, "eu", namespace="default")
            await eventually(
                lambda: engaged() == {"farm": "https://farm.example.com", "bank": "https://elsewhere.example.com"}
            )
