"""Lookups of host names: slow name servers of some domains delay no lookups in others."""

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from kube.tests.integration.http.test_client import client
from milo_kube.http import name_lookup as module
from milo_kube.http.errors import TransportError
from milo_kube.http.name_lookup import THREADS, NameLookup, name_lookup
from milo_kube.tenants import working_for
from tests.support.eventually import LIMIT_S, eventually

FOUND = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1))]


class NameServers:
    """Name servers that answer at once, except for names that begin with "slow"."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.answer = threading.Event()

    def resolve(self, host: str, port: int, **options: Any) -> list[Any]:
        if options.get("flags"):
            raise socket.gaierror("not an address")
        self.asked[host] += 1
        if host.startswith("slow"):
            self.answer.wait()
        if host.startswith("unknown"):
            raise socket.gaierror("unknown")
        return FOUND


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServers]:
    made = NameServers()
    monkeypatch.setattr(socket, "getaddrinfo", made.resolve)
    yield made
    made.answer.set()


async def test_names_in_a_domain_without_answers_delay_no_other_lookups(servers: NameServers) -> None:
    async with asyncio.TaskGroup() as tasks:
        for number in range(100):
            tasks.create_task(name_lookup().addresses(f"slow-{number}.evil.test", 1))
        await eventually(lambda: len(servers.asked) == 2)
        assert await name_lookup().addresses("api.good.test", 1) == FOUND
        assert await asyncio.to_thread(lambda: "asyncio's own threads are free") != ""
        servers.answer.set()
    assert len(servers.asked) == 101


async def test_names_of_a_tenant_without_answers_delay_no_lookups_of_others_in_the_same_domain(
    servers: NameServers,
) -> None:
    async def looks_up(tenant: str, host: str) -> list[object]:
        working_for.set(("", tenant))
        return await name_lookup().addresses(host, 1)

    async with asyncio.TaskGroup() as tasks:
        for number in range(100):
            tasks.create_task(looks_up("evil", f"slow-{number}.evil.co.uk"))
        await eventually(lambda: len(servers.asked) == 2)
        assert await tasks.create_task(looks_up("good", "api.good.co.uk")) == FOUND
        servers.answer.set()


async def test_300_new_domains_without_answers_delay_no_lookup_in_another(servers: NameServers) -> None:
    lookup = NameLookup()
    async with asyncio.TaskGroup() as tasks:
        for number in range(600):
            tasks.create_task(lookup.addresses(f"slow-{number}.evil-{number % 300}.test", 1))
        await eventually(lambda: len(lookup._unproven_domains) == 300)
        async with asyncio.timeout(LIMIT_S):
            assert await lookup.addresses("api.new.test", 1) == FOUND
        servers.answer.set()


@pytest.mark.parametrize(("is_new", "most"), [(True, 24), (False, module._OF_SLOW_DOMAINS)])
async def test_slow_and_new_domains_take_no_threads_of_fast_ones(
    servers: NameServers, monkeypatch: pytest.MonkeyPatch, is_new: bool, most: int
) -> None:
    monkeypatch.setattr(module, "_SLOW_S", 60.0)
    monkeypatch.setattr(module, "_OF_NEW_DOMAINS", 24)
    lookup = NameLookup()
    await lookup.addresses("api.good.test", 1)
    if not is_new:
        lookup._slow.update(dict.fromkeys((f"evil-{number}.test",) for number in range(100)))
    async with asyncio.TaskGroup() as tasks:
        for number in range(100):
            tasks.create_task(lookup.addresses(f"slow.evil-{number}.test", 1))
        await eventually(lambda: sum(host.startswith("slow") for host in servers.asked) == most)
        assert await lookup.addresses("api.good.test", 1) == FOUND
        if not is_new:
            assert await lookup.addresses("api.new.test", 1) == FOUND
        assert sum(host.startswith("slow") for host in servers.asked) == most
        servers.answer.set()
    assert len(lookup._fast) >= 101
    assert not lookup._slow


async def test_new_domains_that_do_not_answer_are_slow_ones_before_they_do(
    servers: NameServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookup = NameLookup()
    await lookup.addresses("api.once.test", 1)
    monkeypatch.setattr(module, "_SLOW_S", 0.0)
    async with asyncio.TaskGroup() as tasks:
        for number in range(4):
            tasks.create_task(lookup.addresses(f"slow-{number}.evil.test", 1))
        await eventually(lambda: [*lookup._slow] == [("evil.test",)])
        tasks.create_task(lookup.addresses("slow.once.test", 1))
        await eventually(lambda: [*lookup._slow] == [("evil.test",), ("once.test",)])
        assert [*lookup._fast] == []
        monkeypatch.setattr(module, "_SLOW_S", 60.0)
        servers.answer.set()
    assert [*lookup._slow] == []


async def test_lookup_that_waited_beside_those_of_new_domains_takes_a_thread_of_slow_ones(
    servers: NameServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SLOW_S", 60.0)
    monkeypatch.setattr(module, "_OF_NEW_DOMAINS", 1)
    lookup = NameLookup()
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(lookup.addresses("slow.one.test", 1))
        await eventually(lambda: servers.asked["slow.one.test"] == 1)
        waiting = tasks.create_task(lookup.addresses("api.other.test", 1))
        await eventually(lambda: ("other.test",) in lookup._domains)
        lookup._note_slow(("other.test",))
        servers.answer.set()
        assert await first == await waiting == FOUND
    assert await lookup.addresses("api.third.test", 1) == FOUND


async def test_names_of_tenants_take_no_threads_of_other_names(
    servers: NameServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_OF_NEW_DOMAINS", 24)
    async with asyncio.TaskGroup() as tasks:

        async def look_up(number: int) -> None:
            module.are_tenants_names.set(True)
            await name_lookup().addresses(f"slow.evil-{number}.test", 1)

        for number in range(100):
            tasks.create_task(look_up(number))
        await eventually(lambda: len(servers.asked) == 24)
        assert await name_lookup().addresses("api.new.test", 1) == FOUND
        servers.answer.set()


async def test_domain_that_stays_slow_delays_no_other_that_was_slow(
    servers: NameServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a reader: after an outage of all name servers, lookups of the API server timed out for minutes."""
    monkeypatch.setattr(module, "_SLOW_S", 0.0)
    lookup = NameLookup()
    for domain in ("good.test", "evil.test"):
        await lookup.addresses(f"first.{domain}", 1)
    async with asyncio.TaskGroup() as tasks:
        for number in range(100):
            tasks.create_task(lookup.addresses(f"slow-{number}.evil.test", 1))
        await eventually(lambda: sum(host.startswith("slow") for host in servers.asked) == 2)
        async with asyncio.timeout(LIMIT_S):
            assert await lookup.addresses("api.good.test", 1) == FOUND
        servers.answer.set()


async def test_number_of_fast_domains_that_are_remembered_is_limited(
    servers: NameServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 2)
    lookup = NameLookup()
    for name in "abc":
        await lookup.addresses(f"x.{name}.test", 1)
    assert [*lookup._fast] == [("b.test",), ("c.test",)]


async def test_lookup_that_nothing_awaits_counts_until_its_thread_ends(servers: NameServers) -> None:
    lookup = NameLookup()
    for number in range(3 * THREADS):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01 if number < 2 else 0):
                await lookup.addresses(f"slow-{number}.evil.test", 1)
    assert len(servers.asked) == 2
    servers.answer.set()
    assert await lookup.addresses("slow.evil.test", 1) == FOUND


async def test_failed_lookup_is_reported_as_such(servers: NameServers) -> None:
    using = client()
    with pytest.raises(TransportError, match=r"the hostname of http://unknown.test cannot be resolved: unknown"):
        async with using.request("GET", "http://unknown.test", headers={}, connect_timeout_s=10):
            pass
    await using.aclose()


async def test_lookup_for_which_no_thread_can_be_started_fails_as_one_and_leaves_room_for_others(
    servers: NameServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    using = client()

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", refuse)
        for _ in range(THREADS + 1):
            with pytest.raises(TransportError, match="can't start new thread: the limit of processes") as caught:
                async with using.request("GET", "http://api.good.test", headers={}, connect_timeout_s=10):
                    pass
            assert caught.value.cause == "dns"
    assert await name_lookup().addresses("api.good.test", 1) == FOUND
    await using.aclose()


@pytest.mark.parametrize("proxy", [None, "http://127.0.0.1:1"])
@pytest.mark.parametrize("host", ["api..test", ".test", f"{'a' * 64}.test"])
async def test_name_that_cannot_be_a_hostname_is_not_resolved(host: str, proxy: str | None) -> None:
    using = client()
    with pytest.raises(TransportError, match="cannot be resolved: it is not a valid hostname") as caught:
        async with using.request("GET", f"https://{host}", headers={}, proxy=proxy, connect_timeout_s=10):
            pass
    assert caught.value.cause == "dns"
    await using.aclose()
