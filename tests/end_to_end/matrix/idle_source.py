"""Scenarios on the first of two sources of a kind, of which the second has no clusters."""

from typing import Any

from msgspec.structs import replace

from tests.end_to_end.matrix.cell import key
from tests.end_to_end.scenarios.steps import (
    Expect,
    ExpectEngaged,
    ExpectNoUpdates,
    ExpectUpdated,
    Scenario,
    Step,
    Subscribe,
)

_SOURCE = "milo"
_TEMPLATES = ("address_template", "namespace_template")


def beside_idle_source(flat: dict[str, Any]) -> dict[str, Any]:
    """Return settings with two sources, given those of a daemon with one."""
    source = {"kind": flat.pop("mode"), "discovery_kubeconfig": flat.pop("discovery_kubeconfig")}
    selector = flat.pop("label_selector", "")
    templates = {
        template: flat.pop(f"internal_{template}") for template in _TEMPLATES if f"internal_{template}" in flat
    }
    first = {"name": _SOURCE, **source, "label_selector": selector, "settings": templates}
    return {**flat, "sources": [first, {"name": "idle", **source, "label_selector": "of-no=cluster"}]}


def with_keys(scenario: Scenario) -> Scenario:
    """Return a scenario whose subscribers expect its clusters under the keys that they have in the first source."""
    return replace(scenario, steps=tuple((word, _with_keys(step)) for word, step in scenario.steps))


def _with_keys(step: Step) -> Step:
    match step:
        case Subscribe(names=names):
            return replace(step, names=tuple(map(_key, names)))
        case Expect(events):
            return replace(step, events=tuple(replace(event, cluster=_key(event.cluster)) for event in events))
        case ExpectUpdated(name) | ExpectNoUpdates(name):
            return replace(step, name=_key(name))
        case ExpectEngaged(names) if names is not None:
            return replace(step, names=frozenset(map(_key, names)))
        case _:
            return step


def _key(cluster: str) -> str:
    return key(_SOURCE, cluster)
