"""A strict parser of scenario files: an unknown field makes its scenario malformed, with an error that names it."""

import difflib
from collections.abc import Callable, Collection, Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec

from milo_discovery import Cluster
from milo_kube import yaml_document
from tests.end_to_end.scenarios import steps
from tests.end_to_end.scenarios.steps import MAIN, MODES, Expected, Happening, Malformed, Mode, Scenario, Step

T = TypeVar("T")

_CLUSTER_FIELDS = tuple(field.name for field in fields(Cluster))


class FormatError(Exception):
    """A field or value is not in the format."""


class FileError(Exception):
    """A file cannot be read as scenarios."""


class _Outline(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    steps: list[dict[str, Any]]
    about: str = ""
    modes: tuple[Mode, ...] = MODES
    settings: dict[str, Any] = {}


@cache
def load(path: Path) -> list[Scenario | Malformed]:
    """Load scenarios.

    Raises FileError for a file without any.
    """
    try:
        document = yaml_document.read(path.read_bytes(), scalars="typed").value
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror or error}") from error
    except yaml_document.DocumentError as error:
        raise FileError(f"{path}: {error}") from error
    if not isinstance(document, list) or not document:
        raise FileError(f"{path}: is not a list of scenarios")
    return [scenario(entry, index) for index, entry in enumerate(document, start=1)]


def scenario(entry: Any, index: int = 1) -> Scenario | Malformed:
    """Parse a scenario; the index identifies a scenario without a name."""
    try:
        return _scenario(entry)
    except FormatError as error:
        given = entry if isinstance(entry, dict) else {}
        modes = given.get("modes")
        known = tuple(mode for mode in MODES if isinstance(modes, list) and mode in modes)
        return Malformed(str(given.get("name") or f"scenario-{index}"), known or MODES, str(error))


def _scenario(entry: Any) -> Scenario:
    if not isinstance(entry, dict):
        raise FormatError("a scenario must be a mapping with a name and steps")
    _known(entry, _Outline.__struct_fields__, "field")
    outline = _convert(entry, _Outline)
    if not outline.steps:
        raise FormatError("the scenario has no steps")
    if not outline.modes:
        raise FormatError("the scenario has no mode")
    parsed = tuple(_step(number, step) for number, step in enumerate(outline.steps, start=1))
    return Scenario(outline.name, outline.about, tuple(dict.fromkeys(outline.modes)), outline.settings, parsed)


def _step(number: int, entry: dict[str, Any]) -> tuple[str, Step]:
    words = [key for key in entry if key != "by"]
    for word in words:
        if word not in _WORDS:
            raise FormatError(f"step {number}: unknown step {word!r}{_nearest(word, _WORDS)}")
    if len(words) != 1:
        raise FormatError(
            f"step {number}: a step must have one keyword, not {len(words)} ({', '.join(words) or 'none'})"
        )
    word = words[0]
    try:
        if word not in _BY_A_SUBSCRIBER:
            _known(entry, (word,), "field")
        return word, _WORDS[word](entry[word], _convert(entry.get("by", MAIN), str))
    except FormatError as error:
        raise FormatError(f"step {number} ({word}): {error}") from None


def _plain(shape: type[Step]) -> Callable[[Any, str], Step]:
    def read(body: Any, _by: str) -> Step:
        _known(body, shape.__struct_encode_fields__, "field")
        return _convert(body, shape)

    return read


def _condition(body: Any, _by: str) -> Step:
    if isinstance(body, dict) and isinstance(body.get("status"), bool):
        body = {**body, "status": str(body["status"])}  # YAML's true, without quotes
    _known(body, steps.Condition.__struct_encode_fields__, "field")
    return _convert(body, steps.Condition)


def _action(shape: type[steps.OnApi | steps.OnDaemon]) -> Callable[[Any, str], Step]:
    def read(body: Any, _by: str) -> Step:
        return _convert({"action": body}, shape)

    return read


def _expect(body: Any, by: str) -> Step:
    return steps.Expect(tuple(_expected(item) for item in _convert(body, list[dict[str, Any]])), by)


def _expected(item: dict[str, Any]) -> Expected:
    happenings: tuple[Happening, ...] = get_args(Happening)
    _known(item, (*happenings, "reason", "endpoint"), "field")
    named = [happening for happening in happenings if happening in item]
    if len(named) != 1:
        raise FormatError(f"{item} has neither ENGAGED nor DISENGAGED" if not named else f"{item} has both")
    if "reason" in item and named == ["ENGAGED"]:
        raise FormatError(f"{item} has a reason, which only DISENGAGED may have")
    given = {key: value for key, value in item.items() if key not in happenings}
    return _convert({"happening": named[0], "cluster": item[named[0]], **given}, Expected)


def _expect_updated(body: Any, by: str) -> Step:
    _known(body, ("name", "fields"), "field")
    given = _convert(body, dict[str, Any])
    wanted = given.get("fields", [])
    if not isinstance(wanted, dict):
        wanted = dict.fromkeys(_convert(wanted, list[str]), msgspec.UNSET)
    _known(wanted, _CLUSTER_FIELDS, "field of a cluster")
    return steps.ExpectUpdated(_name(given), wanted, by)


def _expect_no_updates(body: Any, by: str) -> Step:
    _known(body, ("name",), "field")
    return steps.ExpectNoUpdates(_name(_convert(body, dict[str, Any])), by)


def _expect_engaged(body: Any, _by: str) -> Step:
    if isinstance(body, dict):
        _known(body, ("count",), "field")
        return steps.ExpectEngaged(None, _convert(body.get("count"), int))
    names = _convert(body, list[str])
    return steps.ExpectEngaged(frozenset(names), len(names))


def _expect_source(body: Any, by: str) -> Step:
    return _convert({"state": body, "by": by}, steps.ExpectSource)


_WORDS: dict[str, Callable[[Any, str], Step]] = {
    "create": _plain(steps.Create),
    "condition": _condition,
    "label": _plain(steps.Label),
    "annotate": _plain(steps.Annotate),
    "delete": _plain(steps.Delete),
    "unfinalize": _plain(steps.Unfinalize),
    "replace": _plain(steps.Replace),
    "burst": _plain(steps.Burst),
    "api": _action(steps.OnApi),
    "daemon": _action(steps.OnDaemon),
    "subscribe": _plain(steps.Subscribe),
    "unsubscribe": _plain(steps.Unsubscribe),
    "reconnect": _plain(steps.Reconnect),
    "expect": _expect,
    "expect_updated": _expect_updated,
    "expect_no_updates": _expect_no_updates,
    "expect_engaged": _expect_engaged,
    "expect_source": _expect_source,
}
_BY_A_SUBSCRIBER = ("expect", "expect_updated", "expect_no_updates", "expect_source")


def _name(body: dict[str, Any]) -> str:
    if "name" not in body:
        raise FormatError("no cluster: the field `name` is missing")
    return _convert(body["name"], str)


def _known(body: Any, known: Collection[str], what: str) -> None:
    for key in _keys(body):
        if key not in known:
            raise FormatError(f"unknown {what} {key!r}{_nearest(key, known)}")


def _keys(body: Any) -> Iterator[str]:
    return iter(body) if isinstance(body, dict) else iter(())


def _nearest(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else f"; expected one of {', '.join(known)}"


def _convert(body: Any, shape: type[T]) -> T:
    try:
        return msgspec.convert(body, shape)
    except msgspec.ValidationError as error:
        raise FormatError(f"{error}: {body!r}") from error
