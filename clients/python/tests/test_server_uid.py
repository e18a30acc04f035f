"""Tests of the server_uid check, which verifies the user that runs the server of a Unix socket."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

from milo_discovery import ClientCredentials, DiscoveryClient, SyncDiscoveryClient, Unavailable, UntrustedServer
from milo_discovery._channel import open_channel
from milo_discovery.errors import InvalidCredentials
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub

from .conftest import daemon as daemon  # noqa: PLC0414  (mutation tests run without conftest)
from .messages import engaged, snapshot
from .scripted_daemon import ScriptedDaemon

OWN = ClientCredentials(server_uid=os.geteuid())
OTHER = ClientCredentials(server_uid=os.geteuid() + 1)


async def test_client_connects_to_server_with_expected_uid(daemon):
    daemon.answers["GetServerInfo"] = [pb.GetServerInfoResponse(mode="single")]
    async with DiscoveryClient(daemon.address, credentials=OWN) as client:
        assert (await client.server_info()).mode == "single"
        async with client.watch() as watch:
            (await daemon.stream()).send(snapshot("1", engaged("a")))
            assert (await anext(watch)).cluster.name == "a"


@pytest.mark.parametrize("credentials", [ClientCredentials(), OWN])
async def test_socket_path_is_not_decoded_as_a_url(daemon, credentials):
    daemon.answers["ListClusters"] = [pb.ListClustersResponse(total_size=7)]
    path = daemon.socket.rename(daemon.socket.with_name("d%41#?.sock"))
    async with DiscoveryClient(f"unix://{path}", credentials=credentials) as client:
        assert (await client.list()).total_size == 7


async def test_client_rejects_server_with_another_uid(daemon):
    async with DiscoveryClient(daemon.address, credentials=OTHER) as client:
        with pytest.raises(UntrustedServer):
            await client.server_info()
    with SyncDiscoveryClient(daemon.address, credentials=OTHER) as client, pytest.raises(UntrustedServer):
        client.server_info()
    assert daemon.requests == []


async def test_socket_directory_writable_by_others_is_rejected(daemon):
    daemon.socket.parent.chmod(0o777)
    async with DiscoveryClient(daemon.address, credentials=OWN) as client:
        with pytest.raises(UntrustedServer, match="writable by users other than"):
            await client.server_info()


async def test_channel_connects_only_through_the_verified_socket_directory(daemon):
    """A server that takes over the socket path after the check gets no requests."""
    directory = daemon.socket.parent
    with tempfile.TemporaryDirectory(prefix="milo-") as elsewhere:
        other = ScriptedDaemon(Path(elsewhere) / "d.sock")
        await other.start()
        daemon.answers["GetServerInfo"] = [pb.GetServerInfoResponse(mode="real")]
        with_channel = DiscoveryClient(daemon.address, credentials=OWN)
        with_channel._shared_channel.acquire()  # the channel is open, but gRPC connects later
        moved = directory.rename(directory.with_name(directory.name + "-moved"))
        try:
            directory.symlink_to(elsewhere)
            assert (await with_channel.server_info()).mode == "real"
            assert other.requests == []
        finally:
            await with_channel.close()
            directory.unlink()
            moved.rename(directory)
            await other.stop()


def test_missing_socket_raises_unavailable(tmp_path):
    with SyncDiscoveryClient(f"unix://{tmp_path}/none.sock", credentials=OWN) as client, pytest.raises(Unavailable):
        client.server_info()


async def test_directory_descriptor_is_closed_with_the_channel(daemon):
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  (entries can vanish while pathlib reads them)
    channel = open_channel(daemon.address, OWN)
    DiscoveryServiceStub(channel)
    channel.close()
    del channel
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208


def test_server_uid_is_refused_for_tcp_and_outside_of_linux(monkeypatch):
    with pytest.raises(InvalidCredentials, match="Unix sockets"):
        DiscoveryClient("localhost:1", credentials=OWN)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(InvalidCredentials, match="works only on Linux"):
        DiscoveryClient("unix:///d.sock", credentials=OWN)


def test_server_uid_is_read_from_the_environment(monkeypatch):
    monkeypatch.setenv("MILO_DISCOVERY_SERVER_UID", "65532")
    assert ClientCredentials.from_environment().server_uid == 65532
    monkeypatch.setenv("MILO_DISCOVERY_SERVER_UID", "root")
    with pytest.raises(InvalidCredentials, match="must be a numeric uid"):
        ClientCredentials.from_environment()
