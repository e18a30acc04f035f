# ruff: noqa: E501 - each case is one row
"""Mistakes on command lines, in settings and in files: each is reported in one line."""

import asyncio
import os
import re
import socket
import sys
from pathlib import Path
from subprocess import run

import pytest

from tests.end_to_end.process.conftest import directory
from tests.support.eventually import LIMIT_S
from tests.support.forked_command import forked

__all__ = ["directory"]

KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: u, user: {token: t}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
"""
DAEMON = "milo-discoveryd"
CLIENT = "milo-discovery"
SETTINGS = f"{DAEMON} run --config settings.yaml"
TWO_SOURCES = "sources: [{name: a, kind: project, discovery_kubeconfig: kubeconfig}, {name: b, kind: project, discovery_kubeconfig: second}]"


def line(prefix: str) -> str:
    return f"{DAEMON}: file settings.yaml line 1 key {prefix}"


@pytest.mark.parametrize(
    ("command", "settings", "printed"),
    [
        (f"{DAEMON} rnu", "", f"{DAEMON}: No such command 'rnu'; did you mean run? See {DAEMON} --help"),
        (f"{DAEMON} run --lisen x", "", f"{DAEMON}: No such option '--lisen'; did you mean --listen or --http-listen? See {DAEMON} run --help"),
        (f"{DAEMON} run --listen /run/d.sock", "", f'{DAEMON}: flag --listen: "/run/d.sock" must be "unix://" and an absolute path; did you mean "unix:///run/d.sock"?'),
        (f"{DAEMON} run --listen localhost", "", f'{DAEMON}: flag --listen: "localhost" must be "unix://" and an absolute path, or HOST:PORT, such as "127.0.0.1:7070"'),
        (f"{DAEMON} run --listen 0.0.0.0:7070", "", f'{DAEMON}: flag --listen: "0.0.0.0:7070" is a TCP address without `tls`: * "insecure://127.0.0.1:7070"'),
        (f"{DAEMON} run --mode projects", "", f'{DAEMON}: flag --mode: "projects" must be one of declarative, kind, kubeconfig-directory, project, project-control-plane, service-consumer, single'),
        (f"{DAEMON} run --label-selector a+in+b", "", f'{DAEMON}: flag --label-selector: "a in b" must be a Kubernetes label selector: expected *'),
        (f"{DAEMON} run --http-listen 9464", "", f'{DAEMON}: flag --http-listen: "9464" must be "off" or HOST:PORT, such as *'),
        (f"{DAEMON} run --discovery-kubeconfig none", "", f"{DAEMON}: kubeconfig none: cannot be read: No such file or directory"),
        (f"{DAEMON} run --config none.yaml", "", f"{DAEMON}: file none.yaml: cannot be read: No such file or directory"),
        (SETTINGS, "log: {levle: debug}", line("log.levle: is not a setting; did you mean log.level?")),
        (SETTINGS, "log.levle: debug", line("log.levle: is not a setting; did you mean log.level?")),
        (SETTINGS, "log.level: debug", line("log.level: is not a setting: write log: {level: VALUE}")),
        (SETTINGS, "log: {level: verbose}", line('log.level: "verbose" must be one of debug, info, warning, error')),
        (SETTINGS, "labelSelector: a=b", line("labelSelector: is not a setting; did you mean label_selector?")),
        (SETTINGS, "heartbeat_interval: 30", line('heartbeat_interval: "30" must be a duration with its unit, such as "30s", "5m" or "1h30m"; did you mean "30s"?')),
        (SETTINGS, "removals: {share: 2}", line('removals.share: "2" must be at most 1')),
        (SETTINGS, "rights: [{name: a, clusters: all}]", line("rights[0].who: is missing")),
        (SETTINGS, "sources: [{name: a, kind: project}, {name: a, kind: project}]", line("sources: has several items with the name 'a'")),
        (SETTINGS, "kubeconfigs: {issuers: [{name: x, type: token}]}", line('kubeconfigs.issuers[0].type: "token" must be one of *, token-request')),
        (SETTINGS, TWO_SOURCES + "\nkubeconfigs: {issuers: [{name: own, type: client-certificate, sources: [a, b], ca_certificate: kubeconfig, ca_key: kubeconfig, common_name: 'project:{name}'}]}", f"{DAEMON}: kubeconfigs.issuers: own would use the same identity for clusters that have the same name in different sources: use {{uid}} instead of {{name}}, or configure an issuer per source"),
        (SETTINGS, "mode", f"{DAEMON}: file settings.yaml: must be a mapping of settings to values"),
        (SETTINGS, "mode: [", f"{DAEMON}: file settings.yaml line 1: is not YAML: *"),
        (SETTINGS, "mode: project\nmode: single", f"{DAEMON}: file settings.yaml line 2: *mode*"),
        (SETTINGS, "audit: {file: none/audit}", f"{DAEMON}: audit.file: cannot append to none/audit: No such file or directory"),
        (SETTINGS, 'traces: {endpoint: "localhost:4317"}', line('traces.endpoint: "localhost:4317" must be a URL such as "http://localhost:4318", without user or query')),
        (SETTINGS, "listen: [{address: 'localhost:0', tls: {certificate: kubeconfig, key: kubeconfig, client_ca: kubeconfig}}]", f"{DAEMON}: tls: client_ca kubeconfig has no certificate in PEM"),
        ("MILO_DISCOVERYD_LOG_LEVEL=debug", "", f"{DAEMON}: environment MILO_DISCOVERYD_LOG_LEVEL: is not a setting; did you mean MILO_DISCOVERYD_LOG__LEVEL?"),
        (f"{CLIENT} list --timeout 30", "", f"{CLIENT}: Invalid value for '--timeout': '30' is not a duration above zero, such as 500ms, 10s or 2m; did you mean 30s? See {CLIENT} list --help"),
        (f"{CLIENT} list --adress x", "", f"{CLIENT}: No such option '--adress'; did you mean --address or --no-headers? See {CLIENT} list --help"),
        (f"{CLIENT} list --address localhost:1 --token-file kubeconfig", "", f"{CLIENT}: the token would be sent to localhost:1 unencrypted: set --ca-file to use TLS"),
        (f"{CLIENT} publish flux-kubeconfigs --kubeconfig none", "", f"{CLIENT}: cannot read none: No such file or directory; check the kubeconfig of the target API server (--kubeconfig)"),
        (f"{DAEMON} run --listen insecure://127.0.0.1:{{taken}}", "", f"{DAEMON}: can't listen on 127.0.0.1:*: Address already in use; set another --listen, or stop any process that uses the port"),
        (f"{DAEMON} run --http-listen 127.0.0.1:{{taken}}", "", f"{DAEMON}: can't listen on 127.0.0.1:* for metrics: address already in use; set another --http-listen, or set it to off, or stop any process that uses the port"),
        (f"{DAEMON} run --listen unix:///tmp/discovery.sock", "", f"{DAEMON}: the socket's directory /tmp is world-writable, so any user could replace the socket: listen in a subdirectory, which the daemon creates: unix:///tmp/milo-discovery/discovery.sock"),
        (f"{CLIENT} lits", "", f"{CLIENT}: No such command 'lits'; did you mean list? See {CLIENT} --help"),
        (f"{CLIENT} list alpha", "", f"{CLIENT}: Got unexpected extra argument (alpha); see {CLIENT} list --help"),
        (f"{CLIENT} list -o jsn", "", f"{CLIENT}: Invalid value for '-o' / '--output': 'jsn' is not one of *; see {CLIENT} list --help"),
        (f"{CLIENT} list --address unix:///none.sock", "", f"{CLIENT}: cannot connect to the daemon at unix:///none.sock: No such file or directory (is milo-discoveryd running?*"),
        (f"{CLIENT} list --address /none.sock", "", f"{CLIENT}: address '/none.sock' is neither unix:///path/to/socket nor HOST:PORT; did you mean unix:///none.sock?"),
    ],
    ids=lambda text: re.sub(r"\W+", "-", text).strip("-")[-40:] if isinstance(text, str) else None,
)  # fmt: skip
async def test_invalid_input_prints_a_one_line_error(
    directory: Path, command: str, settings: str, printed: str
) -> None:
    [shown] = await refusal(directory, command, settings)
    pattern = ".*".join(re.escape(part) for part in printed.split("*"))
    assert re.fullmatch(pattern, shown), shown


CONTEXTS = {
    "iam.miloapis.com/v1alpha1/users/jane": "user jane, which shows everything that the user may see, not the projects of one organization",
    "resourcemanager.miloapis.com/v1alpha1/projects/shop": "project shop, which shows the project's own objects, and no projects",
}


@pytest.mark.parametrize("settings", ["discovery_kubeconfig: second", TWO_SOURCES], ids=["one source", "two sources"])
@pytest.mark.parametrize("context", CONTEXTS)
async def test_run_and_check_refuse_a_milo_context_in_which_mode_project_cannot_work(
    directory: Path, context: str, settings: str
) -> None:
    (directory / "second").write_text(KUBECONFIG.replace(':1"', f':1/apis/{context}/control-plane"'))
    [refused] = await refusal(directory, SETTINGS, settings)
    sentence = f"the discovery kubeconfig points to the context of {CONTEXTS[context]}; mode project cannot work there"
    assert sentence in refused
    checked = await refusal(directory, f"{DAEMON} check --config settings.yaml", settings)
    assert [line for line in checked if line.startswith("fail") and sentence in line]


async def test_all_invalid_settings_are_reported_together(directory: Path) -> None:
    lines = await refusal(directory, SETTINGS, "mode: other\nheartbeat_interval: -1s\nlabel_selector: a in")
    keys = [shown.removeprefix(f"{DAEMON}: file settings.yaml ").partition(":")[0] for shown in lines]
    assert sorted(keys) == ["line 1 key mode", "line 2 key heartbeat_interval", "line 3 key label_selector"]


async def refusal(directory: Path, command: str, settings: str) -> list[str]:
    """Return the lines that a command prints before it exits with an error."""
    for name in ("kubeconfig", "second"):
        if not (directory / name).exists():
            (directory / name).write_text(KUBECONFIG)
    (directory / "settings.yaml").write_text(settings)
    taken = socket.create_server(("127.0.0.1", 0))
    command = command.replace("{taken}", str(taken.getsockname()[1]))
    environ = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MILO_DISCOVERYD_HTTP_LISTEN": "off",
    }
    if "--listen" not in command and "listen:" not in settings:
        environ["MILO_DISCOVERYD_LISTEN"] = f"unix://{directory}/daemon/d.sock"
    if "discovery_kubeconfig:" not in settings and "sources:" not in settings:
        environ["MILO_DISCOVERYD_DISCOVERY_KUBECONFIG"] = "kubeconfig"
    if command.startswith("MILO_"):
        name, _, value = command.partition("=")
        environ[name], command = value, f"{DAEMON} run"
    program, *arguments = (word.replace("+", " ") for word in command.split())
    try:
        async with asyncio.timeout(LIMIT_S):
            status, out, err = await forked(program, arguments, environ, directory)
    finally:
        taken.close()
    assert status > 0
    assert not (directory / "daemon" / "d.sock").exists(), "the daemon was started"
    return (out + err).splitlines()


@pytest.mark.parametrize("command", [DAEMON, CLIENT])
def test_command_without_arguments_prints_its_help(command: str) -> None:
    program = Path(sys.executable).with_name(command)
    asked, helped, bare = (
        run([program, *arguments], capture_output=True, text=True, check=False)
        for arguments in (["--help"], ["help"], [])
    )
    assert (helped.returncode, helped.stdout) == (0, asked.stdout)
    assert (asked.returncode, asked.stdout.splitlines()[0]) == (0, f"Usage: {command} [OPTIONS] COMMAND [ARGS]...")
    assert (bare.returncode, bare.stdout, bare.stderr) == (2, "", asked.stdout)
