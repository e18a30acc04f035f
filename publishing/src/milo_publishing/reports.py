"""The problems of a publisher, each of which is reported when its message changes, and when it is resolved."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[str], None]


class ProblemReports:
    """The problems that are not resolved, by their subject."""

    def __init__(self, report: Report) -> None:
        self.report = report
        """Reports a message, even if it was reported before."""
        self._problems: dict[str, str] = {}

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(self._problems.values())

    def add_problem(self, subject: str, message: str) -> None:
        if self._problems.get(subject) != message:
            self._problems[subject] = message
            self.report(f"{subject}: {message}" if subject else message)

    def resolve(self, subject: str, message: str) -> None:
        if self._problems.pop(subject, None) is not None:
            self.report(f"{subject}: {message}" if subject else message)
