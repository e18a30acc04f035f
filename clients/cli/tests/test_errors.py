"""Tests of error messages, usage and exit statuses of the command line."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from importlib.metadata import EntryPoints

import click
import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo

from clients.python.tests.scripted_daemon import SILENCE, Refusal
from milo_discovery import TimedOut, Unavailable
from milo_discovery_cli.command_line import command as command_line
from milo_discovery_cli.exit_status import describe
from milo_discovery_cli.get import get
from milo_discovery_cli.options import with_values

from .command_process import FLEET

FORMATS = "'table', 'wide', 'json', 'yaml', 'name', custom-columns=HEADER:.PATH,..., jsonpath=TEMPLATE"


INTERRUPTED_TWICE = """
import asyncio, signal
from milo_discovery import ClientCredentials
from milo_discovery_cli.options import ConnectionOptions

async def use(client):
    try:
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(60)
    finally:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            print("raised in the cleanup")

ConnectionOptions(address="unix:///nowhere", timeout=None, credentials=ClientCredentials()).run(use)
"""


def test_second_interrupt_ends_the_process_at_once():
    program = [sys.executable, "-c", INTERRUPTED_TWICE]
    ended = subprocess.run(program, check=False, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


class TestErrors:
    async def test_invalid_selector_error_names_the_option(self, command, daemon):
        violation = BadRequest.FieldViolation(field="filter.label_selector", description="unexpected ','")
        refusal = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "bad", (BadRequest(field_violations=[violation]),))
        daemon.answers["ListClusters"] = [refusal]
        outcome = await command("list", "-l", ",")
        assert (outcome.status, outcome.err) == (2, "milo-discovery: --selector: unexpected ','\n")

    @pytest.mark.parametrize(
        ("refusal", "status"),
        [
            (Refusal(grpc.StatusCode.PERMISSION_DENIED, "no"), 4),
            (Refusal(grpc.StatusCode.UNAUTHENTICATED, "no"), 4),
            (Refusal(grpc.StatusCode.UNAVAILABLE, "no", (ErrorInfo(reason="NOT_SYNCED"),)), 7),
            (Refusal(grpc.StatusCode.INTERNAL, "no"), 1),
        ],
        ids=lambda value: value.code.name if isinstance(value, Refusal) else None,
    )
    async def test_exit_status_depends_on_the_grpc_status(self, command, daemon, refusal, status):
        daemon.answers["ListClusters"] = [refusal]
        outcome = await command("list")
        assert (outcome.status, outcome.out, outcome.err) == (status, "", "milo-discovery: no\n")

    async def test_connection_error_names_the_address_and_the_option(self, command, daemon):
        await daemon.stop()
        outcome = await command("list")
        assert outcome.status == 5
        assert outcome.err == (
            f"milo-discovery: cannot connect to the daemon at {daemon.address}: No such file or directory "
            "(is milo-discoveryd running? set its address with --address or MILO_DISCOVERY_ADDRESS)\n"
        )

    def test_permission_error_of_a_socket_suggests_joining_its_group(self):
        problem = "failed to connect to all addresses; last error: UNKNOWN: unix:/d.sock: Permission denied"
        refused = Unavailable(problem, code="UNAVAILABLE")
        message = describe(refused, "unix:///d.sock")
        assert f"uid {os.getuid()} may not use the socket: join its group" in message
        assert "is milo-discoveryd running?" not in message

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
    def test_permission_error_of_a_directory_names_the_directory(self, tmp_path):
        refused = Unavailable("unix:/d.sock: Permission denied", code="UNAVAILABLE")
        with tempfile.TemporaryDirectory(prefix="milo-") as closed:  # not tmp_path, whose parents are closed too
            os.seteuid(65534)
            try:
                message = describe(refused, f"unix://{closed}/below/d.sock")
            finally:
                os.seteuid(0)
        assert f"uid 65534 may not enter the directory {closed}: change" in message
        assert "socket.group" not in message

    @pytest.mark.parametrize("message", ["Deadline Exceeded", "Stream removed (Deadline Exceeded)"])
    def test_exceeded_deadline_is_told_in_the_same_words(self, message):
        error = TimedOut(message, code="DEADLINE_EXCEEDED")
        assert describe(error, "unix:///d.sock") == "no response from unix:///d.sock within --timeout"

    async def test_cli_call_without_a_response_exits_with_timeout(self, command, daemon):
        daemon.answers["ListClusters"] = [SILENCE]
        outcome = await command("list", "--timeout", "50ms")
        assert outcome.status == 6
        assert outcome.err == f"milo-discovery: no response from {daemon.address} within --timeout\n"

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (["list", "--address", "nowhere"], "neither unix:///path/to/socket nor HOST:PORT"),
            (["list", "--timeout", "soon"], "'soon' is not a duration above zero, such as 500ms, 10s or 2m"),
            (["list", "--timeout", "0s"], "'0s' is not a duration above zero"),
            (["list", "--timeout", f"{'9' * 400}s"], "9s' is too long"),
            (["explain", "\udcff"], "'\\udcff' is not valid UTF-8"),
            (["list", "--timeout", "99999999999h"], "'99999999999h' is too long"),
            (["list", "--timeout", "5s10m"], "'5s10m' is not a duration above zero"),
            (["list", "--address", "insecure://127.0.0.1:7070"], "did you mean 127.0.0.1:7070?"),
            (["objects", "--operator", "foo"], "'foo' is not HOST:PORT"),
            (["objects", "--operator", "127.0.0.1:99999"], "'127.0.0.1:99999' is not HOST:PORT"),
            (["help", "wacht"], "No such command 'wacht'; did you mean watch?"),
            (["hlep"], "No such command 'hlep'; did you mean help?"),
            (["sync", "--directory", "x"], "No such option '--directory'; did you mean --dir? See"),
            (["list", "--selector", "\udcff"], "'\\udcff' is not valid UTF-8"),
            (["list", "-o", "xml"], "'xml' is not one of 'table', 'wide', 'json', 'yaml', 'name'"),
            (["explain"], "Missing argument 'NAME'"),
            (["get"], "Missing argument 'KIND [NAME]... | KIND/NAME...'"),
            (["get", "pods", "a/b"], "'a/b' is not the name of an object: give KIND/NAME for each object, or KIND and"),
            (["get", "pod/a", "b"], "'b' has no '/': give KIND/NAME for each object, or KIND and then the names"),
            (["get", "pods,nodes/a"], "'pods,nodes/a' names several kinds: give KIND/NAME for each object"),
            (["get", "pods,"], "'' is not the name of a kind"),
            (["get", "\udcff"], "'\\udcff' is not the name of a kind"),
            (["get", "pod/"], "'' is not the name of an object"),
            (["get", "pods", "../secrets"], "'../secrets' is not the name of an object"),
            (["get", "pods", "-n"], "see milo-discovery get --help"),
            (["get", "pods", "--all-namespaces=maybe"], "see milo-discovery get --help"),
            (["get", "pods", "-l", "="], "--selector: "),
            (["get", "pods", "-l="], "--selector: "),
            (["get", "pods", "-l", "=app=web"], "--selector: "),
            (["get", "pods", "-n", "=x"], "--namespace '=x' is not the name of a namespace"),
            (["get", "pods", "-n="], "--namespace '=' is not the name of a namespace"),
            (["get", "pods", "-o", "=json"], "'=json' is not one of"),
            (["get", "pods", "--", "-n=web"], "'-n=web' is not the name of an object"),
            (["--address"], "see milo-discovery --help"),
            (["get", "pods", ".."], "'..' is not the name of an object"),
            (["get", "pods", "-n", "a/b"], "--namespace 'a/b' is not the name of a namespace"),
            (["get", "pods", "-l", "a=(b"], "--selector: "),
            (["get", "pods", "--field-selector", "\x1b"], "contains characters that cannot be printed"),
            (["get", "pods", "web", "-l", "a=b"], "a selector and names of objects exclude each other"),
            (["get", "pods,nodes", "-w"], "--watch takes one KIND, and at most one NAME"),
            (["get", "pods", "a", "b", "--watch"], "--watch takes one KIND, and at most one NAME"),
            (["get", "pods", "-o", "custom-columns=A"], "each column must be HEADER:.PATH"),
            (["get", "pods", "-o", "xml"], f"'xml' is not one of {FORMATS}; see"),
            (["get", "pods", "-o", "jsonpath"], f"'jsonpath' is not one of {FORMATS}; see"),
            (["get", "pods", "-o", "go-template={{.}}"], f"'go-template={{{{.}}}}' is not one of {FORMATS}; see"),
            (["status", "-o", "xml"], "'xml' is not one of 'table', 'json', 'yaml'; see"),
            (["get", "pods", "-o", "jsonpath="], "jsonpath= has no template"),
            (["get", "pods", "-o", "jsonpath={.metadata.name"], "is not a JSONPath template: its braces do not match"),
            (["wacht"], "No such command 'wacht'; did you mean watch?"),
            (["credential"], "Missing argument 'NAME'"),
            (["credential", "alpha", "--cluster", "alpha"], "give only one of them"),
            (["kubeconfig", "alpha", "--force"], "--force needs -w"),
        ],
    )
    async def test_cli_usage_error_names_the_problem(self, command, arguments, complaint):
        outcome = await command(*arguments)
        assert outcome.status == 2
        assert complaint in outcome.err
        assert "Traceback" not in outcome.err

    @pytest.mark.parametrize("printed", ["99d", "3d4h", "5m10s", "42s", "500ms", "1.5h"])
    async def test_printed_durations_are_accepted_as_options(self, command, daemon, printed):
        daemon.answers["ListClusters"] = [FLEET]
        assert (await command("list", "--timeout", printed)).status == 0

    @pytest.mark.parametrize(("words", "of"), [((), ()), (("list",), ("list",)), (("help",), ())])
    async def test_help_command_prints_the_help(self, command, words, of):
        asked, option = await command("help", *words), await command(*of, "--help")
        assert (asked.status, asked.out) == (0, option.out)

    async def test_misspelled_environment_variable_is_reported(self, command, daemon):
        daemon.answers["ListClusters"] = [FLEET]
        # Kubernetes sets variables like the last two for a Service named milo-discovery.
        variables = {"ADRESS": "x", "SOCKET": "x", "SERVICE_HOST": "x", "PORT_7070_TCP_ADDR": "x"}
        outcome = await command("list", **{f"MILO_DISCOVERY_{name}": value for name, value in variables.items()})
        assert outcome.status == 0
        [first, second] = outcome.err.splitlines()
        assert "MILO_DISCOVERY_ADRESS is not an environment variable" in first
        assert "did you mean MILO_DISCOVERY_ADDRESS?" in first
        assert "MILO_DISCOVERY_SOCKET is not an environment variable" in second

    async def test_environment_variable_with_the_prefix_of_the_daemon_is_reported(self, command, daemon):
        daemon.answers["ListClusters"] = [FLEET]
        outcome = await command("list", MILO_DISCOVERYD_CA_FILE="x", MILO_DISCOVERYD_LISTEN="unix:///d.sock")
        assert outcome.status == 0
        assert outcome.err == (
            "milo-discovery: MILO_DISCOVERYD_CA_FILE is not an environment variable of this command, and is ignored; "
            "did you mean MILO_DISCOVERY_CA_FILE?\n"
        )

    async def test_dns_error_names_the_host(self, command):
        outcome = await command("list", "--address", "nowhere.invalid:7070")
        assert "cannot resolve the host nowhere.invalid" in outcome.err

    async def test_cli_help_needs_no_daemon(self, command):
        outcome = await command("--help")
        assert outcome.status == 0
        commands = [
            "completion",
            "credential",
            "explain",
            "get",
            "kubeconfig",
            "list",
            "objects",
            "publish",
            "run",
            "shards",
            "status",
            "sync",
            "version",
            "watch",
            "webhooks",
        ]
        assert [line[0] for line in outcome.lines[-len(commands) :]] == commands
        assert (await command("--version")).out.startswith("milo-discovery, version 0.")

    async def test_global_options_are_accepted_before_the_command_name(self, command, daemon):
        daemon.answers["ListClusters"] = [FLEET, SILENCE]
        before = ("--address", daemon.address, "--timeout", "200ms")
        elsewhere = {"MILO_DISCOVERY_ADDRESS": "unix:///elsewhere"}
        assert (await command(*before, "list", "--timeout", "10s", "-o", "name", **elsewhere)).out == "alpha\nbeta\n"
        assert (await command(*before, "list", **elsewhere)).status == 6

    async def test_global_option_after_the_command_name_takes_precedence(self, command):
        outcome = await command("--address", "unix:///before", "list", "--address", "unix:///after")
        assert "cannot connect to the daemon at unix:///after" in outcome.err

    @pytest.mark.parametrize(
        "module", ["milo_kube", "milo_discovery_cli.command_line", "click", "milo_discovery.extras"]
    )
    async def test_interrupt_during_an_import_ends_the_command_quietly(self, module):
        script = (
            "import sys\n"
            "class Finder:\n"
            f"    def find_spec(name, *_):\n        if name == {module!r}: raise KeyboardInterrupt\n"
            "sys.meta_path.insert(0, Finder)\n"
            "from milo_discovery_cli.__main__ import main\n"
            "main()"
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", script, "--help"), stderr=asyncio.subprocess.PIPE
        )
        _, err = await process.communicate()
        assert (process.returncode, err) == (130, b"")

    async def test_cli_help_loads_neither_grpc_nor_asyncio(self):
        script = (
            "import sys; from milo_discovery_cli.command_line import command\n"
            "try: command.main(['watch', '--help'])\n"
            "except SystemExit: print([m for m in ('grpc', 'asyncio', 'google.protobuf') if m in sys.modules])"
        )
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        assert out.decode().splitlines()[-1] == "[]"


def test_cli_names_the_package_of_a_command_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: EntryPoints())
    with pytest.raises(click.UsageError, match="pip install milo-publishing"):
        command_line.main(["publish"], standalone_mode=False)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["-n=web", "-l=app=web", "-o=json"], ["-nweb", "-lapp=web", "-ojson"]),
        (["-A=true", "--watch=false", "--no-headers=true", "-w=false"], ["-A", "--no-headers"]),
        (["--watch=maybe", "--cluster=alpha", "-n=", "-x=y"], ["--watch=maybe", "--cluster=alpha", "-n=", "-x=y"]),
        (["-l", "=app", "--", "-n=web"], ["-l", "=app", "--", "-n=web"]),
    ],
)
def test_values_after_an_equals_sign_are_read_as_by_kubectl(given, read):
    assert [*with_values(get, given)] == read
