"""A subscriber as a process, which writes the messages that it receives to its standard output.

Usage: ADDRESS LABEL_SELECTOR REVISION [--kubeconfigs]. A frame is its kind (a byte), the length of its content (four
bytes), and the content: the revision that a stream resumes from, or a message of it. Whenever the process is killed,
what it wrote is a prefix of what it received.
"""

import asyncio
import struct
import sys
from typing import Final

import grpc
from google.protobuf.duration_pb2 import Duration

from milo_discovery.v1 import discovery_pb2 as pb
from tests.end_to_end.process.streams import Stream

STREAM: Final = 0
MESSAGE: Final = 1
HEADER: Final = struct.Struct("!BI")
_TRY_AGAIN_S = 0.05


async def subscribe(address: str, label_selector: str, revision: str, *, with_kubeconfigs: bool) -> None:
    while True:
        _write(STREAM, revision.encode())
        request = pb.WatchClustersRequest(
            resume_revision=revision,
            filter=pb.ClusterFilter(label_selector=label_selector),
            heartbeat_interval=Duration(seconds=1),
            include_kubeconfigs=with_kubeconfigs,
        )
        async with Stream(address, request) as stream:
            try:
                while True:
                    message = await stream.batch()
                    _write(MESSAGE, message.SerializeToString())
                    revision = message.revision or revision
            except (grpc.aio.AioRpcError, TimeoutError):
                pass  # ended by the daemon, or without a heartbeat for too long
        await asyncio.sleep(_TRY_AGAIN_S)


def _write(kind: int, content: bytes) -> None:
    sys.stdout.buffer.write(HEADER.pack(kind, len(content)) + content)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    address, label_selector, revision, *options = sys.argv[1:]
    asyncio.run(subscribe(address, label_selector, revision, with_kubeconfigs="--kubeconfigs" in options))
