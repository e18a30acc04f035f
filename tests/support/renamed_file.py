"""Atomic replacement of a file, by renaming a new one, as the documentation requires."""

from pathlib import Path


def replace(path: Path, content: str | bytes) -> None:
    """Replace the file atomically, as a kubelet does."""
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(content.encode() if isinstance(content, str) else content)
    new.replace(path)
