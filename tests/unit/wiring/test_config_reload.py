"""Reload of authorization rules at run time: all of them or none."""

import asyncio
import math
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import yaml

from milo_discoveryd.config import RuleSettings, Settings, load
from milo_discoveryd.telemetry.metrics import Metrics
from milo_discoveryd.telemetry.status import RulesCurrent, RulesWaiting
from milo_discoveryd.wiring import config_reload
from milo_discoveryd.wiring.config_reload import ConfigReloader
from tests.support.eventually import eventually
from tests.support.logs import capture_logs


class ReloadedFile:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.applied: list[tuple[str, ...]] = []
        self.audited: list[tuple[str, dict[str, object]]] = []
        self.metrics = Metrics()
        self.reloading: ConfigReloader | None = None

    def write_rules(self, *names: str, **others: object) -> None:
        """Replace the config file atomically with a file that has these rules."""
        rules = [
            {"name": name, "who": {"uid": reloaded_file}, "clusters": "all"} for reloaded_file, name in enumerate(names)
        ]
        self.write(yaml.safe_dump({"rights": rules, **others}))

    def write(self, text: str) -> None:
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
            audit=self,
            metrics=self.metrics.reloads,
        )
        following = asyncio.create_task(made.run(self.apply))
        try:
            yield made
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following


@pytest.fixture
def reloaded_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReloadedFile:
    monkeypatch.setattr(config_reload, "POLL_INTERVAL_S", 0.005)
    made = ReloadedFile(tmp_path / "config.yaml")
    made.write_rules("one", "two")
    return made


async def test_authorization_rules_at_startup_are_counted_in_metric(reloaded_file: ReloadedFile) -> None:
    async with reloaded_file.followed():
        assert reloaded_file.applied == []
    assert reloaded_file.metrics.registry.get_sample_value("milo_discoveryd_authorization_rules") == 2


async def test_changed_config_file_is_reloaded(reloaded_file: ReloadedFile) -> None:
    async with reloaded_file.followed():
        reloaded_file.write_rules("two", "three")
        await eventually(lambda: reloaded_file.count("applied") == 1)
    assert reloaded_file.applied == [("two", "three")]
    assert reloaded_file.audited == [
        ("changed", {"rules": ["two", "three"], "added": ["three"], "removed": ["one"], "changed": ["two"]})
    ]


async def test_config_file_behind_swapped_symlink_is_reloaded(reloaded_file: ReloadedFile) -> None:
    directory = reloaded_file.file.parent
    one, other = directory / "one.yaml", directory / "other.yaml"
    reloaded_file.file.rename(one)
    reloaded_file.file.symlink_to(one)
    async with reloaded_file.followed():
        other.write_text(one.read_text().replace("name: two", "name: three"))
        (directory / "link").symlink_to(other)
        (directory / "link").rename(reloaded_file.file)
        await eventually(lambda: reloaded_file.count("applied") == 1)
    assert reloaded_file.applied[-1] == ("one", "three")


async def test_invalid_rule_rejects_whole_config_file(reloaded_file: ReloadedFile) -> None:
    async with reloaded_file.followed():
        with capture_logs() as lines:
            reloaded_file.write("rights:\n- {name: three, who: everybody, clusters: all}\n- {name: Four}\n")
            await eventually(lambda: reloaded_file.count("refused") == 1)
        assert (reloaded_file.applied, reloaded_file.is_current()) == ([], False)
        reloaded_file.write_rules("four")
        await eventually(lambda: reloaded_file.count("applied") == 1)
        assert reloaded_file.is_current()
    (line,) = [line for line in lines if line["event"] == "configuration rejected"]
    assert line["log_level"] == "error"
    assert '[1].name: "Four" must be' in str(line["problems"])
    assert [what for what, _ in reloaded_file.audited] == ["kept", "changed"]


async def test_config_file_that_causes_an_unexpected_error_changes_nothing(
    reloaded_file: ReloadedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Settings:
        raise KeyError("odd")

    async with reloaded_file.followed() as reloading:
        with monkeypatch.context() as patched:
            patched.setattr(reloading, "_load", fail)
            reloaded_file.write_rules("three")
            await eventually(lambda: reloaded_file.count("refused") == 1)
        reloaded_file.write_rules("four")
        await eventually(lambda: reloaded_file.count("applied") == 1)
    assert "KeyError" in str(reloaded_file.audited[0])


async def test_many_problems_of_a_config_file_are_logged_in_part(reloaded_file: ReloadedFile) -> None:
    async with reloaded_file.followed():
        reloaded_file.write(yaml.safe_dump({"rights": [{"name": f"rule-{number}"} for number in range(200)]}))
        await eventually(lambda: reloaded_file.count("refused") == 1)
    [(_, about)] = reloaded_file.audited
    problems = about["problems"]
    assert isinstance(problems, tuple)
    assert len(problems) == config_reload.MAX_PROBLEMS + 1
    assert "more; the command `check` prints all of them" in problems[-1]


async def test_config_file_that_became_a_pipe_is_not_waited_for(reloaded_file: ReloadedFile) -> None:
    async with reloaded_file.followed():
        os.mkfifo(reloaded_file.file.with_suffix(".pipe"))
        reloaded_file.file.with_suffix(".pipe").rename(reloaded_file.file)
        await eventually(lambda: reloaded_file.count("refused") == 1)
        reloaded_file.write_rules("three")
        await eventually(lambda: reloaded_file.count("applied") == 1)
    assert "is not a regular file" in str(reloaded_file.audited[0])


async def test_config_file_without_access_keeps_rules(
    reloaded_file: ReloadedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object, **__: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied")

    async with reloaded_file.followed() as followed:
        await asyncio.sleep(0)
        with monkeypatch.context() as patched:
            patched.setattr(Path, "stat", denied)
            followed.reload_now()
            await eventually(lambda: reloaded_file.count("unchanged") == 1)
        reloaded_file.write_rules("three")
        await eventually(lambda: reloaded_file.count("applied") == 1)


async def test_config_file_is_parsed_in_another_thread(reloaded_file: ReloadedFile) -> None:
    threads: list[threading.Thread] = []
    async with reloaded_file.followed() as followed:
        read = followed._load

        def load_noting_thread() -> Settings:
            threads.append(threading.current_thread())
            return read()

        followed._load = load_noting_thread
        reloaded_file.write_rules("three")
        await eventually(lambda: reloaded_file.count("applied") == 1)
    assert threading.main_thread() not in threads


async def test_missing_config_file_keeps_rules(reloaded_file: ReloadedFile) -> None:
    async with reloaded_file.followed() as followed:
        reloaded_file.file.unlink()
        followed.reload_now()
        await eventually(lambda: reloaded_file.count("refused") == 1)
        reloaded_file.write_rules("three")
        await eventually(lambda: reloaded_file.count("applied") == 1)
    assert reloaded_file.applied == [("three",)]


@pytest.mark.parametrize("text", ["", "rights: []\n", "mode: project\n"])
async def test_config_reload_without_any_rule_is_rejected(reloaded_file: ReloadedFile, text: str) -> None:
    async with reloaded_file.followed():
        reloaded_file.write(text)
        await eventually(lambda: reloaded_file.count("refused") == 1)
    assert reloaded_file.applied == []
    assert "all rules were removed" in str(reloaded_file.audited)


async def test_forced_config_reload_reads_unchanged_files(reloaded_file: ReloadedFile) -> None:
    async with reloaded_file.followed() as followed:
        followed.reload_now()
        await eventually(lambda: reloaded_file.count("unchanged") == 1)
    assert reloaded_file.applied == []
    assert reloaded_file.audited == []


async def test_config_reload_logs_settings_that_need_a_restart(reloaded_file: ReloadedFile) -> None:
    async with reloaded_file.followed():
        with capture_logs() as lines:
            reloaded_file.write_rules("one", mode="project-control-plane")
            await eventually(lambda: reloaded_file.count("applied") == 1)
    (line,) = [line for line in lines if line["event"].startswith("changed settings")]
    assert line["settings"] == ["sources"]


@pytest.mark.parametrize(
    ("running", "changed", "problem"),
    [
        (
            {"listen": [{"address": "unix:///run/d.sock"}]},
            {"listen": [{"address": "unix:///run/d.sock", "peer_credentials": True}]},
            "rights[0].who.uid: no running listener has `peer_credentials`",
        ),
        (
            {"listen": [{"address": "unix:///run/d.sock", "name": "api"}]},
            {"listen": [{"address": "unix:///run/e.sock", "name": "api"}]},
            'rights[0].who.listener: "api" runs with settings that differ from those in the file',
        ),
        (
            {"kubeconfigs": {"issuers": [{"name": "own", "type": "token-file", "path": "/token"}]}},
            {"kubeconfigs": {"issuers": [{"name": "own", "type": "token-file", "path": "/another"}]}},
            'rights[0].issuers: "own" runs with settings that differ from those in the file',
        ),
        (
            {
                "kubeconfigs": {
                    "issuers": [
                        {"name": "o", "type": "token-request", "namespace": "n", "service_account": "s"},
                    ]
                }
            },
            {},
            "rights[0].max_ttl: is shorter than 600 s, the shortest lifetime that o (token-request) can issue",
        ),
        (
            {},
            {"sources": [{"name": "eu", "kind": "project"}]},
            'rights[0].clusters.names: "eu#shop" matches no cluster: names contain # only if sources have names',
        ),
    ],
    ids=["conditions", "listener", "issuer", "lifetime", "names"],
)
async def test_rules_that_need_other_new_settings_wait_for_the_restart(
    reloaded_file: ReloadedFile, running: dict[str, object], changed: dict[str, object], problem: str
) -> None:
    everybody = {"name": "all", "who": "everybody", "clusters": "all"}
    rules: dict[str, dict[str, object]] = {
        "uid": {"who": {"uid": 1}},
        "listener": {"who": {"listener": "api"}},
        "issuers": {"kubeconfigs": True, "issuers": ["own"]},
        "max_ttl": {"kubeconfigs": True, "max_ttl": "1m"},
        "names": {"clusters": {"names": ["eu#shop"]}},
    }
    (needed,) = [rule for setting, rule in rules.items() if f".{setting}:" in problem]
    reloaded_file.write(yaml.safe_dump({**running, "rights": [everybody]}))
    async with reloaded_file.followed() as followed:
        reloaded_file.write(yaml.safe_dump({**changed, "rights": [{**everybody, **needed}]}))
        await eventually(lambda: reloaded_file.count("waiting") == 1)
        assert (reloaded_file.applied, reloaded_file.is_current()) == ([], False)
        assert followed.state == RulesWaiting((problem,))
        assert reloaded_file.audited == [("kept", {"problems": (problem,)})]
        reloaded_file.write(yaml.safe_dump({**changed, "rights": [everybody]}))
        await eventually(lambda: reloaded_file.count("unchanged") == 1)
        assert (followed.state, reloaded_file.is_current()) == (RulesCurrent(), True)
    assert reloaded_file.applied == []


async def test_config_reload_waits_until_the_size_of_the_file_is_stable(
    reloaded_file: ReloadedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_reload, "SETTLED_S", 0.01)
    async with reloaded_file.followed() as followed:
        state = reloaded_file.file.stat()
        text = reloaded_file.file.read_text()
        looked = 0

        def look() -> config_reload.State:
            nonlocal looked
            looked += 1
            # The size differs at each of the first 20 checks, as while another process writes.
            return (state.st_ino, state.st_mtime_ns, min(looked, 20))

        followed._state = look  # type: ignore[method-assign]
        reloaded_file.file.write_text(text.replace("one", "three"))
        os.utime(reloaded_file.file, ns=(state.st_atime_ns, state.st_mtime_ns))
        await eventually(lambda: reloaded_file.count("applied") == 1)
        assert looked >= 20


async def test_file_that_is_written_in_place_is_not_read_before_its_writer_has_finished(
    reloaded_file: ReloadedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_reload, "SETTLED_S", math.inf)
    text = reloaded_file.file.read_text()
    beginning, rest = text[: text.index("- clusters", 20)], text[text.index("- clusters", 20) :]
    looked = 0
    async with reloaded_file.followed() as followed:
        look = followed._state

        def count() -> config_reload.State | None:
            nonlocal looked
            looked += 1
            return look()

        followed._state = count  # type: ignore[method-assign]
        reloaded_file.file.write_text(beginning)
        await eventually(lambda: looked >= 5)
        with reloaded_file.file.open("a") as file:
            file.write(rest)
        followed.reload_now()
        await eventually(lambda: reloaded_file.count("unchanged") == 1)
    assert reloaded_file.applied == []


async def test_config_reload_without_a_file_changes_nothing() -> None:
    metrics, applied = Metrics(), 0

    def apply(rules: tuple[RuleSettings, ...]) -> None:
        nonlocal applied
        applied += 1

    settings = load({}, {}, None)
    made = ConfigReloader(settings, lambda: settings, None, audit=ReloadedFile(Path()), metrics=metrics.reloads)
    following = asyncio.create_task(made.run(apply))
    made.reload_now()
    await eventually(
        lambda: metrics.registry.get_sample_value("milo_discoveryd_config_reloads_total", {"result": "unchanged"}) == 1
    )
    following.cancel()
    with suppress(asyncio.CancelledError):
        await following
    assert applied == 0
