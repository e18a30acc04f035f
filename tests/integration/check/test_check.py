"""`milo-discoveryd check` as a whole, against a sandbox: its findings, their order, and the exit status."""

import base64
import fcntl
import io
import json
import socket
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from milo_discoveryd.check import check
from milo_discoveryd.config import load
from milo_sandbox import Rule, Sandbox, selectors
from tests.integration.watchers.api_server import ApiServer, answering


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(projects=3, seed=1) as sandbox:
        yield sandbox


@pytest.fixture
def kubeconfig(sandbox: Sandbox, tmp_path: Path) -> Path:
    return saved(tmp_path / "kubeconfig", sandbox.kubeconfig())


def saved(path: Path, content: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(content))
    return path


class CheckOutput:
    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.text = text
        self.lines = text.splitlines()

    def levels(self) -> dict[str, str]:
        """Return the worst level of each subject."""
        order = ("ok", "warn", "fail")
        found: dict[str, str] = {}
        for line in self.lines[:-1]:
            level, _, rest = line.partition(" ")
            if level in order:
                what = rest.strip().partition(": ")[0]
                found[what] = max(level, found.get(what, "ok"), key=order.index)
        return found


async def run_check(tmp_path: Path, environ: Mapping[str, str] | None = None, **flags: object) -> CheckOutput:
    out = io.StringIO()
    given = {"listen": (f"unix://{tmp_path}/d.sock",), "http_listen": "127.0.0.1:0"} | flags
    status = await check(load(given, {}, None), out, environ or {})
    return CheckOutput(status, out.getvalue())


async def test_check_reports_each_step_in_order_and_a_summary(
    kubeconfig: Path, tmp_path: Path, sandbox: Sandbox
) -> None:
    output = await run_check(tmp_path, discovery_kubeconfig=str(kubeconfig))
    assert output.lines == [
        "ok    settings: mode project",
        f"ok    discovery reach: {sandbox.url} answers ({kubeconfig})",
        "ok    discovery identity: authenticated as sandbox-admin",
        "ok    discovery permissions: get, list and watch of projects.resourcemanager.miloapis.com allowed",
        "ok    discovery list: 3 projects",
        "ok    discovery watch: watching projects",
        "ok    context: root, which shows all projects, of all organizations",
        "ok    clusters: 3 of 3 engaged",
        f"ok    project: same as discovery ({kubeconfig})",
        "ok    kubeconfigs: none are issued: kubeconfigs.issuers is empty, or each issuer has hand_out: false",
        f"ok    listen unix://{tmp_path}/d.sock: free",
        "ok    http_listen 127.0.0.1:0: free",
        "12 checks: 12 ok, 0 warnings, 0 failed",
    ]
    assert output.status == 0


async def test_check_uses_the_resource_of_the_mode_and_the_label_selector(kubeconfig: Path, tmp_path: Path) -> None:
    output = await run_check(
        tmp_path, discovery_kubeconfig=str(kubeconfig), mode="project-control-plane", label_selector="no=such"
    )
    assert "get, list and watch of projectcontrolplanes.infrastructure.miloapis.com" in output.text
    assert "fail  settings: label_selector requires no, but ProjectControlPlanes of Milo have only two" in output.text
    assert "warn  discovery list: no projectcontrolplanes match" in output.text
    assert output.status == 1


async def test_check_reports_the_organization_of_the_context_and_counts_its_projects(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    for name, organization in (("a", "acme"), ("b", "acme"), ("c", "evil")):
        sandbox.milo.found(name, organization, {})
    kubeconfig = saved(tmp_path / "kubeconfig", sandbox.kubeconfig(organization="acme"))
    output = await run_check(tmp_path, discovery_kubeconfig=str(kubeconfig))
    assert "ok    context: organization acme, which shows the projects of the organization" in output.lines
    assert "clusters: 0 of 2 engaged, 0 of other organizations, 2 not ready; first" in output.text


async def test_server_that_sends_projects_of_other_organizations_causes_a_warning(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.milo.found("a", "acme", {})
    monkeypatch.setattr(selectors, "parse", lambda *_, **__: selectors.EVERYTHING)
    kubeconfig = saved(tmp_path / "kubeconfig", sandbox.kubeconfig(organization="acme"))
    output = await run_check(tmp_path, discovery_kubeconfig=str(kubeconfig))
    assert output.levels()["clusters"] == "warn"
    assert "of other organizations" in output.text
    assert "; first problem: " in output.text


@pytest.mark.parametrize(
    ("mode", "context", "found"),
    [
        ("project", "/apis/resourcemanager.miloapis.com/v1alpha1/projects/apollo/control-plane", "project apollo"),
        ("project", "/apis/iam.miloapis.com/v1alpha1/users/ada/control-plane", "user ada"),
        ("service-consumer", "", "root"),
    ],
)
async def test_check_rejects_a_discovery_kubeconfig_whose_context_does_not_fit_the_mode(
    mode: str, context: str, found: str, sandbox: Sandbox, tmp_path: Path
) -> None:
    kubeconfig = sandbox.kubeconfig()
    kubeconfig["clusters"][0]["cluster"]["server"] += context
    saved(tmp_path / "kubeconfig", kubeconfig)
    sources = [{"name": "s", "kind": mode, "discovery_kubeconfig": str(tmp_path / "kubeconfig")}]
    if mode == "service-consumer":
        sources[0]["settings"] = {"services": ["dns"]}  # type: ignore[assignment]
    output = await run_check(tmp_path, sources=sources)
    assert output.status == 1
    assert f"s: context: the discovery kubeconfig points to the context of {found}" in output.text


@pytest.mark.parametrize("follows", [True, False])
async def test_check_of_service_consumers_reports_whether_projects_are_followed(
    sandbox: Sandbox, tmp_path: Path, follows: bool
) -> None:
    sandbox.projects.create("provider", ready=True)
    kubeconfig = saved(tmp_path / "kubeconfig", sandbox.kubeconfig(project="provider"))
    own = {"services": ["dns"], "follow_projects": follows}
    source = {"name": "s", "kind": "service-consumer", "discovery_kubeconfig": str(kubeconfig), "settings": own}
    output = await run_check(tmp_path, sources=[source])
    seen = "ok    s: context: project provider, which shows the project's own objects, and no projects"
    unseen = (
        "; deletions and re-creations of projects are not noticed: set `follow_projects`, if the identity may "
        "watch projects at the root"
    )
    assert (seen if follows else seen + unseen) in output.lines
    assert ("ok    s: discovery of projects list: 4 projects" in output.lines) is follows
    assert output.status == 0


async def test_missing_permission_to_follow_projects_fails_the_check(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.projects.create("provider", ready=True)
    rules = [Rule(verbs=frozenset({"get", "list", "watch"}), resources=frozenset({"serviceconsumers"}))]
    token = sandbox.token("provider", rules=rules)
    kubeconfig = saved(tmp_path / "kubeconfig", sandbox.kubeconfig(project="provider", token=token))
    own = {"services": ["dns"], "follow_projects": True}
    source = {"name": "s", "kind": "service-consumer", "discovery_kubeconfig": str(kubeconfig), "settings": own}
    output = await run_check(tmp_path, sources=[source])
    assert "fail  s: discovery of projects permissions: get, list and watch of projects denied" in output.text
    assert output.status == 1


async def test_missing_permission_fails_and_suggests_the_rbac_rule(sandbox: Sandbox, tmp_path: Path) -> None:
    rules = [Rule(verbs=frozenset({"get", "list"}), resources=frozenset({"projects"}))]
    config = sandbox.kubeconfig(token=sandbox.token("reader", rules=rules))
    output = await run_check(tmp_path, discovery_kubeconfig=str(saved(tmp_path / "kubeconfig", config)))
    assert "fail  discovery permissions: watch of projects denied" in output.text
    assert (
        "{apiGroups: [resourcemanager.miloapis.com], resources: [projects], verbs: [get, list, watch]}" in output.text
    )
    assert output.levels()["discovery list"] == "ok"
    assert output.levels()["discovery watch"] == "fail"
    assert output.status == 1


async def test_rejected_token_fails_and_skips_the_steps_after_it(sandbox: Sandbox, tmp_path: Path) -> None:
    config = saved(tmp_path / "kubeconfig", sandbox.kubeconfig())
    sandbox.tokens.revoke_all()
    output = await run_check(tmp_path, discovery_kubeconfig=str(config))
    assert "fail  discovery identity: the server rejects the credential (401)" in output.text
    assert "discovery permissions" not in output.levels()
    assert output.lines[-1].endswith(" 1 failed")
    assert output.status == 1


async def test_client_certificate_that_expires_within_a_day_is_a_warning(tmp_path: Path) -> None:
    async def warned(left: timedelta, age: timedelta = timedelta(days=300)) -> bool:
        path = str(saved(tmp_path / "kubeconfig", _with_client_certificate(server, clients, left, age)))
        output = await run_check(tmp_path, discovery_kubeconfig=path, project_kubeconfig=path, mode="single")
        assert output.status == 0
        return "warn  project identity: the client certificate expires at" in output.text

    clients = trustme.CA()
    async with ApiServer(answering(b"{}", 201), wants_client_certificate_of=clients) as server:
        assert await warned(timedelta(hours=23))
        assert not await warned(timedelta(hours=25))
        # A certificate with a lifetime of ten minutes, as an issuer renews it.
        assert not await warned(timedelta(minutes=9), age=timedelta(minutes=1))
        assert await warned(timedelta(minutes=1), age=timedelta(minutes=9))


async def test_expired_client_certificate_is_reported_in_addition_to_its_rejection(tmp_path: Path) -> None:
    async with ApiServer(answering(b"{}", 401)) as server:
        expired = _with_client_certificate(server, trustme.CA(), left=-timedelta(minutes=5), age=timedelta(days=300))
        path = str(saved(tmp_path / "kubeconfig", expired))
        output = await run_check(tmp_path, discovery_kubeconfig=path, project_kubeconfig=path, mode="single")
    assert output.status == 1
    assert "warn  project identity: the client certificate expired at " in output.text
    assert "fail  project identity: the server rejects the credential (401)" in output.text


def _with_client_certificate(server: ApiServer, clients: trustme.CA, left: timedelta, age: timedelta) -> dict[str, Any]:
    now = datetime.now(UTC)
    leaf = clients.issue_cert(common_name="me", not_before=now - age, not_after=now + left)
    user = {
        "client-certificate-data": _encoded(leaf.cert_chain_pems[0].bytes()),
        "client-key-data": _encoded(leaf.private_key_pem.bytes()),
    }
    cluster = {"server": server.url, "certificate-authority-data": _encoded(server.pem)}
    return {
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        "clusters": [{"name": "x", "cluster": cluster}],
        "users": [{"name": "x", "user": user}],
    }


async def test_missing_kubeconfig_is_reported_once_and_other_checks_continue(tmp_path: Path) -> None:
    output = await run_check(tmp_path, discovery_kubeconfig=str(tmp_path / "none"))
    assert output.text.count("cannot be read: No such file or directory") == 1
    assert "--discovery-kubeconfig FILE" in output.text
    assert output.levels()["http_listen 127.0.0.1:0"] == "ok"
    assert output.status == 1


async def test_separate_project_kubeconfig_is_also_checked(sandbox: Sandbox, kubeconfig: Path, tmp_path: Path) -> None:
    other = saved(tmp_path / "other", sandbox.kubeconfig(token=sandbox.token("operator", rules=[])))
    output = await run_check(tmp_path, discovery_kubeconfig=str(kubeconfig), project_kubeconfig=str(other))
    assert f"ok    project reach: {sandbox.url} answers ({other})" in output.text
    assert "ok    project identity: authenticated as operator" in output.text
    assert output.status == 0


async def test_project_kubeconfig_server_is_not_contacted_in_mode_project_control_plane(
    kubeconfig: Path, tmp_path: Path
) -> None:
    content = json.loads(kubeconfig.read_text())
    content["clusters"][0]["cluster"]["server"] = "https://milo.invalid"
    other = saved(tmp_path / "other", content)
    flags = {"mode": "project-control-plane", "discovery_kubeconfig": str(kubeconfig)}
    output = await run_check(tmp_path, project_kubeconfig=str(other), **flags)
    assert f"ok    project credential: available ({other})" in output.text
    content["users"][0]["user"] = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "/no/login"}}
    output = await run_check(tmp_path, project_kubeconfig=str(saved(other, content)), **flags)
    assert "exec_plugins` does not allow: /no/login" in output.text
    output = await run_check(tmp_path, project_kubeconfig=str(other), exec_plugins=("/no/login",), **flags)
    assert "fail  project credential: exec plugin /no/login cannot be started" in output.text


async def test_check_in_mode_single_skips_the_checks_of_discovery(kubeconfig: Path, tmp_path: Path) -> None:
    output = await run_check(tmp_path, mode="single", project_kubeconfig=str(kubeconfig), label_selector="a=b")
    assert list(output.levels()) == [
        "settings",
        "project reach",
        "project identity",
        "kubeconfigs",
        f"listen unix://{tmp_path}/d.sock",
        "http_listen 127.0.0.1:0",
    ]
    assert "warn  settings: mode single watches nothing" in output.text
    assert output.status == 0


async def test_silence_limit_below_the_bookmark_interval_is_a_warning(tmp_path: Path) -> None:
    out = io.StringIO()
    await check(load({"http_listen": "off"}, {"MILO_DISCOVERYD_WATCH__SILENCE_LIMIT": "60s"}, None), out, {})
    assert "warn  settings: watch.silence_limit is 60 s" in out.getvalue()
    assert "http_listen" not in out.getvalue()


async def test_addresses_in_use_by_the_running_daemon_cause_warnings(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    with (
        path.with_name("d.sock.lock").open("w") as lock,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_server(("127.0.0.1", 0)) as http,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        taken, http_taken = (f"127.0.0.1:{listener.getsockname()[1]}" for listener in (server, http))
        output = await run_check(tmp_path, listen=(f"unix://{path}", f"insecure://{taken}"), http_listen=http_taken)
    levels = output.levels()
    subjects = (f"listen unix://{path}", f"listen insecure://{taken}", f"http_listen {http_taken}")
    assert {levels[subject] for subject in subjects} == {"warn"}


async def test_invalid_member_name_fails_and_other_checks_continue(kubeconfig: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    source = "{name: infra, type: token-request, namespace: n, service_account: s}"
    config.write_text(f"sharding: {{group: g, member: BAD, namespace: n}}\nkubeconfigs: {{issuers: [{source}]}}\n")
    out = io.StringIO()
    flags = {"listen": (f"unix://{tmp_path}/d.sock",), "discovery_kubeconfig": str(kubeconfig)}
    assert await check(load(flags, {}, config), out, {}) == 1
    levels = CheckOutput(1, out.getvalue()).levels()
    assert (levels["sharding"], levels[f"listen unix://{tmp_path}/d.sock"]) == ("fail", "ok")


async def test_check_output_never_contains_a_token(sandbox: Sandbox, tmp_path: Path) -> None:
    token = sandbox.token()
    path = saved(tmp_path / "kubeconfig", sandbox.kubeconfig(token=token))
    assert token not in (await run_check(tmp_path, discovery_kubeconfig=str(path))).text
    sandbox.tokens.revoke_all()
    assert token not in (await run_check(tmp_path, discovery_kubeconfig=str(path))).text


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


async def test_project_listed_by_two_sources_of_one_milo_is_counted_once(tmp_path: Path) -> None:
    async with Sandbox() as sandbox:
        sandbox.milo.found("bank", "acme", {})
        sandbox.milo.provision("bank")
        control_planes = sandbox.kubeconfig()
        cluster = control_planes["clusters"][0]["cluster"]
        # ProjectControlPlanes are at another API server than Projects.
        cluster["server"] = cluster["server"].replace("127.0.0.1", "localhost")
        cluster["tls-server-name"] = "127.0.0.1"
        sources = {
            "projects": {"kind": "project", "kubeconfig": sandbox.kubeconfig()},
            "planes": {"kind": "project-control-plane", "kubeconfig": control_planes},
        }
        for order in (("projects", "planes"), ("planes", "projects")):
            settings = [
                {
                    "name": name,
                    "kind": sources[name]["kind"],
                    "discovery_kubeconfig": str(saved(tmp_path / name, sources[name]["kubeconfig"])),
                }
                for name in order
            ]
            output = await run_check(tmp_path, sources=settings)
            assert f"ok    {order[0]}: clusters: 1 of 1 engaged" in output.lines
            assert (
                f"{order[1]}: clusters: 0 of 1 engaged, 1 malformed; the sources {order[1]} and {order[0]} follow the "
                "same projects"
            ) in output.text
