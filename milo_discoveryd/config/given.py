"""The settings as the user gives them, and their conversion: flat settings of a single source become a list item."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from msgspec.structs import replace

from milo_discoveryd.config.settings import Settings, named_once
from milo_discoveryd.config.sources import SourceParser, SourceSettings, kind_name
from milo_discoveryd.schema import values
from milo_discoveryd.schema.fields import InvalidError, ListOf, Nested, parse_group, selector_text
from milo_discoveryd.sources.declarative import DeclarativeKind
from milo_discoveryd.sources.kind import KINDS, SourceKind
from milo_discoveryd.sources.project_control_plane import ProjectControlPlaneKind
from milo_discoveryd.sources.single import SingleKind

SettingPath = tuple[str, ...]

_OF_ONE_SOURCE: tuple[SettingPath, ...] = (
    ("mode",),
    ("declarative",),
    ("discovery_kubeconfig",),
    ("project_kubeconfig",),
    ("label_selector",),
    ("internal_address_template",),
    ("internal_namespace_template",),
    ("cluster", "name"),
    ("cluster", "labels"),
    ("cluster", "organization"),
    ("watch", "credentials"),
)
"""The flat settings that configure a daemon's only source, which has no name."""


class GivenSettings(Settings, frozen=True, kw_only=True):
    mode: Annotated[str, kind_name] = "project"
    """Kind of the only source: `project`, `project-control-plane`, `single`, `declarative`, `kind`, or a kind of an
    installed package. Kinds with required settings, such as `service-consumer` and `kubeconfig-directory`, are
    configured in `sources`."""
    declarative: Annotated[DeclarativeKind | None, Nested(DeclarativeKind, is_leaf=True)] = None
    """The watched objects of mode `declarative`, and how their fields are read."""
    discovery_kubeconfig: Annotated[Path | None, values.file_path] = None
    """Kubeconfig of the API server where projects are watched. Default: the cluster that the daemon runs in."""
    project_kubeconfig: Annotated[Path | None, values.file_path] = None
    """Kubeconfig whose address, CA and identity are used for projects. Default: the cluster that the daemon runs in, or
    `discovery_kubeconfig` outside of a cluster."""
    label_selector: Annotated[str, selector_text] = ""
    """Label selector for projects, in the syntax of `kubectl -l`. ProjectControlPlanes of Milo have two labels, with
    the project's name and UID. Default: all."""
    internal_address_template: Annotated[str, values.address_template] = ProjectControlPlaneKind().address_template
    """Address of a project's API server in mode `project-control-plane`; variables: `{name}`, `{uid}`,
    `{namespace}`."""
    internal_namespace_template: Annotated[str, values.namespace_template] = (
        ProjectControlPlaneKind().namespace_template
    )
    """Value of `{namespace}` in `internal_address_template`. Some installations of Milo use `project-{uid}`."""
    cluster: SingleKind = SingleKind()
    sources: Annotated[tuple[SourceSettings, ...], ListOf(SourceParser(), split=values.items, check=named_once)] = ()
    """Sources of clusters, each with a kind and settings: see [sources](sources.md). Default: one of kind `mode`."""


def expand(
    given: GivenSettings, is_set: Mapping[SettingPath, object]
) -> tuple[Settings, list[tuple[SettingPath, str]]]:
    """Return the settings with all sources in one list, and the problems of the flat settings, each with its setting.

    `is_set` contains the paths of the settings that were given.
    """
    problems: list[tuple[SettingPath, str]] = []
    sources, token_review = given.sources, given.token_review
    if token_review.kubeconfig is None:
        token_review = replace(token_review, kubeconfig=given.discovery_kubeconfig)
    if sources:
        complaint = "has no effect together with the setting `sources`; set it in each item of `sources`"
        problems += [(path, complaint) for path in _OF_ONE_SOURCE if path in is_set]
    else:
        own, problems = _kind(given, is_set)
        sources = (
            SourceSettings(
                name="",
                kind=given.mode,
                settings=own,
                discovery_kubeconfig=given.discovery_kubeconfig,
                project_kubeconfig=given.project_kubeconfig,
                label_selector=given.label_selector,
                credentials=given.watch.credentials,
            ),
        )
    common = {name: getattr(given, name) for name in Settings.__struct_fields__}
    return Settings(**{**common, "sources": sources, "token_review": token_review}), problems


def _kind(
    given: GivenSettings, is_set: Mapping[SettingPath, object]
) -> tuple[SourceKind, list[tuple[SettingPath, str]]]:
    """Return the kind of the only source, from the flat settings."""
    if given.declarative is not None and given.mode != "declarative":
        return SourceKind(), [(("declarative",), "requires `mode: declarative`")]
    if given.declarative is None and given.mode == "declarative":
        return SourceKind(), [(("mode",), "requires the setting `declarative`, which describes the watched objects")]
    try:
        return _flat_kind(given), []
    except InvalidError as error:
        missing = "; ".join(f"{'.'.join(map(str, complaint.path))} {complaint.text}" for complaint in error.complaints)
        return SourceKind(), [(("mode",), f"requires settings that only an item of `sources` can have: {missing}")]
    except ValueError as error:
        templates = ("internal_address_template",), ("internal_namespace_template",)
        return SourceKind(), [(next(template for template in templates if template in is_set), str(error))]


def _flat_kind(given: GivenSettings) -> SourceKind:
    match given.mode:
        case "single":
            return given.cluster
        case "project-control-plane":
            return ProjectControlPlaneKind(
                address_template=given.internal_address_template, namespace_template=given.internal_namespace_template
            )
    return given.declarative or parse_group(KINDS.load(given.mode), {})
