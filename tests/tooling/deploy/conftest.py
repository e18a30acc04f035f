"""Fixtures of daemon processes."""

from tests.end_to_end.process.conftest import folder, place

__all__ = ["folder", "place"]
