"""The contents of published objects."""

from __future__ import annotations

import base64
import json

import msgspec
import pytest

from milo_discovery import Cluster
from milo_discovery.kubeconfig_access import KubeconfigAccess, read_access
from milo_publishing.objects import (
    Identity,
    ObservedObject,
    Rendered,
    applied,
    as_desired,
    changes,
    contains,
    copied_labels,
    is_valid_name,
    object_name,
)
from milo_publishing.rendering import ArgoCdClusters, ClusterProfiles, FluxConfigMaps, FluxKubeconfigs, Renderer

ALPHA = Cluster(name="alpha", uid="1", organization="acme", labels={"env": "prod", "team.example/a": "x"})
SERVER = KubeconfigAccess(server="https://milo.test", authorities="PEM", tls_server_name="milo.internal")


@pytest.mark.parametrize(
    ("cluster", "suffix", "name"),
    [
        ("alpha", "", "alpha"),
        ("alpha", "-kubeconfig", "alpha-kubeconfig"),
        ("source#alpha", "", "source.alpha"),
        ("Alpha", "", None),
        ("../alpha", "", None),
        ("a" * 253, "", "a" * 253),
        ("a" * 253, "-kubeconfig", None),
    ],
)
def test_published_object_name_is_cluster_name_plus_suffix_and_none_if_invalid(
    cluster: str, suffix: str, name: str | None
):
    made = object_name(cluster, suffix)
    assert (made if is_valid_name(made) else None) == name


@pytest.mark.parametrize(
    ("patterns", "copied"),
    [((), set()), (("env",), {"env"}), (("team.example/*",), {"team.example/a"}), (("other",), set())],
)
def test_only_configured_labels_are_copied_to_published_object(patterns: tuple[str, ...], copied: set[str]):
    assert set(copied_labels(ALPHA, patterns)) == copied


def test_cluster_profile_without_access_has_no_access_provider():
    rendered = ClusterProfiles(cluster_manager="m", access_provider="p").render(ALPHA, None)
    assert rendered.status is not None
    assert rendered.status["accessProviders"] == []
    assert rendered.status["conditions"][0]["status"] == "Unknown", "the health of a cluster without probes is unknown"
    properties = {entry["name"].partition("/")[2]: entry["value"] for entry in rendered.status["properties"]}
    assert properties == {"organization": "acme", "suspended": "false", "uid": "1"}


@pytest.mark.parametrize(
    ("observed", "is_kept"),
    [
        ({"conditions": [{"type": "ControlPlaneHealthy", "status": "Unknown", "lastTransitionTime": "then"}]}, True),
        ({"conditions": [{"type": "ControlPlaneHealthy", "status": "Unknown", "lastTransitionTime": 5}]}, False),
        ({"conditions": [{"type": "ControlPlaneHealthy", "status": "True", "lastTransitionTime": "then"}]}, False),
        ({"conditions": ["text", None, {"type": ["list"]}, {"type": None}]}, False),
        ({"conditions": {"type": "ControlPlaneHealthy"}}, False),
        ("text", False),
    ],
)
def test_transition_time_of_an_unchanged_condition_is_kept_and_malformed_conditions_are_replaced(
    observed: object, is_kept: bool
):
    profiles = ClusterProfiles(cluster_manager="m", access_provider="p")
    rendered = profiles.render(ALPHA, None)
    assert rendered.status is not None
    [wanted] = rendered.status["conditions"]
    found = ObservedObject.of(
        msgspec.json.encode({"metadata": {"name": "alpha", "uid": "u", "resourceVersion": "1"}, "status": observed})
    )
    identity = Identity(publication="p", publisher="milo")
    _, status = changes(profiles.resource, identity, ALPHA, rendered, found, must_write=False)
    assert status is not None
    [written] = status["status"]["conditions"]
    assert written == {**wanted, "lastTransitionTime": "then" if is_kept else wanted["lastTransitionTime"]}


def test_cluster_profile_contains_tls_server_name_and_ca():
    rendered = ClusterProfiles(cluster_manager="m", access_provider="p").render(ALPHA, SERVER)
    assert rendered.status is not None
    [provider] = rendered.status["accessProviders"]
    assert provider["cluster"]["tls-server-name"] == "milo.internal"
    assert base64.b64decode(provider["cluster"]["certificate-authority-data"]) == b"PEM"


@pytest.mark.parametrize(
    "renderer",
    [
        ClusterProfiles(cluster_manager="m", access_provider="p", copy_labels=("env",)),
        ArgoCdClusters(plugin_command="/opt/m", argocd_project="shop", copy_labels=("env",)),
        FluxKubeconfigs(copy_labels=("env",)),
        FluxConfigMaps(audiences=("a",), service_account="s", copy_labels=("env",)),
    ],
    ids=lambda renderer: renderer.publication,
)
def test_each_written_field_is_compared(renderer: Renderer):
    identity, rendered = Identity(publication="p", publisher="milo"), renderer.render(ALPHA, SERVER)
    assert rendered is not None
    written = applied(renderer.resource, identity, "alpha", ALPHA, rendered)
    written["metadata"] |= {"uid": "u", "resourceVersion": "1", "managedFields": []}
    if rendered.status is not None:
        written["status"] = rendered.status
    found = ObservedObject.of(msgspec.json.encode(written))
    reduced = as_desired(renderer.resource, identity, ALPHA, rendered, found)
    for one in (found, reduced):
        assert changes(renderer.resource, identity, ALPHA, rendered, one, must_write=False) == (None, None)


def test_argocd_secret_runs_the_credential_plugin():
    renderer = ArgoCdClusters(plugin_command="/opt/m", plugin_environment={"A": "b"}, copy_labels=("env",))
    rendered = renderer.render(ALPHA, SERVER)
    assert rendered is not None
    assert rendered.labels == {"env": "prod", "argocd.argoproj.io/secret-type": "cluster"}
    assert "argocd.argoproj.io/secret-type" not in rendered.required, (
        "the label is written last, so Argo CD finds complete Secrets only"
    )
    data = {key: base64.b64decode(value).decode() for key, value in rendered.body["data"].items()}
    assert (data["name"], data["server"]) == ("alpha", "https://milo.test")
    config = json.loads(data["config"])
    assert config["execProviderConfig"]["args"] == ["credential", "--cluster", "alpha"]
    assert config["execProviderConfig"]["env"] == {
        "A": "b",
        "MILO_DISCOVERY_CLUSTER_SERVER": "https://milo.test",
    }
    assert config["tlsClientConfig"]["serverName"] == "milo.internal"
    assert renderer.render(ALPHA, None) is None


def test_flux_secret_contains_a_kubeconfig_with_the_credential():
    access = KubeconfigAccess(server="https://milo.test", token="t")
    rendered = FluxKubeconfigs().render(ALPHA, access)
    assert rendered is not None
    assert read_access(base64.b64decode(rendered.body["data"]["value"])) == access
    assert FluxKubeconfigs().render(ALPHA, None) is None


def test_flux_config_map_has_the_server_and_no_credential():
    access = KubeconfigAccess(server="https://milo.test", authorities="PEM", token="t")
    rendered = FluxConfigMaps(audiences=("a", "b"), service_account="tenant").render(ALPHA, access)
    assert rendered is not None
    assert rendered.body["data"] == {
        "provider": "generic",
        "address": "https://milo.test",
        "ca.crt": "PEM",
        "audiences": "a\nb",
        "serviceAccountName": "tenant",
    }
    rendered = FluxConfigMaps().render(ALPHA, KubeconfigAccess(server="https://milo.test"))
    assert rendered is not None
    assert rendered.body["data"] == {"provider": "generic", "address": "https://milo.test"}
    assert FluxConfigMaps().render(ALPHA, None) is None


@pytest.mark.parametrize(
    ("observed", "desired", "result"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ([{"name": "x", "v": 1}, {"name": "y"}], [{"name": "y"}], True),
        ([{"name": "x", "v": 1}], [{"name": "x", "v": 2}], False),
        ([1, 2], [1, 2], True),
        ([1, 2], [1], False),
        (None, [], False),
        (None, {"a": 1}, False),
    ],
)
def test_only_desired_fields_are_compared_with_the_observed_object(observed: object, desired: object, result: bool):
    assert contains(observed, desired) is result


@pytest.mark.parametrize("kibibytes", [200, 300, 760])
@pytest.mark.parametrize(
    "renderer",
    [
        ClusterProfiles(cluster_manager="m", access_provider="p"),
        ArgoCdClusters(plugin_command="p"),
        FluxKubeconfigs(),
        FluxConfigMaps(),
    ],
    ids=lambda renderer: type(renderer).__name__,
)
def test_object_with_a_large_ca_bundle_is_not_written_again_until_it_changes(renderer: Renderer, kibibytes: int):
    """Found by a reader: from 300 KiB on, it was written again at each resync."""
    identity = Identity(publication=renderer.publication, publisher="milo")
    name, bundle = object_name("alpha", renderer.suffix), f"{'A' * 63}\n" * (16 * kibibytes)
    rendered = renderer.render(ALPHA, KubeconfigAccess(server="https://milo.test", authorities=bundle))
    changed = renderer.render(ALPHA, KubeconfigAccess(server="https://milo.test", authorities=f"{bundle}B"))
    assert rendered is not None
    assert changed is not None
    document = applied(renderer.resource, identity, name, ALPHA, rendered)
    document["metadata"] |= {"uid": "u", "resourceVersion": "1"}
    observed = ObservedObject.of(msgspec.json.encode({**document, "status": rendered.status or {}}))

    def differences(content: Rendered) -> tuple[object, object]:
        return changes(renderer.resource, identity, ALPHA, content, observed, must_write=False)

    assert differences(rendered) == (None, None)
    assert differences(changed) != (None, None)
