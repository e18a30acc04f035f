"""`./dev` prepares each environment once, reports what it waits for, and lists its commands."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

PYTHON = f"""#!/bin/sh
# A Python that installs nothing: it records each call of pip, of which the first one waits until `go` is written to.
case "$*" in
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m pip "*)
    echo started >>pip
    [ -e installed ] || read -r _ <go
    for last; do :; done
    case $last in *.txt) sed -n 's/==.*/ (from the lock)/; s/^a/Collecting a/p' "$last" ;; esac
    echo Installing collected packages
    [ ! -e broken ] || exit 1
    touch installed
    echo ended >>pip
    ;;
"-m pytest "*) echo "$@" >&2 ;;
*) exec {sys.executable} "$@" ;;
esac
"""


class Clone:
    """A directory with `./dev`, and with a fake Python that installs nothing."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "requirements").mkdir(parents=True)
        (directory / "clients" / "python").mkdir(parents=True)
        for name in ("dev", "build", "sandbox"):
            (directory / "requirements" / f"{name}.txt").write_text("a==1 \\\n    --hash=sha256:00\n")
        for name in ("", "kube", "clients/python", "objects", "controllers", "publishing"):
            (directory / name).mkdir(exist_ok=True)
            (directory / name / "pyproject.toml").touch()
        (directory / "dev").symlink_to(ROOT / "dev")
        python = directory / "python3"
        python.write_text(PYTHON)
        python.chmod(0o755)
        os.mkfifo(directory / "go")

    @contextmanager
    def start(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        environ = {**os.environ, "PYTHON": str(self.directory / "python3")}
        with subprocess.Popen(
            ["sh", "dev", *arguments], cwd=self.directory, env=environ, text=True, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

    def install(self) -> None:
        (self.directory / "go").write_text("\n")

    def calls_of_pip(self) -> list[str]:
        return (self.directory / "pip").read_text().split()


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path / "clone")


def lines_until(process: subprocess.Popen[str], words: str) -> Iterator[str]:
    assert process.stderr is not None
    for line in process.stderr:
        yield line
        if words in line:
            return
    raise AssertionError(f"./dev exited with {process.wait()} before it printed {words!r}")


def rest(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate()
    assert process.returncode == 0, said
    return said


def test_second_command_waits_for_the_environment_that_the_first_prepares(clone: Clone) -> None:
    with clone.start("python", "-c", "") as first:
        list(lines_until(first, "preparing .venv (once)"))
        with clone.start("python", "-c", "") as second:
            assert list(lines_until(second, "waiting")) == [
                "dev: waiting for another ./dev, which is preparing .venv\n"
            ]
            clone.install()
            assert rest(second) == ""
        assert "dev: .venv is ready" in rest(first)
    assert clone.calls_of_pip() == ["started", "ended"] * 2  # the packages of the lock, and those of the clone


def test_demo_waits_for_and_uses_the_development_environment_of_another_command(clone: Clone) -> None:
    with clone.start("python", "-c", "") as first:
        list(lines_until(first, "preparing .venv (once)"))
        with clone.start("demo") as demo:
            list(lines_until(demo, "waiting"))
            clone.install()
            _, said = demo.communicate()
            assert "preparing" not in said
        rest(first)
    assert clone.calls_of_pip() == ["started", "ended"] * 2


@pytest.mark.parametrize(
    ("given", "run"),
    [
        ("--cluster tests/one.py", "--cluster tests/one.py"),
        ("tests/one.py --cluster", "tests/one.py --cluster"),
        ("--cluster -k one", "tests/end_to_end/cluster --cluster -k one"),
    ],
)
def test_tests_in_a_cluster_are_those_of_a_given_file(clone: Clone, given: str, run: str) -> None:
    with clone.start("test", *given.split()) as process:
        clone.install()
        assert rest(process).splitlines()[-1] == f"-m pytest {run}"


def test_failed_preparation_of_the_environment_is_repeated(clone: Clone) -> None:
    broken = clone.directory / "broken"
    broken.touch()
    with clone.start("python", "-c", "") as failing:
        clone.install()
        _, said = failing.communicate()
    assert (failing.returncode, said.splitlines()[-1]) == (1, "dev: .venv could not be prepared")
    broken.unlink()
    with clone.start("python", "-c", "") as again:
        clone.install()
        assert "dev: .venv is ready" in rest(again)


def test_preparation_of_the_environment_reports_its_progress(clone: Clone) -> None:
    packages = "".join(f"a{number}==1 \\\n    --hash=sha256:00\n" for number in range(43))
    (clone.directory / "requirements" / "dev.txt").write_text(packages)
    with clone.start("python", "-c", "") as process:
        clone.install()
        said = rest(process)
    assert re.sub(r"after \d+ s", "after N s", said).splitlines() == [
        "dev: preparing .venv (once)",
        "dev: .venv: 20 of 43 packages",
        "dev: .venv: 40 of 43 packages",
        "dev: .venv: installing packages",
        "dev: .venv: the packages of this clone",
        "dev: .venv: installing packages",
        "dev: .venv is ready, after N s",
    ]


def listed(*arguments: str) -> list[str]:
    done = subprocess.run([ROOT / "dev", *arguments], capture_output=True, text=True, check=True)
    return re.findall(r"(?m)^\./dev (\w+)", done.stdout)


@pytest.mark.parametrize("arguments", [(), ("help",), ("--help",)])
def test_dev_lists_ten_commands(arguments: tuple[str, ...]) -> None:
    commands = listed(*arguments)
    assert len(commands) == len(set(commands)) == 10
    assert commands[-1] == "help"


def test_dev_help_all_lists_every_command() -> None:
    verbs = set(re.findall(r"(?m)^(\w+)\) ", (ROOT / "dev").read_text())) | {"help"}
    assert set(listed("help", "--all")) == verbs


GO = """#!/bin/sh
# A go command that records each test.
case $1 in
env) echo 1 ;;
*) echo "${PWD#"$ROOT"/}: $*" >>"$ROOT/calls" ;;
esac
"""


def test_dev_go_tests_the_client_and_the_reuse_of_objects_with_the_race_detector(tmp_path: Path) -> None:
    for module in ("clients/go", "clients/go/multicluster", "examples/go"):
        (tmp_path / module).mkdir(parents=True)
        (tmp_path / module / "go.mod").touch()
    prepared = re.sub(r"(?m)^everything\(\) .*$", "everything() { :; }", (ROOT / "dev").read_text())
    (tmp_path / "dev").write_text(prepared)
    for name, script in (("go", GO), ("cc", "#!/bin/sh\n")):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "ROOT": str(tmp_path)}
    subprocess.run(["sh", "dev", "go"], cwd=tmp_path, env=environ, capture_output=True, check=True)
    assert (tmp_path / "calls").read_text().splitlines() == [
        "clients/go: test -race ./...",
        "clients/go/multicluster: test ./...",
        "clients/go/multicluster: test -race -run ^TestCallersMayReuseTheirObjects$ .",
        "examples/go: test ./...",
    ]
    [tested] = re.findall(r"-run '\^(\w+)\$'", (ROOT / "dev").read_text())
    assert f"func {tested}(" in (ROOT / "clients/go/multicluster/reuse_test.go").read_text()
