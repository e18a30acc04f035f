"""Loads settings from flags, environment and file, and reports all problems at once."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from milo_discoveryd.config import layers, rule_problems
from milo_discoveryd.config.layers import Given, Problem
from milo_discoveryd.config.settings import Settings
from milo_discoveryd.config.sources import ONLY_SOURCE, SettingPath
from milo_discoveryd.credentials.issuers.settings import IssuerSettings, RequestingIssuerSettings
from milo_discoveryd.daemon_errors import ConfigError
from milo_discoveryd.schema import values
from milo_discoveryd.schema.fields import Complaint, InvalidError, parse_group
from milo_discoveryd.sources.kind import ProjectServer


def load(flags: Mapping[str, object], environ: Mapping[str, str], file: Path | None) -> Settings:
    """Merge the settings: flags override the environment, which overrides the file, which overrides the defaults.

    Without `file`, the environment variable MILO_DISCOVERYD_CONFIG may name the file.
    """
    file = named_file(environ, file)
    weakest_first = [layers.from_environment(environ), layers.from_flags(flags)]
    if file is not None:
        weakest_first.insert(0, layers.from_file(file))
    given: dict[SettingPath, Given] = {}
    for layer in weakest_first:
        given.update(layer.given)
    problems = [problem for layer in weakest_first for problem in layer.problems]
    for key, whole in _parts(given).items():
        problems.append(Problem(given.pop(key).place, f"has no effect together with {whole.place}; set it there"))

    settings: Settings | None = None
    try:
        settings = parse_group(Settings, _tree(given))
        if not settings.sources[0].name and settings.token_review.kubeconfig is None:
            watched = settings.sources[0].discovery_kubeconfig
            settings = replace(settings, token_review=replace(settings.token_review, kubeconfig=watched))
        problems += _disagreements(settings, given)
    except InvalidError as error:
        problems += [_explain(complaint, given) for complaint in error.complaints]
    if settings is None or problems:
        raise ConfigError(problems)
    return settings


def named_file(environ: Mapping[str, str], file: Path | None) -> Path | None:
    """Return the path of the configuration file, if any."""
    named = environ.get(layers.FILE_VARIABLE)
    return Path(named) if file is None and named else file


def _parts(given: Mapping[SettingPath, Given]) -> dict[SettingPath, Given]:
    """Return the settings that are part of another one, which is given as a whole: `mode` is part of `sources`."""
    wholes = ((key, key[:length]) for key in given for length in range(1, len(key)))
    return {key: given[whole] for key, whole in wholes if whole in given}


def _tree(given: Mapping[SettingPath, Given]) -> dict[str, Any]:
    tree: dict[Any, Any] = {}
    for key, leaf in given.items():
        branch = tree
        for name in key[:-1]:
            branch = branch.setdefault(name, {})
        branch[key[-1]] = leaf.value
    if any(key[:2] == ONLY_SOURCE for key in given):
        tree["sources"] = list(tree["sources"].values())
    return tree


_KIND: SettingPath = (*ONLY_SOURCE, "kind")


def _explain(complaint: Complaint, given: Mapping[SettingPath, Given]) -> Problem:
    path, value = complaint.path, complaint.value
    # If the setting was not given, the kind of the only source requires it.
    key = next((key for key in given if path[: len(key)] == key or key[: len(path)] == path), _KIND)
    inside = path[len(key) :]
    if key == _KIND and inside:
        required = f"{layers.quoted(given[key].value)} requires `settings`: {layers.dotted(inside)} {complaint.text}"
        return Problem(given[key].place, required)
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


def _disagreements(settings: Settings, given: Mapping[SettingPath, Given]) -> Iterator[Problem]:
    """Yield the problems of settings that contradict each other."""
    yield from _issuers_that_do_not_exist(settings, given)
    yield from _too_short_for_tokens(settings, given)
    yield from _of_rules(settings, given)
    if settings.connectivity.per == "host" and settings.connectivity.disengage_unreachable_after is not None:
        complaint = (
            '"host" does not probe each cluster, which `disengage_unreachable_after` requires: use "cluster", or '
            "remove the setting `disengage_unreachable_after`"
        )
        yield Problem(given[("connectivity", "per")].place, complaint)
    yield from _settings_without_an_api_server(settings, given)
    for position, issuer in enumerate(settings.kubeconfigs.issuers):
        place = given[("kubeconfigs", "issuers")].place_of((position,))
        yield from (Problem(place, f"{issuer.name}: {problem}") for problem in _issuer_problems(settings, issuer))


def _place(settings: Settings, position: int, given: Mapping[SettingPath, Given]) -> tuple[str, str]:
    """Return where a source is configured, and the prefix of the messages about it."""
    if name := settings.sources[position].name:
        return given[("sources",)].place_of((position,)), f"{name}: "
    return next((given[key].place for key in (_KIND, ("sources",)) if key in given), "settings"), ""


def _settings_without_an_api_server(settings: Settings, given: Mapping[SettingPath, Given]) -> Iterator[Problem]:
    for position, source in enumerate(settings.sources):
        if source.settings.project_server is not ProjectServer.NONE:
            continue
        place, of = _place(settings, position, given)
        for name in ("discovery_kubeconfig", "project_kubeconfig", "label_selector", "credentials"):
            if getattr(source, name):
                complaint = (
                    f"{of}{name} does not apply to sources of kind {source.kind}, which have no API server: remove "
                    "this setting"
                )
                yield Problem(place, complaint)


def _issuers_that_do_not_exist(settings: Settings, given: Mapping[SettingPath, Given]) -> Iterator[Problem]:
    names = [issuer.name for issuer in settings.kubeconfigs.issuers]
    for position, source in enumerate(settings.sources):
        wanted = source.credentials
        if wanted is not None and wanted not in names:
            complaint = (
                f"{layers.quoted(wanted)} is not the name of an item of kubeconfigs.issuers; configured: "
                f"{', '.join(names) or 'none'}"
            )
            key = (*ONLY_SOURCE, "credentials")
            yield Problem(given[key].place if key in given else _place(settings, position, given)[0], complaint)


def _issuer_problems(settings: Settings, issuer: IssuerSettings) -> Iterator[str]:
    """Yield the reasons why an issuer cannot serve the clusters of its sources."""
    names = [source.name for source in settings.sources if source.name]
    for name in issuer.sources:
        if name not in names:
            yield f"{layers.quoted(name)} is not the name of a source; configured: {', '.join(names) or 'none'}"
    if len(names) > 1 and not issuer.sources:
        yield "set the issuer's `sources`, because several sources are configured"
        return
    served = [source for source in settings.sources if not issuer.sources or source.name in issuer.sources]
    if len(served) > 1:
        if not issuer.serves_several_sources:
            yield f"an issuer of type {issuer.type} serves only one source: name this source in `sources`"
        differ = len({source.discovery_kubeconfig for source in served}) > 1
        if isinstance(issuer, RequestingIssuerSettings) and issuer.kubeconfig is None and differ:
            yield "its sources differ in `discovery_kubeconfig`: set the issuer's `kubeconfig`"
    if not issuer.hand_out:
        return
    for source in served:
        if refusal := source.settings.refusal(issuer.traits):
            yield f"{source.name}: {refusal}" if source.name else refusal


def _of_rules(settings: Settings, given: Mapping[SettingPath, Given]) -> Iterator[Problem]:
    for problem in rule_problems.disagreements(settings):
        yield Problem(f"{given[('rights',)].place}{problem.place}", problem.text)


def _too_short_for_tokens(settings: Settings, given: Mapping[SettingPath, Given]) -> Iterator[Problem]:
    for issuer in settings.kubeconfigs.issuers:
        if issuer.hand_out and settings.kubeconfigs.max_ttl.total_seconds() < issuer.min_ttl_s:
            complaint = f"kubeconfigs.max_ttl {rule_problems.too_short(issuer)}"
            yield Problem(given[("kubeconfigs", "max_ttl")].place, complaint)
