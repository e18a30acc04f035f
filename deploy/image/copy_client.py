#!/usr/bin/env python3
"""Copies the command milo-discovery into a directory, with everything that it needs to run there: copy-client DIRECTORY

In a pod the directory is a volume that is also mounted into the operator's container, which needs /bin/sh and glibc,
the C library of this image, but no Python.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

CLIENT = "milo-discovery-cli"
# Parts of Python that the command never loads.
LEFT_OUT = shutil.ignore_patterns(
    *("__pycache__", "config-*", "ensurepip", "idlelib", "lib2to3", "site-packages"),
    *("test", "tests", "tkinter", "turtledemo"),
)
LAUNCHER = """\
#!/bin/sh
# Works from any directory.
here=${0%/*}
LD_LIBRARY_PATH=$here/lib exec "$here/bin/python3" -I -m milo_discovery_cli "$@"
"""
# These modules are imported once after the copy. This caches their bytecode, so that later calls start faster.
LOADED = "import grpc.aio, milo_discovery, milo_discovery_cli.credential, milo_discovery_cli.queries"


def needed(name: str, found: dict[str, Distribution]) -> dict[str, Distribution]:
    """Return the package and its dependencies by name, without those of extras."""
    try:
        found[name] = distribution(name)
    except PackageNotFoundError:
        return found  # a dependency for other platforms or Python versions
    for requirement in found[name].requires or ():
        other = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        if other not in found and "extra ==" not in requirement:
            needed(other, found)
    return found


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    target, library = Path(sys.argv[1]), Path(sysconfig.get_path("stdlib"))
    python, libraries = target / "bin" / "python3", {"LD_LIBRARY_PATH": str(target / "lib")}
    python.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(Path(sys._base_executable).resolve(), python)  # type: ignore[attr-defined]
    shutil.copytree(library, target / "lib" / library.name, ignore=LEFT_OUT, dirs_exist_ok=True)
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        shared = Path(sysconfig.get_config_var("LIBDIR")) / sysconfig.get_config_var("INSTSONAME")
        if shared.exists():  # Debian's executable contains it
            shutil.copy2(shared, target / "lib")
    sites = [python, "-I", "-c", "import site; print(site.getsitepackages()[-1])"]  # named differently on Debian
    packages = Path(subprocess.check_output(sites, env=libraries, text=True).strip())  # noqa: S603 - the copied Python
    for package in needed(CLIENT, {}).values():
        for file in package.files or ():
            if ".." not in file.parts and file.suffix != ".pyc":
                place = packages / file
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(package.locate_file(file), place)
    launcher = target / "milo-discovery"
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    subprocess.run([launcher, "--version"], check=True)  # noqa: S603 - the launcher written above
    subprocess.run([python, "-I", "-c", LOADED], check=True, env=libraries)  # noqa: S603


if __name__ == "__main__":
    main()
