"""Input from outside of the daemon: for each field, its limit, its cost, its sender, and the test of an attack."""

from dataclasses import dataclass, replace

_KIB, _MIB = 1 << 10, 1 << 20


@dataclass(frozen=True, slots=True)
class Input:
    """A field, a file, a response or a kind of connection that comes from outside."""

    limit: str
    kept: int
    """Bytes that the daemon keeps for one such input; for a response, only while it is handled."""
    loop_ms: float
    """Milliseconds of the event loop that one such input may take."""
    sender: str
    attack: str
    """The test of an attack: `FILE::TEST`, below tests."""


SUBSCRIBER = "a caller with a rule"
TENANT = "a tenant that writes objects"
SERVER = "the API server of a source"
ADMIN = "the administrator, and anybody who can write the file"
STRANGER = "anybody who can connect"

_MEMORY = "end_to_end/process/test_memory_attacks.py"
_REQUESTS = "unit/server/calls/test_requests.py"
_BOUNDS = "unit/sources/test_bounds.py"
_LONG_FIELD = f"{_MEMORY}::test_streams_do_not_retain_long_requests"
_FLAG = Input("one value", 8, 0.1, SUBSCRIBER, f"{_REQUESTS}::test_watch_request_fields_are_parsed")
_NAME = Input(
    "317 characters",
    0,
    0.1,
    SUBSCRIBER,
    "tooling/outside_input/test_outside_input.py::test_too_long_request_field_is_refused_with_a_short_message",
)
_FILTER = Input("64 KiB", 20 * 64 * _KIB, 10, SUBSCRIBER, f"{_REQUESTS}::test_filter_larger_than_64_kib_is_rejected")
_DURATION = Input("1 s to 1 h", 8, 0.1, SUBSCRIBER, f"{_REQUESTS}::test_nonpositive_duration_is_rejected")

REQUEST_FIELDS = {
    "WatchClustersRequest.filter": _FILTER,
    "WatchClustersRequest.resume_revision": Input(
        "36 bytes for each source, of at least 64", 8 * _KIB, 1, SUBSCRIBER, _LONG_FIELD
    ),
    "WatchClustersRequest.include_kubeconfigs": _FLAG,
    "WatchClustersRequest.kubeconfig_ttl": _DURATION,
    "WatchClustersRequest.heartbeat_interval": _DURATION,
    "WatchClustersRequest.confirm_releases": _FLAG,
    "WatchClustersRequest.subscriber": Input("253 characters", _KIB, 0.1, SUBSCRIBER, _LONG_FIELD),
    "WatchClustersRequest.accepts_pending_sources": _FLAG,
    "ClusterFilter.label_selector": Input(
        "8192 characters, 64 requirements",
        300 * _KIB,
        20,
        SUBSCRIBER,
        f"{_REQUESTS}::test_long_selector_is_rejected_before_parsing",
    ),
    "ClusterFilter.names": _FILTER,
    "ClusterFilter.organizations": _FILTER,
    "ClusterFilter.sources": _FILTER,
    "ListClustersRequest.filter": _FILTER,
    "ListClustersRequest.page_size": Input("5000", 0, 5, SUBSCRIBER, f"{_REQUESTS}::test_page_size_is_clamped"),
    "ListClustersRequest.page_token": Input("256 characters", 0, 0.1, SUBSCRIBER, _NAME.attack),
    "GetClusterRequest.name": _NAME,
    "IssueKubeconfigRequest.cluster": _NAME,
    "IssueKubeconfigRequest.ttl": _DURATION,
    "IssueKubeconfigRequest.format": _FLAG,
    "IssueKubeconfigRequest.incarnation": Input("64 characters", 0, 0.1, SUBSCRIBER, _NAME.attack),
    "ReleaseClusterRequest.cluster": _NAME,
    "ReleaseClusterRequest.incarnation": Input("64 characters", 0, 0.1, SUBSCRIBER, _NAME.attack),
    "ReleaseClusterRequest.subscriber": Input("253 characters", _KIB, 0.1, SUBSCRIBER, _NAME.attack),
    "RenewOwnershipRequest.subscriber": Input("253 characters", 0, 0.1, SUBSCRIBER, _NAME.attack),
    "EndSubscriptionRequest.subscriber": Input("253 characters", 0, 0.1, SUBSCRIBER, _NAME.attack),
}

_ID = Input(
    "128 characters",
    _KIB,
    0.1,
    SERVER,
    "kube/tests/unit/reflect/test_wire.py::test_object_with_an_oversized_uid_or_version_is_malformed",
)
_OBJECT_NAME = Input(
    "253 characters of a DNS name",
    _KIB,
    0.1,
    TENANT,
    "unit/sources/test_names.py::test_object_with_hostile_name_is_malformed",
)
_TRUNCATED = Input("2048 characters", 8 * _KIB, 1, TENANT, f"{_BOUNDS}::test_long_message_of_a_condition_is_truncated")
_TIME = Input(
    "a time", 100, 0.1, TENANT, f"{_BOUNDS}::test_deletion_time_out_of_range_for_protobuf_makes_an_object_malformed"
)
_READ_ONCE = Input(
    "compared, and not kept",
    0,
    1,
    TENANT,
    "end_to_end/process/test_hostile_api_server.py::test_hostile_api_server_does_not_exhaust_memory_or_affect_other_sources",
)
_PARSED_TIME = replace(_READ_ONCE, loop_ms=5)
_DECLARED = Input(
    "1.5 MiB of an object, by etcd; 2048 characters of a text that is used",
    8 * _KIB,
    150,
    TENANT,
    "unit/sources/test_declarative.py::test_object_with_invalid_values_for_its_endpoint_is_malformed",
)
_SUSPENSIONS = Input(
    "128 characters, of 16 suspensions",
    64 * _KIB,
    1,
    TENANT,
    f"{_BOUNDS}::test_number_of_suspensions_and_length_of_their_fields_are_limited",
)
_SECRET = Input(
    "64 KiB and 2000 values of a kubeconfig",
    64 * _KIB,
    8,
    TENANT,
    "kube/tests/unit/test_kubeconfig.py::test_received_kubeconfig_with_costly_content_is_parsed_quickly",
)

OBJECT_FIELDS = {
    "Metadata.name": _OBJECT_NAME,
    "Metadata.namespace": _OBJECT_NAME,
    "Metadata.uid": _ID,
    "Metadata.resourceVersion": _ID,
    "Metadata.labels": Input(
        "250, 32 KiB",
        128 * _KIB,
        5,
        TENANT,
        f"{_MEMORY}::test_repeated_changes_of_an_object_with_many_labels_retain_little_memory",
    ),
    "Metadata.annotations": Input(
        "250 that are sent, 32 KiB",
        128 * _KIB,
        5,
        TENANT,
        f"{_BOUNDS}::test_too_many_sent_annotations_make_an_object_malformed",
    ),
    "Metadata.creationTimestamp": _READ_ONCE,
    "Metadata.deletionTimestamp": _TIME,
    "Metadata.finalizers": Input(
        "2048 characters of a message", 8 * _KIB, 1, TENANT, f"{_BOUNDS}::test_long_message_of_a_deletion_is_truncated"
    ),
    "Condition.type": _READ_ONCE,
    "Condition.status": _TRUNCATED,
    "Condition.reason": _TRUNCATED,
    "Condition.message": _TRUNCATED,
    "Condition.lastTransitionTime": _READ_ONCE,
    "ObjectOwner.kind": _READ_ONCE,
    "ObjectOwner.name": Input(
        "253 characters",
        _KIB,
        0.1,
        TENANT,
        f"{_BOUNDS}::test_owner_name_longer_than_a_valid_name_makes_a_project_malformed",
    ),
    "SuspensionInfo.reason": _SUSPENSIONS,
    "SuspensionInfo.suspendedAt": _SUSPENSIONS,
    "SuspensionInfo.reinstateAuthority": _SUSPENSIONS,
    "ConsumerCondition.type": _READ_ONCE,
    "ConsumerCondition.status": _READ_ONCE,
    "ConsumerCondition.reason": _TRUNCATED,
    "ConsumerCondition.message": _TRUNCATED,
    "ConsumerCondition.lastTransitionTime": _PARSED_TIME,
    "ConsumerSpec.suspended": _READ_ONCE,
    "ConsumerStatus.phase": _TRUNCATED,
    "ConsumerStatus.serviceName": _READ_ONCE,
    "ProjectReference.name": _OBJECT_NAME,
    "DeclaredObject.spec": _DECLARED,
    "DeclaredObject.status": _DECLARED,
    "DeclaredObject.data": _DECLARED,
    "SecretObject.data": _SECRET,
}

_OBJECT_ANSWER = Input(
    "1 MiB",
    16 * _MIB,
    30,
    SERVER,
    "integration/watchers/test_transport.py::test_decompressed_response_over_limit_is_aborted",
)
_LINE = Input(
    "watch.objects_limit of a response",
    128 * _MIB,
    100,
    SERVER,
    "end_to_end/process/test_hostile_api_server.py::test_hostile_api_server_does_not_exhaust_memory_or_affect_other_sources",
)
_CHECK_ANSWER = Input(
    "watch.objects_limit of a response",
    0,
    0,
    SERVER,
    "integration/check/test_api_responses.py::test_error_body_that_is_not_a_status_is_truncated",
)
_OWN_FILE = Input(
    "a file that only the daemon can write",
    128 * _MIB,
    500,
    ADMIN,
    "integration/state_file/test_state_file.py::test_malformed_state_file_is_ignored",
)
_LEASES = Input(
    "1 MiB", 16 * _MIB, 30, SERVER, "unit/sharding/test_lease_objects.py::test_malformed_lease_has_a_problem"
)
_JWT = Input(
    "32 KiB of a token",
    320 * _KIB,
    1,
    STRANGER,
    "unit/identity/test_token_review.py::test_token_with_invalid_claims_is_rejected_without_review",
)
_TOKEN_ANSWER = Input(
    "64 KiB",
    64 * _KIB,
    1,
    "the token endpoint",
    "unit/credentials/test_datum_service_account.py::test_invalid_token_response_is_rejected_and_not_quoted",
)

RESPONSES = {
    "milo_discoveryd.check.api_responses._EVENT": _CHECK_ANSWER,
    "milo_discoveryd.check.api_responses._PAGE": _CHECK_ANSWER,
    "milo_discoveryd.check.api_responses._REVIEW": _CHECK_ANSWER,
    "milo_discoveryd.check.api_responses._STATUS_OBJECT": _CHECK_ANSWER,
    "milo_discoveryd.check.running_daemon._DECODER": replace(_CHECK_ANSWER, limit="4 MiB"),
    "milo_discoveryd.credentials.issuers.cluster_objects._READ_OBJECT": _OBJECT_ANSWER,
    "milo_discoveryd.credentials.issuers.kubeconfig_request._RESPONSE": Input(
        "1 MiB",
        16 * _MIB,
        30,
        SERVER,
        "end_to_end/process/test_loop_attacks.py::test_long_kubeconfigs_from_gardener_delay_no_other_caller",
    ),
    "milo_discoveryd.credentials.issuers.kubeconfig_secret._SECRET_DATA": _OBJECT_ANSWER,
    "milo_discoveryd.credentials.issuers.service_account_key._FILE": Input(
        "1 MiB",
        _MIB,
        10,
        ADMIN,
        "unit/credentials/test_datum_service_account.py::test_invalid_key_file_content_is_rejected",
    ),
    "milo_discoveryd.credentials.issuers.token_endpoint._ANSWER": _TOKEN_ANSWER,
    "milo_discoveryd.credentials.issuers.token_endpoint._REFUSAL": _TOKEN_ANSWER,
    "milo_discoveryd.credentials.issuers.token_request._DELETION_ANSWER": _OBJECT_ANSWER,
    "milo_discoveryd.credentials.issuers.token_request._SECRET_LIST": _OBJECT_ANSWER,
    "milo_discoveryd.credentials.issuers.token_request._SECRET_OBJECT": _OBJECT_ANSWER,
    "milo_discoveryd.credentials.issuers.token_request._TOKEN_REQUEST": _OBJECT_ANSWER,
    "milo_discoveryd.credentials.jwt._CLAIMS": _JWT,
    "milo_discoveryd.credentials.jwt._HEADER": _JWT,
    "milo_discoveryd.identity.token_review._TOKEN_REVIEW": _OBJECT_ANSWER,
    "milo_discoveryd.sharding.lease_objects._LEASE": _LEASES,
    "milo_discoveryd.sharding.lease_objects._LABELED_LIST": replace(_LEASES, loop_ms=60),
    "milo_discoveryd.sharding.lease_objects._LEASE_LIST": replace(_LEASES, limit="2 MiB for each page", kept=32 * _MIB),
    "milo_discoveryd.sharding.lease_objects._NAMES": _LEASES,
    "milo_discoveryd.sharding.lease_objects._STORED_VIEW": _LEASES,
    "milo_discoveryd.state_file.encoding._CLUSTER": _OWN_FILE,
    "milo_discoveryd.state_file.encoding._OBJECT": _OWN_FILE,
    "milo_discoveryd.state_file.encoding._PARTS": _OWN_FILE,
    "milo_kube.exec_plugin._DECODER": Input(
        "1 MiB of output",
        _MIB,
        10,
        "the plugin that the administrator names",
        "kube/tests/unit/test_exec_plugin.py::test_exec_plugin_with_excessive_output_is_killed",
    ),
    "milo_kube.reflect.wire._ITEMS": _LINE,
    "milo_kube.reflect.wire._LINE": _LINE,
    "milo_kube.reflect.wire._LIST": _LINE,
    "milo_kube.reflect.wire._MARKED": _LINE,
    "milo_kube.reflect.wire._NAMED": _LINE,
    "milo_kube.reflect.wire._STATUS": _LINE,
}

_CREDENTIAL_FILE = Input(
    "1 MiB",
    _MIB,
    10,
    ADMIN,
    "kube/tests/unit/test_file_content.py::test_credential_file_without_valid_content_is_reported_by_name",
)

FILES = {
    "milo_discoveryd.config.layers": Input(
        "1 MiB", _MIB, 0, ADMIN, "end_to_end/process/test_bad_inputs.py::test_invalid_input_prints_a_one_line_error"
    ),
    "milo_kube.upstream": _CREDENTIAL_FILE,
    "milo_kube.file_content": _CREDENTIAL_FILE,
    "milo_kube.tls_identity": Input(
        "the system's CAs, read again only where OpenSSL could not",
        0,
        0,
        ADMIN,
        "kube/tests/unit/test_tls_identity.py::test_tls_context_without_the_system_cas_is_refused_if_there_are_some",
    ),
    "milo_discoveryd.credentials.kubeconfig_files": Input(
        "256 KiB of a file, 1 MiB of one with contexts",
        128 * _KIB,
        0,
        ADMIN,
        "integration/files/test_reading.py::test_file_over_the_size_limit_is_rejected",
    ),
    "milo_discoveryd.state_file.state_file": _OWN_FILE,
    "milo_discoveryd.wiring.issuers": _OWN_FILE,
    "milo_discoveryd.wiring.sharding": Input(
        "of the pod",
        _KIB,
        0,
        "the kubelet",
        "unit/wiring/test_sharding.py::test_shard_group_namespace_must_be_set_outside_of_a_pod",
    ),
    "milo_discoveryd.telemetry.board": Input(
        "of the kernel: 16 bytes of a process's name",
        _KIB,
        0,
        SUBSCRIBER,
        "integration/telemetry/test_status_page.py::test_program_of_a_subscriber_may_have_any_bytes",
    ),
    "milo_discoveryd.identity.peer_credentials": Input(
        "of the kernel",
        0,
        0.1,
        "the kernel",
        "integration/grpc_server/test_peer_credentials.py::test_inherited_connection_has_credentials_of_connecting_process",
    ),
}
"""Inputs, by the module that reads them."""

CONNECTIONS = {
    "milo_discoveryd.server.server": Input(
        "connections, 1000 by default; 100 streams, 72 KiB of a request, 16 KiB of metadata",
        96 * _KIB,
        1,
        STRANGER,
        f"{_MEMORY}::test_client_hello_flood_takes_bounded_memory_and_locks_out_no_caller",
    ),
    "milo_kube.http.server": Input(
        "64 connections, 16 KiB and 100 fields of a request",
        64 * _KIB,
        1,
        STRANGER,
        "kube/tests/integration/http/test_server.py::test_oldest_unread_replies_are_dropped_beyond_their_limit",
    ),
}
"""Inputs of connections, by the module that listens."""
