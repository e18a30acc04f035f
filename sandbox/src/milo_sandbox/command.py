"""`milo-discoveryd sandbox`: the embedded Milo API as a process of its own."""

import asyncio
import signal
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from milo_sandbox import churn as life
from milo_sandbox.errors import SandboxError
from milo_sandbox.milo import PROJECT_FINALIZER
from milo_sandbox.sandbox import Sandbox

_KUBECTL = """
Try, in another terminal:

  export KUBECONFIG={kubeconfig}
  kubectl get projects -w
  kubectl create -f - <<'YAML'
  apiVersion: resourcemanager.miloapis.com/v1alpha1
  kind: Project
  metadata: {{name: hello, labels: {{env: dev}}}}
  spec: {{ownerRef: {{kind: Organization, name: acme}}}}
  YAML
  kubectl patch project hello --subresource=status --type=merge -p '{{"status":{{"conditions":[{{"type":"Ready",
    "status":"True","reason":"ByHand","message":"","lastTransitionTime":"2026-01-01T00:00:00Z"}}]}}}}'
  kubectl delete project hello
"""


async def serve(
    listen: str,
    projects: int,
    churn: float,
    kubeconfig_out: Path | None,
    *,
    seed: int | None = None,
    token_life: float = 600.0,
) -> None:
    """Serve until SIGINT or SIGTERM."""
    host, port = _address(listen)
    async with AsyncExitStack() as stack:
        sandbox = Sandbox(host=host, port=port, seed=seed, token_life=token_life)
        # Without churn nobody is there to take a finalizer off again.
        sandbox.populate(projects, finalizers=[PROJECT_FINALIZER] if churn else [])
        try:
            await stack.enter_async_context(sandbox)
        except OSError as error:
            raise SandboxError(f"can't listen on {listen}: {error.strerror or error}; try another --listen") from error
        path = kubeconfig_out or Path(stack.enter_context(TemporaryDirectory(prefix="milo-sandbox-"))) / "kubeconfig"
        try:
            sandbox.write_kubeconfig(path)
        except OSError as error:
            raise SandboxError(
                f"can't write {path}: {error.strerror or error}; try another --kubeconfig-out"
            ) from error
        told = stack.enter_context(_told_to_stop())
        _say(sandbox, path, churn)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(life.run(sandbox.churn(), churn), name="churn") if churn else None
            await told.wait()
            if running is not None:
                running.cancel()
    sys.stdout.write("milo sandbox stopped\n")


@contextmanager
def _told_to_stop() -> Iterator[asyncio.Event]:
    """Set by SIGINT or SIGTERM, from here on."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told.set)
    try:
        yield told
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise SandboxError(f"--listen: {listen!r} is no HOST:PORT; try 127.0.0.1:0, where 0 takes any free port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _say(sandbox: Sandbox, kubeconfig: Path, churn: float) -> None:
    changing = f", about {churn:g} changes a second" if churn else ""
    sys.stdout.write(
        f"milo sandbox at {sandbox.url}: {len(sandbox.projects)} projects{changing}\n"
        f"kubeconfig: {kubeconfig.absolute()}\n" + _KUBECTL.format(kubeconfig=kubeconfig.absolute())
    )
    sys.stdout.flush()
