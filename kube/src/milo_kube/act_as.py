"""User impersonation, as fields of a kubeconfig and as request headers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

FIELDS: Final = frozenset({"as", "as-groups", "as-user-extra"})
"""The impersonation fields of a kubeconfig's user, without `as-uid`, which the daemon does not issue."""

STATEMENT_VARIABLE: Final = "MILO_DISCOVERY_ACT_AS"
"""The environment variable in which a kubeconfig's exec entry repeats the impersonated user for the plugin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActAs:
    """The user impersonated by requests, which then have only that user's rights."""

    user: str
    groups: tuple[str, ...] = ()
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Pairs of a key and its values."""

    def fields(self) -> dict[str, Any]:
        """Return the impersonation fields of a kubeconfig's user."""
        found: dict[str, Any] = {"as": self.user}
        if self.groups:
            found["as-groups"] = [*self.groups]
        if self.extra:
            found["as-user-extra"] = {key: [*values] for key, values in self.extra}
        return found

    def statement(self) -> str:
        """Return the fields as JSON, the value of STATEMENT_VARIABLE in a kubeconfig's exec entry."""
        return json.dumps(self.fields(), separators=(",", ":"), sort_keys=True)

    def headers(self) -> list[tuple[str, str]]:
        """Return the impersonation headers of a request; a header with several values is repeated for each value."""
        return [
            ("Impersonate-User", self.user),
            *(("Impersonate-Group", group) for group in self.groups),
            *((f"Impersonate-Extra-{quote(key, safe='')}", value) for key, values in self.extra for value in values),
        ]


def read(user: Mapping[str, Any]) -> ActAs | None:
    """Return the user that a kubeconfig's user impersonates, or None. Raises ValueError, whose message quotes no
    value."""
    name, groups, extra = user.get("as"), user.get("as-groups") or [], user.get("as-user-extra") or {}
    if not name:
        if groups or extra:
            raise ValueError("has 'as-groups' or 'as-user-extra' without 'as'")
        return None
    if not _is_text(name) or not _are_texts(groups):
        raise ValueError("has a value of 'as' or 'as-groups' that is not printable ASCII text")
    if not isinstance(extra, Mapping) or not all(_is_text(key) and _are_texts(extra[key]) for key in extra):
        raise ValueError("has an 'as-user-extra' that is not a mapping to lists of printable ASCII text")
    pairs = tuple((key, tuple(values)) for key, values in extra.items())
    return ActAs(user=name, groups=tuple(groups), extra=pairs)


def _are_texts(values: object) -> bool:
    return isinstance(values, list) and all(map(_is_text, values))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != "" and value.isascii() and value.isprintable()
