"""`./dev readme [--list]`: runs the documented commands in a fresh clone with empty caches, and reports times.

First those of the README, up to a working operator, whose time it prints; then the tests of all other documents, in the
clone as well. `--list` prints each documented command with the test that runs it.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.tooling.docs import ways

ROOT = Path(__file__).parents[3]
ENDS_WITHIN_S = 30.0


def blocks(document: Path, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w+)\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


class Terminal:
    """A shell in the clone that runs a block of commands."""

    def __init__(self, clone: Path, environ: dict[str, str], typed: str) -> None:
        self._typed = typed
        self._said: list[str] = []
        self._shell = subprocess.Popen(
            ["sh", "-ec", typed], cwd=clone, env=environ, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def until(self, words: str) -> str:
        """Read up to the line that matches, and return it."""
        assert self._shell.stdout is not None
        for line in self._shell.stdout:
            self._said.append(line)
            if re.search(words, line):
                return line
        said = "".join(self._said[-30:])
        raise AssertionError(f"{self._typed}\nended with {self._shell.wait()}, and not with {words!r}:\n{said}")

    def close(self) -> None:
        """End the commands with Ctrl-C."""
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

    `directory` replaces /tmp, so that several can run concurrently.
    """

    def __init__(self, clone: Path, directory: Path, environ: dict[str, str]) -> None:
        self._clone = clone
        self._directory = directory
        # The default port may be in use.
        self._environ = environ | {"MILO_DISCOVERYD_HTTP_LISTEN": "127.0.0.1:0"}
        self._see, self.tests, *self._use = blocks(clone / "README.md", "sh")
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
            yield "the sandbox is there"
            running = opened(daemon)
            running.until(r"^\d+ checks: .* 0 failed$")
            yield "check says that all is well"
            running.until(r'"synced"')
            yield "the daemon has the fleet"
            [name] = re.findall(r"^[a-z-]+", opened(subscriber.replace("NAME", "none")).until(r"  Ready  "))
            yield "list shows a cluster"
            asking = opened(subscriber.replace("NAME", name))
            asking.until(rf"^{name} is engaged, since ")
            yield "explain says why it is engaged"
            asking.until(rf"^ENGAGED +{name} ")
            yield "watch tells of it"
            entering, _ = subscriber.split("milo-discovery ", 1)
            (self._directory / "my_operator.py").write_text(self._operator)
            opened(f"{entering} python -u /tmp/my_operator.py").until(r"^start working in ")
            yield "the operator of the page works in one"

    @contextmanager
    def _terminal(self, typed: str) -> Iterator[Terminal]:
        terminal = Terminal(self._clone, self._environ, typed.replace("/tmp/", f"{self._directory}/"))
        try:
            yield terminal
        finally:
            terminal.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev readme", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print each documented command with its test, and run none")
    if parser.parse_args().list:
        return ways.main()
    # A shell starts background commands with SIGINT ignored, which its children would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    began = time.monotonic()

    def report_step(what: str) -> None:
        sys.stdout.write(f"{time.monotonic() - began:6.1f} s  {what}\n")
        sys.stdout.flush()

    # Short, since socket paths are limited to 107 characters.
    with TemporaryDirectory(prefix="readme-") as name:
        directory = Path(name)
        clone, home = directory / "clone", directory / "home"
        home.mkdir()
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        report_step("a fresh clone, as of the last commit")
        environ = os.environ | {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
        stranger = Stranger(clone, directory, environ)
        steps: tuple[Callable[[], Iterator[str]], ...] = (stranger.sees, stranger.uses)
        for step in steps:
            for what in step():
                report_step(what)
        report_step("in all, from the clone to an operator of one's own")
        tests = ["./dev", "test", "tests/tooling/docs/test_commands.py", "tests/tooling/docs/test_links.py"]
        subprocess.run(tests, cwd=clone, env=environ, check=True)
        report_step(f"the commands of the other documents: {ways.summary()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
