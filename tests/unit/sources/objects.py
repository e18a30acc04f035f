"""Projects and control planes as an API server stores them."""

from typing import Any

import msgspec

from milo_discoveryd.sources.reading import KubeObject


def condition(kind: str, status: str = "True", reason: str = "", message: str = "") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def project(
    name: str = "apollo", *conditions: dict[str, str], spec: dict[str, Any] | None = None, **metadata: Any
) -> KubeObject:
    """Return a project; without conditions it is ready."""
    return _object(name, list(conditions or [condition("Ready")]), spec, metadata)


def control_plane(name: str = "apollo", *conditions: dict[str, str], **metadata: Any) -> KubeObject:
    return _object(name, list(conditions or [condition("ControlPlaneReady")]), None, metadata)


def _object(name: str, conditions: list[dict[str, str]], spec: Any, metadata: dict[str, Any]) -> KubeObject:
    content = {
        "metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": "7", **metadata},
        "spec": spec,
        "status": {"conditions": conditions},
    }
    return msgspec.convert(content, KubeObject)
