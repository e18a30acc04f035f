"""The cases of the kit, a module for each profile."""

from __future__ import annotations

from importlib import import_module

from milo_conformance.run import CASES, Case, Profile


def every_case() -> list[Case]:
    """Return all cases, in the order of the profiles."""
    for profile in Profile:
        import_module(f"{__name__}.{profile.value}")
    return CASES
