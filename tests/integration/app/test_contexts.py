"""The daemon in a context of Milo in which the kind of its source cannot work."""

from pathlib import Path

import pytest

from milo_discoveryd.app import Daemon
from milo_discoveryd.config import load
from milo_discoveryd.daemon_errors import ConfigError
from milo_sandbox import Sandbox


@pytest.mark.parametrize(
    ("context", "shows"),
    [
        (
            "/apis/iam.miloapis.com/v1alpha1/users/jane/control-plane",
            "user jane, which shows everything that the user may see",
        ),
        (
            "/apis/resourcemanager.miloapis.com/v1alpha1/projects/shop/control-plane",
            "project shop, which shows the project's own objects, and no projects",
        ),
    ],
)
async def test_daemon_refuses_a_context_in_which_its_kind_cannot_work(context: str, shows: str, tmp_path: Path) -> None:
    async with Sandbox() as sandbox:
        kubeconfig = sandbox.write_kubeconfig(tmp_path / "kubeconfig")
        text = kubeconfig.read_text()
        kubeconfig.write_text(text.replace(sandbox.url, sandbox.url + context))
        daemon = Daemon(
            load({"discovery_kubeconfig": str(kubeconfig), "listen": (f"unix://{tmp_path}/d.sock",)}, {}, None)
        )
        with pytest.raises(ConfigError, match=f"is the context of {shows}.*mode project cannot work there"):
            await daemon.serve()
