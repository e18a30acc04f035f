"""The time for which processes remember removals, reduced."""

from pathlib import Path


def with_short_memory(directory: Path) -> dict[str, str]:
    """Return environment variables with which a publisher remembers removals for a second. So it removes, a second
    after its start, what it finds without a cluster."""
    site = directory / "short-memory"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text("from milo_discovery import removals\nremovals.RECENT_S = 1.0\n")
    return {"PYTHONPATH": str(site)}
