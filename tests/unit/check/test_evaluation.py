"""The evaluation of the complete lists of a source, and what `check` reports about the source."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from milo_discoveryd.check.evaluation import _objects, evaluate, findings
from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.model.observation import Malformed, NotReady, Observation, Ready
from milo_discoveryd.sources.keyed import KeyedSource
from milo_discoveryd.sources.kind import SourceOptions
from milo_discoveryd.sources.project import ProjectKind
from milo_kube.api_request import Answer
from milo_kube.reflect.wire import ListPage, ListPageError
from tests.unit.sources.test_keyed import METADATA, by_secrets, encoded, seen

PROJECTS = KeyedSource(ProjectKind().follow(SourceOptions(project_server="https://milo.test")))


def ready(name: str) -> Ready:
    return Ready(f"uid-{name}", "1", Target(name=name, uid=f"uid-{name}", place=(f"https://{name}",)))


def test_check_counts_a_cluster_as_engaged_if_its_secret_contains_a_kubeconfig() -> None:
    followed = KeyedSource(by_secrets())
    members, secrets = followed.collections
    listed = [seen(members, metadata={**METADATA, "labels": {"a": "b"}})]
    for data, endpoints in (({"value": encoded("https://b")}, ["https://b"]), ({}, [])):
        found = evaluate(followed, [listed, [seen(secrets, data=data)]])
        assert [cluster.target.endpoint for cluster in found.clusters] == endpoints
        assert len(found.others.get(ObjectState.NOT_READY, ())) == 1 - len(endpoints)


class EndlessApi:
    async def get(self, path: str, query: object, *, timeout_s: float) -> Answer:
        return Answer(200, {}, b'{"metadata": {"continue": "more"}, "items": []}')


async def test_check_gives_up_an_endless_list() -> None:
    collection: Any = SimpleNamespace(
        watched=SimpleNamespace(path="/x", query=[]), decoder=SimpleNamespace(page=lambda _: (ListPage("1", "t"), ()))
    )
    settings: Any = SimpleNamespace(watch=SimpleNamespace(page_size=500, request_timeout=timedelta(seconds=1)))
    transport: Any = EndlessApi()
    with pytest.raises(ListPageError, match="the list did not end in 2000 pages"):
        await anext(_objects(transport, settings, collection))


def test_check_reports_malformed_object_that_belongs_to_no_cluster() -> None:
    followed = KeyedSource(by_secrets())
    members, secrets = followed.collections
    found = evaluate(followed, [[seen(members, metadata=METADATA)], [seen(secrets, data={"value": "!"})]])
    [(name, message)] = found.others[ObjectState.MALFORMED]
    assert "does not contain a base64-encoded kubeconfig" in message
    assert name


@pytest.mark.parametrize(
    ("listed", "level", "words"),
    [
        ([], None, ""),
        ([ready("b"), NotReady("a", "1", "1", "no")], "ok", "1 of 2 engaged, 1 not ready"),
        ([NotReady("a", "1", "1", "no")], "warn", "0 of 1 engaged, 1 not ready; first problem: a: no"),
        (
            [ready("c"), Malformed("b", "2", "1", "bad"), Malformed("a", "1", "1", "worse")],
            "warn",
            "1 of 3 engaged, 2 malformed; first problem: a: worse",
        ),
        ([Malformed("b", "2", "1", "bad")], "fail", "0 of 1 engaged, 1 malformed; first problem: b: bad"),
    ],
)
def test_check_reports_how_many_clusters_are_engaged_and_the_first_problem(
    listed: list[Observation], level: str | None, words: str
) -> None:
    found = list(findings("clusters", evaluate(PROJECTS, [listed])))
    assert [(finding.level, finding.message) for finding in found] == ([] if level is None else [(level, words)])
