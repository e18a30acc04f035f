"""Prints the size of what the Dockerfile adds to its base image, and its largest packages: image_size.py VENV

VENV is an environment made by deploy/image/install.sh. It is the one layer that the image has above the base image, so
its size and that of its gzipped tar archive are the layer's. A registry stores and transfers the compressed size.
"""

import gzip
import io
import sys
import tarfile
from importlib.metadata import Distribution, distributions
from pathlib import Path

MIB = 1 << 20
LARGEST = 12


class _Counter(io.RawIOBase):
    """A file that only counts its bytes."""

    def __init__(self) -> None:
        self.length = 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.length += len(data)
        return len(data)


def compressed_size(directory: Path) -> int:
    counter = _Counter()
    with (
        gzip.GzipFile(fileobj=counter, mode="wb", compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|") as archive,
    ):
        archive.add(directory, arcname="opt/venv")
    return counter.length


def installed_size(package: Distribution, directory: Path) -> int:
    """Return the size of a package's files, with their bytecode."""
    paths = [Path(str(package.locate_file(file))).resolve() for file in package.files or ()]
    compiled = [
        found for path in paths if path.suffix == ".py" for found in path.parent.glob(f"__pycache__/{path.stem}.*.pyc")
    ]
    inside = {path for path in (*paths, *compiled) if path.is_relative_to(directory) and path.is_file()}
    return sum(path.stat().st_size for path in inside)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    directory = Path(sys.argv[1]).resolve()
    total = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
    [library] = directory.glob("lib/python*/site-packages")
    sizes = {
        f"{package.metadata['Name']} {package.version}": installed_size(package, directory)
        for package in distributions(path=[str(library)])
    }
    print(f"layer: {total / MIB:.1f} MiB, {compressed_size(directory) / MIB:.1f} MiB compressed, {len(sizes)} packages")
    ordered = sorted(sizes.items(), key=lambda item: -item[1])
    for name, size in ordered[:LARGEST]:
        print(f"{size / MIB:8.1f} MiB  {name}")
    print(f"{sum(size for _, size in ordered[LARGEST:]) / MIB:8.1f} MiB  {len(ordered) - LARGEST} others")


if __name__ == "__main__":
    main()
