"""A directory with a kubeconfig for each engaged cluster.

Two files say what is what. The index, for readers, names what is there: it is written after what it names, and before
that is removed. The ledger, for this program, names what is its own: it is written before there is such a file, and
after the last of it is gone. So whenever the process ends, the next one knows its own files, and removes no others.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from milo_discovery.cli import files
from milo_discovery.cli.endings import Failed
from milo_discovery.model import Cluster, Kubeconfig

SUFFIX = ".kubeconfig"
INDEX = "index.json"
_LEDGER = ".milo-discovery.json"
# What a cluster may be called in Kubernetes, and no path: neither "..", nor anything with a slash.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LONGEST_NAME = 255 - len(SUFFIX)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A cluster, and its kubeconfig, if one has come by now."""

    cluster: Cluster
    kubeconfig: Kubeconfig | None


class Folder(AbstractContextManager["Folder"]):
    """The directory, for as long as it is entered: by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = -1
        self._own: set[str] = set()
        self._written: dict[str, tuple[str, Kubeconfig]] = {}
        """What this process wrote, with the UID that it was for."""
        self._indexed: Any = None
        self.left_out: dict[str, str] = {}
        """Clusters that got no file, and why."""

    def __enter__(self) -> Folder:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._own = set(_ledger(self.path / _LEDGER))
            files.sweep(self.path)
        except BaseException as error:
            os.close(self._lock)
            if isinstance(error, BlockingIOError):
                raise Failed(f"another milo-discovery sync keeps {self.path}") from None
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)

    def become(self, wanted: Mapping[str, Wanted], *, complete: bool) -> None:
        """Write what is new. What isn't wanted is removed, if this is `complete`, and else may still be wanted."""
        self.left_out = {}
        to_write = {
            name: each for name, each in wanted.items() if each.kubeconfig is not None and self._may_write(name)
        }
        gone = self._own - set(wanted) if complete else set()
        # Another cluster has the name now, and no kubeconfig yet: the old one's is no more.
        gone |= {
            name for name, (uid, _) in self._written.items()
            if name in wanted and name not in to_write and wanted[name].cluster.uid != uid
        }  # fmt: skip
        self._claim(to_write)
        for name, each in to_write.items():
            assert each.kubeconfig is not None
            if self._written.get(name) != (each.cluster.uid, each.kubeconfig):
                files.replace(self._file(name), each.kubeconfig.kubeconfig)
                self._written[name] = each.cluster.uid, each.kubeconfig
        if complete:
            self._index(wanted, without=gone)
        self._remove(gone)

    def _may_write(self, name: str) -> bool:
        if len(name) > _LONGEST_NAME or not _NAME.fullmatch(name):
            self.left_out[name] = "its name is no name for a file"
        elif name not in self._own and os.path.lexists(self._file(name)):
            self.left_out[name] = f"{self._file(name)} is there already, and somebody else's"
        return name not in self.left_out

    def _claim(self, names: Iterable[str]) -> None:
        new = set(names) - self._own
        if new:
            self._own |= new
            self._write_ledger()

    def _remove(self, names: set[str]) -> None:
        if names:
            for name in names:
                self._file(name).unlink(missing_ok=True)
                self._written.pop(name, None)
            self._own -= names
            self._write_ledger()

    def _index(self, wanted: Mapping[str, Wanted], without: set[str]) -> None:
        there = sorted(name for name in wanted if name in self._written and name not in without)
        index = {"clusters": [_entry(wanted[name].cluster, self._file(name).name) for name in there]}
        if index != self._indexed:
            files.replace(self.path / INDEX, _json(index))
            self._indexed = index

    def _write_ledger(self) -> None:
        files.replace(self.path / _LEDGER, _json({"files": sorted(self._own)}))

    def _file(self, name: str) -> Path:
        return self.path / f"{name}{SUFFIX}"


def _entry(cluster: Cluster, file: str) -> dict[str, Any]:
    return {
        "name": cluster.name,
        "uid": cluster.uid,
        "file": file,
        "endpoint": cluster.endpoint,
        "organization": cluster.organization,
        "labels": dict(sorted(cluster.labels.items())),
    }


def _ledger(path: Path) -> list[str]:
    try:
        ledger = json.loads(path.read_bytes())
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise Failed(f"{path} isn't what was written there, so that nobody knows whose files these are") from error
    return [name for name in ledger["files"] if isinstance(name, str) and _NAME.fullmatch(name)]


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
