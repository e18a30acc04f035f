"""Behavior of real API servers in the sandbox: overload, restarts, changes of definitions, and other faults."""

import asyncio
import socket
import ssl
from contextlib import suppress

import aiohttp
import pytest

from milo_sandbox import Sandbox
from milo_sandbox.resources import PROJECTS as PROJECT
from tests.integration.sandbox.client import CONTROL_PLANES, PROJECTS, Client
from tests.support.eventually import LIMIT_S, eventually

STREAMING = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}


class TestTooManyRequests:
    async def test_initializing_server_refuses_unpaged_lists_and_watches(
        self, client: Client, sandbox: Sandbox
    ) -> None:
        sandbox.projects.create("alpha")
        sandbox.faults.initializing()
        for query in ({}, {"watch": "1"}, {"watch": "1", **STREAMING}):
            refused = await client.get(PROJECTS, **query)
            assert (refused.status, refused.json["reason"]) == (429, "TooManyRequests")
            assert refused.json["message"] == "storage is (re)initializing"
            assert refused.headers["Retry-After"] == "1"
            assert refused.json["details"]["retryAfterSeconds"] == 1
        assert (await client.get(PROJECTS, limit="500")).names == ["alpha"]
        assert (await client.get(f"{PROJECTS}/alpha")).status == 200
        assert (await client.get("/readyz")).body == b"ok"
        sandbox.faults.clear()
        assert (await client.get(PROJECTS)).names == ["alpha"]

    async def test_server_that_has_not_installed_all_paths_answers_503_in_text(
        self, client: Client, sandbox: Sandbox
    ) -> None:
        sandbox.faults.installing()
        for path in (PROJECTS, "/readyz", "/apis"):
            refused = await client.get(path)
            assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
            assert b"before all known HTTP paths have been installed" in refused.body

    async def test_overloaded_fault_answers_429_in_plain_text(self, client: Client, sandbox: Sandbox) -> None:
        sandbox.faults.overloaded(times=1)
        refused = await client.get(PROJECTS)
        assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
        assert refused.headers["Content-Type"].startswith("text/plain")
        assert (await client.get(PROJECTS)).status == 200


class TestRestarts:
    async def test_killed_server_breaks_streams_and_refuses_connections(self, client: Client, sandbox: Sandbox) -> None:
        sandbox.projects.create("alpha")
        version, url = str(sandbox.store.version), sandbox.url
        async with client.watch(PROJECTS) as stream:
            assert await stream.take(1) == [("ADDED", "alpha")]
            await sandbox.stop()
            with pytest.raises(aiohttp.ClientPayloadError):
                await stream.rest()
        with pytest.raises(aiohttp.ClientConnectorError):
            await client.get(PROJECTS)
        sandbox.projects.create("beta")
        await sandbox.start()
        assert sandbox.url == url
        async with client.watch(PROJECTS, resourceVersion=version) as stream:
            assert await stream.take(1) == [("ADDED", "beta")]

    async def test_terminated_server_refuses_connections_and_finishes_watches(
        self, client: Client, sandbox: Sandbox
    ) -> None:
        async with client.watch(PROJECTS, allowWatchBookmarks="true", resourceVersion="1") as stream:
            end = asyncio.create_task(sandbox.terminate(grace=0.2))
            await refusing(client)
            sandbox.projects.create("alpha")
            assert await stream.take(1) == [("ADDED", "alpha")]
            (last,) = await stream.rest()
        assert last["type"] == "BOOKMARK"
        await end

    async def test_server_can_be_stopped_and_started_repeatedly(self, sandbox: Sandbox, client: Client) -> None:
        await sandbox.start()
        await sandbox.restart()
        await sandbox.stop()
        await sandbox.stop()
        await sandbox.start()
        assert (await client.get(PROJECTS)).status == 200


async def refusing(client: Client) -> None:
    """Wait until the server refuses connections."""
    while True:
        try:
            await client.get("/livez")
        except aiohttp.ClientConnectionError:
            return


class TestCrdChanges:
    async def test_schema_change_ends_watches_then_answers_429_then_410(self, client: Client, sandbox: Sandbox) -> None:
        sandbox.projects.create("alpha")
        version = str(sandbox.store.version)
        async with client.watch(PROJECTS, resourceVersion=version) as stream:
            sandbox.change_schema(initializing=3600)
            assert await stream.rest() == []
        assert (await client.get(PROJECTS, watch="1", resourceVersion=version)).status == 429
        sandbox.faults.clear()
        async with client.watch(PROJECTS, resourceVersion=version) as stream:
            assert (await stream.next())["object"]["code"] == 410

    async def test_request_for_objects_of_a_deleted_crd_is_answered_with_404_in_plain_text(
        self, client: Client, sandbox: Sandbox
    ) -> None:
        async with client.watch(PROJECTS) as stream, client.watch(CONTROL_PLANES) as other:
            sandbox.delete_definition(PROJECT)
            assert await stream.rest() == []
            sandbox.control_planes.create("alpha")
            assert await other.take(1) == [("ADDED", "alpha")]
        gone = await client.get(PROJECTS)
        assert (gone.status, gone.body) == (404, b"404 page not found\n")
        assert (await client.get(CONTROL_PLANES)).status == 200


class TestReportRecreatedFault:
    async def test_report_recreated_fault_reports_live_objects_as_deleted_and_added(
        self, client: Client, sandbox: Sandbox
    ) -> None:
        created = sandbox.projects.create("alpha", ready=True)
        async with client.watch(PROJECTS) as stream:
            assert await stream.take(1) == [("ADDED", "alpha")]
            sandbox.report_recreated("alpha")
            gone, back = await stream.next(), await stream.next()
        assert (gone["type"], back["type"]) == ("DELETED", "ADDED")
        for event in (gone, back):
            assert event["object"]["metadata"]["uid"] == created["metadata"]["uid"]
            assert event["object"]["metadata"]["creationTimestamp"] == created["metadata"]["creationTimestamp"]
        assert (await client.get(f"{PROJECTS}/alpha")).json == back["object"]


class TestOtherFaults:
    async def test_watch_ends_when_its_client_disconnects(self, client: Client, sandbox: Sandbox) -> None:
        async with client.watch(PROJECTS):
            assert sandbox.open_watches == 1
        await eventually(lambda: sandbox.open_watches == 0)

    async def test_sandbox_logs_no_error_for_a_dropped_watch_with_pending_events(
        self, client: Client, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with client.watch(PROJECTS) as stream:
            sandbox.drop_watches()
            sandbox.projects.create("alpha")
            with pytest.raises(aiohttp.ClientPayloadError):
                await stream.rest()
        await eventually(lambda: sandbox.open_watches == 0)
        assert caplog.messages == []

    async def test_drop_watches_fault_breaks_connections(self, client: Client, sandbox: Sandbox) -> None:
        async with client.watch(PROJECTS) as stream:
            sandbox.drop_watches()
            with pytest.raises(aiohttp.ClientPayloadError):
                await stream.rest()

    async def test_end_watches_fault_ends_watches_cleanly(self, client: Client, sandbox: Sandbox) -> None:
        async with client.watch(PROJECTS) as stream:
            sandbox.end_watches()
            assert await stream.rest() == []

    async def test_silenced_watch_sends_missed_events_when_the_silence_ends(
        self, client: Client, sandbox: Sandbox
    ) -> None:
        sandbox.silence_watches()
        async with client.watch(PROJECTS) as stream:
            sandbox.projects.create("alpha")
            assert (await client.get(PROJECTS)).names == ["alpha"]
            sandbox.silence_watches(silent=False)
            assert await stream.take(1) == [("ADDED", "alpha")]

    async def test_unauthorized_and_forbidden_faults_refuse_api_requests(
        self, client: Client, sandbox: Sandbox
    ) -> None:
        sandbox.faults.unauthorized(times=1)
        assert (await client.get("/livez")).status == 200
        assert (await client.get(PROJECTS)).status == 401
        sandbox.faults.forbidden(times=1)
        refused = await client.get(PROJECTS)
        assert (refused.status, refused.json["reason"]) == (403, "Forbidden")
        assert (await client.get(PROJECTS)).status == 200

    async def test_server_error_fault_answers_5xx(self, client: Client, sandbox: Sandbox) -> None:
        sandbox.faults.failing(502, times=1)
        assert (await client.get(PROJECTS)).status == 502
        assert (await client.get(PROJECTS)).status == 200

    async def test_empty_lists_fault_hides_existing_objects(self, client: Client, sandbox: Sandbox) -> None:
        sandbox.projects.create("alpha")
        sandbox.faults.empty_lists()
        assert (await client.get(PROJECTS)).names == []
        assert (await client.get(f"{PROJECTS}/alpha")).status == 200
        sandbox.faults.clear()
        assert (await client.get(PROJECTS)).names == ["alpha"]

    async def test_fault_ends_after_its_duration(self, client: Client, sandbox: Sandbox) -> None:
        sandbox.faults.overloaded(seconds=0)
        assert (await client.get(PROJECTS)).status == 200


async def test_stopped_sandbox_breaks_a_connection_that_it_is_accepting(sandbox: Sandbox) -> None:
    with socket.create_connection(("127.0.0.1", sandbox.port)) as connection:
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # accepted; a task that will handle the connection has been created
        await sandbox.stop()
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")  # which ends the TLS handshake
        connection.settimeout(LIMIT_S)
        with suppress(ConnectionResetError):
            assert await asyncio.to_thread(connection.recv, 1) == b""


async def test_stopped_sandbox_breaks_connections_during_their_tls_handshake(sandbox: Sandbox) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", sandbox.port)
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context(cadata=sandbox.ca_pem.decode()).wrap_bio(
        received, sent, server_hostname="127.0.0.1"
    )
    while True:
        try:
            client.do_handshake()
            break
        except ssl.SSLWantReadError:
            writer.write(sent.read())
            received.write(await reader.read(65_536))
    # With TLS 1.3 the handshake has ended for the client, whose last message has not been sent.
    await sandbox.stop()
    client.write(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    writer.write(sent.read())
    async with asyncio.timeout(LIMIT_S):
        with suppress(ConnectionResetError):
            while data := await reader.read(65_536):
                received.write(data)
    with pytest.raises(ssl.SSLWantReadError):
        client.read()
    writer.close()
    with suppress(ConnectionResetError):
        await writer.wait_closed()
