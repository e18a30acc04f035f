"""Log lines: their form, and which of them there are."""

import io
import json
import logging
import re
import signal
from collections.abc import Iterator

import pytest
import structlog

from milo_discoveryd.telemetry.logging import Level, configure
from tests.end_to_end.process.conftest import Place, folder, place

__all__ = ["folder", "place"]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_in_a_pod_a_line_is_one_json_object_with_its_event_level_and_time() -> None:
    stream = io.StringIO()
    configure("info", "auto", stream)
    structlog.get_logger().info("engaged", cluster="alpha\nbeta")
    [line] = stream.getvalue().splitlines()
    found = json.loads(line)
    assert (found["event"], found["level"], found["cluster"]) == ("engaged", "info", "alpha\nbeta")
    assert found["timestamp"].endswith("Z")


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_name_that_somebody_chose_is_shown_and_not_obeyed(form: str) -> None:
    stream = io.StringIO()
    configure("info", form, stream)
    chosen = "a\x1b[2J\u202e\x9b\u2028é"
    structlog.get_logger().info("refused", cluster=chosen, caller={"user": chosen})
    logging.getLogger("library").warning(chosen)
    said = stream.getvalue()
    shown = re.sub(r"\x1b\[[0-9]*m", "", said)  # the colours are ours
    assert len(shown.split("\n")) == 3
    assert all(each.isprintable() for each in shown.split("\n"))


def test_libraries_log_in_the_same_form() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    logging.getLogger("library").warning("%s is odd", "this")
    found = json.loads(stream.getvalue())
    assert (found["event"], found["level"]) == ("this is odd", "warning")


@pytest.mark.parametrize(
    ("level", "said"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_what_is_below_the_level_is_left_out(level: str, said: list[str]) -> None:
    stream = io.StringIO()
    configure(level, "json", stream)
    log = structlog.get_logger()
    for each in ("debug", "info", "warning", "error"):
        getattr(log, each)(each)
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == said


def test_the_level_can_be_changed_to_everything_and_back_for_loggers_in_use() -> None:
    stream = io.StringIO()
    level = configure("warning", "json", stream)
    log = structlog.get_logger()
    log.debug("before")
    level.toggle()
    log.debug("meanwhile")
    level.toggle()
    log.debug("after")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == [
        "log level",
        "meanwhile",
        "log level",
    ]


def test_from_debug_it_changes_nowhere() -> None:
    level = Level("debug")
    level.toggle()
    assert level.current == "debug"


async def test_a_signal_has_a_running_daemon_log_everything_and_the_next_one_as_before(place: Place) -> None:
    place.sandbox.projects.create("alpha", ready=True)
    async with place.daemon(connectivity={"interval": "off"}) as daemon:
        await daemon.start()
        await daemon.until_said('"synced"')
        daemon.signal(signal.SIGUSR1)
        await daemon.until_said('"is_now": "debug"')
        place.sandbox.projects.label("alpha", {"env": "prod"})
        await daemon.until_said('"event": "updated"')
        daemon.signal(signal.SIGUSR1)
        await daemon.until_said('"is_now": "info"')
        assert await daemon.terminate() == 0
