"""The objects whose last reconcile failed."""

from collections import Counter

from milo_controllers.reconcile_failures import ReconcileFailures
from milo_controllers.work_queue import ObjectKey
from milo_kube.failure_log import FailureLog


def test_errors_of_a_cluster_in_which_very_many_objects_fail_are_not_all_kept() -> None:
    failures = ReconcileFailures("widgets", FailureLog())
    keys = [ObjectKey("alpha", 1, "", f"o{number}") for number in range(1500)]

    def kept() -> Counter[bool]:
        return Counter(failure.error.startswith("no: ") for _, failure in failures)

    for attempts in (1, 2):
        for key in keys:
            failures.record(key, ValueError(f"no: {key.name}"), is_stopped=False)
        assert kept() == {True: 1000, False: 500}
        assert {failure.attempts for _, failure in failures} == {attempts}
    for key in keys[:600]:
        failures.recovered(key)
    failures.record(keys[-1], ValueError("no: again"), is_stopped=False)
    assert kept() == {True: 401, False: 499}
