"""The commands with the real daemon: how quick, how many at once, and what they never say."""

import asyncio
import json
import resource
import sys
from pathlib import Path

from tests.end_to_end.kubeconfigs.conftest import Start, token_in
from tests.end_to_end.kubeconfigs.place import COMMANDS, Place
from tests.support.eventually import eventually

AT_ONCE = 20


async def test_credential_command_adds_little_to_grpc_import_time(start: Start) -> None:
    """By the time of a processor, in turns: other tests have the processors too."""
    async with start() as place:
        took, least = [], []
        for _ in range(7):
            before = of_children()
            await place.discovery("credential", "--cluster", "alpha")
            between = of_children()
            await place.run(sys.executable, "-c", "import grpc")
            took.append(between - before)
            least.append(of_children() - between)
    assert min(took) < 2 * min(least)


def of_children() -> float:
    """Of all those that have ended: the daemon has not."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


async def test_concurrent_credential_commands_return_the_same(start: Start) -> None:
    async with start() as place:
        asked = (place.discovery("credential", "--cluster", "alpha") for _ in range(AT_ONCE))
        outcomes = await asyncio.gather(*asked)
    assert {each.err for each in outcomes} == {""}
    assert len({json.loads(each.out)["status"]["token"] for each in outcomes}) == 1


async def test_synced_files_are_renewed_and_removed_with_their_clusters(start: Start) -> None:
    async with start(token_life=8) as place:
        place.sandbox.projects.create("beta", ready=True)
        path = place.folder / "clusters"
        async with place.running(str(COMMANDS / "milo-discovery"), "sync", "--dir", str(path)):
            alpha, beta = path / "alpha.kubeconfig", path / "beta.kubeconfig"
            await eventually(lambda: alpha.exists() and beta.exists())
            tokens: set[str] = set()

            def renewed_twice() -> bool:
                token = token_in(alpha.read_text())
                place.sandbox.tokens.subject(token)  # it is good at any moment
                tokens.add(token)
                return len(tokens) > 2

            await eventually(renewed_twice)
            place.sandbox.projects.delete("beta")
            await eventually(lambda: not beta.exists())
            assert alpha.exists()


async def test_tokens_are_printed_only_on_request(start: Start) -> None:
    async with start() as place:
        path = place.folder / "clusters"
        told: list[str] = []
        token = json.loads((await place.discovery("credential", "--cluster", "alpha")).out)["status"]["token"]
        for arguments in (
            ("kubeconfig", "alpha"),
            ("kubeconfig", "alpha", "-w", str(place.folder / "exec")),
            ("kubeconfig", "alpha", "--token", "-w", str(place.folder / "token")),
            ("kubeconfig", "alpha", "--merge", "-w", str(place.folder / "merged")),
            ("sync", "--dir", str(path), "--once"),
            ("list", "-o", "json"),
            ("get", "alpha", "-o", "yaml"),
            ("explain", "alpha"),
            ("status",),
            ("watch", "--once", "-o", "json"),
        ):
            outcome = await place.discovery(*arguments)
            told += [outcome.out, outcome.err]
        told += [(await place.discovery("credential", "--cluster", "alpha")).err, place.daemon.output]
        told += [(path / "index.json").read_text(), (path / ".milo-discovery.json").read_text()]
        told += [(place.folder / name).read_text() for name in ("exec", "merged")]
        async with place.running(str(COMMANDS / "milo-discovery"), "sync", "--dir", str(path)) as process:
            await eventually((path / "alpha.kubeconfig").exists)
            told += _of(place, process.pid)
    assert [words for words in told if token in words] == []


def _of(place: Place, pid: int) -> list[str]:
    """What others on the machine can see of processes."""
    return [
        Path(f"/proc/{each}/{what}").read_bytes().decode(errors="replace")
        for each in (pid, place.daemon.pid)
        for what in ("cmdline", "environ")
    ]
