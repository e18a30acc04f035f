"""Paths to fields of Kubernetes objects, and templates that contain such paths. Pure.

A path begins at `metadata`, `spec`, `status`, `data` or `stringData`, which is the decoded data of a Secret. `.name` is
a field, `[key]` is a key of any characters or a position in a list, and `[field=value]` is the first element of a list
in which the field has this value: `status.addresses[type=URL].value`. A step into a string parses it as JSON:
`stringData[config].bearerToken`.
"""

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import msgspec

from milo_discoveryd.sources.reading import MalformedError
from milo_kube.reflect.wire import has_more_containers

ROOTS = ("metadata", "spec", "status", "data", "stringData")
METADATA = ("name", "namespace", "uid", "labels", "annotations")
_STEP = re.compile(r"\.(?P<field>[A-Za-z_][A-Za-z0-9_-]*)|\[(?P<key>[^\[\]]+)\]")
_ROOT = re.compile(r"[A-Za-z]+")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_MAX_TEXT = 2048
_MAX_JSON = 1 << 20
_MOST_ELEMENTS = 10_000
"""Maximum number of elements of a list that are compared with a value: each takes most of a microsecond."""
_MOST_CONTAINERS = 20_000
"""Maximum number of lists and maps in a string of JSON: each takes some 64 bytes, of two or three in the string."""


class Key(msgspec.Struct, frozen=True):
    """A field or key of a mapping, or a position in a list."""

    name: str

    def value_in(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return value.get(self.name)
        if isinstance(value, list) and self.name.isdecimal():
            position = int(self.name[:9])
            return value[position] if position < len(value) else None
        return None


class Element(msgspec.Struct, frozen=True):
    """The first element of a list in which the field has this value, among the first 10,000."""

    field: str
    value: str

    def value_in(self, value: Any) -> Any:
        if not isinstance(value, list):
            return None
        return next(
            (
                element
                for element in islice(value, _MOST_ELEMENTS)
                if isinstance(element, dict) and text(element.get(self.field)) == self.value
            ),
            None,
        )


class FieldPath(msgspec.Struct, frozen=True):
    """A path to a field."""

    source: str
    """The text of the path, as written."""
    steps: tuple[Key | Element, ...]

    @classmethod
    def parse(cls, source: str) -> "FieldPath":
        """Parse the text. Raises ValueError, which says what would be valid."""
        root = _ROOT.match(source)
        if root is None or root[0] not in ROOTS:
            raise ValueError(f"{source!r} is not the path of a field: it must begin with one of {', '.join(ROOTS)}")
        steps: list[Key | Element] = [Key(root[0])]
        position = root.end()
        while position < len(source):
            step = _STEP.match(source, position)
            if step is None:
                raise ValueError(
                    f"{source!r} is not the path of a field from {source[position:][:40]!r} on: use .field, [key] or "
                    "[field=value]"
                )
            field, separator, value = (step["key"] or "").partition("=")
            if separator:
                steps.append(Element(field, value))
            else:
                steps.append(Key(step["field"] or step["key"]))
            position = step.end()
        _require_known_metadata(source, steps)
        return cls(source, tuple(steps))

    def find(self, document: Mapping[str, Any]) -> Any:
        """Return the value, or None if the object does not have the field."""
        value: Any = document
        for step in self.steps:
            value = step.value_in(_opened(value))
        return value


class DecodedData(Mapping[str, str]):
    """The data of a Secret, decoded when it is read."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = data

    def __getitem__(self, key: str) -> str:
        try:
            return base64.b64decode(self._data[key], validate=True).decode()
        except (TypeError, ValueError, binascii.Error):
            raise MalformedError(f"the value of key {key!r} in the Secret is not base64-encoded text") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)


class Template(msgspec.Struct, frozen=True):
    """Text with paths in braces: `https://{spec.host}:{spec.port}`."""

    source: str
    literals: tuple[str, ...]
    """The literal texts around the paths: one more item than `paths`."""
    paths: tuple[FieldPath, ...]

    def __str__(self) -> str:
        return self.source

    @classmethod
    def parse(cls, source: str) -> "Template":
        """Parse the text. Raises ValueError, which says what would be valid."""
        *parts, last = _PLACEHOLDER.split(source)
        literals = (*parts[::2], last)
        if any("{" in literal or "}" in literal for literal in literals):
            raise ValueError(f"{source!r} has an unbalanced brace: use {{path.of.a.field}}")
        return cls(source, literals, tuple(FieldPath.parse(part) for part in parts[1::2]))

    def fill(self, document: Mapping[str, Any], check: Callable[[str, str], str]) -> str:
        """Return the filled template. `check` receives each value and its path, and returns the value to insert. Raises
        MalformedError if a field is missing."""
        filled = [self.literals[0]]
        for path, literal in zip(self.paths, self.literals[1:], strict=True):
            value = text(path.find(document))
            if not value:
                raise MalformedError(
                    f"the field {path.source} is not set to a nonempty string, an integer or a Boolean"
                )
            filled += (check(value, path.source), literal)
        return "".join(filled)


def _opened(value: Any) -> Any:
    """Return the parsed value of a JSON string, None for any other or a very large one, and any other value
    unchanged."""
    if not isinstance(value, str):
        return value
    if len(value) > _MAX_JSON or has_more_containers(value.encode(errors="replace"), _MOST_CONTAINERS):
        return None
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return None


def text(value: Any) -> str:
    """Return a string, an integer or a Boolean (`true`, `false`) as text, truncated if it is too long. Return an empty
    string for anything else."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int):
        return str(value)[:_MAX_TEXT]
    return ""


def _require_known_metadata(source: str, steps: list[Key | Element]) -> None:
    if steps[0] != Key("metadata"):
        return
    if len(steps) == 1 or not isinstance(steps[1], Key) or steps[1].name not in METADATA:
        raise ValueError(f"{source!r}: of the metadata only {', '.join(METADATA)} can be used")
