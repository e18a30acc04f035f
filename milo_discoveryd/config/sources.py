"""Settings of sources of clusters: a name, a kind, and the settings of the kind."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

from milo_discoveryd.schema import values
from milo_discoveryd.schema.fields import Complaint, Group, InvalidError, Text, fields, parse_group, selector_text
from milo_discoveryd.sources.kind import KINDS, SourceKind
from milo_discoveryd.sources.project import ProjectKind


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

    name: Annotated[str, values.cluster_name] = ""
    """Name of the source, which each of several must have. The key of a cluster is `SOURCE#NAME`, and its name if the
    source has none."""
    kind: Annotated[str, kind_name] = "project"
    """Kind of the source: `project`, `project-control-plane`, `service-consumer`, `declarative`, `single`,
    `kubeconfig-directory`, `kind`, or a kind of an installed package."""
    settings: Annotated[SourceKind, _parsed_kind] = ProjectKind()
    """Settings of the source's kind. Default: the default settings of the kind."""
    discovery_kubeconfig: Annotated[Path | None, values.file_path] = None
    """Kubeconfig of the API server where projects are watched. Default: the cluster that the daemon runs in."""
    project_kubeconfig: Annotated[Path | None, values.file_path] = None
    """Kubeconfig whose address, CA and identity are used for projects. Default: the cluster that the daemon runs in, or
    `discovery_kubeconfig` outside of a cluster."""
    label_selector: Annotated[str, selector_text] = ""
    """Label selector for projects, in the syntax of `kubectl -l`. ProjectControlPlanes of Milo have two labels, with
    the project's name and UID. Default: all."""
    credentials: Annotated[str | None, Text(most=63)] = None
    """Name of the credential issuer in `kubeconfigs.issuers` that authenticates discovery. Default: the user of the
    discovery kubeconfig."""


SettingName = tuple[str, ...]
"""Where a setting is written: ("socket", "mode")."""
SettingPath = tuple[str | int, ...]
"""Where it is in the tree of settings, which is elsewhere if its name is an alias."""
ONLY_SOURCE: SettingPath = ("sources", 0)


class Alias(NamedTuple):
    """The name of a source's setting outside of `sources`, in a daemon with one source."""

    path: SettingPath
    meanings: Mapping[str, str] | None = None
    """The setting's values by those of the alias, if they differ."""


ALIASES: Mapping[SettingName, Alias] = {
    ("mode",): Alias((*ONLY_SOURCE, "kind")),
    ("internal_address_template",): Alias((*ONLY_SOURCE, "settings", "address_template")),
    **{(name,): Alias((*ONLY_SOURCE, name)) for name in fields(SourceSettings) if name not in {"name", "kind"}},
}

OPERATORS_GROUP: SettingName = ("discovery",)
_OF_OPERATORS = {
    "internalServiceDiscovery": Alias((*ONLY_SOURCE, "kind"), {"true": "project-control-plane", "false": "project"}),
    "discoveryKubeconfigPath": Alias((*ONLY_SOURCE, "discovery_kubeconfig")),
    "projectKubeconfigPath": Alias((*ONLY_SOURCE, "project_kubeconfig")),
}
FILE_ALIASES: Mapping[SettingName, Alias] = {
    **ALIASES,
    **{(*group, name): alias for group in ((), OPERATORS_GROUP) for name, alias in _OF_OPERATORS.items()},
}
"""With the names in the configuration files of existing Milo operators, at the top level or under `discovery`."""


class SourceParser:
    """Parses an item of `sources`. The kind of the item decides which `settings` it may have."""

    group = SourceSettings

    def __call__(self, value: object, /) -> SourceSettings:
        assert isinstance(value, Mapping)
        name = str(value.get("kind") or "project")
        try:
            kind = KINDS.load(name)
        except LookupError:
            return parse_group(
                SourceSettings, {**value, "settings": SourceKind()}
            )  # raises for the unknown kind and all other invalid values
        try:
            given = values.pairs(value.get("settings") or {})
            own = parse_group(kind, given, of=f" of kind {name}")
        except InvalidError as error:
            raise InvalidError(
                [complaint._replace(path=("settings", *complaint.path)) for complaint in error.complaints]
            ) from None
        except ValueError as error:
            raise InvalidError([Complaint(("settings",), None, str(error))]) from None
        return parse_group(SourceSettings, {**value, "settings": own})
