"""An operator that keeps the labelled ConfigMaps of every project as files, and says how old they are.

    MILO_DISCOVERY_ADDRESS=unix:///... FILES=/tmp/dashboards python config_files.py

What k8s-sidecar does in one cluster: each key of a ConfigMap with the label `example.com/files` is the file
FILES/PROJECT/NAMESPACE/NAME/KEY. Its directory is removed with the ConfigMap, and that of a project when the project is
disengaged, also if that happened while the program did not run.

The probes stay green when a watch falls silent. So FILES/status.json, which is written every two seconds, has each
project's `state`: SYNCED; STALE, whose files are as the API server last sent them, at about `as_of`; or UNREAD, whose
objects have not been read yet. Silence is noticed after 90 seconds. If `written` is old, the program does not run.
"""

import asyncio
import base64
import json
import os
import shutil
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from milo_controllers import CacheProblem, Controllers, Kind, NotSynced, Permanent, Request, main

CONFIG_MAPS = Kind("v1/configmaps", selector="example.com/files")
FILES = Path(os.environ.get("FILES", "files"))
EVERY_S = 2.0

controllers = Controllers()
# What is removed is compared with the caches while nothing is written.
lock = threading.Lock()


def directory(*names: str) -> Path:
    """Return a directory inside FILES. Names come from API servers, which may be a tenant's."""
    if any(name in {"", ".", ".."} for name in names):
        raise Permanent(f"{names} cannot be the names of directories")
    return FILES.joinpath(*(quote(name, safe="#") for name in names))


def contents(config_map: dict[str, Any]) -> dict[str, bytes]:
    found = {key: text.encode() for key, text in (config_map.get("data") or {}).items()}
    return found | {key: base64.b64decode(text) for key, text in (config_map.get("binaryData") or {}).items()}


def replace(file: Path, content: bytes) -> None:
    """Write a file that is never seen half written. The caller holds the lock."""
    new = FILES / ".new"
    new.write_bytes(content)
    new.replace(file)


@controllers.reconcile(CONFIG_MAPS, while_deleting=True)
def reconcile(request: Request) -> None:
    """Write, or remove, the files of one ConfigMap."""
    place = directory(request.cluster.name, request.namespace, request.name)
    with lock:
        config_map = request.wait(request.get())
        if config_map is None:
            shutil.rmtree(place, ignore_errors=True)
            return
        wanted = {
            directory(request.cluster.name, request.namespace, request.name, key): content
            for key, content in contents(config_map).items()
        }
        place.mkdir(parents=True, exist_ok=True)
        for file, content in wanted.items():
            if not file.exists() or file.read_bytes() != content:
                replace(file, content)
        for file in set(place.iterdir()) - set(wanted):
            file.unlink()


def prune() -> None:
    """Remove the files of projects that are not engaged, and of ConfigMaps that a complete cache lacks."""
    for project in filter(Path.is_dir, FILES.iterdir()):
        caches = controllers.view.cluster(unquote(project.name))
        if caches is None:
            if controllers.health().discovery.synced:  # also now: it may have been lost with all others
                shutil.rmtree(project)
            continue
        with suppress(NotSynced):
            found = [config_map["metadata"] for config_map in caches.list(CONFIG_MAPS)]
            held = {directory(unquote(project.name), own["namespace"], own["name"]) for own in found}
            for place in set(filter(Path.is_dir, project.glob("*/*"))) - held:
                shutil.rmtree(place)


def status(project: str, problem: CacheProblem | None) -> dict[str, object]:
    count = sum(path.is_file() for path in directory(project).glob("*/*/*"))
    if problem is None:
        return {"state": "SYNCED", "as_of": datetime.now(UTC).isoformat(), "files": count}
    state, as_of = ("STALE", problem.since.isoformat()) if problem.is_synced else ("UNREAD", None)
    return {"state": state, "as_of": as_of, "files": count, "problem": problem.problem}


def report() -> None:
    with lock:
        FILES.mkdir(parents=True, exist_ok=True)
        health = controllers.health()
        if health.discovery.connected and health.discovery.synced:
            prune()
        problems = {problem.cluster: problem for problem in health.problems}
        projects = {name: status(name, problems.get(name)) for name in controllers.view.names()}
        written = {"written": datetime.now(UTC).isoformat(), "discovery": health.discovery.problem or "connected"}
        replace(FILES / "status.json", json.dumps(written | {"projects": projects}, indent=2).encode())


@controllers.background(leader_only=False)
async def report_repeatedly() -> None:
    while True:
        await asyncio.to_thread(report)
        await asyncio.sleep(EVERY_S)


if __name__ == "__main__":
    main(controllers)
