"""Rules that change while the daemon runs: all of them or none, and never by a slip."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import yaml

from milo_discoveryd.config import RuleSettings, load
from milo_discoveryd.telemetry.metrics import Metrics
from milo_discoveryd.wiring import config_reload
from milo_discoveryd.wiring.config_reload import ConfigReloader
from tests.support.eventually import eventually
from tests.support.logs import capture_logs


class Place:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.applied: list[tuple[str, ...]] = []
        self.audited: list[tuple[str, dict[str, object]]] = []
        self.metrics = Metrics()
        self.reloading: ConfigReloader | None = None

    def says(self, *names: str, **others: object) -> None:
        """In place of what the file said before, from one moment to the next."""
        rules = [{"name": name, "who": {"uid": place}, "clusters": "all"} for place, name in enumerate(names)]
        self.writes(yaml.safe_dump({"rights": rules, **others}))

    def writes(self, text: str) -> None:
        beside = self.file.with_suffix(".new")
        beside.write_text(text)
        beside.rename(self.file)

    def apply(self, rules: tuple[RuleSettings, ...]) -> None:
        self.applied.append(tuple(rule.name for rule in rules))

    def rights_changed(self, **about: object) -> None:
        self.audited.append(("changed", about))

    def reload_rejected(self, **about: object) -> None:
        self.audited.append(("kept", about))

    def count(self, result: str) -> float:
        return self.metrics.registry.get_sample_value("milo_discoveryd_config_reloads_total", {"result": result}) or 0.0

    def is_current(self) -> bool:
        return self.metrics.registry.get_sample_value("milo_discoveryd_config_last_reload_successful") == 1

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[ConfigReloader]:
        made = ConfigReloader(
            load({}, {}, self.file),
            lambda: load({}, {}, self.file),
            self.file,
            apply=self.apply,
            audit=self,
            metrics=self.metrics,
        )
        following = asyncio.create_task(made.run())
        try:
            yield made
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(config_reload, "POLL_INTERVAL_S", 0.005)
    made = Place(tmp_path / "config.yaml")
    made.says("one", "two")
    return made


async def test_rules_at_startup_are_counted(place: Place) -> None:
    async with place.followed():
        assert place.applied == []
    assert place.metrics.registry.get_sample_value("milo_discoveryd_authorization_rules") == 2


async def test_changed_file_is_reloaded(place: Place) -> None:
    async with place.followed():
        place.says("two", "three")
        await eventually(lambda: place.count("applied") == 1)
    assert place.applied == [("two", "three")]
    assert place.audited == [
        ("changed", {"rules": ["two", "three"], "added": ["three"], "removed": ["one"], "changed": ["two"]})
    ]


async def test_swapped_symlink_of_mounted_file_is_reloaded(place: Place) -> None:
    folder = place.file.parent
    one, other = folder / "one.yaml", folder / "other.yaml"
    place.file.rename(one)
    place.file.symlink_to(one)
    async with place.followed():
        other.write_text(one.read_text().replace("name: two", "name: three"))
        (folder / "link").symlink_to(other)
        (folder / "link").rename(place.file)
        await eventually(lambda: place.count("applied") == 1)
    assert place.applied[-1] == ("one", "three")


async def test_invalid_rule_rejects_whole_file(place: Place) -> None:
    async with place.followed():
        with capture_logs() as lines:
            place.writes("rights:\n- {name: three, who: everybody, clusters: all}\n- {name: Four}\n")
            await eventually(lambda: place.count("refused") == 1)
        assert (place.applied, place.is_current()) == ([], False)
        place.says("four")
        await eventually(lambda: place.count("applied") == 1)
        assert place.is_current()
    (line,) = [line for line in lines if line["event"] == "configuration rejected"]
    assert line["log_level"] == "error"
    assert 'item 2.name: "Four" must be' in str(line["problems"])
    assert [what for what, _ in place.audited] == ["kept", "changed"]


async def test_missing_file_keeps_rules(place: Place) -> None:
    async with place.followed() as followed:
        place.file.unlink()
        followed.reload_now()
        await eventually(lambda: place.count("refused") == 1)
        place.says("three")
        await eventually(lambda: place.count("applied") == 1)
    assert place.applied == [("three",)]


@pytest.mark.parametrize("text", ["", "rights: []\n", "mode: project\n"])
async def test_reload_without_any_rule_is_rejected(place: Place, text: str) -> None:
    async with place.followed():
        place.writes(text)
        await eventually(lambda: place.count("refused") == 1)
    assert place.applied == []
    assert "all rules were removed" in str(place.audited)


async def test_forced_reload_reads_unchanged_files(place: Place) -> None:
    async with place.followed() as followed:
        followed.reload_now()
        await eventually(lambda: place.count("unchanged") == 1)
    assert place.applied == []
    assert place.audited == []


async def test_settings_that_need_a_restart_are_named(place: Place) -> None:
    async with place.followed():
        with capture_logs() as lines:
            place.says("one", mode="project-control-plane")
            await eventually(lambda: place.count("applied") == 1)
    (line,) = [line for line in lines if line["event"].startswith("changed settings")]
    assert line["settings"] == ["mode"]


async def test_partially_written_file_is_awaited(place: Place) -> None:
    async with place.followed() as followed:
        state = place.file.stat()
        text = place.file.read_text()
        looked = 0

        def look() -> config_reload.State:
            nonlocal looked
            looked += 1
            # Another size at each look, for as long as somebody writes.
            return (state.st_ino, state.st_mtime_ns, min(looked, 20))

        followed._state = look  # type: ignore[method-assign]
        place.file.write_text(text.replace("one", "three"))
        os.utime(place.file, ns=(state.st_atime_ns, state.st_mtime_ns))
        await eventually(lambda: place.count("applied") == 1)
        assert looked >= 20


async def test_reload_without_file_waits_for_signal() -> None:
    metrics, applied = Metrics(), 0

    def apply(rules: tuple[RuleSettings, ...]) -> None:
        nonlocal applied
        applied += 1

    settings = load({}, {}, None)
    made = ConfigReloader(settings, lambda: settings, None, apply=apply, audit=Place(Path()), metrics=metrics)
    following = asyncio.create_task(made.run())
    made.reload_now()
    await eventually(
        lambda: metrics.registry.get_sample_value("milo_discoveryd_config_reloads_total", {"result": "unchanged"}) == 1
    )
    following.cancel()
    with suppress(asyncio.CancelledError):
        await following
    assert applied == 0
