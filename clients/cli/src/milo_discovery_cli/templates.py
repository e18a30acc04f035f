"""The templates of `-o jsonpath=TEMPLATE` and `-o custom-columns=HEADER:.PATH,...`, filled from a JSON document."""

from __future__ import annotations

import re
from typing import Any

import click

from milo_discovery_cli import jsonpath

_BRACED = re.compile(r"^\{([^{}]+)\}$")
"""A path as in kubectl's templates: `NAME:{.metadata.name}`."""


def render(template: str, document: Any) -> str:
    """Return the text of a template as a line, without a newline at its end: templates for kubectl contain one."""
    try:
        return jsonpath.render(template, document).removesuffix("\n")
    except jsonpath.PathError as error:
        raise click.UsageError(str(error)) from error


def find(path: str, document: Any) -> list[Any]:
    try:
        return jsonpath.find(path, document)
    except jsonpath.PathError as error:
        raise click.UsageError(str(error)) from error


class Columns:
    """The columns of a specification HEADER:.PATH,..."""

    def __init__(self, specification: str) -> None:
        pairs = [column.partition(":") for column in specification.split(",")]
        if any(not header or not path for header, _, path in pairs):
            raise click.UsageError(f"custom-columns={specification}: each column must be HEADER:.PATH")
        self.headers = tuple(header for header, _, _ in pairs)
        self._paths = tuple(_BRACED.sub(r"\1", path) for _, _, path in pairs)

    def row(self, item: Any) -> tuple[str, ...]:
        return tuple(",".join(map(jsonpath.text, find(path, item))) or "<none>" for path in self._paths)


def check(kind: str, template: str) -> None:
    """Raise a usage error for a template that cannot be parsed."""
    if kind == "custom-columns":
        Columns(template).row({})
    else:
        render(template, {})
