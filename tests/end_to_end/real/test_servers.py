"""Tests of the controls of real servers, which scenario steps use."""

from pathlib import Path

import aiohttp
import pytest

from tests.end_to_end.real.api import RefusedError
from tests.end_to_end.real.programs import Programs
from tests.end_to_end.real.servers import InfrastructureApi, RealApi
from tests.end_to_end.real.watching import create, version_of, watch

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def names_in(server: RealApi) -> list[str]:
    async with server.client() as api:
        answer = await api.call("GET", server.collection)
    return [item["metadata"]["name"] for item in answer["items"]]


async def test_stopped_server_refuses_connections_and_keeps_data(server: RealApi) -> None:
    await create(server, "alpha")
    address = server.url

    await server.stop()

    with pytest.raises(aiohttp.ClientConnectorError):
        await names_in(server)

    await server.start()

    assert server.url == address
    assert await names_in(server) == ["alpha"]


async def test_terminated_server_exits_and_keeps_data(server: RealApi) -> None:
    await create(server, "alpha")
    before = server.process

    await server.terminate()

    assert before is not None
    assert not before.running()
    with pytest.raises(aiohttp.ClientConnectorError):
        await names_in(server)

    await server.start()

    assert await names_in(server) == ["alpha"]


async def test_server_that_was_cut_off_is_reachable_after_restart(server: RealApi) -> None:
    await create(server, "alpha")
    before = server.process

    await server.cut_off()

    with pytest.raises(aiohttp.ClientConnectorError):
        await names_in(server)

    await server.start()

    assert await names_in(server) == ["alpha"]
    assert server.process is before


async def test_dying_server_cuts_watch(server: RealApi) -> None:
    async with watch(server, f"resourceVersion={await version_of(server)}") as open_watch:
        await create(server, "alpha")
        assert await open_watch.until("ADDED")

        await server.stop()

        with pytest.raises(aiohttp.ClientPayloadError):
            await open_watch.event()


async def test_dropped_watch_resumes_without_missing_events(server: RealApi) -> None:
    before = await version_of(server)
    async with watch(server, f"resourceVersion={before}") as open_watch:
        await server.drop_watches()
        with pytest.raises(aiohttp.ClientError):
            await open_watch.event()
    await create(server, "alpha")

    async with watch(server, f"resourceVersion={before}") as resumed:
        events = await resumed.until("ADDED")

    assert [event["object"]["metadata"]["name"] for event in events] == ["alpha"]


async def test_resumed_watch_gets_410_after_compaction(server: RealApi) -> None:
    before = await version_of(server)
    await create(server, "alpha")

    await server.compact()

    async with watch(server, f"resourceVersion={before}") as resumed:
        gone = await resumed.event()
        ended = await resumed.event()
    assert gone is not None
    assert (gone["type"], gone["object"]["code"], gone["object"]["reason"]) == ("ERROR", 410, "Expired")
    assert ended is None


async def test_compaction_expires_every_version_seen_by_clients(server: RealApi) -> None:
    await create(server, "alpha")
    newest = await version_of(server)

    await server.compact()

    async with watch(server, f"resourceVersion={newest}") as resumed:
        gone = await resumed.event()
    assert gone is not None
    assert gone["object"]["code"] == 410


async def test_compaction_expires_paged_list(server: RealApi) -> None:
    for name in ("alpha", "beta"):
        await create(server, name)
    async with server.client() as api:
        page = await api.call("GET", f"{server.collection}?limit=1")
    token = page["metadata"]["continue"]

    await server.compact()

    with pytest.raises(RefusedError) as refusal:
        async with server.client() as api:
            await api.call("GET", f"{server.collection}?limit=1&continue={token}")
    assert refusal.value.status == 410


async def test_idle_server_is_compacted(server: RealApi) -> None:
    before = await version_of(server)

    await server.stop()
    await server.compact()
    await server.start()

    async with watch(server, f"resourceVersion={before}") as resumed:
        gone = await resumed.event()
    assert gone is not None
    assert gone["object"]["code"] == 410


async def test_restored_backup_has_old_data_and_versions(server: RealApi) -> None:
    await create(server, "alpha")
    backup = await server.snapshot("with-alpha-only")
    for _ in range(500):  # more revisions than a starting server writes by itself
        await server.etcd.tick()
    await create(server, "beta")
    after = int(await version_of(server))

    await server.restore(backup)

    assert await names_in(server) == ["alpha"]
    assert int(await version_of(server)) < after


async def test_empty_etcd_serves_empty_list(server: RealApi) -> None:
    await create(server, "alpha")

    await server.restore(None)

    assert await names_in(server) == []


async def test_certificate_user_is_authorized_by_rbac(server: RealApi) -> None:
    async with server.client_as("somebody", "system:masters") as administrator:
        assert (await administrator.call("GET", server.collection))["items"] == []

    async with server.client_as("nobody") as nobody:
        with pytest.raises(RefusedError, match="cannot list resource") as refusal:
            await nobody.call("GET", server.collection)
    assert refusal.value.status == 403


async def test_streaming_lists_are_rejected_if_disabled(built: Programs, tmp_path: Path) -> None:
    without = InfrastructureApi(built, tmp_path / "server", streaming_lists=False)
    query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    try:
        await without.start()
        async with without.client() as api:
            with pytest.raises(RefusedError) as refusal:
                async with api.stream(f"{without.collection}?{query}"):
                    pass
    finally:
        await without.close()
    assert refusal.value.status == 422
    assert "sendInitialEvents is forbidden" in str(refusal.value)
