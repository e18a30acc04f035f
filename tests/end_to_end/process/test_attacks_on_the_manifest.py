"""Attacks that once stopped a daemon, on one as deploy/ ships it: from a tenant, a writer of Leases, a caller with a
certificate, a client of the HTTP port, an API server, and another user of the machine.

Each is held: what is hostile is refused, others are served, `/livez` responds within half a second, and memory stays
below half of the limit. `-s` prints a line for each.
"""

import asyncio
import json
import os
import ssl
import sys
import time
from asyncio.subprocess import PIPE, STDOUT
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from milo_discovery import DiscoveryClient, DiscoveryError
from milo_discoveryd.sharding.lease_objects import GROUP_LABEL, encode_view
from milo_discoveryd.sharding.leases import MAX_MEMBERS, View, ViewMember
from milo_sandbox.kubeconfigs import write
from milo_sandbox.resources import LEASES, SECRETS
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.daemon import DaemonEndedError
from tests.end_to_end.process.hostile_clusters import (
    EMPTY_NAMES,
    DheServer,
    GzipBombs,
    KeyUpdateFlood,
    TenantServers,
    answer_ok,
    closed,
    handshake,
    kubeconfig,
)
from tests.end_to_end.process.hostile_sources import EndlessLists, ForgingServer
from tests.end_to_end.process.project_server import Projects, ProjectServer
from tests.end_to_end.process.shipped_daemon import LIVEZ_S
from tests.end_to_end.process.shipped_site import Hub, Site, Tenants
from tests.end_to_end.process.test_hostile_api_server import project
from tests.end_to_end.process.test_loop_attacks import cpu_s
from tests.end_to_end.process.test_other_users import own_by_another
from tests.end_to_end.process.test_secrets_of_objects import NAMESPACE
from tests.end_to_end.process.test_shard_group import WITHOUT_OWNER_S
from tests.end_to_end.process.watching import adapted
from tests.support.certificates import Authority
from tests.support.eventually import eventually
from tests.support.forked_command import forked
from tests.support.giant_keys import GiantPair
from tests.support.memory_limit import memory_limit, shipped_limit
from tests.support.platforms import Garden

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("always:no cgroup here"),  # shown in the summary, and no error
]

WITHIN_S = 120.0


@pytest.fixture
def site(workspace: Workspace) -> Iterator[Site]:
    with memory_limit(shipped_limit()) as cgroup:
        yield Site(workspace, cgroup)


async def honest_is_served(client: DiscoveryClient) -> None:
    assert (await client.issue_kubeconfig("honest")).kubeconfig


async def refused(client: DiscoveryClient, name: str, words: str | None = None) -> None:
    with pytest.raises(DiscoveryError, match=words):
        await client.issue_kubeconfig(name)


async def test_giant_keys_in_secrets_are_refused(site: Site) -> None:
    tenants = Tenants(site)
    sizes = range(20_000, 30_001, 2_000)
    pairs: dict[str, Any] = {f"giant-{bits}": await asyncio.to_thread(GiantPair, bits) for bits in sizes}
    shipped = tenants.shipped()
    servers = TenantServers(site.directory, answer_ok)
    async with (
        servers.listening(servers.context()),
        shipped.running() as client,
        shipped.attacked("1 RSA keys of 20,000 to 30,000 bits"),
    ):
        for number, (name, pair) in enumerate(pairs.items()):
            tenants.declare(name, servers.kubeconfig(number, pair))
        for name in pairs:
            await eventually_known(client, name)
            await refused(client, name, "bits")
        await honest_is_served(client)


async def eventually_known(client: DiscoveryClient, name: str) -> str:
    """Return the message of a cluster's report, once the daemon has its object."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            with suppress(DiscoveryError):
                return (await client.get(name)).engagement.message
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("is_newest", [False, True], ids=["10,000 bits", "TLS 1.3"])
async def test_server_of_a_tenant_cannot_choose_finite_field_diffie_hellman(site: Site, is_newest: bool) -> None:
    tenants, server = Tenants(site), DheServer(site.directory)
    shipped = tenants.shipped()
    async with server.listening(is_newest=is_newest) as url, shipped.running() as client:
        assert await asyncio.to_thread(handshake, url, server.authorities)  # an ordinary client accepts it
        await eventually(lambda: server.shook == 1)
        async with shipped.attacked(f"2 DHE server, {'ffdhe8192' if is_newest else '10,000 bits'}"):
            for number in range(16):
                tenants.declare(f"dhe-{number}", kubeconfig(f"{url}/c-{number}", server.authorities))
            await eventually(lambda: server.refused + server.shook > 16, within_s=WITHIN_S)
            await honest_is_served(client)
        assert server.shook == 1


@pytest.mark.parametrize("together", [20, 250])
async def test_bytes_behind_gzip_bodies_of_probes_are_not_kept(site: Site, together: int) -> None:
    tenants, bombs = Tenants(site), GzipBombs(together, within_s=4)
    servers = TenantServers(site.directory, bombs.serve, addresses=together)
    shipped = tenants.shipped()
    async with servers.listening(servers.context()), shipped.running() as client:
        async with shipped.attacked(f"3 24 MiB behind gzip bodies, {together} at one moment"):
            for number in range(together):
                tenants.declare(f"bomb-{number}", servers.kubeconfig(number))
                await asyncio.sleep(0)
            await eventually(lambda: bombs.answered >= together, within_s=WITHIN_S)
            await honest_is_served(client)
        assert bombs.sent < together * (8 << 20)


@pytest.mark.parametrize("of", ["servers", "authorities"])
async def test_certificates_of_empty_names_take_little_memory_together(site: Site, of: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(4)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    tenants, names = Tenants(site), EMPTY_NAMES if of == "servers" else []
    servers = TenantServers(site.directory, serve, addresses=250, names=names)
    # OpenSSL reads the names of a CA when there is another one of its subject.
    junk = b"" if names else servers.authority.issue(*EMPTY_NAMES * 2, common_name="a tenant's CA").certificate
    shipped = tenants.shipped()
    async with (
        servers.listening(servers.context()),
        shipped.running() as client,
        shipped.attacked(f"3 certificates of empty names, of 250 {of}"),
    ):
        for number in range(250):
            tenants.declare(f"names-{number}", servers.kubeconfig(number, authorities=b"\n" * number + junk))
        await eventually(lambda: servers.connections > 20, within_s=WITHIN_S)
        await asyncio.sleep(6)
        await honest_is_served(client)


async def test_key_updates_of_a_client_end_its_connection(site: Site) -> None:
    site.workspace.sandbox.projects.create("alpha", ready=True)
    shipped, flood = site.of_projects(), KeyUpdateFlood(site.directory, 100_000)

    async def attack() -> None:
        context = ssl.create_default_context(cafile=str(shipped.operator.ca))
        context.load_cert_chain(shipped.operator.certificate, shipped.operator.key)
        reader, writer = await asyncio.open_connection("127.0.0.1", shipped.port)
        with suppress(OSError):
            await flood.send(reader, writer, context, "localhost")
        await closed(writer)

    async with shipped.running() as client:
        async with shipped.attacked("4 key updates of a caller with a certificate"):
            for _ in range(5):
                await asyncio.gather(*(attack() for _ in range(4)))
            assert len(await client.list()) == 1
        assert flood.floods == 20
        assert flood.sent < 20 * 10_000


async def test_key_updates_of_a_tenants_server_end_its_connection(site: Site) -> None:
    tenants, flood = Tenants(site), KeyUpdateFlood(site.directory, 100_000)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await flood.send(reader, writer, servers.context())

    servers, shipped = TenantServers(site.directory, serve, addresses=10), tenants.shipped()
    async with servers.listening(), shipped.running() as client:
        async with shipped.attacked("4 key updates of a tenant's server"):
            for number in range(20):
                tenants.declare(f"flood-{number}", servers.kubeconfig(number))
            await eventually(lambda: flood.floods >= 20, within_s=WITHIN_S)
            await honest_is_served(client)
        assert flood.sent < flood.floods * 10_000


BINARY = "\N{CYRILLIC SMALL LETTER KA}" * 40
"""Text that is not ASCII, where base64 is expected."""


async def test_text_that_is_not_ascii_in_secrets_fails_for_its_cluster_alone(site: Site) -> None:
    tenants, authority = Tenants(site), Authority()
    certificate = b64encode(authority.pem).decode()
    users = [
        {"client-certificate-data": BINARY, "client-key-data": BINARY},
        {"client-certificate-data": certificate, "client-key-data": BINARY},
        {"token": BINARY},
        {"token": "t"},
    ]
    contents = [json.loads(kubeconfig("https://127.0.0.1:1", authority.pem)) for _ in users]
    for content, user in zip(contents, users, strict=True):
        content["users"][0]["user"] = user
    contents[-1]["clusters"][0]["cluster"]["certificate-authority-data"] = BINARY
    shipped = tenants.shipped()
    async with shipped.running() as client, shipped.attacked("5 text that is not ASCII in Secrets"):
        for number, content in enumerate(contents):
            tenants.declare(f"text-{number}", json.dumps(content, ensure_ascii=False))
            tenants.declare(f"raw-{number}", "replaced below")
            tenants.store.modify(
                SECRETS,
                f"raw-{number}-kubeconfig",
                lambda secret: {**secret, "data": {"value": BINARY}},
                namespace=NAMESPACE,
            )
        for number in range(len(contents)):
            for name in (f"text-{number}", f"raw-{number}"):
                await eventually_known(client, name)
                await refused(client, name)
        await asyncio.sleep(2)
        await honest_is_served(client)


async def test_text_that_is_not_ascii_in_issued_kubeconfigs_fails_for_its_cluster_alone(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox, garden = site.workspace.sandbox, Garden(site.workspace.sandbox)
    names = [f"text-{number}" for number in range(4)]
    for name in (*names, "honest"):
        sandbox.projects.create(name, ready=True)
        garden.create(NAMESPACE, name)
    issue = garden._kubeconfig

    def issue_text(request: dict[str, Any], namespace: str, name: str) -> dict[str, Any]:
        issued = issue(request, namespace, name)
        if name in names:
            issued["status"]["kubeconfig"] = BINARY * (names.index(name) + 1)
        return issued

    monkeypatch.setattr(garden, "_kubeconfig", issue_text)
    site.workspace.kubeconfig.write_text(json.dumps(garden.kubeconfig()))
    shipped = site.of_projects(rule={"kubeconfigs": True}, **adapted("gardener"))
    async with shipped.running() as client, shipped.attacked("5 text that is not ASCII as issued kubeconfigs"):
        for name in names:
            await refused(client, f"{NAMESPACE}.{name}")
        assert (await client.issue_kubeconfig(f"{NAMESPACE}.honest")).kubeconfig


async def owns(client: DiscoveryClient, least: int, most: int | None = None) -> None:
    """Wait until the daemon of this client owns that many clusters."""
    async with asyncio.timeout(WITHIN_S):
        while not least <= len(await client.list()) <= (most or least):
            pass


@pytest.mark.parametrize("members", [3_500, MAX_MEMBERS], ids=["too many members", "as many as allowed"])
async def test_forged_view_blocks_no_member(site: Site, members: int) -> None:
    hub = Hub(site, 2_000)
    async with hub.listening("first") as [shipped], shipped.running() as client:
        await owns(client, 2_000)
        forged = {f"forged-{number}": ViewMember(term=f"{number}") for number in range(members)}
        async with shipped.attacked(f"6 forged view of {members:,} members"):
            for number in range(10):
                view = View(number=1_000_000 + number, id=f"forged-{number}", members=forged)
                written = json.loads(encode_view(view, "", hub.names, time.time()))
                hub.annotate(hub.names.view, written["metadata"]["annotations"])
                await asyncio.sleep(1)
            own = hub.names.member("first")
            renewal = hub.annotations(own)["discovery.miloapis.com/renewal"]
            await eventually(lambda: hub.annotations(own)["discovery.miloapis.com/renewal"] != renewal)
        if members > MAX_MEMBERS:  # malformed: the member joins again, and writes the view
            await owns(client, 2_000)


async def test_junk_leases_with_the_label_of_a_group_keep_no_cluster_without_an_owner(site: Site) -> None:
    hub = Hub(site, 21)
    async with (
        hub.listening("first", "second") as [first, second],
        first.running() as client,
        second.running() as other,
    ):
        await owns(client, 1, 20)
        await owns(other, 1, 20)
        for number in range(6):
            labels = {GROUP_LABEL: hub.names.group}
            metadata = {"name": f"junk-{number}", "labels": labels, "annotations": {"junk": "x" * 200 * 1024}}
            hub.store.create(LEASES, {"metadata": metadata}, namespace="default")
        async with first.attacked("7 six junk Leases, a member is killed"):
            await second.process.kill()
            async with asyncio.timeout(WITHOUT_OWNER_S * 2):  # twice what is promised, on a busy machine
                await owns(client, 21)


@pytest.mark.parametrize("what", ["empty pages", "the same object"])
async def test_endless_list_ends_and_makes_its_source_stale(site: Site, what: str) -> None:
    endless = EndlessLists([] if what == "empty pages" else [project(1, {})])
    site.workspace.sandbox.projects.create("alpha", ready=True)
    async with endless.listening() as url:
        hostile = site.directory / "hostile"
        hostile.write_text(kubeconfig(url))
        files = {"good": site.workspace.kubeconfig, "hostile": hostile}
        sources = [{"name": name, "kind": "project", "discovery_kubeconfig": str(file)} for name, file in files.items()]
        shipped = site.daemon(sources=sources, plain_loopback=True)
        async with shipped.running() as client, shipped.attacked(f"8 endless list: {what}"):
            began, states = time.monotonic(), set[tuple[str, str]]()
            while time.monotonic() < began + 30:
                found = await client.server_info()
                states |= {
                    (source.status.state.name, source.status.reason)
                    for source in found.sources
                    if source.name == "hostile"
                }
                await asyncio.sleep(0.2)
            assert endless.requests < 30 * 200, "the list is read without a pause"
            assert any(state == "STALE" for state, _ in states), states
            assert [cluster.name for cluster in await client.list()] == ["good#alpha"]


async def test_deleted_objects_with_many_labels_keep_no_memory(site: Site) -> None:
    projects = Projects(["honest"])
    server = ProjectServer(projects)
    async with server.listening():
        shipped = site.daemon(**server.settings(site.directory / "plain"))
        async with (
            shipped.running() as client,
            shipped.attacked("14 a project of 32 or 380 KB created and deleted 1,500 times"),
        ):
            for number in range(1500):
                labels = range(90 if number % 10 else 1000)
                large = {f"{'a' * 240}.example/{number}-{label:04}{'k' * 30}": "v" * 63 for label in labels}
                projects.put(f"large-{number}", **large)
                if number >= 10:
                    projects.request_deletion(f"large-{number - 10}")
                    projects.delete(f"large-{number - 10}")
                if number % 10 == 9:
                    projects.put("honest", last=str(number))
                    await eventually_labeled(client, "honest", str(number))
                    projects.compact()


async def eventually_labeled(client: DiscoveryClient, name: str, last: str) -> None:
    async with asyncio.timeout(WITHIN_S):
        while (await client.get(name)).cluster.labels.get("last") != last:  # noqa: ASYNC110 - polled
            await asyncio.sleep(0.02)


async def test_labels_of_ever_other_sizes_fragment_no_memory(site: Site) -> None:
    """In each round the large objects change the size of their labels, and small ones of the former size remain."""
    projects, objects = Projects(["honest"]), 1500
    server = ProjectServer(projects)
    async with server.listening():
        shipped = site.daemon(**server.settings(site.directory / "plain"))
        async with shipped.running() as client, shipped.attacked("16 labels of 12 sizes, one of each kept"):
            for length in range(310, 118, -16):
                for number in range(objects):
                    labels = {key(length, f"{number}-{label}"): "v" for label in range(16_384 // (length + 49) - 1)}
                    projects.put(f"large-{number}", **labels)
                    projects.put(f"small-{length}-{number}", **{key(length, f"{number}"): "v"})
                    if number % 300 == 299:
                        last = f"{length}-{number}"
                        projects.put("honest", last=last)
                        await eventually_labeled(client, "honest", last)
                        projects.compact()


def key(length: int, name: str) -> str:
    """Return the key of a label, of this length."""
    return f"{'.'.join(['a' * 50] * 7)[-(length - 1 - len(name)) :].strip('.')}/{name}"


async def test_object_that_changes_thousands_of_times_blocks_nothing(site: Site) -> None:
    projects = Projects(["honest", "restless"])
    server = ProjectServer(projects)
    async with server.listening():
        shipped = site.daemon(**server.settings(site.directory / "plain"))
        async with shipped.running() as client, shipped.attacked("15 12,000 changes of the labels of one project"):
            for number in range(12_000):
                projects.put("restless", number=str(number))
                if number % 100 == 99:
                    projects.put("honest", last=str(number))
                    await eventually_labeled(client, "honest", str(number))
                    projects.compact()


async def test_rule_for_names_matches_no_part_of_another_sources_name(site: Site) -> None:
    servers = {"shop-eu": ProjectServer(Projects(["bank"])), "eu": ProjectServer(Projects(["shop-1", "bank"]))}
    async with servers["shop-eu"].listening(), servers["eu"].listening():
        sources = [server.source(name, site.directory) for name, server in servers.items()]
        settings: dict[str, Any] = {"sources": sources, "plain_loopback": True, "watch": {"streaming_lists": "off"}}
        broad = site.daemon("broad", rule={"clusters": {"names": ["shop-*"]}}, **settings)
        async with broad.process as process:
            with pytest.raises(DaemonEndedError, match=r"shop-\*"):
                await process.start()
        shipped = site.daemon(rule={"clusters": {"names": ["*#shop-*"]}}, **settings)
        async with shipped.running() as client, shipped.attacked("9 rule for names, source shop-eu"):
            async with asyncio.timeout(WITHIN_S):
                while not (seen := [cluster.name for cluster in await client.list()]):
                    pass
            assert seen == ["eu#shop-1"]
            report = await client.get("eu#shop-1")
            assert report.engagement.engaged
            with pytest.raises(DiscoveryError):
                await client.get("shop-eu#bank")


async def test_searches_of_the_status_page_delay_no_caller(site: Site) -> None:
    server = ProjectServer(Projects(f"p-{number}" for number in range(10_000)))
    async with server.listening():
        shipped = site.daemon(**server.settings(site.directory / "plain"))
        async with shipped.running() as client:
            took: list[float] = []

            async def search(number: int) -> None:
                while True:
                    with suppress(OSError):
                        reader, writer = await asyncio.open_connection("127.0.0.1", shipped.http_port)
                        head = f"GET /?json&q=-{number}9 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
                        writer.write(head.encode())
                        try:
                            await reader.read()
                        finally:
                            await closed(writer)

            async with shipped.attacked("10 48 connections search at 10,000 clusters"):
                searching = [asyncio.create_task(search(number)) for number in range(48)]
                for _ in range(100):
                    began = time.monotonic()
                    await client.server_info()
                    took.append(time.monotonic() - began)
                    await asyncio.sleep(0.1)
                for task in searching:
                    task.cancel()
                await asyncio.wait(searching)
    assert median(took) < LIVEZ_S, f"a call took {median(took):.2f} s (median)"


PROGRAM = """\
from milo_controllers import Controllers, Request, main

controllers = Controllers()

@controllers.reconcile("v1/configmaps")
async def reconcile(request: Request) -> None: ...

main(controllers)
"""


async def test_messages_of_api_servers_forge_no_lines_of_logs_and_outputs(site: Site) -> None:
    server, program = ForgingServer(Projects(["alpha"])), site.directory / "program.py"
    program.write_text(PROGRAM)
    async with server.listening():
        issuer = {"name": "own", "type": "project-kubeconfig", "share_discovery_identity": True}
        settings = server.settings(site.directory / "plain") | {"kubeconfigs": {"issuers": [issuer]}}
        token, config = site.directory / "token", Path(settings["discovery_kubeconfig"])
        token.write_text(site.workspace.sandbox.token("daemon"))
        config.write_text(config.read_text().replace("token: t", f"tokenFile: {token}"))
        shipped = site.daemon(rule={"kubeconfigs": True}, **settings)
        ca, certificate, key = shipped.operator
        client_settings = {
            "MILO_OPERATOR_LISTEN": "127.0.0.1:0",
            "MILO_DISCOVERY_ADDRESS": shipped.process.address,
            "MILO_DISCOVERY_CA_FILE": str(ca),
            "MILO_DISCOVERY_CERTIFICATE_FILE": str(certificate),
            "MILO_DISCOVERY_KEY_FILE": str(key),
        }
        environ = {name: value for name, value in os.environ.items() if not name.startswith("MILO_DISCOVERY")}

        async def run(*command: str, until_forged: bool = False) -> str:
            process = await asyncio.create_subprocess_exec(
                *command, stdout=PIPE, stderr=STDOUT, env=environ | client_settings
            )
            assert process.stdout is not None
            lines: list[bytes] = []
            async with asyncio.timeout(WITHIN_S):
                while line := await process.stdout.readline():
                    lines.append(line)
                    if until_forged and b"forged" in line:
                        break
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            return b"".join(lines).decode()

        async with shipped.running() as client, shipped.attacked("11 forged lines and escapes in messages"):
            printed = [await run(sys.executable, str(program), until_forged=True)]
            server.is_forging = True
            server.cut()
            async with asyncio.timeout(WITHIN_S):
                while "forged" not in (await client.server_info()).source.message:
                    pass
            command = str(Path(sys.executable).with_name("milo-discovery"))
            printed += [await run(command, "list"), shipped.process.output]
    for output in printed:
        assert "\x1b" not in output
        assert not [line for line in output.splitlines() if line.startswith("2026-01-01 00:00:00")]
    assert ["forged" in output for output in printed] == [True] * 3, printed[0]


async def test_probes_with_own_certificates_share_the_systems_authorities(site: Site) -> None:
    """50 probes a second, the default limit: with one minute between the probes of a cluster, of 3,000 clusters."""
    tenants = Tenants(site)
    servers = TenantServers(site.directory, answer_ok, addresses=10)
    context = servers.context()
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(cadata=servers.authority.pem.decode())
    bundle = site.directory / "bundle"
    bundle.write_bytes(b"".join([servers.authority.pem, *(Authority().pem for _ in range(150))]))
    shipped = tenants.shipped(connectivity={"interval": "1s"}, environ={"SSL_CERT_FILE": str(bundle)})
    async with servers.listening(context), shipped.running() as client:
        for number in range(100):
            pair = servers.authority.issue(common_name=f"c-{number}", life=timedelta(hours=12))
            config = json.loads(servers.kubeconfig(number, pair))
            del config["clusters"][0]["cluster"]["certificate-authority-data"]  # the system's authorities
            tenants.declare(f"own-{number}", json.dumps(config))
            await asyncio.sleep(0)
        await eventually(lambda: servers.connections >= 100, within_s=WITHIN_S)
        async with shipped.attacked("12 50 probes/s with own certificates"):
            spent, before, began = cpu_s(shipped.process), servers.connections, time.monotonic()
            await asyncio.sleep(15)
            lasted = time.monotonic() - began
            share, rate = (cpu_s(shipped.process) - spent) / lasted, (servers.connections - before) / lasted
            await honest_is_served(client)
    sys.stdout.write(f"{'':<3}{share:.0%} of a core for {rate:.0f} connections/s\n")
    assert rate > 20
    assert share < 0.5, f"{share:.0%} of a core"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of another user")
async def test_directory_of_another_user_is_refused_for_root(site: Site) -> None:
    directory, sandbox = site.directory / "clusters", site.workspace.sandbox
    directory.mkdir()
    sandbox.projects.create("alpha", ready=True)
    write(directory / "alpha", sandbox.kubeconfig(project="alpha", token=sandbox.token("operator")))
    own_by_another(directory, directory / "alpha")
    source = {"name": "files", "kind": "kubeconfig-directory", "settings": {"path": str(directory)}}
    shipped = site.daemon(sources=[source])
    async with shipped.process as process:
        await process.start()
        async with shipped.client() as client, shipped.attacked("13 directory of another user, as root"):
            async with asyncio.timeout(WITHIN_S):
                while (found := (await client.server_info()).sources[0].status).reason != "DirectoryNotOwned":
                    pass
            assert found.state.name == "STALE"
            with pytest.raises(DiscoveryError, match="belongs to user"):
                await client.list()
            ca, certificate, key = map(str, shipped.operator)
            flags = ("--ca-file", ca, "--certificate-file", certificate, "--key-file", key)
            arguments = ("--address", process.address, *flags, "sync", "--once", "--dir", str(directory))
            status, _, err = await forked("milo-discovery", arguments, {})
            assert (status, f"{directory} belongs to user" in err) == (1, True)
