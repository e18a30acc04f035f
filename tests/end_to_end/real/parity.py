"""`./dev real parity`: a comparison of the events of the daemon and of Milo's own provider."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.end_to_end.real.programs import Programs, peer_title
from tests.end_to_end.real.side_by_side import EventsByCluster, SideBySide
from tests.end_to_end.real.whole_milo import WholeMiloServers, a_whole_milo
from tests.end_to_end.scenarios.scenario_run import run_scenario
from tests.end_to_end.scenarios.servers import RealServers
from tests.end_to_end.scenarios.steps import OnDaemon, Reconnect, Scenario, Subscribe, Unsubscribe
from tests.integration.sandbox_conformance.lives import DELETED_WITHIN_S
from tools.documents import wrapped

PAGE = Path(__file__).parents[3] / "docs" / "reviewers" / "upstream.md"

# A provider inside an operator has no separate process and no subscribers.
_OURS_ALONE = (OnDaemon, Subscribe, Unsubscribe, Reconnect)
_COMMON_SETTINGS = frozenset({"label_selector"})

_REUSED = "the provider saw the deletion only after the name was reused, so it keeps the old cluster"
_FILTERED = "the provider ignores objects that leave its selector, so the cluster stays engaged permanently"
UNDER_CONTROLLERS = "project, with Milo's controllers"
ON_PURPOSE = {
    "recreated-is-another-cluster": _REUSED,
    "recreated-after-it-was-not-ready": _REUSED,
    "recreated-across-a-compaction": _REUSED,
    "recreated-many-times": _REUSED,
    "label-selector-limits": _FILTERED,
    "selector-with-sets": _FILTERED,
    "relabeled-out-and-back-in": _FILTERED,
    "relabeled-out-while-the-watch-was-down": _FILTERED,
}
"""Scenarios with intended differences, and their reasons."""


@dataclass(frozen=True)
class Comparison:
    scenario: str
    where: str
    """The mode, and whether Milo's controllers ran."""
    daemon: EventsByCluster
    provider: EventsByCluster

    @property
    def agree(self) -> bool:
        return self.daemon == self.provider

    @property
    def is_explained(self) -> bool:
        return self.agree or self.scenario in ON_PURPOSE or self._ends_alike

    @property
    def verdict(self) -> str:
        if self.agree:
            return "agree"
        if self.scenario in ON_PURPOSE:
            return "differ on purpose"
        return "agree in the end" if self._ends_alike else "DIFFER"

    @property
    def _ends_alike(self) -> bool:
        """Compare the final states: one of the two may miss an intermediate state."""
        return _engaged(self.daemon) == _engaged(self.provider)


def comparable(scenarios: Sequence[Scenario]) -> Iterator[Scenario]:
    for scenario in scenarios:
        is_theirs_too = not any(isinstance(step, _OURS_ALONE) for _, step in scenario.steps)
        if is_theirs_too and set(scenario.settings) <= _COMMON_SETTINGS:
            yield scenario


async def compare(scenarios: Sequence[Scenario], found: Programs, peer: Path) -> AsyncGenerator[Comparison, None]:
    with TemporaryDirectory(prefix="milo-parity-") as name:
        async with RealServers(found, Path(name)) as servers:
            for scenario in comparable(scenarios):
                runs = {mode: SideBySide(servers, peer, scenario) for mode in scenario.modes}
                async with asyncio.TaskGroup() as tasks:
                    for mode, run in runs.items():
                        tasks.create_task(run_scenario(scenario, mode, run))
                for mode, run in runs.items():
                    yield Comparison(scenario.name, mode, run.daemon.events(), run.provider.events())
        if not found.controllers:
            return
        async with a_whole_milo(found, Path(name) / "whole-milo") as milo:
            for scenario in comparable(scenarios):
                if "project" in scenario.modes and not scenario.writes_conditions:
                    run = SideBySide(WholeMiloServers(milo), peer, scenario)
                    await run_scenario(scenario, "project", run, patience_s=DELETED_WITHIN_S)
                    yield Comparison(scenario.name, UNDER_CONTROLLERS, run.daemon.events(), run.provider.events())


def _engaged(events_by_cluster: EventsByCluster) -> dict[str, str]:
    return {name: events[-1] for name, events in events_by_cluster.items() if events[-1].startswith("ENGAGED")}


def written(page: str, comparisons: Sequence[Comparison], found: Programs) -> str:
    """Return the page with this comparison between its marks."""
    begin, end = "<!-- parity: -->\n", "<!-- end -->"
    head, _, rest = page.partition(begin)
    return head + begin + wrapped("\n".join(_lines(comparisons, found)) + "\n") + end + rest.partition(end)[2]


def _lines(comparisons: Sequence[Comparison], found: Programs) -> Iterator[str]:
    count = Counter(comparison.verdict for comparison in comparisons)
    yield (
        f"Run on {datetime.now(UTC):%Y-%m-%d}: `project` on {found.milo.title}; `project-control-plane` on "
        f"{found.infrastructure.title}; the provider: {peer_title()}. Of {len(comparisons)} runs: "
        f"{', '.join(f'{verdict} {count[verdict]}' for verdict in sorted(count))}."
    )
    yield ""
    reasons: dict[str, set[str]] = {}
    for comparison in comparisons:
        if not comparison.agree:
            why = ON_PURPOSE.get(comparison.scenario, comparison.verdict)
            reasons.setdefault(why, set()).add(comparison.scenario)
    for why, scenarios in reasons.items():
        yield f"- **{', '.join(sorted(scenarios))}**: {why}."
