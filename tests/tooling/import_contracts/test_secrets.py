"""Types of responses, stored state and status contain no credential, except in the calls that return one.

Widely read data is cached, logged and shown. The tests therefore check types and descriptors rather than values.
"""

import re
import typing
from collections.abc import Iterator

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.engagement.engagement import ClusterRecord
from milo_discoveryd.kubeconfigs.rendering import IssuedKubeconfig
from milo_discoveryd.log.events import Event
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.state_file.encoding import StoredFleet
from milo_discoveryd.telemetry.status import DaemonStatus
from milo_kube.credential import ClientCertificate, Credential, Secret
from tools.metrics_reference import families

SERVICE = pb.DESCRIPTOR.services_by_name["DiscoveryService"]
OF_A_SECRET = re.compile(r"token|secret|password|credential|certificate|kubeconfig|bearer|(^|_)key")


def messages(root: Descriptor) -> dict[str, Descriptor]:
    """Return all messages that a message may contain."""
    found: dict[str, Descriptor] = {}

    def walk(message: Descriptor) -> None:
        if message.full_name in found:
            return
        found[message.full_name] = message
        for field in message.fields:
            if field.message_type is not None:
                walk(field.message_type)

    walk(root)
    return found


def all_messages() -> dict[str, Descriptor]:
    found: dict[str, Descriptor] = {}
    for method in SERVICE.methods:
        found |= messages(method.input_type) | messages(method.output_type)
    return found


def test_kubeconfigs_are_returned_by_two_rpcs_only() -> None:
    name = pb.Kubeconfig.DESCRIPTOR.full_name
    carrying = {method.name for method in SERVICE.methods if name in messages(method.output_type)}
    assert carrying == {"IssueKubeconfig", "WatchClusters"}
    assert not any(name in messages(method.input_type) for method in SERVICE.methods), "requests contain no credential"
    assert pb.WatchClustersRequest().include_kubeconfigs is False, "a stream has kubeconfigs only on request"


def test_proto_messages_have_no_unexpected_field_for_a_secret() -> None:
    named = {
        f"{message.name}.{field.name}"
        for message in all_messages().values()
        for field in message.fields
        if OF_A_SECRET.search(field.name)
    }
    assert named == {
        "ClusterEvent.kubeconfig",
        "IssueKubeconfigResponse.kubeconfig",
        "Kubeconfig.kubeconfig",
        # Settings and states of credentials, which are no credentials.
        "WatchClustersRequest.include_kubeconfigs",
        "WatchClustersRequest.kubeconfig_ttl",
        "GetServerInfoResponse.credential_issuers",
        "Limits.max_kubeconfig_ttl",
        "ListClustersRequest.page_token",
        "ListClustersResponse.next_page_token",
        # Types of maps: labels, annotations, reasons.
        "LabelsEntry.key",
        "AnnotationsEntry.key",
        "FailingClustersEntry.key",
    }
    raw = {
        f"{message.name}.{field.name}"
        for message in all_messages().values()
        for field in message.fields
        if field.type == FieldDescriptor.TYPE_BYTES or field.message_type is Any.DESCRIPTOR
    }
    assert raw == {"Kubeconfig.kubeconfig"}, "only kubeconfigs are in a field of arbitrary content"


def parts(root: object) -> set[object]:
    """Return all types that a value of a type may contain."""
    found: set[object] = set()

    def walk(kind: object) -> None:
        if kind in found:
            return
        found.add(kind)
        for argument in typing.get_args(kind):
            walk(argument)
        if isinstance(kind, type) and kind.__module__.startswith(("milo_discoveryd.", "milo_kube.")):
            for hint in typing.get_type_hints(kind).values():
                walk(hint)

    walk(root)
    return found


SECRETS = {Secret, Credential, ClientCertificate, IssuedCredential, IssuedKubeconfig}


def test_secrets_in_the_fields_of_a_type_are_found() -> None:
    assert parts(IssuedKubeconfig) & SECRETS == SECRETS


@pytest.mark.parametrize(
    "kind", [Cluster, Event, ClusterRecord, StoredFleet, DaemonStatus], ids=lambda kind: kind.__name__
)
def test_fleet_state_file_and_status_types_contain_no_secret(kind: type) -> None:
    made_of = parts(kind)
    assert made_of & SECRETS == set()
    named = {f"{part.__name__}.{name}" for part in made_of if isinstance(part, type) for name in hints(part)}
    assert {name for name in named if OF_A_SECRET.search(name.partition(".")[2])} <= {
        # the states of credential issuers: IssuerHealth, whose own fields are checked here as well
        "DaemonStatus.credentials",
        "StoredObject.key",  # name and namespace
        "ClusterExplanation.credential",  # CredentialSummary, whose own fields are checked too
    }


def hints(kind: type) -> Iterator[str]:
    if kind.__module__.startswith(("milo_discoveryd.", "milo_kube.")):
        yield from typing.get_type_hints(kind)


def test_metrics_have_no_label_for_a_secret() -> None:
    assert {label for family in families() for label in family.labels} == {
        "action", "cluster", "credential_issuer", "grpc_code", "grpc_method", "grpc_service", "grpc_type", "mode",
        "organization", "reason", "result", "state", "type", "uid", "version",
    }  # fmt: skip
