"""A disk that can be full: a small file system where mounting is possible, else a file that cannot be created."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from milo_discoveryd.state_file.state_file import FILE


class Disk:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._is_mounted = False

    async def __aenter__(self) -> Self:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        restored = {path.name: path.read_bytes() for path in self._directory.iterdir()}
        self._is_mounted = await _run("mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(self._directory))
        for name, content in restored.items() if self._is_mounted else ():
            (self._directory / name).write_bytes(content)
            (self._directory / name).chmod(0o600)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._is_mounted:
            await _run("umount", str(self._directory))

    @property
    def title(self) -> str:
        return "a full tmpfs" if self._is_mounted else "a directory in the file's place"

    @asynccontextmanager
    async def full(self) -> AsyncIterator[None]:
        if not self._is_mounted:
            beside = self._directory / f"{FILE}.new"
            beside.unlink(missing_ok=True)
            beside.mkdir()
            try:
                yield
            finally:
                beside.rmdir()
            return
        ballast = self._directory / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        try:
            yield
        finally:
            ballast.unlink()


async def _run(*command: str) -> bool:
    try:
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    except FileNotFoundError:
        return False
    return await process.wait() == 0
