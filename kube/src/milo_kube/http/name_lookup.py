"""Resolves names of hosts, in threads, so that slow name servers of some domains delay no lookups in others.

A tenant can declare clusters in a domain whose name server does not answer: each lookup then takes a thread for half a
minute. asyncio's own lookups share few threads with all other work of a process, such as writing files.
"""

import asyncio
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

THREADS = 16
"""Maximum concurrent lookups of an event loop."""
_OF_DOMAIN = 4
"""Maximum concurrent lookups in one domain."""
_OF_SLOW_DOMAIN = 2
"""Maximum concurrent lookups in a domain that is not known to be fast, because it is new or the last lookup in it took
longer than `_SLOW_S`."""
_OF_SLOW_DOMAINS = THREADS // 2
"""Maximum concurrent lookups in all these domains: after an outage of all name servers, one that does not recover
delays no others."""
_SLOW_S = 1.0
_FAST_DOMAINS = 10_000

_LOOKUPS: "WeakKeyDictionary[asyncio.AbstractEventLoop, NameLookup]" = WeakKeyDictionary()


class NameLookup:
    """The lookups of an event loop. A lookup that nothing awaits any longer counts until its thread ends."""

    def __init__(self) -> None:
        self._all = asyncio.Semaphore(THREADS)
        self._all_slow = asyncio.Semaphore(_OF_SLOW_DOMAINS)
        self._domains: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._slow_domains: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._fast: OrderedDict[str, None] = OrderedDict()
        """The domains whose last lookup was fast, the latest last. The slow ones are not remembered instead, because a
        tenant can name more of them than can be."""

    async def addresses(self, host: str, port: int) -> list[Any]:
        """Return what `socket.getaddrinfo` returns. Raises OSError."""
        domain = ".".join(host.rstrip(".").rsplit(".", 2)[-2:])
        limits = [self._domains.setdefault(domain, asyncio.Semaphore(_OF_DOMAIN)), self._all]
        if domain not in self._fast:
            its_slow = self._slow_domains.setdefault(domain, asyncio.Semaphore(_OF_SLOW_DOMAIN))
            limits[1:1] = its_slow, self._all_slow
        held: list[asyncio.Semaphore] = []
        began = time.monotonic()

        def ended() -> None:
            for limit in held:
                limit.release()

        try:
            for limit in limits:
                await limit.acquire()
                held.append(limit)
            began = time.monotonic()
            found = _start(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except BaseException:
            ended()
            raise

        def resolved(_: object) -> None:
            ended()
            self._note(domain, is_slow=time.monotonic() - began > _SLOW_S)

        found.add_done_callback(resolved)
        return await asyncio.shield(found)

    def _note(self, domain: str, *, is_slow: bool) -> None:
        self._fast.pop(domain, None)
        if not is_slow:
            self._fast[domain] = None
            if len(self._fast) > _FAST_DOMAINS:
                self._fast.popitem(last=False)


def name_lookup() -> NameLookup:
    """Return the lookups of the running event loop."""
    return _LOOKUPS.setdefault(asyncio.get_running_loop(), NameLookup())


def _start(look_up: Callable[[], list[Any]]) -> "asyncio.Future[list[Any]]":
    """Run a lookup in a thread, for which neither the event loop nor the process waits when it ends. Raises OSError if
    no thread can be started."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[Any]] = loop.create_future()

    def run() -> None:
        try:
            result, error = look_up(), None
        except Exception as raised:  # noqa: BLE001 - raised again where the lookup is awaited
            result, error = [], raised
        with suppress(RuntimeError):  # the event loop has ended
            loop.call_soon_threadsafe(report, result, error)

    def report(result: list[Any], error: Exception | None) -> None:
        if error is None:
            found.set_result(result)
        else:
            found.set_exception(error)
            found.exception()  # marked as retrieved, in case nothing awaits the lookup

    try:
        threading.Thread(target=run, name="name lookup", daemon=True).start()
    except RuntimeError as error:
        raise socket.gaierror(socket.EAI_AGAIN, f"{error}: the limit of processes and threads is reached") from None
    return found
