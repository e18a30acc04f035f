"""Daemons as the manifests start them: processes."""

from tests.process.conftest import folder, place

__all__ = ["folder", "place"]
