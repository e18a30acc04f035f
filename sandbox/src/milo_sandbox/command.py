"""`milo-discoveryd sandbox`: the fake Milo API in its own process."""

import asyncio
import shlex
import shutil
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import SystemRandom
from tempfile import TemporaryDirectory

import msgspec

from milo_sandbox import churn as changes
from milo_sandbox import kubeconfigs
from milo_sandbox.api import Features
from milo_sandbox.certificates import ServerIdentity, issue_identity
from milo_sandbox.errors import CommandError, write
from milo_sandbox.milo import PROJECT_FINALIZER
from milo_sandbox.sandbox import Sandbox
from milo_sandbox.server import ServerAddress
from milo_sandbox.signals import stop_signals

_RENEWED_BEFORE = timedelta(days=1)
# Not indented, so that the text can be pasted; the watch, which does not end, comes last.
_COMMANDS = """\
Commands to try in another terminal:

export KUBECONFIG={kubeconfig}
kubectl get projects
kubectl create -f - <<'YAML'
apiVersion: resourcemanager.miloapis.com/v1alpha1
kind: Project
metadata: {{name: hello, labels: {{env: dev}}}}
spec: {{ownerRef: {{kind: Organization, name: acme}}}}
YAML
kubectl delete project hello
kubectl get projects --watch
"""


class SavedServer(msgspec.Struct, frozen=True, kw_only=True):
    """The address and the identity of a sandbox, saved beside its kubeconfig.

    A sandbox that is started again with the same kubeconfig file and address has the same port, certificates and
    projects until the certificate is about to expire, so clients of the earlier run recover as after a restart of an
    API server.
    """

    host: str
    port: int
    """The port. Before the first start it can be 0, for any free port."""
    seed: int
    """The random seed, which determines the names and UIDs of the first projects."""
    identity: ServerIdentity


def _saved_path(kubeconfig: Path) -> Path:
    return kubeconfig.with_name(f"{kubeconfig.name}.sandbox")


def _load_or_issue(kubeconfig: Path, host: str, port: int, now: datetime) -> SavedServer:
    """Return the server saved by an earlier run on this address, or a new one."""
    try:
        saved = msgspec.json.decode(_saved_path(kubeconfig).read_bytes(), type=SavedServer)
    except (OSError, msgspec.DecodeError):
        return _new_server(host, port, now)
    if saved.host != host or port not in (0, saved.port) or saved.identity.expires_at - now < _RENEWED_BEFORE:
        return _new_server(host, port, now)
    return saved


def _save(kubeconfig: Path, server: SavedServer) -> None:
    kubeconfigs.write_secret(_saved_path(kubeconfig), msgspec.json.encode(server).decode())


def _new_server(host: str, port: int, now: datetime) -> SavedServer:
    return SavedServer(
        host=host, port=port, seed=SystemRandom().getrandbits(32), identity=issue_identity(host, now=now)
    )


async def serve(
    listen: str,
    projects: int,
    churn: float,
    kubeconfig_out: Path | None,
    config_out: Path | None = None,
    *,
    token_life: float = 600.0,
    features: Features = Features(),  # noqa: B008 - immutable
) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP."""
    host, port = _address(listen)
    async with AsyncExitStack() as stack:
        # Signals must not terminate the process before the directory, which has a token, is removed.
        stopping = stack.enter_context(stop_signals())
        kubeconfig = kubeconfig_out or (
            Path(stack.enter_context(TemporaryDirectory(prefix="milo-sandbox-"))) / "kubeconfig"
        )
        server = _load_or_issue(kubeconfig, host, port, datetime.now(UTC))
        sandbox = Sandbox(
            address=ServerAddress(host=host, port=server.port, identity=server.identity),
            seed=server.seed,
            token_life=token_life,
            features=features,
            # Later than all versions of an earlier run, unless that made more than a thousand writes a second.
            first_version=time.time_ns() // 1_000_000,
            # With --churn, the churn takes the place of the controllers, and simulates their faults.
            controllers=not churn,
        )
        sandbox.populate(projects, finalizers=[PROJECT_FINALIZER])
        sandbox.compact()
        try:
            await stack.enter_async_context(sandbox)
        except OSError as error:
            raise CommandError(_not_listening(listen, port, server.port, error)) from error
        try:
            sandbox.write_kubeconfig(kubeconfig)
            _save(kubeconfig, msgspec.structs.replace(server, port=sandbox.port))
        except OSError as error:
            why = error.strerror or error
            raise CommandError(f"cannot write {kubeconfig}: {why}; try another --kubeconfig-out") from error
        if config_out is not None:
            try:
                kubeconfigs.write_daemon_config(config_out, kubeconfig.absolute())
            except OSError as error:
                why = error.strerror or error
                raise CommandError(f"cannot write {config_out}: {why}; try another --config-out") from error
        _print_introduction(sandbox, kubeconfig, churn)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(changes.run(sandbox.churn(), churn), name="churn") if churn else None
            await stopping.wait()
            if running is not None:
                running.cancel()
    write("milo sandbox stopped\n")


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise CommandError(f"--listen: {listen!r} is not HOST:PORT; try 127.0.0.1:0, where 0 is any free port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _not_listening(listen: str, port: int, saved_port: int, error: OSError) -> str:
    why = error.strerror or error
    if port == saved_port:
        return f"cannot listen on {listen}: {why}; try another --listen"
    return (
        f"cannot listen on port {saved_port}, which the previous run with this --kubeconfig-out used: {why}; "
        "stop the sandbox that is using the port, or try another --kubeconfig-out"
    )


def _print_introduction(sandbox: Sandbox, kubeconfig: Path, churn: float) -> None:
    changing = f", about {churn:g} changes a second" if churn else ""
    # The sandbox's image has no kubectl.
    commands = _COMMANDS if shutil.which("kubectl") else ""
    write(
        f"milo sandbox at {sandbox.url}: {len(sandbox.projects)} projects{changing}\n"
        f"kubeconfig: {kubeconfig.absolute()}\n" + commands.format(kubeconfig=shlex.quote(str(kubeconfig.absolute())))
    )
