"""Access to a real nats-server: permissions by subject, TLS and credentials files."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from milo_objects.jetstream import NatsOptions, StreamLost, open_session
from milo_objects.nats_source import NatsSource
from milo_objects.objects import Objects
from milo_sandbox.nats_server import running_nats
from tests.support.certificates import Authority
from tests.support.eventually import eventually

from .nats_accounts import write_credentials
from .nats_world import NAMESPACES, ROLES, World, names, running, settled

PAGE = Path(__file__).parents[3] / "docs" / "objects-nats.md"


def permissions(title: str) -> dict[str, Any]:
    """Return the permissions that the page has under a title."""
    _, _, rest = PAGE.read_text().partition(f"# {title}\n")
    return json.loads(rest.partition("```json\n")[2].partition("```")[0])


def user(name: str, permitted: dict[str, Any] | None) -> dict[str, Any]:
    return {"user": name, "password": name, **({} if permitted is None else {"permissions": permitted})}


@pytest.mark.parametrize(
    ("title", "kinds", "cluster", "readable", "others"),
    [
        (
            "a consumer of namespaces",
            [NAMESPACES],
            "",
            {"in-web", "in-db"},
            [
                ["milo.objects.*.*.rbac_authorization_k8s_io.clusterroles.>"],
                ["milo.>"],
                ["milo.objects.>"],
                ["milo.objects.*.*.core.namespaces.>", "milo.objects.*.*.rbac_authorization_k8s_io.clusterroles.>"],
            ],
        ),
        (
            "the tenant of project web",
            [NAMESPACES, ROLES],
            "web",
            {"in-web"},
            [["milo.objects._.db.>"], ["milo.objects.*.*.core.namespaces.>"], ["milo.clusters.>"], ["milo.>"]],
        ),
    ],
)
async def test_reader_with_the_permissions_of_the_page_reads_that_and_nothing_else(
    tmp_path: Path, title: str, kinds: list[Any], cluster: str, readable: set[str], others: list[list[str]]
) -> None:
    settings = {"authorization": {"users": [user("publisher", None), user("reader", permissions(title))]}}
    async with running_nats(tmp_path, settings) as server:
        world = World(server, servers=(server.url.replace("localhost", "publisher:publisher@localhost"),))
        reader = NatsOptions(
            servers=(server.url.replace("localhost", "reader:reader@localhost"),), inbox_prefix="_INBOX_reader"
        )
        async with world.publisher((NAMESPACES, ROLES)) as publisher:
            for name in ("web", "db"):
                world.fleet.engage(name, kinds=(NAMESPACES, ROLES))
                world.fleet.put(name, f"in-{name}")
                world.fleet.put(name, f"role-in-{name}", kind=ROLES)
            await settled(publisher)
            objects = Objects(NatsSource(reader, cluster=cluster), kinds)
            async with running(objects.run()):
                await eventually(lambda: objects.view("v1/namespaces").synced and names(objects) == readable)
                world.fleet.put("web", "later")
                await eventually(lambda: names(objects) == readable | {"later"})
            for one in others:
                async with open_session(reader, "test") as session:
                    with pytest.raises(StreamLost, match="permissions violation"):
                        await session.last_messages(one)


async def test_publisher_and_reader_use_tls_and_a_credentials_file(tmp_path: Path) -> None:
    authority = Authority()
    certificate, key = authority.server().write(tmp_path, "server")
    client, client_key = authority.issue(common_name="client", use=ExtendedKeyUsageOID.CLIENT_AUTH).write(
        tmp_path, "client"
    )
    ca = tmp_path / "ca.crt"
    ca.write_bytes(authority.pem)
    credentials = tmp_path / "publisher.creds"
    settings = write_credentials(credentials)
    tls = {"cert_file": str(certificate), "key_file": str(key), "ca_file": str(ca), "verify": True}
    async with running_nats(tmp_path, {**settings, "tls": tls}) as server:
        access = {"credentials": credentials, "ca": ca, "certificate": client, "key": client_key}
        world = World(server, **access)
        async with world.publisher() as publisher, world.reader(**access) as objects:
            world.fleet.engage("web")
            world.fleet.put("web", "default")
            await settled(publisher)
            await eventually(lambda: names(objects) == {"default"})
        for lacking in ("certificate", "credentials", "ca"):
            without = NatsOptions(servers=(server.url,), **{**access, lacking: None})
            with pytest.raises(StreamLost, match="localhost"):  # for what TLS refuses, the cause is any lost connection
                async with open_session(without, "test") as session:
                    await session.stream()


@pytest.mark.parametrize("permitted", [None, {"publish": {"deny": ["$JS.API.CONSUMER.DELETE.>"]}}])
async def test_publisher_reads_clusters_whether_it_may_delete_its_consumers_or_not(
    tmp_path: Path, permitted: dict[str, Any] | None
) -> None:
    """A server limits consumers: those of a thousand reads made it refuse the next ones, of readers too."""
    settings = {"authorization": {"users": [user("publisher", permitted)]}}
    async with running_nats(tmp_path, settings) as server:
        world = World(server, servers=(server.url.replace("localhost", "publisher:publisher@localhost"),))
        async with world.publisher() as publisher, world.session() as session:
            for number in range(10):
                world.fleet.engage(f"web{number}")
            await settled(publisher)
            assert world.reports == []
            # The server keeps those that are not deleted for 30 s. That of the heartbeats of others stays.
            async with asyncio.timeout(20):
                while permitted is None:
                    if json.loads(await session.call("STREAM.INFO.milo"))["state"]["consumer_count"] == 1:
                        break
