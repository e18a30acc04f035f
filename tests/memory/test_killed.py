"""F35: whenever the daemon is killed, the file is one image or the other, and never a part of one."""

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from milo_discoveryd.memory.keeper import Keeper
from tests.memory.test_image import ORIGIN

WRITING = """
import sys
from pathlib import Path
from milo_discoveryd.memory.image import Image
from milo_discoveryd.memory.keeper import Keeper
from tests.memory.test_image import ORIGIN, kept

keeper = Keeper(Path(sys.argv[1]), ORIGIN)
images = [Image(ORIGIN, 0.0, tuple(kept(f"{word}-{n}") for n in range(500))) for word in ("one", "other")]
keeper._write(images[0], True)
print("well", flush=True)
while True:
    for image in images:
        keeper._write(image, True)
"""


@pytest.mark.parametrize("seed", range(3))
def test_a_file_that_was_being_written_is_one_image_or_the_other(tmp_path: Path, seed: int) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITING, str(tmp_path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"well\n"
    with pytest.raises(subprocess.TimeoutExpired):
        writer.wait(0.2 * Random(seed).random())
    writer.kill()
    writer.wait()
    writer.stdout.close()
    image = Keeper(tmp_path, ORIGIN).recall()
    assert image is not None
    assert len({kept.target.name.split("-")[0] for kept in image.clusters}) == 1
    assert len(image.clusters) == 500
