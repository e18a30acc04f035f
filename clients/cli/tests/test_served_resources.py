"""Tests of the names that users give to resources, and of discovery documents."""

from __future__ import annotations

import json

import pytest

from milo_discovery_cli.served_resources import (
    ServedResource,
    Version,
    matching,
    may_contain,
    read_resources,
    read_root,
)

PODS = ServedResource(
    plural="pods", version="v1", kind="Pod", is_namespaced=True, short_names=("po",), categories=("all",)
)
NODES = ServedResource(plural="nodes", version="v1", kind="Node", short_names=("no",))
DEPLOYMENTS = ServedResource(
    plural="deployments",
    version="v1",
    kind="Deployment",
    group="apps",
    singular="deployment",
    is_namespaced=True,
    short_names=("deploy",),
    categories=("all",),
)
BETA = ServedResource(plural="deployments", version="v1beta1", kind="Deployment", group="apps", categories=("all",))
WORKLOADS = ServedResource(plural="workloads", version="v1alpha", kind="Workload", group="compute.example.com")
METRICS = ServedResource(plural="pods", version="v1beta1", kind="PodMetrics", group="metrics.k8s.io")
SERVED = (PODS, NODES, DEPLOYMENTS, BETA, WORKLOADS, METRICS)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("pods", [PODS]),
        ("pod", [PODS]),
        ("Pod", [PODS]),
        ("PODS", [PODS]),
        ("po", [PODS]),
        ("no", [NODES]),
        ("deploy", [DEPLOYMENTS]),
        ("deployment.apps", [DEPLOYMENTS]),
        ("deploy.apps", [DEPLOYMENTS]),
        ("deployments.v1.apps", [DEPLOYMENTS]),
        ("deployments.v1beta1.apps", [BETA]),
        ("deployments.v2.apps", []),
        ("workloads.compute.example.com", [WORKLOADS]),
        ("workload.v1alpha.compute.example.com", [WORKLOADS]),
        ("pods.metrics.k8s.io", [METRICS]),
        ("podmetrics", [METRICS]),
        ("pods.v1.", [PODS]),
        ("all", [PODS, DEPLOYMENTS]),
        ("podz", []),
        ("pods.apps", []),
        ("pods/status", []),
    ],
)
def test_matching_finds_what_kubectl_finds(name: str, found: list[ServedResource]) -> None:
    assert [*matching(name, SERVED)] == found


@pytest.mark.parametrize(
    ("resource", "path"),
    [
        (PODS.path(), "/api/v1/pods"),
        (PODS.path("work", "web"), "/api/v1/namespaces/work/pods/web"),
        (NODES.path("work", "one"), "/api/v1/nodes/one"),
        (DEPLOYMENTS.path("work"), "/apis/apps/v1/namespaces/work/deployments"),
    ],
)
def test_path_of_a_cluster_wide_resource_has_no_namespace(resource: str, path: str) -> None:
    assert resource == path


def test_aggregated_document_contains_the_resources_in_order_of_preference() -> None:
    document = {
        "kind": "APIGroupDiscoveryList",
        "items": [
            {
                "metadata": {"name": "apps"},
                "versions": [
                    {
                        "version": "v1",
                        "resources": [
                            {
                                "resource": "deployments",
                                "responseKind": {"group": "apps", "version": "v1", "kind": "Deployment"},
                                "scope": "Namespaced",
                                "singularResource": "deployment",
                                "verbs": ["get", "list"],
                                "shortNames": ["deploy"],
                                "categories": ["all"],
                                "subresources": [{"subresource": "scale"}],
                            },
                            {"resource": "tokenreviews", "scope": "Cluster", "verbs": ["create"]},
                            {"resource": "../secrets", "scope": "Cluster", "verbs": ["list"]},
                        ],
                    },
                    {"version": "v1beta1", "resources": None},
                ],
            }
        ],
    }
    assert read_root(json.dumps(document).encode()) == ([DEPLOYMENTS], [])


def test_plain_documents_name_the_versions_with_the_preferred_one_first() -> None:
    core = {"kind": "APIVersions", "versions": ["v1"]}
    assert read_root(json.dumps(core).encode()) == ([], [Version("", "v1")])
    versions = [{"groupVersion": f"apps/{version}", "version": version} for version in ("v1beta1", "v1")]
    hostile = {"name": "a/../b", "versions": [{"version": "v1"}]}
    groups = {
        "kind": "APIGroupList",
        "groups": [{"name": "apps", "versions": versions, "preferredVersion": versions[1]}, hostile],
    }
    assert read_root(json.dumps(groups).encode()) == ([], [Version("apps", "v1"), Version("apps", "v1beta1")])


def test_list_of_resources_is_read_without_subresources_and_reviews() -> None:
    resources = [
        {"name": "nodes", "singularName": "", "kind": "Node", "verbs": ["get", "list"], "shortNames": ["no"]},
        {"name": "nodes/status", "kind": "Node", "verbs": ["get"]},
        {"name": "tokenreviews", "kind": "TokenReview", "verbs": ["create"]},
        {"name": "bare", "kind": "Bare"},
    ]
    body = json.dumps({"kind": "APIResourceList", "resources": resources}).encode()
    assert read_resources(body, Version("", "v1")) == [NODES]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"<html>", b'{"kind": 1}', b'{"kind":"APIGroupList","groups":[{}]}', b"\xff"]
)
def test_other_documents_are_refused(body: bytes) -> None:
    with pytest.raises(ValueError):
        read_root(body)


def test_only_groups_that_a_name_can_mean_are_read() -> None:
    assert may_contain("pods", Version("apps", "v1"))
    assert may_contain("deployments.v1.apps", Version("apps", "v1"))
    assert may_contain("workloads.compute.example.com", Version("compute.example.com", "v1"))
    assert not may_contain("deployments.apps", Version("", "v1"))
