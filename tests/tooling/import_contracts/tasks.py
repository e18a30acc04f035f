"""Which test shows, for each task, that what one source, cluster, caller or object causes does not end it.

Callbacks of the event loop and protocols are not listed: asyncio logs their errors with the stack, and continues.
"""

import ast
from collections.abc import Iterator

from tests.tooling.import_contracts.contracts import ROOT

PACKAGES = (
    "milo_discoveryd",
    "kube/src/milo_kube",
    "clients/python/src/milo_discovery",
    "clients/cli/src/milo_discovery_cli",
    "objects/src/milo_objects",
    "controllers/src/milo_controllers",
    "publishing/src/milo_publishing",
)
_STARTERS = frozenset({"create_task", "ensure_future", "run_coroutine_threadsafe", "Thread"})

_DRIVER = "tests/integration/watchers/test_driver.py"
_KUBECONFIGS = "tests/unit/kubeconfigs/test_kubeconfigs.py"
_REVOCATION = f"{_KUBECONFIGS}::test_unexpected_error_of_a_revocation_is_retried_and_does_not_stop_others"
_FLEET = "clients/python/tests/test_fleet.py"
_OBJECTS = "clients/cli/tests/test_fleet_objects.py"
_TIMERS = f"{_DRIVER}::test_unexpected_error_of_the_timers_of_a_source_delays_them"
_CONFIRMATION = f"{_DRIVER}::test_unexpected_error_of_a_confirmation_read_is_inconclusive"
_CRASH = "controllers/tests/integration/test_production.py::test_health_reports_crashing_cluster"

TESTED = {
    "milo_discoveryd/connectivity/prober.py: self._probe": (
        "tests/unit/connectivity/test_prober.py::test_unexpected_error_of_a_probe_is_a_failure_of_its_cluster"
    ),
    "milo_discoveryd/credentials/issuers/token_request.py: self._clean_up": (
        "tests/unit/credentials/test_token_request.py::test_mints_do_not_wait_for_the_deletion_of_old_secrets"
    ),
    "milo_discoveryd/credentials/issuers/token_request.py: revoke_next": (
        "tests/unit/credentials/test_token_request.py"
        "::test_unexpected_error_of_a_secret_keeps_no_others_of_other_members"
    ),
    "milo_discoveryd/sharding/assignment.py: issuer.run": (
        "tests/integration/sharding/test_revocation.py::test_revocation_is_retried_after_an_unexpected_error"
    ),
    "milo_discoveryd/kubeconfigs/minter.py: self._work": (
        f"{_KUBECONFIGS}::test_unexpected_error_of_a_mint_is_a_failure_of_its_cluster"
    ),
    "milo_discoveryd/kubeconfigs/minter.py: self._schedule": (
        f"{_KUBECONFIGS}::test_unexpected_error_of_one_lease_does_not_stop_the_renewal_of_others"
    ),
    "milo_discoveryd/kubeconfigs/minter.py: self._revocations.run": _REVOCATION,
    "milo_discoveryd/kubeconfigs/revocations.py: self._attempt": _REVOCATION,
    "milo_discoveryd/server/calls/verification.py: verify": (
        "tests/integration/grpc_server/test_tokens.py"
        "::test_unexpected_error_of_a_verification_ends_only_the_stream_that_it_verifies"
    ),
    "milo_discoveryd/server/connections/acceptor.py: self._run": (
        "tests/integration/grpc_server/test_peer_credentials.py"
        "::test_unexpected_error_of_a_connection_ends_only_this_connection"
    ),
    "milo_discoveryd/server/connections/acceptor.py: self._accept": (
        "tests/integration/grpc_server/test_peer_credentials.py"
        "::test_unexpected_error_of_a_connection_ends_only_this_connection"
    ),
    "milo_discoveryd/server/connections/acceptor.py: self._serve": (
        "tests/integration/grpc_server/test_peer_credentials.py"
        "::test_unexpected_error_of_a_connection_ends_only_this_connection"
    ),
    "milo_discoveryd/sharding/group.py: revoking": (
        "tests/integration/sharding/test_revocation.py::test_revocation_is_retried_after_an_unexpected_error"
    ),
    "milo_discoveryd/sharding/group.py: self._apply_in_time": (
        "tests/unit/fleet/test_unexpected_errors.py::test_unexpected_error_of_a_listener_concerns_only_its_cluster"
    ),
    "milo_discoveryd/sharding/group.py: self._delete": (
        "tests/integration/sharding/test_group.py"
        "::test_deletion_of_a_lease_that_hangs_or_fails_unexpectedly_affects_no_other_request"
    ),
    "milo_discoveryd/telemetry/shared_scrape.py: self._build_all": (
        "tests/integration/telemetry/test_http.py::test_failed_build_of_metrics_fails_only_the_scrapes_that_wait_for_it"
    ),
    "milo_discoveryd/watchers/driver.py: self._confirm": _CONFIRMATION,
    "milo_discoveryd/watchers/driver.py: self._confirmations.run": _TIMERS,
    "milo_discoveryd/watchers/driver.py: self._follow": (
        f"{_DRIVER}::test_unexpected_error_of_a_collection_makes_its_source_stale_and_is_retried"
    ),
    "milo_discoveryd/watchers/driver.py: self._check_liveness": (
        f"{_DRIVER}::test_unexpected_error_of_a_liveness_probe_does_not_end_the_probes"
    ),
    "milo_discoveryd/watchers/file_driver.py: self._follow": (
        "tests/integration/files/test_file_driver.py"
        "::test_unexpected_error_of_the_files_makes_their_source_stale_and_is_retried"
    ),
    "milo_discoveryd/watchers/file_driver.py: self._confirmations.run": _TIMERS,
    "milo_discoveryd/wiring/source.py: self._storage.save": (
        "tests/unit/wiring/test_restore.py"
        "::test_source_whose_state_causes_unexpected_errors_is_followed_and_saved_again"
    ),
    "kube/src/milo_kube/http/server.py: self._secure": (
        "kube/tests/integration/http/test_server.py::test_unexpected_error_of_a_handshake_ends_its_connection_alone"
    ),
    "kube/src/milo_kube/http/server.py: answering": (
        "kube/tests/integration/http/test_server.py::test_unexpected_error_of_a_handler_ends_only_its_connection"
    ),
    "kube/src/milo_kube/credential_providers.py: self._renew": (
        "kube/tests/unit/test_renewed_credential.py::test_error_in_looking_for_changes_does_not_end_the_renewal"
    ),
    "clients/python/src/milo_discovery/credentials.py: self._renew": (
        "clients/python/tests/test_credential_renewal.py"
        "::test_unexpected_error_of_a_renewal_means_no_credential_for_its_callers_and_the_next_one_succeeds"
    ),
    "clients/cli/src/milo_discovery_cli/fleet_objects.py: work": (
        f"{_OBJECTS}::test_unexpected_error_of_one_cluster_is_its_cause_and_others_are_printed"
    ),
    "clients/cli/src/milo_discovery_cli/object_watch.py: self._follow": (
        f"{_OBJECTS}::test_unexpected_error_of_one_cluster_does_not_end_the_watch_of_others"
    ),
    "clients/python/src/milo_discovery/fleet.py: handling": (
        f"{_FLEET}::test_failed_handler_does_not_affect_other_clusters"
    ),
    "controllers/src/milo_controllers/single_cluster.py: self._handled": (
        "controllers/tests/integration/test_single_cluster.py::test_failure_of_a_single_cluster_restarts_it"
    ),
    "clients/python/src/milo_discovery/fleet.py: self._release": (
        "clients/python/tests/test_fleet_draining.py"
        "::test_release_is_retried_after_an_unexpected_error_and_other_clusters_continue"
    ),
    "clients/python/src/milo_discovery/kopf.py: work": (
        "clients/python/tests/test_kopf.py::test_unexpected_exit_of_one_operator_does_not_end_others"
    ),
    "clients/python/src/milo_discovery/watch.py: self._read": (
        "clients/python/tests/test_watch.py::test_unexpected_error_about_one_cluster_does_not_end_the_watch"
    ),
    "controllers/src/milo_controllers/controller.py: process": (
        "controllers/tests/integration/test_reconciles.py"
        "::test_failed_reconcile_is_retried_and_permanent_failure_waits_for_a_change"
    ),
    "controllers/src/milo_controllers/engaged_clusters.py: informer.run": _CRASH,
    "controllers/src/milo_controllers/event_recorder.py: self._write_pending": (
        "controllers/tests/integration/test_reconciles.py::test_event_of_missing_object_is_logged_as_not_recorded"
    ),
    "objects/src/milo_objects/follow.py: self._follow_scope": (
        "objects/tests/integration/test_objects.py"
        "::test_unexpected_error_in_one_cluster_ends_no_scope_and_no_other_cluster"
    ),
    "objects/src/milo_objects/publisher.py: self._perform": (
        "objects/tests/integration/test_nats.py::test_unexpected_error_about_one_cluster_delays_no_other"
    ),
    "publishing/src/milo_publishing/publisher.py: self._serve": (
        "publishing/tests/test_publisher.py::test_object_that_fails_delays_no_others_and_is_named"
    ),
    "publishing/src/milo_publishing/publisher.py: self._follow": (
        "clients/python/tests/test_watch.py::test_unexpected_error_about_one_cluster_does_not_end_the_watch"
    ),
}
"""The tasks that handle sources, clusters, callers or objects, one or several, each with the test."""

_WHOLE = "it handles no single source, cluster, caller or object"
_AWAITED = "its error is raised where it is awaited"
_GROUP = "it only runs tasks that are in this list"

OTHERS = {
    "milo_discoveryd/app.py: self.serve": _GROUP,
    "milo_discoveryd/app.py: self._membership.leave": _WHOLE,
    "milo_discoveryd/app.py: server.watch": _GROUP,
    "milo_discoveryd/app.py: self._report_start": _GROUP,
    "milo_discoveryd/app.py: kubeconfigs.run": _GROUP,
    "milo_discoveryd/app.py: self._evict_frames": _WHOLE,
    "milo_discoveryd/app.py: applied": _WHOLE,
    "milo_discoveryd/app.py: group.run": _GROUP,
    "milo_discoveryd/app.py: following": _GROUP,
    "milo_discoveryd/app.py: probing": _GROUP,
    "milo_discoveryd/app.py: self._report_health": _WHOLE,
    "milo_discoveryd/app.py: self._report_failed_start": _WHOLE,
    "milo_discoveryd/kubeconfigs/kubeconfigs.py: minter.run": _GROUP,
    "milo_discoveryd/kubeconfigs/minter.py: self._mint_queued": _GROUP,
    "milo_discoveryd/telemetry/log_writer.py: self._run": _WHOLE,
    "milo_discoveryd/wiring/source.py: driver.run": _GROUP,
    "milo_discoveryd/server/calls/handlers.py: self._context.send_initial_metadata": _AWAITED,
    "kube/src/milo_kube/external_command.py: process.wait": _AWAITED,
    "kube/src/milo_kube/external_command.py: flooded.wait": _AWAITED,
    "kube/src/milo_kube/external_command.py: asyncio.create_subprocess_exec": _AWAITED,
    "kube/src/milo_kube/http/name_lookup.py: run": _AWAITED,
    "kube/src/milo_kube/loop_watchdog.py: self._watch": _WHOLE,
    "kube/src/milo_kube/background_loop.py: last": _AWAITED,
    "kube/src/milo_kube/background_loop.py: coroutine": _AWAITED,
    "kube/src/milo_kube/background_loop.py: serve": _WHOLE,
    "kube/src/milo_kube/background_loop.py: work": _AWAITED,
    "clients/python/src/milo_discovery/credentials.py: self._pushed.following": _AWAITED,
    "clients/python/src/milo_discovery/credentials.py: awaited": _AWAITED,
    "kube/src/milo_kube/task_groups.py: attempt": _AWAITED,
    "kube/src/milo_kube/task_groups.py: self.run": _AWAITED,
    "clients/cli/src/milo_discovery_cli/object_watch.py: self._follow_fleet": _AWAITED,
    "clients/cli/src/milo_discovery_cli/progress.py: self._draw": _WHOLE,
    "clients/cli/src/milo_discovery_cli/sync.py: self._follow": _AWAITED,
    "clients/cli/src/milo_discovery_cli/sync.py: self._write": _AWAITED,
    "clients/cli/src/milo_discovery_cli/watch.py: messages.follow_sources": _WHOLE,
    "clients/python/src/milo_discovery/kopf.py: self._renewed": _AWAITED,
    "clients/python/src/milo_discovery/kopf.py: follow": _AWAITED,
    "clients/python/src/milo_discovery/fleet.py: self._follow_freshness": _WHOLE,
    "clients/python/src/milo_discovery/leader_election.py: _call": _AWAITED,
    "clients/python/src/milo_discovery/leader_election.py: self._renew_until_lost": _AWAITED,
    "clients/python/src/milo_discovery/leader_election.py: self._claim": _AWAITED,
    "clients/python/src/milo_discovery/testing/waiting.py: called": _AWAITED,
    "clients/python/src/milo_discovery/watch.py: _in_thread": _WHOLE,
    "controllers/src/milo_controllers/app.py: controllers.run": _GROUP,
    "controllers/src/milo_controllers/app.py: signaled.wait": _WHOLE,
    "controllers/src/milo_controllers/app.py: controllers.failed": _WHOLE,
    "controllers/src/milo_controllers/app.py: controllers.drain": _WHOLE,
    "controllers/src/milo_controllers/app.py: exit_now": "it exits",
    "controllers/src/milo_controllers/app.py: work": _AWAITED,
    "controllers/src/milo_controllers/controllers.py: self._in_background": "its author's error ends the operator",
    "controllers/src/milo_controllers/webhook_server.py: _follow": _WHOLE,
    "controllers/src/milo_controllers/controllers.py: self._follow_discovery": _WHOLE,
    "controllers/src/milo_controllers/controllers.py: self._log_summaries": _WHOLE,
    "controllers/src/milo_controllers/controllers.py: self._resync_periodically": _WHOLE,
    "controllers/src/milo_controllers/event_loop.py: _contained": _AWAITED,
    "objects/src/milo_objects/command.py: publisher.run": _GROUP,
    "objects/src/milo_objects/follow.py: self._report_fleet": _WHOLE,
    "objects/src/milo_objects/jetstream.py: _watch_silence": _WHOLE,
    "objects/src/milo_objects/jetstream.py: self._client.request": _AWAITED,
    "objects/src/milo_objects/jetstream.py: self._answer": _AWAITED,
    "objects/src/milo_objects/publisher.py: self._beat": _WHOLE,
    "objects/src/milo_objects/publisher.py: self._connect": _GROUP,
    "objects/src/milo_objects/publisher.py: self._identify": _WHOLE,
    "objects/src/milo_objects/publisher.py: self._listen": _WHOLE,
    "objects/src/milo_objects/publisher.py: self._look": _WHOLE,
    "objects/src/milo_objects/publisher.py: self._source.run": _GROUP,
    "objects/src/milo_objects/publisher.py: session.lost": _WHOLE,
    "publishing/src/milo_publishing/publisher.py: self._work": _GROUP,
}
"""All other tasks, and why an unexpected error may end them."""


def tasks() -> set[str]:
    """Return the place of each task or thread that is started: `FILE: WHAT RUNS`."""
    return {
        f"{path.relative_to(ROOT)}: {place}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for place in _started(ast.parse(path.read_text()))
    }


def _started(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _name(node.func) in _STARTERS:
            (what,) = node.args[:1] or [keyword.value for keyword in node.keywords if keyword.arg == "target"]
            yield ast.unparse(what.func if isinstance(what, ast.Call) else what)


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def exists(test: str) -> bool:
    path, _, name = test.partition("::")
    found = ROOT / path
    return found.exists() and any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
        for node in ast.walk(ast.parse(found.read_text()))
    )
