"""Builds the mode and the decoder of its objects from settings."""

import uuid
from typing import Any
from urllib.parse import urlsplit

from milo_discoveryd.config import Settings
from milo_discoveryd.credentials import Upstream
from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.objects import KubeObject
from milo_discoveryd.model.observation import Malformed, Observation, Outside, fields
from milo_discoveryd.model.selector import parse as parse_selector
from milo_discoveryd.modes import mode as modes
from milo_discoveryd.modes.mode import FixedMode, Setting, WatchedMode
from milo_kube.reflect.wire import Decoder


def mode_of(settings: Settings, project: Upstream) -> WatchedMode | FixedMode:
    server = urlsplit(project.server)
    single = settings.cluster
    return modes.load(settings.mode)(
        Setting(
            project_endpoint=f"{server.scheme}://{server.netloc}",
            internal_address_template=settings.internal_address_template,
            internal_namespace_template=settings.internal_namespace_template,
            annotation_prefixes=settings.annotation_prefixes,
            clusters=(
                Target(
                    name=single.name,
                    uid=str(uuid.uuid5(uuid.NAMESPACE_URL, f"{project.server}#{single.name}")),
                    place=(project.server,),
                    organization=single.organization,
                    labels=tuple(sorted(single.labels.items())),
                ),
            ),
        )
    )


def decoder(settings: Settings, mode: WatchedMode) -> Decoder[Any, Observation]:
    """Build a decoder that checks the label selector too: a GET by name also returns objects that do not match it."""
    selector = parse_selector(settings.label_selector)

    def observe(obj: KubeObject) -> Observation:
        metadata = obj.metadata
        if selector.matches((metadata.labels or {}).items()):
            return mode.observe(obj)
        message = f"its labels do not match the daemon's label selector {selector}"
        return Outside(metadata.name, metadata.uid, metadata.resourceVersion, message, fields(mode.observe(obj)))

    return Decoder(mode.object_type, observe if selector else mode.observe, Malformed)
