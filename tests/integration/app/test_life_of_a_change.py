"""The files through which a change passes, from the bytes of the API server to a subscriber."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from milo_discovery import DiscoveryClient, EventType
from milo_discoveryd.app import Daemon
from milo_discoveryd.config import load
from milo_sandbox import Sandbox
from tests.integration.app.test_daemon import serving
from tests.support.eventually import eventually

MAX_FILES = 40
CHANGED = ("beta", "gamma", "delta")
# A timer, and the count of a batch after it was written: each runs during some changes, by the load of the machine.
NOT_DELIVERY = {"LoopWatchdog._beat", "StreamMetrics.batch_sent"}
PRODUCT = ("/milo_discoveryd/", "/milo_kube/")
ARCHITECTURE = Path(__file__).parents[3] / "docs" / "architecture.md"


@contextmanager
def traced() -> Iterator[dict[str, set[str]]]:
    """Yield the functions that are called, by file of the daemon and of the packages that it shares with clients."""
    called: dict[str, set[str]] = {}

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            for package in PRODUCT:
                before, found, path = frame.f_code.co_filename.rpartition(package)
                if before:
                    called.setdefault(found[1:] + path, set()).add(frame.f_code.co_qualname)
                    return

    sys.setprofile(profile)
    try:
        yield called
    finally:
        sys.setprofile(None)


async def test_delivery_of_a_change_to_a_subscriber_runs_code_in_few_files(tmp_path: Path) -> None:
    async with Sandbox() as milo:
        milo.write_kubeconfig(tmp_path / "milo")
        settings = {
            "mode": "project",
            "discovery_kubeconfig": str(tmp_path / "milo"),
            "listen": f"unix://{tmp_path}/d.sock",
            "http_listen": "127.0.0.1:0",
            "connectivity": {"interval": "off"},
        }
        (tmp_path / "settings.json").write_text(json.dumps(settings))
        daemon = Daemon(load({}, {}, tmp_path / "settings.json"))
        milo.projects.create("alpha", ready=True)
        for name in CHANGED:
            milo.projects.create(name)
        async with serving(daemon), DiscoveryClient(f"unix://{tmp_path}/d.sock") as client:
            watch = client.watch()
            await eventually(lambda: daemon._fleet.synced)
            assert (await anext(watch)).cluster.name == "alpha"
            changes: list[set[str]] = []
            for name in CHANGED:
                with traced() as called:
                    milo.projects.set_condition(name)
                    event = await anext(watch)
                assert (event.type, event.cluster.name) == (EventType.ENGAGED, name)
                changes.append({file for file, functions in called.items() if functions - NOT_DELIVERY})
    # Only files called for every change count; a timer may call others during one of them.
    files = set.intersection(*changes)
    assert len(files) <= MAX_FILES, sorted(files)
    described = set(
        re.findall(r"(milo_\w+/\S+\.py)`", ARCHITECTURE.read_text().split("## Life of a change")[1].split("##")[0])
    )
    assert described - files == set()
