"""The demo's table at several terminal sizes."""

import io

import pytest
from rich.console import Console
from rich.live import Live

from milo_discovery import Cluster, DisengageReason, Event, EventType
from milo_sandbox.demo.scene import Scene
from milo_sandbox.demo.screen import LiveTable

NAMES = ("breezy-lantern", "curious-thicket-2", "swift-dune")


def rendered(width: int, height: int) -> str:
    scene = Scene()
    for name in NAMES:
        labels = {"env": "prod", "region": "ap-south", "tier": "bronze"}
        cluster = Cluster(name=name, organization="bluebird-labs", labels=labels)
        scene.add(Event(type=EventType.ENGAGED, cluster=cluster), 0.0)
    ended = Event(
        type=EventType.DISENGAGED, cluster=Cluster(name="swift-dune"), reason=DisengageReason.DELETED, message="deleted"
    )
    scene.add(ended, 1.0)
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    table = LiveTable(scene, "export A=b\nCtrl-C ends the demo.\n", Live(console=console), console)
    with console.capture() as captured:
        console.print(table.frame(None, 2.0))
    return captured.get()


@pytest.mark.parametrize(("width", "height"), [(160, 50), (100, 30), (80, 24), (60, 24)])
def test_screen_shows_names_and_states_untruncated(width: int, height: int) -> None:
    text = rendered(width, height)
    assert all(len(line) <= width for line in text.splitlines())
    for name in NAMES:
        assert f" {name} " in text
    for word in ("NAME", "STATE", "ENGAGED", "Ready", "disengaged"):
        assert word in text
    assert "Ctrl-C ends the demo." in text


def test_narrow_screen_omits_less_important_columns() -> None:
    assert "LABELS" in rendered(160, 50)
    assert "ORGANIZATION" in rendered(160, 50)
    assert "recent events" in rendered(80, 24)
    assert "LABELS" not in rendered(80, 24)
    assert "recent events" not in rendered(50, 24)
