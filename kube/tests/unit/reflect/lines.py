"""Watch lines as an API server sends them."""

import json
from typing import Any

from milo_discoveryd.model.observation import Malformed, NotReady, Observation
from milo_discoveryd.sources.reading import KubeObject
from milo_kube.reflect.wire import Decoder


def observe(obj: KubeObject) -> Observation:
    """Return an observation whose message is the decoded labels."""
    metadata = obj.metadata
    return NotReady(metadata.name, metadata.uid, metadata.resourceVersion, repr(metadata.labels or {}))


DECODER = Decoder(KubeObject, observe, Malformed)


def thing(name: str, version: str = "1", uid: str = "", **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": uid or f"uid-{name}", "resourceVersion": version, **metadata}}


def seen(name: str, version: str = "1", uid: str = "") -> NotReady:
    return NotReady(name, uid or f"uid-{name}", version, "{}")


def line(kind: str, content: Any) -> bytes:
    return json.dumps({"type": kind, "object": content}).encode()
