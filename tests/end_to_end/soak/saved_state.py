"""What a soak test keeps between its pieces: objects, state files, ports, and the report of each piece."""

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
    """Where the daemons find their API server: a state file is only used with the server that it is of."""

    faulted: int = 0
    steady: int = 0


class SavedState:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def reports(self) -> list[Report]:
        """Those of all pieces so far."""
        return [msgspec.json.decode(path.read_bytes(), type=Report) for path in sorted(self._folder.glob(_PIECES))]

    def add(self, report: Report) -> None:
        number = len(list(self._folder.glob(_PIECES))) + 1
        beside = self._folder / "piece.new"
        beside.write_bytes(report.json())
        beside.replace(self._folder / f"piece-{number:04}.json")

    def upstream(self) -> States:
        """What happened to the objects. A state file may be behind, so the next piece may report what had happened."""
        path = self._folder / _UPSTREAM
        return msgspec.msgpack.decode(path.read_bytes(), type=States) if path.exists() else {}

    def restore(self, work: Path) -> Ports:
        """Put what was saved into the folder of a piece; nothing at the first piece."""
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
