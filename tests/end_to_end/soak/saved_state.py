"""The state that a soak test saves between its pieces: objects, state files, ports, and the report of each piece."""

import shutil
from pathlib import Path

import msgspec

from tests.end_to_end.process.upstream import States
from tests.end_to_end.soak.report import Report
from tests.end_to_end.soak.sandbox_process import DATA

DAEMONS = ("faulted", "steady")
_PIECES = "piece-*.json"
_STATES = "state-*"
_UPSTREAM = "upstream"
_PORTS = "ports.json"


class Ports(msgspec.Struct):
    """The ports at which the daemons find their API server, since a state file is valid for the same server only."""

    faulted: int = 0
    steady: int = 0


class SavedState:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def reports(self) -> list[Report]:
        """Return the reports of all pieces so far."""
        return [msgspec.json.decode(path.read_bytes(), type=Report) for path in sorted(self._directory.glob(_PIECES))]

    def add(self, report: Report) -> None:
        number = len(list(self._directory.glob(_PIECES))) + 1
        beside = self._directory / "piece.new"
        beside.write_bytes(report.json())
        beside.replace(self._directory / f"piece-{number:04}.json")

    def upstream(self) -> States:
        """Return the record of upstream changes.

        A state file may be behind it, so the next piece may report earlier changes.
        """
        latest = self._latest()
        return {} if latest is None else msgspec.msgpack.decode((latest / _UPSTREAM).read_bytes(), type=States)

    def restore(self, work: Path) -> Ports:
        """Copy the saved files into the directory of a piece; do nothing for the first one."""
        latest = self._latest()
        if latest is None:
            return Ports()
        shutil.copy(latest / DATA, work / DATA)
        for daemon in DAEMONS:
            shutil.copytree(latest / f"{daemon}.state", work / f"{daemon}.state", dirs_exist_ok=True)
        return msgspec.json.decode((latest / _PORTS).read_bytes(), type=Ports)

    def save(self, work: Path, ports: Ports, upstream: States) -> None:
        """Save the state for the next piece; if this is interrupted, the next piece begins with the previous state."""
        unfinished, latest = self._directory / "unfinished", self._latest()
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        (unfinished / _UPSTREAM).write_bytes(msgspec.msgpack.encode(upstream))
        for daemon in DAEMONS:
            shutil.copytree(work / f"{daemon}.state", unfinished / f"{daemon}.state")
        shutil.copy(work / DATA, unfinished / DATA)
        (unfinished / _PORTS).write_bytes(msgspec.json.encode(ports))
        number = 1 if latest is None else int(latest.name.rpartition("-")[2]) + 1
        unfinished.rename(self._directory / f"state-{number:04}")
        if latest is not None:
            shutil.rmtree(latest)

    def _latest(self) -> Path | None:
        return max(self._directory.glob(_STATES), default=None)
