"""Benchmark results name the measured commit, and are not stale."""

import pytest

from bench import age
from bench.report import Results


def _results(commit: str | None, at: str = "today") -> Results:
    commits = {} if commit is None else {"milo-discoveryd": commit}
    return Results(
        figures={}, spread={}, missed=[], scale="full", upstream="sandbox", at=at, machine={}, commits=commits
    )


def _since(commit: str, packages: tuple[str, ...]) -> int | None:
    return {"fresh": 30, "old": 31, "client": 31 if "clients/go" in packages else 0}.get(commit)


@pytest.mark.parametrize(
    ("name", "commit", "problem"),
    [
        ("sandbox", "fresh", None),
        ("sandbox", "client", None),
        ("go", "client", "31 later commits changed what it measures"),
        ("sandbox", "old", "31 later commits changed what it measures"),
        ("sandbox", "fresh-dirty", "a working tree with uncommitted changes"),
        ("sandbox", None, "does not name the commit"),
        ("sandbox", "elsewhere", "not in the history of this checkout"),
    ],
)
def test_stale_bench_results_are_reported(name: str, commit: str | None, problem: str | None) -> None:
    found = [*age.problems({name: _results(commit)}, {}, _since)]
    assert len(found) == (problem is not None)
    assert all(problem is not None and problem in text for text in found)


def test_bench_results_known_as_stale_are_accepted_until_they_are_measured_again() -> None:
    known = {"sandbox": "yesterday"}
    assert [*age.problems({"sandbox": _results(None, "yesterday")}, known, _since)] == []
    (again,) = age.problems({"sandbox": _results("old", "today")}, known, _since)
    assert "measure it again" in again
    (fresh,) = age.problems({"sandbox": _results("fresh", "today")}, known, _since)
    (removed,) = age.problems({}, known, _since)
    assert "remove it from KNOWN_STALE" in fresh
    assert "remove it from KNOWN_STALE" in removed


CODE = '''
"""A module."""
LIMIT = "10 s"  # of a read


class Read:
    name: str
    """The name."""

    def fail(self) -> None:
        """Fail."""
        raise ValueError(f"read {self.name} failed")
'''


@pytest.mark.parametrize(
    ("old", "new", "is_equal"),
    [
        ('"""A module."""', '"""Another module."""', True),
        ('"""A module."""', "", True),
        ("# of a read", "# of one read", True),
        ('    """The name."""\n', "", True),
        ('f"read {self.name} failed"', 'f"cannot read {self.name} now"', True),
        ('f"read {self.name} failed"', 'f"read {self.id} failed"', False),
        ('LIMIT = "10 s"', 'LIMIT = "10s"', False),
        ('"""Fail."""', "self.name = None", False),
    ],
)
def test_commits_that_change_only_comments_docstrings_or_messages_do_not_make_bench_results_stale(
    old: str, new: str, is_equal: bool
) -> None:
    assert old in CODE
    assert (age.without_texts(CODE) == age.without_texts(CODE.replace(old, new))) is is_equal
