"""Each task has a decision: what happens on an unexpected error about one source, cluster, caller or object."""

from tests.tooling.import_contracts.tasks import OTHERS, TESTED, exists, tasks


def test_every_task_has_a_decision_about_unexpected_errors() -> None:
    started, decided = tasks(), TESTED.keys() | OTHERS.keys()
    assert started - decided == set(), (
        "add the task to TESTED in tasks.py with a test in which one source, cluster, caller or object raises an "
        "unexpected exception, or to OTHERS with a reason"
    )
    assert decided - started == set(), "remove these from tasks.py: no such task is started"
    assert not TESTED.keys() & OTHERS.keys()


def test_tests_of_unexpected_errors_exist() -> None:
    assert [test for test in TESTED.values() if not exists(test)] == []
