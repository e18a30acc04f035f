"""Settings of sources of clusters: a name, a kind, and the settings of the kind."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from milo_discoveryd.schema import values
from milo_discoveryd.schema.fields import Complaint, Group, InvalidError, Text, parse_group, selector_text
from milo_discoveryd.sources.kind import KINDS, SourceKind


def kind_name(value: object) -> str:
    try:
        KINDS.load(str(value))
    except LookupError as error:
        raise ValueError(str(error)) from None
    return str(value)


def _parsed_kind(value: object) -> SourceKind:
    assert isinstance(value, SourceKind), f"a {type(value).__name__} that SourceParser did not parse"
    return value


class SourceSettings(Group, frozen=True, kw_only=True):
    """A source of clusters."""

    name: Annotated[str, values.cluster_name]
    """Name of the source. A cluster's key is `SOURCE#NAME`."""
    kind: Annotated[str, kind_name]
    """Kind of the source: a built-in kind, or a kind of an installed package."""
    settings: Annotated[SourceKind, _parsed_kind]
    """Settings of the source's kind. Default: the default settings of the kind."""
    discovery_kubeconfig: Annotated[Path | None, values.file_path] = None
    """Like the top-level setting `discovery_kubeconfig`, for this source."""
    project_kubeconfig: Annotated[Path | None, values.file_path] = None
    """Like the top-level setting `project_kubeconfig`, for this source."""
    label_selector: Annotated[str, selector_text] = ""
    """Like the top-level setting `label_selector`, for this source."""
    credentials: Annotated[str | None, Text(most=63)] = None
    """Like the setting `watch.credentials`, for this source."""


class SourceParser:
    """Parses an item of `sources`. The kind of the item decides which `settings` it may have."""

    group = SourceSettings

    def __call__(self, value: object, /) -> SourceSettings:
        assert isinstance(value, Mapping)
        try:
            kind = KINDS.load(str(value.get("kind")))
        except LookupError:
            return parse_group(
                SourceSettings, {**value, "settings": SourceKind()}
            )  # raises for the unknown kind and all other invalid values
        given = value.get("settings")
        if not isinstance(given, Mapping | None):
            raise InvalidError([Complaint(("settings",), given, "must be a mapping of settings to values")])
        try:
            own = parse_group(kind, given or {})
        except InvalidError as error:
            raise InvalidError(
                [complaint._replace(path=("settings", *complaint.path)) for complaint in error.complaints]
            ) from None
        except ValueError as error:
            raise InvalidError([Complaint(("settings",), None, str(error))]) from None
        return parse_group(SourceSettings, {**value, "settings": own})
