"""Copies the version in milo_discoveryd/__init__.py to every other file that contains it.

./dev version 0.2.0     sets it everywhere
./dev version           copies it again; with --check, only reports differences
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "milo_discoveryd" / "__init__.py"
DECLARED = r'(__version__ = ")([^"]+)'
GO_MODULES = r"(go\.miloapis\.com/discovery(?:/multicluster|/objects)? v)(\S+)"
VERSION = r'(?m)(^version = ")([^"]+)'
OURS = r'("milo-[a-z-]+(?:\[[a-z0-9]+\])?[~=]=)([^"]+)'
FORM = r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?"
COPIES = {
    "pyproject.toml": (VERSION, OURS),
    "*/pyproject.toml": (VERSION, OURS),
    "clients/*/pyproject.toml": (VERSION, OURS),
    "Dockerfile": (r"(ARG VERSION=)(\S+)", r"(-t milo-discoveryd(?:-sandbox)?:)(\S+)"),
    "docs/deploying.md": (
        r"(milo-discoveryd(?:-sandbox)?:)(\d[0-9a-z.]+)",
        r"(milo_discoveryd-)(\d[0-9a-z.]+)(?=-py3)",
        r"(refs/tags/v)([0-9a-z.]+)",
    ),
    "clients/node/package.json": (r'(?m)(^  "version": ")([^"]+)',),
    "clients/java/pom.xml": (r"(<artifactId>discovery</artifactId>\s*<version>)([^<]+)",),
    "clients/java/README.md": (r"(<artifactId>discovery</artifactId>\s*<version>)([^<]+)",),
    "examples/java/pom.xml": (r"(<artifactId>discovery</artifactId>\s*<version>)([^<]+)",),
    "clients/go/*/**/*.mod": (GO_MODULES,),
    "examples/*/go.mod": (GO_MODULES,),
    "bench/*/go.mod": (GO_MODULES,),
    "deploy/**/*.yaml": (r"(image: milo-discoveryd(?:-sandbox)?:)(\S+)", r"(newTag: )(\S+)"),
}


def copies() -> Iterator[tuple[Path, str]]:
    for pattern, places in COPIES.items():
        for path in sorted(ROOT.glob(pattern)):
            for place in places:
                if re.search(place, path.read_text()):
                    yield path, place
                elif "*" not in pattern:
                    sys.exit(f"{pattern}: nothing matches {place}; fix COPIES in tools/version.py")


def put(path: Path, place: str, version: str) -> None:
    path.write_text(re.sub(place, rf"\g<1>{version}", path.read_text()))


def main() -> int:
    arguments = argparse.ArgumentParser(description="Sets the version in all files.")
    arguments.add_argument("new", nargs="?")
    arguments.add_argument("--check", action="store_true")
    given = arguments.parse_args()
    if given.new is not None:
        if not re.fullmatch(FORM, given.new):
            sys.exit(f"{given.new!r} is not a version; use the form 1.2.3 or 1.2.3rc1")
        put(SOURCE, DECLARED, given.new)
    found = re.search(DECLARED, SOURCE.read_text())
    assert found is not None
    version = found[2]
    differing = [
        (path, place)
        for path, place in copies()
        if {groups[1] for groups in re.findall(place, path.read_text())} != {version}
    ]
    for path, place in differing:
        if given.check:
            print(f"{path.relative_to(ROOT)} contains a different version than {version}: run ./dev version")
        else:
            put(path, place, version)
    return 1 if given.check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
