"""The confirmation that the object exists whose names led to a credential."""

import pytest

from milo_discoveryd.credentials.issuers.cluster_objects import ClusterObjects
from milo_discoveryd.daemon_errors import BackendError
from milo_discoveryd.model.cluster import DeclaredTarget
from milo_discoveryd.model.resource import Resource
from milo_discoveryd.sources.project import PROJECTS
from milo_kube.http.errors import TransportError
from tests.unit.credentials.backend import ALPHA, Answer, ScriptedApi, answering, engaged

CLUSTERS = Resource("example.com", "v1", "clusters", namespaced=True)
DECLARED = DeclaredTarget(name="n.a", uid="u", place=("https://a",), object_namespace="n", object_name="a")
EXISTS = answering(200, {"metadata": {"uid": "u"}})


async def test_object_is_read_under_the_names_of_its_cluster() -> None:
    api = ScriptedApi(EXISTS, EXISTS)
    await ClusterObjects(api, "test", PROJECTS).confirm(engaged(ALPHA, object_uid="u"))
    await ClusterObjects(api, "test", CLUSTERS).confirm(engaged(DECLARED, object_uid="u"))
    assert api.asked == [("GET", f"{PROJECTS.path}/alpha"), ("GET", "/apis/example.com/v1/namespaces/n/clusters/a")]


@pytest.mark.parametrize(
    ("answer", "expected", "is_of_cluster"),
    [
        (answering(404, {}), "was deleted", True),
        (answering(200, {"metadata": {"uid": "v"}}), "was deleted", True),
        (answering(200, {}), "was deleted", True),
        (answering(200, []), "not a Kubernetes object", True),
        (answering(403, {}), "add to the daemon's role: get clusters in example.com", False),
        (answering(503, {}), "answered 503", False),
        (TransportError("connect", "the server is down"), "the server is down", False),
        (TransportError("too_large", "more than 1048576 bytes"), "more than", True),
    ],
)
async def test_object_that_cannot_be_confirmed_is_an_error(
    answer: Answer | TransportError, expected: str, is_of_cluster: bool
) -> None:
    with pytest.raises(BackendError, match=expected) as raised:
        await ClusterObjects(ScriptedApi(answer), "test", CLUSTERS).confirm(engaged(DECLARED, object_uid="u"))
    assert raised.value.of_cluster is is_of_cluster


async def test_namespaced_object_of_a_restored_cluster_is_not_confirmed_before_it_is_seen() -> None:
    with pytest.raises(BackendError, match="has not been received"):
        await ClusterObjects(ScriptedApi(), "test", CLUSTERS).confirm(engaged())
