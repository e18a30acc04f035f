"""Waits for writes of a daemon's state file."""

from pathlib import Path

from tests.support.eventually import eventually


async def written(file: Path, times: int) -> None:
    """Wait until the state file was written that many times more. Each write replaces the file."""
    versions = set()

    def count() -> int:
        versions.add(file.stat().st_mtime_ns)
        return len(versions) - 1

    await eventually(lambda: count() >= times)
