"""The daemon with timers on the path of a change. `python -m bench.clocked run …` is `milo-discoveryd run …`.

The first SIGRTMIN+1 starts the timers. The second prints `legs` and a JSON object on one line: the CPU time of each
part since the first, without that of nested parts.
"""

import asyncio
import json
import runpy
import selectors
import signal
import sys
import time
from asyncio import events, sslproto
from collections.abc import Callable
from functools import wraps
from typing import Any

from milo_discoveryd.engagement.engagement import Engagements
from milo_discoveryd.log.change_notifier import ChangeNotifier
from milo_discoveryd.log.cursor import Cursor
from milo_discoveryd.objects.store import ObjectStore
from milo_discoveryd.server.calls import frames
from milo_discoveryd.server.calls.revision import TokenSigner
from milo_discoveryd.telemetry.journal import Journal
from milo_kube.http.http1 import Http1Connection
from milo_kube.reflect.reflector import Reflector
from milo_kube.reflect.wire import Decoder

THREADS, LOOP = "threads", "loop"
"""CPU time of gRPC's threads, and CPU time of the main thread that belongs to no other part."""
_SOURCE = "follow the source"
# Other event-loop callbacks of the HTTP client and of gRPC, such as writes.
_HTTP, _GRPC = "http", "grpc"
_LEGS = (
    (selectors.EpollSelector, "select", "wait"),
    (sslproto.SSLProtocol, "buffer_updated", "tls"),
    (Http1Connection, "data_received", _HTTP),
    (Decoder, "line", "decode"),
    (Reflector, "events", "commit"),
    (ObjectStore, "is_news", "commit"),
    (ObjectStore, "apply_watched", "commit"),
    (Engagements, "commit", "commit"),
    (Journal, "changed", "count"),
    (ChangeNotifier, "published", "commit"),
    (Cursor, "next_batch", "frame"),
    (TokenSigner, "sign", "batch"),
    (frames, "batch", "batch"),
)


class Clocks:
    def __init__(self) -> None:
        self._took: dict[str, float] = {}
        self._within: list[float] = []
        """For each running call, the time of nested calls."""
        self._since: tuple[float, float] | None = None

    def timed(self, leg: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def clocked(*arguments: Any, **options: Any) -> Any:
            began = time.thread_time()
            self._within.append(0.0)
            try:
                return call(*arguments, **options)
            finally:
                took = time.thread_time() - began
                self._took[leg] = self._took.get(leg, 0.0) + took - self._within.pop()
                if self._within:
                    self._within[-1] += took

        return clocked

    def toggle(self, *_: object) -> None:
        if self._since is None:
            self._took.clear()
            self._since = time.thread_time(), time.process_time()
            return
        (main, process), self._since = self._since, None
        main, process = time.thread_time() - main, time.process_time() - process
        legs = {**self._took, LOOP: main - sum(self._took.values()), THREADS: process - main}
        sys.stdout.write(f"legs {json.dumps(legs)}\n")
        sys.stdout.flush()


def set_up(clocks: Clocks) -> None:
    for owner, name, leg in _LEGS:
        setattr(owner, name, clocks.timed(leg, getattr(owner, name)))
    run = events.Handle._run
    by_leg = {leg: clocks.timed(leg, run) for leg in (_HTTP, _GRPC, "tls", LOOP)}

    def clocked(handle: Any) -> None:
        by_leg[_leg(handle._callback)](handle)

    events.Handle._run = clocked  # type: ignore[method-assign]


def _leg(callback: Any) -> str:
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        return _HTTP if owner.get_name() == _SOURCE else _GRPC
    if isinstance(owner, asyncio.Transport):
        return "tls"
    return _GRPC if "Completion" in repr(callback) else LOOP


if __name__ == "__main__":
    clocks = Clocks()
    set_up(clocks)
    signal.signal(signal.SIGRTMIN + 1, clocks.toggle)
    runpy.run_module("milo_discoveryd", run_name="__main__")
