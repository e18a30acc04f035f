"""A directory with one kubeconfig file per engaged cluster.

Two files track the state. The index, `index.json`, lists the kubeconfigs for readers: it is written after new files are
created and before old ones are removed. The ledger, `.milo-discovery.json`, lists for this program which files are its
own: it is written before a file is created and after one is removed. So after a crash at any point, the next process
identifies its own files and leaves all others alone. The ledger also records the daemon's shard group and the filter,
and what the guard against mass removal is to know of this run.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from milo_discovery.kubeconfig_access import read_access, render_kubeconfig
from milo_discovery.model import Cluster, Kubeconfig
from milo_discovery.removals import RECENT_S, Memory, difference
from milo_discovery_cli import atomic_files
from milo_discovery_cli.exit_status import CommandFailure, print_message

SUFFIX = ".kubeconfig"
INDEX = "index.json"
_LEDGER = ".milo-discovery.json"
# Kubernetes' rules for names, which exclude ".." and slashes. A cluster of a named source is SOURCE#NAME.
_LABELS = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_NAME = re.compile(rf"({_LABELS}#)?{_LABELS}")
_MAX_NAME_LENGTH = 255 - len(SUFFIX)


@dataclass(frozen=True, slots=True)
class DesiredFile:
    """A cluster, and its kubeconfig once one has arrived."""

    cluster: Cluster
    kubeconfig: Kubeconfig | None


def check_owner(directory: Path) -> None:
    """Warn if the directory belongs to another user. Raises CommandFailure for root, whose secrets it would get."""
    owner, own = directory.stat().st_uid, os.geteuid()
    if owner in (0, own):
        return
    problem = f"{directory} belongs to user {owner}, who can read and replace the kubeconfigs in it: "
    if own == 0:
        raise CommandFailure(f"{problem}run chown 0 on it, or run this command as that user")
    print_message(f"{problem}run chown {own} on it")


class KubeconfigDirectory(AbstractContextManager["KubeconfigDirectory"]):
    """A directory of kubeconfig files. The context manager holds its lock, so that no other process writes to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = -1
        self._own: set[str] = set()
        self._fleet: tuple[str | None, str | None] = None, None
        """The shard group and the filter to record; None for one that is not known yet."""
        self.memory = Memory()
        """What to record of the removals; at the start, what a former run has recorded, unless it is out of date."""
        self._recorded: tuple[str | None, str | None, Memory] = None, None, Memory()
        self._written: dict[str, tuple[str, Kubeconfig]] = {}
        """The UID and kubeconfig of each file that this process wrote."""
        self._indexed: dict[str, Any] | None = None
        """The entries of the index by name; None if the index has to be written."""
        self.skipped: dict[str, str] = {}
        """Clusters without a file, and why."""

    def __enter__(self) -> KubeconfigDirectory:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            check_owner(self.path)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._own, owns_index, self._recorded = _read_ledger(self.path / _LEDGER)
            self._fleet, self.memory = self._recorded[:2], self._recorded[2]
            if owns_index:
                self._indexed = _read_index(self.path / INDEX)
            else:
                self._claim_index()
            atomic_files.remove_leftovers(self.path)
        except BaseException as error:
            os.close(self._lock)
            if isinstance(error, BlockingIOError):
                raise CommandFailure(f"{self.path} is locked by another milo-discovery sync") from None
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)

    @property
    def own(self) -> frozenset[str]:
        """The names of the clusters whose files the ledger lists."""
        return frozenset(self._own)

    def uid(self, name: str) -> str:
        """Return the UID of the cluster whose file this is; empty if it is not known."""
        return str((self._indexed or {}).get(name, {}).get("uid", ""))

    def is_of_another(self, name: str, file: DesiredFile) -> bool:
        """Return whether the present file of this name is that of another cluster than the desired one."""
        return name in self._own and self.uid(name) not in ("", file.cluster.uid)

    def difference(self, group: str, only: str) -> str:
        """Return how the recorded group or filter differs from the given one; empty if neither does or no file
        exists."""
        return difference(self._recorded[:2], (group, only)) if self._own else ""

    def claim(self, group: str, only: str) -> None:
        """Set the shard group and filter to record in the ledger when files are next written."""
        self._fleet = group, only

    def reconcile(self, desired: Mapping[str, DesiredFile], *, ended: Mapping[str, str]) -> None:
        """Write the files of desired clusters. Remove the files of ended clusters, and keep all others.

        `ended`: the UIDs of the ended clusters by name. Only their files are replaced by those of other clusters.
        """
        self.skipped = {}
        wanted = {
            name: file
            for name, file in desired.items()
            if not self.is_of_another(name, file) or ended.get(name) == self.uid(name)
        }
        to_write = {
            name: file for name, file in wanted.items() if file.kubeconfig is not None and self._may_write(name)
        }
        to_remove = {
            name for name, uid in ended.items() if name in self._own and name not in desired and uid == self.uid(name)
        }
        # A replaced cluster whose kubeconfig has not arrived yet: the old cluster's file must not stay.
        to_remove |= {
            name for name, entry in (self._indexed or {}).items()
            if name in self._own and name in wanted and name not in to_write
            and entry.get("uid") != wanted[name].cluster.uid
        }  # fmt: skip
        self._add_to_ledger(to_write)
        for name, file in to_write.items():
            assert file.kubeconfig is not None
            if self._written.get(name) != (file.cluster.uid, file.kubeconfig):
                document = render_kubeconfig(name, read_access(file.kubeconfig.kubeconfig))
                # There can be thousands, and the next process writes all of them again.
                atomic_files.replace(self._file(name), _json(document), is_lasting=False)
                self._written[name] = file.cluster.uid, file.kubeconfig
        self._write_index(wanted, without=to_remove)
        self._remove(to_remove)

    def _claim_index(self) -> None:
        index = self.path / INDEX
        if os.path.lexists(index):
            raise CommandFailure(
                f"{index} exists and was not written by milo-discovery sync; use another directory, or remove the file"
            )
        self._write_ledger(self._own)

    def _may_write(self, name: str) -> bool:
        if len(name) > _MAX_NAME_LENGTH or not _NAME.fullmatch(name):
            self.skipped[name] = f"the name is not a DNS name of at most {_MAX_NAME_LENGTH} characters"
        elif name not in self._own and os.path.lexists(self._file(name)):
            self.skipped[name] = f"{self._file(name)} exists and was not written by milo-discovery sync"
        return name not in self.skipped

    def _add_to_ledger(self, names: Iterable[str]) -> None:
        if not self._own.issuperset(names) or (*self._fleet, self.memory) != self._recorded:
            self._write_ledger(self._own | set(names))

    def _remove(self, names: set[str]) -> None:
        if names:
            for name in names:
                self._file(name).unlink(missing_ok=True)
                self._written.pop(name, None)
            self._write_ledger(self._own - names)

    def _write_index(self, desired: Mapping[str, DesiredFile], without: set[str]) -> None:
        before = self._indexed or {}
        index = {name: before[name] for name in self._own - without if name in before}
        for name in desired:
            if name in self._written and name not in without:
                index[name] = _index_entry(desired[name].cluster, self._file(name).name)
        if index != self._indexed:
            atomic_files.replace(self.path / INDEX, _json({"clusters": [index[name] for name in sorted(index)]}))
            self._indexed = index

    def _write_ledger(self, own: set[str]) -> None:
        # The fields are set after the write: if it fails, the next reconcile writes the ledger again.
        group, only = self._fleet
        ledger = {"files": sorted(own), "index": True, "group": group, "filter": only}
        ledger["removals"] = {
            "held": self.memory.is_held,
            "created": sorted(self.memory.created),
            "removed": sorted(self.memory.removed),
        }
        atomic_files.replace(self.path / _LEDGER, _json(ledger))
        self._own, self._recorded = own, (*self._fleet, self.memory)

    def _file(self, name: str) -> Path:
        return self.path / f"{name}{SUFFIX}"


def _index_entry(cluster: Cluster, file: str) -> dict[str, Any]:
    return {
        "name": cluster.name,
        "uid": cluster.uid,
        "file": file,
        "endpoint": cluster.endpoint,
        "organization": cluster.organization,
        "labels": dict(sorted(cluster.labels.items())),
    }


def _read_index(path: Path) -> dict[str, Any] | None:
    """Return the entries by name; None if the file is missing or corrupt."""
    try:
        return {entry["name"]: entry for entry in json.loads(path.read_bytes())["clusters"]}
    except (OSError, ValueError, TypeError, LookupError):
        return None


def _read_ledger(path: Path) -> tuple[set[str], bool, tuple[str | None, str | None, Memory]]:
    """Return the clusters of this command's files, whether it owns the index, and the recorded shard group, filter and
    removals. These are out of date if they are not held, and the ledger was not written a short time ago.

    Ledgers of earlier versions record none of these.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as stream:
            written_at = os.fstat(stream.fileno()).st_mtime
            if (owner := os.fstat(stream.fileno()).st_uid) != os.geteuid():
                # In a world-writable directory, another user's ledger could list files that this command then removes.
                raise CommandFailure(
                    f"{path} is owned by uid {owner}, but this process runs as uid {os.geteuid()}: use another "
                    "directory"
                )
            ledger = json.loads(stream.read())
        names = {name for name in ledger["files"] if isinstance(name, str) and _NAME.fullmatch(name)}
        recorded = ledger.get("removals", {})
        memory = Memory(
            recorded.get("held") is True,
            frozenset(map(str, recorded.get("created", ()))),
            frozenset(map(str, recorded.get("removed", ()))),
        )
        is_recent = memory.is_held or time.time() <= written_at + RECENT_S
        fleet = ledger.get("group"), ledger.get("filter")
        return names, ledger.get("index") is True, (*fleet, memory if is_recent else Memory())
    except FileNotFoundError:
        return set(), False, (None, None, Memory())
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise CommandFailure(
            f"{path} is corrupt, so it is unknown which files milo-discovery sync may replace; use an empty directory"
        ) from error


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
