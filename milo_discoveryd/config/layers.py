"""Layers of settings: flags, environment variables and the configuration file.

A layer maps the path of a setting, such as ("socket", "mode"), to its value and to the place where it was given. Error
messages state this place. Layers merge like dictionaries: a later one overrides an earlier one. The settings of an only
source have the path that they have in `sources`, whatever name they were given by.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from milo_discoveryd.config.listeners import ListenerSettings
from milo_discoveryd.config.settings import Settings
from milo_discoveryd.config.sources import ALIASES, FILE_ALIASES, OPERATORS_GROUP, Alias, SettingName, SettingPath
from milo_discoveryd.schema.fields import Group, fields, nearest
from milo_kube import yaml_document

ENVIRONMENT_PREFIX = "MILO_DISCOVERYD_"
CLIENTS_PREFIX = "MILO_DISCOVERY_"
FILE_VARIABLE = "MILO_DISCOVERYD_CONFIG"

# Kubernetes sets these variables for a Service named milo-discoveryd; they are not settings.
_SERVICE_LINK = re.compile(r"(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")


class Problem(msgspec.Struct, frozen=True):
    place: str
    complaint: str

    def __str__(self) -> str:
        return f"{self.place}: {self.complaint}"


class Given(msgspec.Struct, frozen=True):
    value: object
    place: str
    locate: Callable[[tuple[str | int, ...]], str] | None = None
    """Returns the location of a nested value in the file."""

    def place_of(self, inside: tuple[str | int, ...]) -> str:
        return self.place if self.locate is None else self.locate(inside)


class Layer(msgspec.Struct, frozen=True):
    given: Mapping[SettingPath, Given]
    problems: tuple[Problem, ...] = ()


def _walk(group: type[Group], around: SettingName = ()) -> Iterator[tuple[SettingName, bool]]:
    """Yield the path of every setting and group, and whether it is a group."""
    for name, field in fields(group).items():
        if field.is_group:
            yield (*around, name), True
            yield from _walk(field.type, (*around, name))
        else:
            yield (*around, name), False


_TREE = dict(_walk(Settings))
GROUPS = frozenset({OPERATORS_GROUP, *(key for key, is_group in _TREE.items() if is_group)})
LEAVES = (*(key for key, is_group in _TREE.items() if not is_group), *ALIASES)
_IN_FILES = (*LEAVES, *FILE_ALIASES)


def dotted(key: SettingPath) -> str:
    return ".".join(map(str, key))


def flag_of(key: SettingName) -> str:
    return "--" + "-".join(key).replace("_", "-")


def variable_of(key: SettingName) -> str:
    return ENVIRONMENT_PREFIX + "__".join(key).upper()


def _path(key: SettingName) -> SettingPath:
    """Return the path in the tree of settings."""
    return FILE_ALIASES.get(key, Alias(key)).path


def from_flags(flags: Mapping[str, object]) -> Layer:
    """Return the layer of flags, keyed by setting ("mode", "log.level").

    Empty flags count as not given, because manifests may set a flag from an environment variable that is empty.
    """
    known = {dotted(key): key for key in LEAVES}
    return Layer(
        {
            _path(known[name]): Given(value, f"flag {flag_of(known[name])}")
            for name, value in flags.items()
            if value not in (None, "", (), [], ("",))
        }
    )


def from_environment(environ: Mapping[str, str]) -> Layer:
    known = {variable_of(key): key for key in LEAVES}
    given: dict[SettingPath, Given] = {}
    problems: list[Problem] = []
    for name in sorted(environ):
        key = known.get(name)
        if key is not None:
            if environ[name]:  # manifests leave unset variables empty
                given[_path(key)] = Given(environ[name], f"environment {name}")
        elif name.startswith(ENVIRONMENT_PREFIX) and not _is_reserved(name):
            problems.append(Problem(f"environment {name}", f"is not a setting{nearest(name, known)}"))
        elif name.startswith(CLIENTS_PREFIX) and environ[name] and (own := _own(name)) in known:
            problems.append(Problem(f"environment {name}", f"is not a variable of the daemon: use {own}"))
    return Layer(given, tuple(problems))


def _own(name: str) -> str:
    """Return the name of a client's variable, with its prefix replaced by that of the daemon's variables."""
    return ENVIRONMENT_PREFIX + name.removeprefix(CLIENTS_PREFIX)


def _is_reserved(name: str) -> bool:
    return name == FILE_VARIABLE or _SERVICE_LINK.fullmatch(name.removeprefix(ENVIRONMENT_PREFIX)) is not None


def from_file(path: Path) -> Layer:
    try:
        with path.open("rb") as stream:
            content = stream.read(yaml_document.MAX_BYTES + 1)
        document = yaml_document.read(content, scalars="text")
    except OSError as error:
        return Layer({}, (Problem(f"file {path}", f"cannot be read: {error.strerror or error}"),))
    except yaml_document.DocumentError as error:
        line = f" line {error.line}" if error.line else ""
        return Layer({}, (Problem(f"file {path}{line}", error.message),))
    reader = _FileReader(path, document)
    reader.read()
    return Layer(reader.given, tuple(reader.problems))


class _FileReader:
    def __init__(self, path: Path, document: yaml_document.Document) -> None:
        self._path = path
        self._document = document
        self.given: dict[SettingPath, Given] = {}
        self.problems: list[Problem] = []

    def read(self) -> None:
        root = self._document.value
        if root is None:
            return
        if not isinstance(root, dict):
            self.problems.append(Problem(f"file {self._path}", "must be a mapping of settings to values"))
            return
        self._group(root, ())

    def _group(self, mapping: Mapping[str, object], around: SettingName) -> None:
        for name, value in mapping.items():
            key = (*around, name)
            if key in GROUPS:
                self._inside(value, key)
            elif key in _IN_FILES:
                self._leaf(key, value)
            else:
                self._unknown(name, key)

    def _inside(self, value: object, key: SettingName) -> None:
        if isinstance(value, dict):
            self._group(value, key)
        elif value is not None:
            self.problems.append(Problem(self._place(key), "must be a mapping of settings to values"))

    def _leaf(self, key: SettingName, value: object) -> None:
        if value is None:
            return  # `key:` without a value
        path, meanings = FILE_ALIASES.get(key, Alias(key))
        place = self._place(key)
        if meanings is not None and (value := meanings.get(said := str(value).lower())) is None:
            self.problems.append(Problem(place, f"{quoted(said)} must be {' or '.join(meanings)}"))
        elif path in self.given:
            self.problems.append(Problem(place, f"sets the same setting as {self.given[path].place}; remove one"))
        else:
            self.given[path] = Given(value, place, lambda inside: self._place(key, inside))

    def _unknown(self, name: str, key: SettingName) -> None:
        around = key[:-1]
        known = [other[-1] for other in (*_IN_FILES, *GROUPS) if other[:-1] == around]
        if "." in name:  # messages and the documentation write nested settings like this
            self.problems.append(Problem(self._place(key), f"is not a setting{_nested(name)}"))
            return
        if not around and name in fields(ListenerSettings):
            complaint = f"belongs to a listener: write listen: [{{address: ADDRESS, {name}: ...}}]"
            self.problems.append(Problem(self._place(key), complaint))
            return
        self.problems.append(Problem(self._place(key), f"is not a setting{nearest(name, known, around)}"))

    def _place(self, key: SettingName, inside: tuple[str | int, ...] = ()) -> str:
        return f"file {self._path} line {self._document.line((*key, *inside))} key {dotted(key)}"


def quoted(value: object) -> str:
    text = str(value)
    return f'"{text}"' if len(text) <= 80 else f'"{text[:77]}..."'


def _nested(name: str) -> str:
    """Return a suggestion for a dotted name, which a file must write as nested mappings."""
    if (key := tuple(name.split("."))) in LEAVES:
        return f": write {': {'.join(key)}: VALUE{'}' * (len(key) - 1)}"
    return nearest(name, [dotted(key) for key in LEAVES])
