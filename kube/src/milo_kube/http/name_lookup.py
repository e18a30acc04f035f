"""Resolves names of hosts, in threads, so that slow name servers of some domains delay no lookups in others.

A tenant can declare clusters in a domain whose name server does not answer: each lookup then takes a thread for half a
minute. The domain may also be that of others, such as `co.uk` or the domain of a cloud, so each tenant has lookups of
its own in it. asyncio's own lookups share few threads with all other work of a process, such as writing files.
"""

import asyncio
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, WeakValueDictionary

from milo_kube.tenants import working_for

_Domain: TypeAlias = tuple[str, ...]
"""A domain as one tenant uses it: the tenant, and the last two labels of a name."""
THREADS = 16
"""Maximum concurrent lookups in domains that are known to be fast, because the last lookup in each was."""
_OF_DOMAIN = 4
"""Maximum concurrent lookups of a tenant in one domain."""
_OF_UNPROVEN_DOMAIN = 2
"""Maximum concurrent lookups in a domain that is not known to be fast."""
_OF_SLOW_DOMAINS = 8
"""Maximum concurrent lookups in all domains that are known to be slow, because a lookup took longer than `_SLOW_S`:
after an outage of all name servers, one that does not recover delays no others."""
_OF_NEW_DOMAINS = 640
"""Maximum concurrent lookups in all domains that are neither: those of 320 domains that never answer delay no others. A
waiting thread takes some 30 KiB."""
_SLOW_S = 1.0
_REMEMBERED = 10_000
"""Maximum number of fast domains, and of slow ones, that are remembered."""

are_tenants_names: ContextVar[bool] = ContextVar("are_tenants_names", default=False)
"""Whether tenants chose the names that the current task looks up. Those have threads of their own: the lookups of the
API servers that this process depends on may be slow too."""
_LOOKUPS: "WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[NameLookup, NameLookup]]" = WeakKeyDictionary()


class NameLookup:
    """The lookups of an event loop. A lookup that nothing awaits any longer counts until its thread ends."""

    def __init__(self) -> None:
        self._all_fast = asyncio.Semaphore(THREADS)
        self._all_slow = asyncio.Semaphore(_OF_SLOW_DOMAINS)
        self._all_new = asyncio.Semaphore(_OF_NEW_DOMAINS)
        self._domains: WeakValueDictionary[_Domain, asyncio.Semaphore] = WeakValueDictionary()
        self._unproven_domains: WeakValueDictionary[_Domain, asyncio.Semaphore] = WeakValueDictionary()
        self._fast: OrderedDict[_Domain, None] = OrderedDict()
        """The domains whose last lookup was fast, the latest last."""
        self._slow: OrderedDict[_Domain, None] = OrderedDict()
        """The domains whose last lookup was slow, the latest last. A tenant can name more of them than are remembered:
        those that are forgotten are new again."""

    async def addresses(self, host: str, port: int) -> list[Any]:
        """Return what `socket.getaddrinfo` returns. Raises OSError."""
        domain = *working_for.get(), ".".join(host.rstrip(".").rsplit(".", 2)[-2:])
        loop = asyncio.get_running_loop()
        held: list[asyncio.Semaphore] = []

        async def hold(limit: asyncio.Semaphore) -> None:
            await limit.acquire()
            held.append(limit)

        def ended() -> None:
            for limit in held:
                limit.release()

        try:
            await hold(self._domains.setdefault(domain, asyncio.Semaphore(_OF_DOMAIN)))
            if domain not in self._fast:
                await hold(self._unproven_domains.setdefault(domain, asyncio.Semaphore(_OF_UNPROVEN_DOMAIN)))
            while (lane := self._lane(domain)) is not held[-1]:
                await hold(lane)
                if self._lane(domain) is not lane:  # others have found out meanwhile
                    held.pop().release()
            began = time.monotonic()
            found = _start(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except BaseException:
            ended()
            raise
        is_late = loop.call_later(_SLOW_S, self._note_slow, domain)

        def resolved(_: object) -> None:
            is_late.cancel()
            ended()
            if time.monotonic() - began > _SLOW_S:
                self._note_slow(domain)
            else:
                _move(domain, self._slow, self._fast)

        found.add_done_callback(resolved)
        return await asyncio.shield(found)

    def _lane(self, domain: _Domain) -> asyncio.Semaphore:
        if domain in self._fast:
            return self._all_fast
        return self._all_slow if domain in self._slow else self._all_new

    def _note_slow(self, domain: _Domain) -> None:
        _move(domain, self._fast, self._slow)


def _move(domain: _Domain, former: OrderedDict[_Domain, None], to: OrderedDict[_Domain, None]) -> None:
    former.pop(domain, None)
    to[domain] = None
    to.move_to_end(domain)
    if len(to) > _REMEMBERED:
        to.popitem(last=False)


def name_lookup() -> NameLookup:
    """Return the lookups of the running event loop, for the names that the current task looks up."""
    loop = asyncio.get_running_loop()
    if loop not in _LOOKUPS:
        _LOOKUPS[loop] = NameLookup(), NameLookup()
    return _LOOKUPS[loop][are_tenants_names.get()]


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
