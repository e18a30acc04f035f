"""A subscriber on the generated gRPC stubs that records its history, and can read slowly or be cut."""

import asyncio
from dataclasses import dataclass

import grpc
from google.protobuf.duration_pb2 import Duration

from milo_discovery.v1 import discovery_pb2 as pb
from tests.end_to_end.process import streams
from tests.end_to_end.process.history import History, Stream, noted
from tests.end_to_end.process.issued_credentials import IssuedCredential, Token, token_in
from tests.end_to_end.process.validators import Reader

_TRY_AGAIN_S = 0.05


@dataclass(frozen=True)
class ReceivedKubeconfig:
    """A kubeconfig as it was received."""

    cluster: str
    uid: str
    incarnation: str
    engaged: tuple[str, str] | None
    """UID and incarnation of the engagement, according to all earlier events."""
    token: str
    issued_at: float
    ends_at: float

    @classmethod
    def of(cls, event: pb.ClusterEvent, engaged: tuple[str, str] | None) -> "ReceivedKubeconfig":
        cluster, kubeconfig = event.cluster, event.kubeconfig
        issued_at, ends_at = (
            timestamp.ToNanoseconds() / 1e9 for timestamp in (kubeconfig.issued_at, kubeconfig.expires_at)
        )
        token = token_in(kubeconfig.kubeconfig)
        return cls(cluster.name, cluster.uid, cluster.incarnation, engaged, token, issued_at, ends_at)

    def issued_credential(self, who: str, token: Token) -> IssuedCredential:
        """Return the record for the validator.

        `token` is the API's current record of the token, which may have been revoked after it was issued.
        """
        return IssuedCredential(
            at=self.issued_at,
            who=who,
            cluster=self.cluster,
            uid=self.uid,
            incarnation=self.incarnation,
            engaged=self.engaged,
            token=token,
            was_revoked=False,
            ends_at=self.ends_at,
        )


class Received:
    """What a subscriber received: its history, its known clusters, and its kubeconfigs."""

    def __init__(self, who: str, label_selector: str = "") -> None:
        self.history = History(who, label_selector)
        self.given: list[ReceivedKubeconfig] = []
        self.revision = ""
        """The revision to resume from."""
        self._reader = Reader()

    @property
    def view(self) -> dict[str, tuple[str, tuple[tuple[str, str], ...]]]:
        """UID and labels of each known cluster."""
        return {name: (cluster.uid, cluster.labels) for name, cluster in self._reader.view.items()}

    def begin(self, resumed_from: str, *, is_of_new_process: bool = False) -> None:
        """Begin the next stream."""
        stream = Stream(resumed_from, is_of_new_process=is_of_new_process)
        self.history.streams.append(stream)
        self._reader.start(stream)

    def take(self, message: pb.WatchClustersResponse) -> None:
        batch = noted(message)
        self.history.streams[-1].batches.append(batch)
        list(self._reader.take(batch))
        self.given += (
            ReceivedKubeconfig.of(event, self._known(event.cluster.name))
            for event in message.events
            if event.kubeconfig.cluster
        )
        self.revision = batch.revision or self.revision

    def _known(self, name: str) -> tuple[str, str] | None:
        known = self._reader.snapshot if self._reader.snapshot is not None else self._reader.view
        engaged = known.get(name)
        return None if engaged is None else (engaged.uid, engaged.incarnation)


class Recorder(Received):
    def __init__(self, who: str, address: str, label_selector: str = "", *, with_kubeconfigs: bool = False) -> None:
        super().__init__(who, label_selector)
        self._with_kubeconfigs = with_kubeconfigs
        self._address = address
        self._reads = asyncio.Event()
        self._reads.set()
        self._stream: streams.Stream | None = None

    def pause(self) -> None:
        """Stop reading, with the stream open."""
        self._reads.clear()

    def go_on(self) -> None:
        self._reads.set()

    async def cut(self) -> None:
        """Cut the stream; the next one resumes at the last revision."""
        if self._stream is not None:
            await self._stream.close()

    async def run(self) -> None:
        """Run until canceled."""
        while True:
            self.begin(self.revision)
            request = pb.WatchClustersRequest(
                resume_revision=self.revision,
                filter=pb.ClusterFilter(label_selector=self.history.label_selector),
                heartbeat_interval=Duration(seconds=1),
                include_kubeconfigs=self._with_kubeconfigs,
            )
            async with streams.Stream(self._address, request) as self._stream:
                await self._read(self._stream)
            await asyncio.sleep(_TRY_AGAIN_S)

    async def _read(self, stream: streams.Stream) -> None:
        while True:
            await self._reads.wait()
            try:
                message = await stream.batch()
            except (grpc.aio.AioRpcError, asyncio.CancelledError, TimeoutError):
                # A stream that is cut raises CancelledError too; only a cancellation of this task is passed on.
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise
                return  # ended by the daemon, cut, or without a heartbeat for too long
            self.take(message)
