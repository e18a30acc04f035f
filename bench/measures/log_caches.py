"""Time that the change log's caches save: a read that hits a cache, beside the read that computes the result."""

import time
from itertools import product

from bench import in_process
from bench.setting import Samples, Setting
from milo_discoveryd.log.change_log import ChangeLog
from milo_discoveryd.log.cursor import Cursor
from milo_discoveryd.log.filter import EVERYTHING, ClusterView, Filter
from milo_discoveryd.telemetry.logging import configure
from milo_kube.label_selector import parse
from milo_kube.reflect.messages import ObjectChanged

_SELECTORS = [f"env={env},tier={tier}" for env, tier in product(("prod", "dev"), ("gold", "silver"))]


async def measure(setting: Setting) -> Samples:
    configure("warning", "json")
    samples: Samples = {}
    for _ in range(setting.scale.rounds):
        for name, seconds in _round(setting.scale.clusters).items():
            samples.setdefault(f"log_caches.{name}_us", []).append(seconds / setting.scale.clusters * 1e6)
    return samples


def _round(count: int) -> dict[str, float]:
    decoder = in_process.decoder()
    source = in_process.source(in_process.observed(decoder, in_process.lines("ADDED", count, 1, "")))
    log, start = source.changes.log, source.changes.log.head
    took = {
        "first_snapshot": _reading(log, None),  # encodes the frames
        "second_snapshot": _reading(log, None),
    }
    snapshot = log.snapshot()  # held, as by a subscriber that has received a part of it
    _reading(log, None)
    took["shared_snapshot"] = _reading(log, None)
    for changed in in_process.observed(decoder, in_process.lines("MODIFIED", count, count + 1, "changed")):
        for _ in source.apply(source.collections[0], [ObjectChanged(changed)], time.monotonic()):
            pass
    del snapshot
    _reading(log, start)  # encodes the frames
    took["normative_changes"] = sum(_reading_normatively(log, start, view) for view in _views()) / len(_views())
    took["first_changes"] = sum(_reading(log, start, view) for view in _views()) / len(_views())
    took["second_changes"] = sum(_reading(log, start, view) for view in _views()) / len(_views())
    return took


def _views() -> list[ClusterView]:
    return [Filter(selector=parse(selector)) for selector in _SELECTORS]


def _reading(log: ChangeLog, resume: int | None, view: ClusterView = EVERYTHING) -> float:
    began = time.process_time()
    reader = Cursor(log, view, resume)
    while reader.next_batch():
        pass
    return time.process_time() - began


def _reading_normatively(log: ChangeLog, revision: int, view: ClusterView) -> float:
    began, ahead = time.process_time(), frozenset[tuple[str, int]]()
    while revision < log.head:
        found = log.read(revision, view, ahead)
        revision, ahead = found.revision, found.ahead
    return time.process_time() - began
