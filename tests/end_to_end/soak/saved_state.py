"""What a soak test saves between its pieces: objects, state files, ports, and the report of each piece."""

import shutil
from pathlib import Path

import msgspec

from tests.end_to_end.process.upstream import States
from tests.end_to_end.soak.report import Report
from tests.end_to_end.soak.sandbox_process import DATA

DAEMONS = ("faulted", "steady")
_PIECES = "piece-*.json"
_UPSTREAM = "upstream"


class Ports(msgspec.Struct):
    """The ports at which the daemons find their API server, since a state file is valid for the same server only."""

    faulted: int = 0
    steady: int = 0


class SavedState:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def reports(self) -> list[Report]:
        """Return the reports of all pieces so far."""
        return [msgspec.json.decode(path.read_bytes(), type=Report) for path in sorted(self._folder.glob(_PIECES))]

    def add(self, report: Report) -> None:
        number = len(list(self._folder.glob(_PIECES))) + 1
        beside = self._folder / "piece.new"
        beside.write_bytes(report.json())
        beside.replace(self._folder / f"piece-{number:04}.json")

    def upstream(self) -> States:
        """Return the record of upstream changes.

        A state file may be behind it, so the next piece may report earlier changes.
        """
        path = self._folder / _UPSTREAM
        return msgspec.msgpack.decode(path.read_bytes(), type=States) if path.exists() else {}

    def restore(self, work: Path) -> Ports:
        """Copy the saved files into the folder of a piece; do nothing for the first one."""
        for name in (DATA, *(f"{each}.state" for each in DAEMONS)):
            saved = self._folder / name
            if saved.is_dir():
                shutil.copytree(saved, work / name, dirs_exist_ok=True)
            elif saved.exists():
                shutil.copy(saved, work / name)
        ports = self._folder / "ports.json"
        return msgspec.json.decode(ports.read_bytes(), type=Ports) if ports.exists() else Ports()

    def save(self, work: Path, ports: Ports, upstream: States) -> None:
        """Save what the next piece begins with."""
        (self._folder / _UPSTREAM).write_bytes(msgspec.msgpack.encode(upstream))
        for each in DAEMONS:
            shutil.copytree(work / f"{each}.state", self._folder / f"{each}.state", dirs_exist_ok=True)
        shutil.copy(work / DATA, self._folder / DATA)
        (self._folder / "ports.json").write_bytes(msgspec.json.encode(ports))
