"""Loads settings from flags, environment and file, and reports all their problems together."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from milo_discoveryd.config import layers, values
from milo_discoveryd.config.fields import Complaint, InvalidError, parse_group
from milo_discoveryd.config.issuers import (
    MIN_TOKEN_TTL_S,
    IssuerSettings,
    KubeconfigFile,
    KubeconfigRequest,
    KubeconfigSecret,
    ProjectKubeconfig,
    TokenRequest,
)
from milo_discoveryd.config.layers import Given, Problem, SettingPath
from milo_discoveryd.config.settings import Settings
from milo_discoveryd.daemon_errors import ConfigError
from milo_discoveryd.modes import mode as modes


def load(flags: Mapping[str, object], environ: Mapping[str, str], file: Path | None) -> Settings:
    """Merge flags over environment over file over defaults. `file` defaults to MILO_DISCOVERYD_CONFIG."""
    file = named_file(environ, file)
    weakest_first = [layers.from_environment(environ), layers.from_flags(flags)]
    if file is not None:
        weakest_first.insert(0, layers.from_file(file))
    given: dict[SettingPath, Given] = {}
    for layer in weakest_first:
        given.update(layer.given)
    problems = [problem for layer in weakest_first for problem in layer.problems]

    settings: Settings | None = None
    try:
        settings = parse_group(Settings, _tree(given))
    except InvalidError as error:
        problems += [_explain(complaint, given) for complaint in error.complaints]
    if settings is not None:
        problems += _disagreements(settings, given)
    if settings is None or problems:
        raise ConfigError(problems)
    return settings


def named_file(environ: Mapping[str, str], file: Path | None) -> Path | None:
    """Return the path of the configuration file, if any."""
    named = environ.get(layers.FILE_VARIABLE)
    return Path(named) if file is None and named else file


def _tree(given: Mapping[SettingPath, Given]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, leaf in given.items():
        branch = tree
        for name in key[:-1]:
            branch = branch.setdefault(name, {})
        branch[key[-1]] = leaf.value
    return tree


def _explain(complaint: Complaint, given: Mapping[SettingPath, Given]) -> Problem:
    key = next(key for key in given if complaint.path[: len(key)] == key)
    value = complaint.value
    inside = complaint.path[len(key) :]
    place = given[key].place_of(inside)
    if key in _ITEMS and inside and not isinstance(item := values.words(given[key].value)[int(inside[0])], Mapping):
        return Problem(place, f"{layers.quoted(item)} {complaint.text}")
    if inside:
        shown = f"{layers.quoted(value)} " if isinstance(value, str) else ""
        return Problem(f"{place}{_field_path(inside)}", f"{shown}{complaint.text}")
    if key in _ITEMS:
        return Problem(place, complaint.text)
    shown = layers.quoted(value if isinstance(value, str | int) else given[key].value)
    return Problem(place, f"{shown} {complaint.text}")


def _field_path(steps: Iterable[str | int]) -> str:
    """Return the path of a value within a setting, such as `[0].who.uid`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)


_ITEMS = frozenset({("listen",), ("kubeconfigs", "issuers"), ("rights",), ("sources",)})
"""Settings that are lists of mappings."""


def _disagreements(settings: Settings, given: Mapping[SettingPath, Given]) -> list[Problem]:
    """Return the problems of settings that contradict each other."""
    return [
        *_one_address_for_all(settings, given),
        *_no_such_issuer(settings, given),
        *_too_short_for_tokens(settings, given),
        *_rules_about_nothing(settings, given),
        *_unreachable_hosts(settings, given),
        *_declaration(settings, given),
        *_files(settings, given),
        *_sources_and_mode(settings, given),
        *_kind_settings(settings, given),
        *_credentials_for_no_source(settings, given),
    ]


_OF_ONE_SOURCE: tuple[SettingPath, ...] = (
    ("mode",),
    ("declarative",),
    ("discovery_kubeconfig",),
    ("project_kubeconfig",),
    ("label_selector",),
    ("watch", "credentials"),
)


def _sources_and_mode(settings: Settings, given: Mapping[SettingPath, Given]) -> Iterator[Problem]:
    for key in _OF_ONE_SOURCE if settings.sources else ():
        if key in given:
            yield Problem(given[key].place, "has no effect together with sources; set it in the items of sources")


def _kind_settings(settings: Settings, given: Mapping[SettingPath, Given]) -> Iterator[Problem]:
    """Yield the problems of settings that belong to the kind of a source."""
    for position, (mode, own) in enumerate(_kinds(settings)):
        settings_type = modes.settings_type(mode)
        if settings_type is None:
            if own:
                place = given[("sources",)].place_of((position, "settings"))
                yield Problem(f"{place}[{position}].settings", f"kind {mode} has no settings")
            continue
        try:
            modes.parse_settings(settings_type, own)
        except ValueError as error:
            if settings.sources:
                place = given[("sources",)].place_of((position, "settings"))
                yield Problem(f"{place}[{position}].settings", str(error))
            else:
                complaint = (
                    f"{layers.quoted(mode)} needs settings: configure it as the kind of an item of sources: {error}"
                )
                yield Problem(given[("mode",)].place, complaint)


def _kinds(settings: Settings) -> list[tuple[str, dict[str, object]]]:
    return [(each.kind, each.settings) for each in settings.sources] or [(settings.mode, {})]


def _credentials_for_no_source(settings: Settings, given: Mapping[SettingPath, Given]) -> Iterator[Problem]:
    names = [each.name for each in settings.sources]
    for position, each in enumerate(settings.kubeconfigs.issuers):
        place = given[("kubeconfigs", "issuers")].place_of((position,))
        for name in each.sources:
            if name not in names:
                there_are = ", ".join(names) or "none"
                yield Problem(
                    place, f"{each.name}: {layers.quoted(name)} is not one of sources; configured: {there_are}"
                )
        if len(names) > 1 and not each.sources:
            yield Problem(place, f"{each.name}: set sources, because there are several sources")
        yield from _different_servers(settings, each, place)
        if len(each.sources) > 1 and isinstance(each, ProjectKubeconfig):
            yield Problem(place, f"{each.name}: a project-kubeconfig serves one source only; name one in sources")


def _different_servers(settings: Settings, of: IssuerSettings, place: str) -> Iterator[Problem]:
    """Yield a problem if it is ambiguous to which API server a credential issuer sends its requests."""
    served = [settings.by_source[name] for name in of.sources if name in settings.by_source]
    servers = {each.discovery_kubeconfig for each in served}
    if (
        isinstance(of, TokenRequest | KubeconfigSecret | KubeconfigRequest)
        and of.kubeconfig is None
        and len(servers) > 1
    ):
        yield Problem(place, f"{of.name}: the sources in sources differ in discovery_kubeconfig: set kubeconfig")
    resources = {each.declarative.definition().resource for each in served if each.declarative is not None}
    if isinstance(of, KubeconfigRequest) and len(resources) > 1:
        complaint = "the sources in sources watch different resources: use one credential issuer for each"
        yield Problem(place, f"{of.name}: {complaint}")


def _unreachable_hosts(settings: Settings, given: Mapping[SettingPath, Given]) -> Iterator[Problem]:
    if settings.connectivity.per == "host" and settings.connectivity.disengage_unreachable_after is not None:
        complaint = '"host" does not probe each cluster, which disengage_unreachable_after requires: use "cluster"'
        yield Problem(given[("connectivity", "per")].place, complaint)


def _declaration(settings: Settings, given: Mapping[SettingPath, Given]) -> Iterator[Problem]:
    for position, (name, of) in enumerate(settings.by_source.items()):
        place = given[("sources",)].place_of((position,)) if settings.sources else ""
        yield from _declaration_of(of, _serving(settings, name), given, place)


def _serving(settings: Settings, name: str) -> list[IssuerSettings]:
    """Return the credential issuers that serve the clusters of a source."""
    several = len(settings.by_source) > 1
    return [each for each in settings.kubeconfigs.issuers if not several or name in each.sources]


def _declaration_of(
    settings: Settings, issuers: list[IssuerSettings], given: Mapping[SettingPath, Given], place: str
) -> Iterator[Problem]:
    """Yield the problems of one source's declaration. `issuers` are the credential issuers of its clusters; `place` is
    the source's place in `sources`, if it is there."""
    declared = settings.declarative
    in_list, kind = (f"{settings.sources[0].name}: ", "kind") if settings.sources else ("", "mode")
    if declared is None:
        if settings.mode == "declarative":
            complaint = f"{in_list}needs the setting declarative, which describes the watched objects"
            yield Problem(place or given[("mode",)].place, complaint)
        for issuer in issuers:
            if isinstance(issuer, KubeconfigRequest):
                yield Problem(given[("kubeconfigs", "issuers")].place, f"{issuer.name} needs {kind}: declarative")
        return
    for issuer in issuers:
        named = (issuer.secret, issuer.namespace_template) if isinstance(issuer, KubeconfigSecret) else ()
        if declared.secret is None and any("{secret" in each for each in named):
            complaint = f"{issuer.name}: {{secret}} and {{secret_namespace}} need declarative.secret"
            yield Problem(given[("kubeconfigs", "issuers")].place, complaint)
    if settings.mode != "declarative":
        yield Problem(place or given[("declarative",)].place, f"{in_list}needs {kind}: declarative")
    elif not declared.endpoint.has_fixed_host:
        for issuer in issuers:
            if issuer.hand_out and not isinstance(issuer, KubeconfigSecret | KubeconfigRequest):
                yield Problem(
                    place or given[("declarative",)].place_of(("endpoint",)),
                    f"{in_list}endpoint: objects decide where the credential of {issuer.name} is sent, which other "
                    "clusters accept too: name the hosts that may receive it in endpoint.hosts",
                )


def _files(settings: Settings, given: Mapping[SettingPath, Given]) -> Iterator[Problem]:
    """Yield the problems of sources that read files: these have no API server, labels or namespaces."""
    for position, (name, of) in enumerate(settings.by_source.items()):
        in_list = f"{of.sources[0].name}: " if of.sources else ""
        place = given[("sources",)].place_of((position,)) if of.sources else ""
        is_of_files = modes.reads_files(of.mode)
        for setting, is_set in (
            ("discovery_kubeconfig", of.discovery_kubeconfig is not None),
            ("project_kubeconfig", of.project_kubeconfig is not None),
            ("label_selector", of.label_selector != ""),
            ("watch.credentials", of.watch.credentials is not None),
        ):
            if is_of_files and is_set:
                yield Problem(
                    place, f"{in_list}{setting}: kind {of.mode} reads files, and has no API server: remove it"
                )
        for issuer in _serving(settings, name):
            if is_of_files and issuer.hand_out and not isinstance(issuer, KubeconfigFile):
                yield Problem(
                    place or given[("mode",)].place,
                    f"{in_list}files decide where the credential of {issuer.name} is sent: use a credential issuer of "
                    "type kubeconfig-file",
                )
            elif not is_of_files and isinstance(issuer, KubeconfigFile):
                complaint = f"{issuer.name} reads the files of kinds such as kubeconfig-directory; {of.mode} has none"
                item = settings.kubeconfigs.issuers.index(issuer)
                yield Problem(given[("kubeconfigs", "issuers")].place_of((item,)), complaint)


def _rules_about_nothing(settings: Settings, given: Mapping[SettingPath, Given]) -> Iterator[Problem]:
    listeners = [each.title for each in settings.listen]
    issuers = [each.name for each in settings.kubeconfigs.issuers if each.hand_out]
    for number, rule in enumerate(settings.rights):
        for setting, named, there_are, what in (
            ("who.listener", rule.who.listener, listeners, "the name of one of listen"),
            ("issuers", rule.issuers, issuers, "the name of one of kubeconfigs.issuers without hand_out: false"),
        ):
            for name in named:
                if name not in there_are:
                    complaint = f"{layers.quoted(name)} is not {what}; configured: {', '.join(there_are) or 'none'}"
                    yield Problem(f"{given[('rights',)].place}[{number}].{setting}", complaint)


def _too_short_for_tokens(settings: Settings, given: Mapping[SettingPath, Given]) -> Iterator[Problem]:
    for issuer in settings.kubeconfigs.issuers:
        if not isinstance(issuer, TokenRequest | KubeconfigRequest) or not issuer.hand_out:
            continue
        name = issuer.name
        complaint = f"is shorter than {MIN_TOKEN_TTL_S} s, the shortest that {name} ({issuer.type}) can mint"
        if settings.kubeconfigs.max_ttl.total_seconds() < MIN_TOKEN_TTL_S:
            yield Problem(given[("kubeconfigs", "max_ttl")].place, f"kubeconfigs.max_ttl {complaint}")
        for number, rule in enumerate(settings.rights):
            is_allowed = rule.kubeconfigs and (not rule.issuers or name in rule.issuers)
            if is_allowed and rule.max_ttl is not None and rule.max_ttl.total_seconds() < MIN_TOKEN_TTL_S:
                yield Problem(f"{given[('rights',)].place}[{number}].max_ttl", complaint)


def _no_such_issuer(settings: Settings, given: Mapping[SettingPath, Given]) -> Iterator[Problem]:
    names = [each.name for each in settings.kubeconfigs.issuers]
    there_are = ", ".join(names) or "none"
    for of in settings.by_source.values():
        wanted = of.watch.credentials
        if wanted is not None and wanted not in names:
            complaint = (
                f"{layers.quoted(wanted)} is not the name of one of kubeconfigs.issuers; configured: {there_are}"
            )
            key = ("sources",) if settings.sources else ("watch", "credentials")
            yield Problem(given[key].place, complaint)


def _one_address_for_all(settings: Settings, given: Mapping[SettingPath, Given]) -> list[Problem]:
    address = settings.internal_address_template.replace("{namespace}", settings.internal_namespace_template)
    if "{name}" in address or "{uid}" in address:
        return []
    stated = [key for key in (("internal_address_template",), ("internal_namespace_template",)) if key in given]
    where = given[stated[0]]
    complaint = f"{layers.quoted(where.value)} gives all projects the same address: use {{name}} or {{uid}}"
    return [Problem(where.place, complaint)]
