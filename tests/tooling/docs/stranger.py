"""`./dev readme [--list | DOCUMENT]`: runs documented commands in a fresh clone with empty caches, and reports times.

By default, it runs the commands of the README up to a working operator, and then the tests of all other documents. With
`clients/go/multicluster/README.md`, it runs the commands of that document up to the first reconcile beside the demo;
with `clients/node/README.md` or `clients/java/README.md`, up to the first engaged cluster of the demo. For these
three documents, it fails if the steps take longer than FIRST_RESULT_WITHIN_S in all. `--list` prints each documented
command with the test that runs it.
"""

import argparse
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.tooling.docs import ways

ROOT = Path(__file__).parents[3]
README = "README.md"
GO_README = "clients/go/multicluster/README.md"
ENDS_WITHIN_S = 30.0
CLIENT_READMES = ("clients/node/README.md", "clients/java/README.md")
FIRST_RESULT_WITHIN_S = 600.0
"""On two cores. Most of this time is for the first compilation of Kubernetes' libraries, or for downloads."""


def blocks(document: Path, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w+)\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


class Terminal:
    """A shell in a directory that runs a block of commands."""

    def __init__(self, directory: Path, environ: dict[str, str], typed: str) -> None:
        self._typed = typed
        self._said: list[str] = []
        self._shell = subprocess.Popen(
            ["sh", "-ec", typed], cwd=directory, env=environ, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def until(self, words: str) -> str:
        """Read up to a line that matches the pattern `words`, and return the line."""
        assert self._shell.stdout is not None
        for line in self._shell.stdout:
            self._said.append(line)
            if re.search(words, line):
                return line
        said = "".join(self._said[-30:])
        raise AssertionError(f"{self._typed}\nexited with {self._shell.wait()}, without {words!r}:\n{said}")

    def finish(self) -> None:
        """Wait until the commands have succeeded."""
        said, _ = self._shell.communicate()
        assert self._shell.returncode == 0, f"{self._typed}\nexited with {self._shell.returncode}:\n{said}"

    def close(self) -> None:
        """Interrupt the commands, as Ctrl-C does."""
        with self._shell:
            if self._shell.poll() is None:
                os.killpg(self._shell.pid, signal.SIGINT)
            try:
                rest, _ = self._shell.communicate(timeout=ENDS_WITHIN_S)
                assert "Traceback" not in rest, rest
            except subprocess.TimeoutExpired:
                os.killpg(self._shell.pid, signal.SIGKILL)
                raise


class Stranger:
    """Follows the README.

    `directory` replaces /tmp, so that several runs can be concurrent.
    """

    def __init__(self, clone: Path, directory: Path, environ: dict[str, str]) -> None:
        self._clone = clone
        self._directory = directory
        # The default port may be in use.
        self._environ = environ | {"MILO_DISCOVERYD_HTTP_LISTEN": "127.0.0.1:0"}
        self._see, *self._use, self.tests = blocks(clone / "README.md", "sh")
        [self._operator] = blocks(clone / "README.md", "python")

    def sees(self) -> Iterator[str]:
        with self._terminal(self._see) as demo:
            demo.until(r"  ENGAGED")
            yield "./dev demo shows a cluster that is engaged"

    def uses(self) -> Iterator[str]:
        milo, daemon, subscriber = self._use
        with ExitStack() as open_ones:

            def opened(typed: str) -> Terminal:
                return open_ones.enter_context(self._terminal(typed))

            opened(milo).until(r"kubeconfig: ")
            yield "the sandbox runs"
            running = opened(daemon)
            running.until(r"^\d+ checks: .* 0 failed$")
            yield "check passes"
            running.until(r'"synced"')
            yield "the daemon has synced"
            [name] = re.findall(r"^[a-z-]+", opened(subscriber.replace("NAME", "none")).until(r"  Ready  "))
            yield "list shows a cluster"
            asking = opened(subscriber.replace("NAME", name))
            asking.until(rf"^{name} is engaged, since ")
            yield "explain prints why it is engaged"
            asking.until(rf"^ENGAGED +{name} ")
            yield "watch prints the cluster as engaged"
            entering, _ = subscriber.split("milo-discovery ", 1)
            (self._directory / "label.py").write_text(self._operator)
            opened(f"{entering} milo-discovery run /tmp/label.py").until(r"^labeled ")
            yield "the operator of the README works in a cluster"

    @contextmanager
    def _terminal(self, typed: str) -> Iterator[Terminal]:
        terminal = Terminal(self._clone, self._environ, typed.replace("/tmp/", f"{self._directory}/"))
        try:
            yield terminal
        finally:
            terminal.close()


def first_reconcile(clone: Path, directory: Path, environ: dict[str, str]) -> Iterator[str]:
    """Follow the README of the Go provider, from an empty directory to the first reconcile beside the demo."""
    text = (clone / GO_README).read_text()
    module, program = (block.replace("PATH", str(clone)) for block in blocks(clone / GO_README, "sh"))
    [(file, source)] = re.findall(r"^`([\w.]+)`:\n\n```go\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    [demo] = re.findall(r"run `(\./dev [^`]+)` in the clone", text)
    own = directory / "operator"
    own.mkdir()
    with closing(Terminal(own, environ, module)) as terminal:
        terminal.finish()
    yield f"{module.splitlines()[0]}, and the clone in go.mod"
    with closing(Terminal(clone, environ, demo)) as running:
        for name in ("MILO_DISCOVERY_ADDRESS", "KUBECONFIG"):
            [_, assignment] = shlex.split(running.until(f"^export {name}="))
            environ = environ | {name: assignment.partition("=")[2]}
        yield f"{demo} prints an address and a kubeconfig"
        (own / file).write_text(source)
        *earlier, last = program.splitlines()
        for typed in earlier:
            with closing(Terminal(own, environ, typed)) as terminal:
                terminal.finish()
            yield typed
        with closing(Terminal(own, environ, last)) as operator:
            yield f"{last} prints: {operator.until('^working in ').rstrip()}"


def first_engaged(document: str, clone: Path, directory: Path, environ: dict[str, str]) -> Iterator[str]:
    """Follow the README of a client, from an empty directory to the first engaged cluster of the demo."""
    text = (clone / document).read_text()
    install, program, *_ = (block.replace("PATH", str(clone)) for block in blocks(clone / document, "sh"))
    [demo] = re.findall(r"run `(\./dev [^`]+)` in the clone", text)
    own = directory / "operator"
    for file, source in re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        (own / file).parent.mkdir(parents=True, exist_ok=True)
        (own / file).write_text(source)
    with closing(Terminal(own, environ, install)) as terminal:
        terminal.finish()
    yield "; ".join(install.splitlines())
    with closing(Terminal(clone, environ, demo)) as running:
        [_, assignment] = shlex.split(running.until("^export MILO_DISCOVERY_ADDRESS="))
        environ = environ | {"MILO_DISCOVERY_ADDRESS": assignment.partition("=")[2]}
        yield f"{demo} prints an address"
        with closing(Terminal(own, environ, program)) as operator:
            yield f"{program.rstrip()} prints: {operator.until('^ENGAGED ').rstrip()}"


def working_operator(clone: Path, directory: Path, environ: dict[str, str]) -> Iterator[str]:
    """Follow the README to a working operator, and run the tests of the other documents."""
    stranger = Stranger(clone, directory, environ)
    yield from stranger.sees()
    yield from stranger.uses()
    tests = ["./dev", "test", "tests/tooling/docs/test_commands.py", "tests/tooling/docs/test_links.py"]
    subprocess.run(tests, cwd=clone, env=environ, check=True)
    yield f"the commands of the other documents: {ways.summary()}"


FOLLOWED: dict[str, tuple[Callable[[Path, Path, dict[str, str]], Iterator[str]], float]] = {
    README: (working_operator, math.inf),
    GO_README: (first_reconcile, FIRST_RESULT_WITHIN_S),
    **{document: (partial(first_engaged, document), FIRST_RESULT_WITHIN_S) for document in CLIENT_READMES},
}
"""How each document is followed, and the time in seconds that it may take."""


def in_fresh_clone(follow: Callable[[Path, Path, dict[str, str]], Iterator[str]]) -> Iterator[str]:
    """Follow a document in a clone of the last commit, with empty caches."""
    # The prefix is short, since socket paths are limited to 107 characters.
    with TemporaryDirectory(prefix="readme-") as name:
        directory = Path(name)
        clone, home = directory / "clone", directory / "home"
        home.mkdir()
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        yield "a fresh clone, as of the last commit"
        environ = os.environ | {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
        # Go derives these from HOME, unless they are set; Java does not read HOME.
        environ |= {"GOPATH": "", "GOCACHE": "", "GOMODCACHE": "", "MAVEN_OPTS": f"-Duser.home={home}"}
        yield from follow(clone, directory, environ)


def report(steps: Iterable[str], within_s: float = math.inf) -> None:
    """Print when each step ended and how long it took; raise AssertionError if all of them took longer than allowed."""
    began = ended = time.monotonic()
    for what in steps:
        before, ended = ended, time.monotonic()
        sys.stdout.write(f"{ended - began:6.1f} s {ended - before:+7.1f} s  {what}\n")
        sys.stdout.flush()
    assert ended - began < within_s, f"took {ended - began:.0f} s, want less than {within_s:.0f} s"


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev readme", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print each documented command with its test, and run none")
    parser.add_argument("document", nargs="?", choices=FOLLOWED, default=README, help="default: %(default)s")
    asked = parser.parse_args()
    if asked.list:
        return ways.main()
    # A shell starts background commands with SIGINT ignored, which its children would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    follow, within_s = FOLLOWED[asked.document]
    report(in_fresh_clone(follow), within_s)
    return 0


if __name__ == "__main__":
    sys.exit(main())
