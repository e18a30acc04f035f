"""The daemon's own part of a change, by steps, in this process: all else is the kernel's, gRPC's and asyncio's."""

import random
import time
from collections.abc import Callable

from bench import projects
from bench.setting import Samples, Setting
from milo_discoveryd.model.objects import KubeObject
from milo_discoveryd.model.observation import Observation
from milo_discoveryd.modes.mode import Setting as ModeSetting
from milo_discoveryd.modes.project import ProjectMode
from milo_discoveryd.reflect.deletions import Suspicions
from milo_discoveryd.reflect.machine import Changed, Listed, ListEnded, ListStarted
from milo_discoveryd.reflect.wire import Decoder, Seen
from milo_discoveryd.registry.cursor import Cursor
from milo_discoveryd.registry.events import Event, EventType
from milo_discoveryd.registry.filter import EVERYTHING
from milo_discoveryd.registry.fleet import Fleet
from milo_discoveryd.registry.log import ChangeLog, Retention
from milo_discoveryd.server.frames import encoder
from milo_discoveryd.telemetry.audit import Audit
from milo_discoveryd.telemetry.journal import Journal
from milo_discoveryd.telemetry.logging import configure
from milo_discoveryd.telemetry.metrics import Metrics

_EPOCH = "0123456789abcdef"


async def measure(setting: Setting) -> Samples:
    configure("warning", "json")
    samples: Samples = {}
    for _ in range(setting.scale.rounds):
        for name, figure in _round(setting.scale.clusters).items():
            samples.setdefault(f"parts.{name}", []).append(figure)
    return samples


def _round(count: int) -> dict[str, float]:
    first, changed = _lines("ADDED", count, 1, ""), _lines("MODIFIED", count, count + 1, "changed")
    decoder = Decoder(ProjectMode.object_type, _mode().observe)
    encode = encoder(_EPOCH)
    log = ChangeLog(encode, Retention())
    fleet = Fleet(log, Suspicions(random.random), Journal(Metrics(), Audit(Metrics())))
    now = time.monotonic()
    listed = [ListStarted(), *(Listed(each) for each in _observed(decoder, first)), ListEnded()]
    for _ in fleet.take(listed, now):
        pass
    read_up_to = log.head
    changes = [Changed(each) for each in _observed(decoder, changed)]

    def commit() -> None:
        for change in changes:
            for _ in fleet.take([change], now):
                pass

    def read(after: int) -> None:
        reader = Cursor(log, EVERYTHING, after)
        while batch := reader.take():
            assert batch.frames.joined

    took = {"decode": _timed(lambda: _observed(decoder, changed)), "commit": _timed(commit)}
    clusters = list(fleet.registry.clusters())
    took["encode"] = _timed(lambda: [encode(Event(EventType.UPDATED, cluster)) for cluster in clusters])
    read(read_up_to)  # which makes the frames
    took["slice"] = _timed(lambda: read(read_up_to + 1))
    snapshot = log.snapshot()
    # What subscribers are sent of a cluster.
    frame_bytes = sum(map(len, map(log.frame, snapshot.entries, snapshot.clusters))) / count
    return {**{f"{name}_us": seconds / count * 1e6 for name, seconds in took.items()}, "frame_bytes": frame_bytes}


def _lines(kind: str, count: int, first_version: int, mark: str) -> list[bytes]:
    return [
        b'{"type":"%s","object":%s}'
        % (kind.encode(), projects.body(index, uid=f"uid-{index}", version=first_version + index, mark=mark))
        for index in range(count)
    ]


def _observed(decoder: Decoder[KubeObject], lines: list[bytes]) -> list[Observation]:
    events = [decoder.line(line) for line in lines]
    return [event.observation for event in events if isinstance(event, Seen)]


def _mode() -> ProjectMode:
    return ProjectMode(
        ModeSetting(
            project_endpoint="https://127.0.0.1:6443",
            internal_address_template="",
            internal_namespace_template="",
            annotation_prefixes=(),
            clusters=(),
        )
    )


def _timed(do: Callable[[], object]) -> float:
    began = time.process_time()
    do()
    return time.process_time() - began
