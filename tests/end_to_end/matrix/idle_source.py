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


def beside_idle_source(flat: dict[str, Any]) -> dict[str, Any]:
    """Return settings with two sources, given those of a daemon with one."""
    source = {"kind": flat.pop("mode"), "discovery_kubeconfig": flat.pop("discovery_kubeconfig")}
    own = {name: flat.pop(name) for name in ("label_selector", "settings") if name in flat}
    if template := flat.pop("internal_address_template", None):
        own["settings"] = {"address_template": template}
    first, idle = {"name": _SOURCE, **source, **own}, {"name": "idle", **source, "label_selector": "of-no=cluster"}
    return {**flat, "sources": [first, idle]}


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
