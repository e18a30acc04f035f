"""Fixtures of daemon processes."""

from tests.end_to_end.process.conftest import directory, workspace

__all__ = ["directory", "workspace"]
