"""Tests of the builds: a program is built once per definition, and a failure quotes the go command."""

import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from tests.end_to_end.real.builds import (
    KUBE_APISERVERS,
    GoMissingError,
    GoProgram,
    UnobtainableError,
    go_command,
    module_version,
    obtain,
)
from tests.end_to_end.real.programs import kubernetes_asked_for

HELLO = "package main\n\nfunc main() {}\n"
WANTS_MORE = HELLO.replace("func", 'import _ "example.com/nowhere"\n\nfunc')


@pytest.fixture
def hello(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GoProgram:
    definition = tmp_path / "definition"
    definition.mkdir()
    (definition / "go.mod").write_text("module hello\n\ngo 1.20\n")
    (definition / "main.go").write_text(HELLO)
    if go := shutil.which("go"):  # the cached standard library, which takes long to compile
        kept = subprocess.run([go, "env", "GOCACHE"], capture_output=True, text=True, check=True)
        monkeypatch.setenv("GOCACHE", kept.stdout.strip())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("GOPROXY", "off")
    return GoProgram(name="hello", version="v1.0.0", module="hello", package=".", definition=definition)


@pytest.fixture
def _with_go() -> None:
    try:
        go_command()
    except GoMissingError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("_with_go")
def test_go_binary_reports_the_version_of_its_module(hello: GoProgram) -> None:
    binary = obtain(hello, lambda line: None)

    assert module_version(binary, "hello") == "(devel)"
    assert module_version(binary, "example.com/another") is None


@pytest.mark.usefixtures("_with_go")
def test_go_program_is_built_once(hello: GoProgram) -> None:
    messages: list[str] = []

    first = obtain(hello, messages.append)
    second = obtain(hello, messages.append)

    assert first == second == hello.binary()
    words = [line.split(":")[1].split()[0] for line in messages]  # a slow build also reports its progress
    assert (words[0], words[-1]) == ("building", "built")
    assert (words.count("building"), words.count("built")) == (1, 1)


@pytest.mark.usefixtures("_with_go")
def test_go_build_does_not_change_the_program_definition(hello: GoProgram) -> None:
    before = sorted(hello.definition.iterdir())

    obtain(hello, lambda _: None)

    assert sorted(hello.definition.iterdir()) == before


@pytest.mark.usefixtures("_with_go")
def test_unavailable_go_module_is_named_with_the_reason(hello: GoProgram) -> None:
    (hello.definition / "main.go").write_text(WANTS_MORE)

    with pytest.raises(UnobtainableError, match=r"hello v1\.0\.0: .*example\.com/nowhere.*GOPROXY=off"):
        obtain(hello, lambda _: None)
    assert not hello.binary().exists()


def test_changed_go_definition_gets_another_build_directory(hello: GoProgram) -> None:
    before = hello.directory()

    (hello.definition / "go.mod").write_text("module hello\n\ngo 1.21\n")

    assert hello.directory() != before


def test_changed_go_program_version_gets_another_build_directory(hello: GoProgram) -> None:
    assert msgspec.structs.replace(hello, version="v1.0.1").directory() != hello.directory()


def test_missing_go_command_suggests_its_installation(hello: GoProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(GoMissingError, match=r"install Go 1\.25 or newer"):
        obtain(hello, lambda _: None)


def test_cached_go_build_needs_no_go_command(hello: GoProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    hello.directory().mkdir(parents=True)
    hello.binary().touch()
    monkeypatch.setenv("PATH", "/nowhere")

    assert obtain(hello, lambda _: None) == hello.binary()


def test_unsupported_kubernetes_minor_version_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES", "1.2")
    with pytest.raises(UnobtainableError, match=r"KUBERNETES is '1\.2'.*give one of 1\.35, 1\.33"):
        kubernetes_asked_for()


def test_kubernetes_minor_version_is_built_from_its_definition() -> None:
    for minor, program in KUBE_APISERVERS.items():
        assert f"k8s.io/kubernetes {program.version}" in (program.definition / "go.mod").read_text()
        assert program.version.startswith(f"v{minor}.")
