"""Fixtures of daemon processes."""

from tests.end_to_end.process.conftest import folder, workspace

__all__ = ["folder", "workspace"]
