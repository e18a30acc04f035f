"""Merges one cluster into a kubeconfig file, which is created if it does not exist."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from milo_discovery_cli import atomic_files, yaml_output
from milo_discovery_cli.exit_status import CommandFailure

Document = dict[str, Any]
_LISTS = ("clusters", "users", "contexts")
_EMPTY: Document = {"apiVersion": "v1", "kind": "Config"}


def default_file() -> Path:
    """Return the file to which kubectl adds entries: the first file in KUBECONFIG that exists, or else the last one."""
    listed = [Path(path) for path in os.environ.get("KUBECONFIG", "").split(os.pathsep) if path]
    existing = filter(Path.exists, listed)
    return next(existing, listed[-1]) if listed else Path.home() / ".kube" / "config"


def merge_into(path: Path, one: Document, context: str) -> None:
    """Add the cluster, user and context of `one` under the name `context`, replacing entries of that name."""
    path = path.resolve()  # replace the target of a symlink, and keep the symlink
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(path):
        before = _read(path)
        atomic_files.replace(path, (yaml_output.document(merged(before, one, context)) + "\n").encode())


def merged(before: Document, one: Document, context: str) -> Document:
    """Return the merged document. An existing current context is kept."""
    after = {**_EMPTY, **before}
    named = {
        "clusters": {"name": context, "cluster": one["clusters"][0]["cluster"]},
        "users": {"name": context, "user": one["users"][0]["user"]},
        "contexts": {"name": context, "context": {"cluster": context, "user": context}},
    }
    for kind in _LISTS:
        others = [entry for entry in after.get(kind) or [] if entry.get("name") != context]
        after[kind] = [*others, named[kind]]
    after["current-context"] = after.get("current-context") or context
    return after


def _read(path: Path) -> Document:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return dict(_EMPTY)
    try:
        document = json.loads(content)
    except ValueError:
        document = _read_yaml(path, content)
    if document is None:
        return dict(_EMPTY)
    if not isinstance(document, dict) or not all(_is_named_list(document.get(kind)) for kind in _LISTS):
        raise CommandFailure(f"{path} is not a kubeconfig; it was not changed")
    return document


def _is_named_list(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(entry, dict) for entry in value))


def _read_yaml(path: Path, content: bytes) -> Any:
    from milo_kube import yaml_document  # noqa: PLC0415  (many files are JSON)

    try:
        return yaml_document.read(content, scalars="typed").value
    except yaml_document.DocumentError as error:
        raise CommandFailure(f"{path} was not changed: {error}") from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold kubectl's lock: a file beside the kubeconfig that exists while it is being written."""
    lock = path.with_name(f"{path.name}.lock")
    try:
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        raise CommandFailure(f"{path} is locked by another process; if none is running, remove {lock}") from None
    try:
        yield
    finally:
        lock.unlink()
