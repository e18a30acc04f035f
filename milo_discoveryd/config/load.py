"""Settings from flags, environment and file: everything that is wrong with them at once, before anything starts."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from milo_discoveryd.config import layers, values
from milo_discoveryd.config.layers import Given, Key, Problem
from milo_discoveryd.config.settings import Settings
from milo_discoveryd.daemon_errors import ConfigError


def load(flags: Mapping[str, object], environ: Mapping[str, str], file: Path | None) -> Settings:
    """Flags over environment over file over defaults. Without a `file`, the one that MILO_DISCOVERYD_CONFIG names."""
    file = named_file(environ, file)
    weakest_first = [layers.from_environment(environ), layers.from_flags(flags)]
    if file is not None:
        weakest_first.insert(0, layers.from_file(file))
    given: dict[Key, Given] = {}
    for layer in weakest_first:
        given.update(layer.given)
    problems = [problem for layer in weakest_first for problem in layer.problems]

    settings: Settings | None = None
    try:
        settings = Settings.model_validate(_tree(given))
    except ValidationError as error:
        problems += [_explain(detail, given) for detail in error.errors(include_url=False)]
    if settings is not None:
        problems += _disagreements(settings, given)
    if settings is None or problems:
        raise ConfigError(problems)
    return settings


def named_file(environ: Mapping[str, str], file: Path | None) -> Path | None:
    """Which file is read, where any is."""
    named = environ.get(layers.FILE_VARIABLE)
    return Path(named) if file is None and named else file


def _tree(given: Mapping[Key, Given]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, leaf in given.items():
        branch = tree
        for name in key[:-1]:
            branch = branch.setdefault(name, {})
        branch[key[-1]] = leaf.value
    return tree


def _explain(detail: ErrorDetails, given: Mapping[Key, Given]) -> Problem:
    location = detail["loc"]
    key = next(key for key in given if location[: len(key)] == key)
    requirement = _requirement(detail)
    shown = f"{layers.quoted(detail['input'])} " if isinstance(detail["input"], str) else ""
    if key in _ITEMS and len(location) > len(key):
        number, *inside = location[len(key) :]
        item = values.words(given[key].value)[int(number)]
        if isinstance(item, Mapping):
            where = ".".join([f"item {int(number) + 1}", *(str(step) for step in inside[_ITEMS[key] :])])
            return Problem(given[key].place, f"{where}: {shown}{requirement}")
        return Problem(given[key].place, f"{layers.quoted(item)} {requirement}")
    value = detail["input"] if isinstance(detail["input"], str | int) else given[key].value
    return Problem(given[key].place, f"{layers.quoted(value)} {requirement}")


_ITEMS = {("listen",): 0, ("kubeconfigs", "sources"): 1, ("rights",): 0}
"""Lists of mappings, each with how many steps come before a setting of one: pydantic names the type that it chose."""
_REQUIREMENTS = {
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "string_too_long": "must have at most {max_length} characters",
    "too_long": "must have at most {max_length} values",
    "string_too_short": "must not be empty",
    "string_type": "must be text",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "missing": "is missing",
    "extra_forbidden": "is not a setting of it",
    "literal_error": "must be {expected}",
    "union_tag_not_found": "needs a type",
    "union_tag_invalid": "has a type that is not one of {expected_tags}",
}


def _requirement(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    if detail["type"] == "value_error":
        return str(context["error"])
    return _REQUIREMENTS[detail["type"]].format_map(context)


def _disagreements(settings: Settings, given: Mapping[Key, Given]) -> list[Problem]:
    """What no setting gets wrong alone."""
    return [
        *_one_address_for_all(settings, given),
        *_no_such_source(settings, given),
        *_rules_about_nothing(settings, given),
    ]


def _rules_about_nothing(settings: Settings, given: Mapping[Key, Given]) -> Iterator[Problem]:
    listeners = [each.title for each in settings.listen]
    sources = [each.name for each in settings.kubeconfigs.sources if each.hand_out]
    for number, rule in enumerate(settings.rights, 1):
        for setting, named, there_are, what in (
            ("who.listener", rule.who.listener, listeners, "the name of one of listen"),
            ("sources", rule.sources, sources, "the name of one of kubeconfigs.sources that hands out"),
        ):
            for name in named:
                if name not in there_are:
                    complaint = f"{layers.quoted(name)} is not {what}; there are: {', '.join(there_are) or 'none'}"
                    yield Problem(given[("rights",)].place, f"item {number}.{setting}: {complaint}")


def _no_such_source(settings: Settings, given: Mapping[Key, Given]) -> list[Problem]:
    wanted, names = settings.source.credentials, [source.name for source in settings.kubeconfigs.sources]
    if wanted is None or wanted in names:
        return []
    there_are = ", ".join(names) or "none"
    complaint = f"{layers.quoted(wanted)} is not the name of one of kubeconfigs.sources; there are: {there_are}"
    return [Problem(given[("source", "credentials")].place, complaint)]


def _one_address_for_all(settings: Settings, given: Mapping[Key, Given]) -> list[Problem]:
    address = settings.internal_address_template.replace("{namespace}", settings.internal_namespace_template)
    if "{name}" in address or "{uid}" in address:
        return []
    said = [key for key in (("internal_address_template",), ("internal_namespace_template",)) if key in given]
    where = given[said[0]]
    complaint = f"{layers.quoted(where.value)} makes one address of all projects: use {{name}} or {{uid}}"
    return [Problem(where.place, complaint)]
