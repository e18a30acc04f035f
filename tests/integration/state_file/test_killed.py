"""F35: a kill at any time leaves one complete state file, the old or the new one."""

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from milo_discoveryd.state_file.encoding import StoredFleet
from milo_discoveryd.state_file.state_file import FILE, StateFile
from tests.support.kill_points import deaths
from tests.unit.state_file.test_encoding import ORIGIN, kept

WRITING = """
import sys
from pathlib import Path
from milo_discoveryd.state_file.encoding import StoredFleet
from milo_discoveryd.state_file.state_file import StateFile
from tests.unit.state_file.test_encoding import ORIGIN, kept

keeper = StateFile(Path(sys.argv[1]), ORIGIN)
images = [StoredFleet(ORIGIN, 0.0, tuple(kept(f"{word}-{n}") for n in range(500))) for word in ("one", "other")]
keeper._write(images[0])
print("well", flush=True)
while True:
    for image in images:
        keeper._write(image)
"""

DYING = """
import sys
from pathlib import Path
from milo_discoveryd.state_file import state_file
from milo_discoveryd.state_file.encoding import StoredFleet
from tests.support.kill_points import die_at_every_line
from tests.unit.state_file.test_encoding import ORIGIN, kept

def write():
    state_file.StateFile(Path(sys.argv[1]), ORIGIN)._write(StoredFleet(ORIGIN, 0.0, (kept("another"),)))

die_at_every_line(state_file.__file__, write)
"""


@pytest.mark.parametrize("before", [[], ["one"]], ids=["the-first", "the-next"])
def test_state_file_write_killed_at_any_line_leaves_the_old_or_new_state_and_is_repeatable(
    tmp_path: Path, before: list[str]
) -> None:
    keeper = StateFile(tmp_path, ORIGIN)

    def start_over() -> None:
        (tmp_path / FILE).unlink(missing_ok=True)
        if before:
            assert keeper._write(StoredFleet(ORIGIN, 0.0, tuple(map(kept, before))))

    found: list[list[str]] = []
    start_over()
    for _ in deaths(DYING, tmp_path):
        image = keeper.load()
        found.append([] if image is None else [cluster.target.name for cluster in image.clusters])
        start_over()
    assert found == sorted(found, key=lambda names: names == ["another"])
    assert found.count(before) >= 10, "too few kills before the rename"
    assert found.count(["another"]) >= 1, "no kill after the rename"


@pytest.mark.parametrize("seed", range(3))
def test_state_file_survives_kill_during_write(tmp_path: Path, seed: int) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITING, str(tmp_path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"well\n"
    with pytest.raises(subprocess.TimeoutExpired):
        writer.wait(0.2 * Random(seed).random())
    writer.kill()
    writer.wait()
    writer.stdout.close()
    image = StateFile(tmp_path, ORIGIN).load()
    assert image is not None
    assert len({kept.target.name.split("-")[0] for kept in image.clusters}) == 1
    assert len(image.clusters) == 500
