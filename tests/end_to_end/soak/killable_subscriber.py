"""The parent of a subscriber process: it records what the process receives, and kills and starts it."""

import asyncio
import contextlib
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process

from milo_discovery.v1 import discovery_pb2 as pb
from tests.end_to_end.process.recorder import Received
from tests.end_to_end.soak.subscriber_process import HEADER, STREAM


class KillableSubscriber(Received):
    """A subscriber over all its processes. What a process had written before it was killed counts as received."""

    def __init__(
        self,
        who: str,
        address: str,
        label_selector: str = "",
        *,
        with_kubeconfigs: bool = False,
        keeps_revision: bool = True,
    ) -> None:
        """With `keeps_revision`, the subscriber resumes after a kill; otherwise it begins with a snapshot."""
        super().__init__(who, label_selector)
        self._address = address
        self._options = ["--kubeconfigs"] if with_kubeconfigs else []
        self._keeps_revision = keeps_revision
        self._process: Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.end_to_end.soak.subscriber_process",
            self._address,
            self.history.label_selector,
            self.revision if self._keeps_revision else "",
            *self._options,
            stdin=DEVNULL,
            stdout=PIPE,
        )
        assert self._process.stdout is not None
        self._reading = asyncio.create_task(self._read(self._process.stdout), name=self.history.who)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        """Kill the process, and read what it had written."""
        assert self._process is not None
        assert self._reading is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._reading
        await self._process.wait()

    async def _read(self, stream: asyncio.StreamReader) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                kind, length = HEADER.unpack(await stream.readexactly(HEADER.size))
                content = await stream.readexactly(length)
                if kind == STREAM:
                    # Every stream resumes, except for the first one of a process that begins with a snapshot.
                    self.begin(content.decode(), is_of_new_process=not (content or self._keeps_revision))
                else:
                    self.take(pb.WatchClustersResponse.FromString(content))
