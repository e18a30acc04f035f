"""Prints the number of hand-written lines by package, and its change since another commit."""

import argparse
import subprocess
import tarfile
from collections import Counter
from io import BytesIO
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent
SOURCES = (".py", ".pyi", ".go", ".js", ".mjs", ".ts", ".java", ".rs", ".proto")
GENERATED = ("/milo_discovery/v1/", ".pb.go", "/src/gen/")
PRODUCT = ("milo_discoveryd", "clients", "objects", "controllers", "publishing", "kube", "sandbox", "proto")


def is_test(path: PurePosixPath) -> bool:
    return "tests" in path.parts or "test" in path.parts or path.name.endswith(("_test.go", ".test.mjs", ".test.ts"))


def package(path: PurePosixPath) -> tuple[str, str]:
    """Return the kind of code in a file, and the package to count it for."""
    if is_test(path):
        return "tests", "/".join(path.parts[:-1][:2])
    if path.parts[0] in PRODUCT:
        return "product", "/".join(path.parts[:-1][:2])
    return "examples and tools", path.parts[0]


def counted(files: dict[str, bytes]) -> Counter[tuple[str, str]]:
    lines: Counter[tuple[str, str]] = Counter()
    for name, content in files.items():
        if name.endswith(SOURCES) and not any(part in name for part in GENERATED):
            lines[package(PurePosixPath(name))] += content.count(b"\n")
    return lines


def git(*arguments: str) -> bytes:
    return subprocess.check_output(["git", *arguments], cwd=ROOT)


def present() -> dict[str, bytes]:
    names = git("ls-files", "--cached", "--others", "--exclude-standard", "-z").decode().rstrip("\0").split("\0")
    return {name: (ROOT / name).read_bytes() for name in names if (ROOT / name).is_file()}


def committed(reference: str) -> dict[str, bytes]:
    with tarfile.open(fileobj=BytesIO(git("archive", "--format=tar", reference))) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="./dev lines", description=__doc__)
    parser.add_argument("--against", metavar="REF", help="the commit to compare with")
    reference = parser.parse_args().against
    now = counted(present())
    before = counted(committed(reference)) if reference else now
    for kind in ("product", "examples and tools", "tests"):
        packages = sorted(name for found, name in now | before if found == kind)
        rows = [(f"  {name}", now[kind, name], before[kind, name]) for name in packages]
        for name, lines, was in ((kind, sum(row[1] for row in rows), sum(row[2] for row in rows)), *rows):
            print(f"{name:44}{lines:8}{f'{lines - was:+8}' if reference else ''}")


if __name__ == "__main__":
    main()
