"""One connection to NATS and its JetStream stream. It ends with its first failure, and is not opened again."""

from __future__ import annotations

import asyncio
import itertools
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from milo_discovery.extras import needs_extra
from milo_objects.jetstream_answers import JetStreamAnswer
from milo_objects.messages import Heartbeat, StoredMessage
from milo_objects.stream_commands import WriteMessage
from milo_objects.subjects import PUBLISHER, STREAM_SUBJECTS

with needs_extra("nats", "milo-objects", ("./kube", "./clients/python", "./clients/cli", "./objects")):
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.errors import Error as NatsError
    from nats.errors import NoRespondersError

CALL_TIMEOUT_S: Final = 10.0
_CONNECT_TIMEOUT_S: Final = 5
_HEARTBEAT_S: Final = 2.0
_SILENT_WAITS: Final = 5
_API: Final = "$JS.API"
_WRONG_LAST_SEQUENCE: Final = {10071, 10164}
"""The second is that of a stream with replicas, of which another write of the subject is not stored yet."""
_STREAM_NOT_FOUND: Final = 10059
_FULL: Final = {10077, 10002, 10028, 10047, 10023, 10054}
"""Error codes of a stream that has `max_bytes`, of an account that has its limit, of a server without memory or space,
and of a message above `max_msg_size`."""
_NANOSECONDS: Final = 1_000_000_000

T = TypeVar("T")


class NatsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach NATS, and which stream."""

    servers: tuple[str, ...]
    stream: str = "milo"
    credentials: Path | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    inbox_prefix: str = "_INBOX"


class NewStream(msgspec.Struct, frozen=True, kw_only=True):
    """How to create the stream if it does not exist."""

    replicas: int = 1
    max_bytes: int = -1


class StreamLost(Exception):  # noqa: N818  (it ends a connection, and is retried)
    """NATS cannot be reached, or does not answer."""


class UnusableStream(StreamLost):
    """The stream does not exist, or its settings would lose messages. The message says what to do."""


class WriteConflict(Exception):  # noqa: N818  (an expected outcome)
    """The last message of the subject has another sequence than expected."""


class StreamFull(Exception):  # noqa: N818  (an expected outcome)
    """The stream does not take the message at present."""


class StreamInfo(msgspec.Struct, frozen=True):
    """What a reader or a writer compares with what it knew of the stream."""

    lineage: str
    """Which stream it is, and since when it certainly has lost nothing: a single server that lost power may have."""
    last_sequence: int
    limit: int
    """Maximum bytes of a message, with its headers."""


class NatsSession:
    """An open connection."""

    def __init__(self, client: Client, options: NatsOptions) -> None:
        self._client = client
        self._options = options
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answers: dict[str, Callable[[Msg], None]] = {}
        self._inbox = client.new_inbox()
        self._number = itertools.count(1)
        self.without_info: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done if NATS' permissions do not include the stream's information."""

    # --- the connection ---

    async def begin(self) -> None:
        await _awaited(self._client.subscribe(f"{self._inbox}.*", cb=self._answered))

    def lose(self, problem: str) -> None:
        """End the connection because of a problem."""
        if not self._lost.done():
            self._lost.set_exception(StreamLost(problem))
            self._lost.exception()  # it is retrieved, even if nobody waits for the end

    async def lost(self) -> None:
        """Wait until the connection is lost, and raise StreamLost."""
        await asyncio.shield(self._lost)

    async def _answered(self, message: Msg) -> None:
        answer = self._answers.pop(message.subject.rpartition(".")[2], None)
        if answer is not None:
            answer(message)

    # --- calls ---

    async def call(self, method: str, body: Any = None) -> bytes:
        """Call JetStream's API, and return what it answers. Raises StreamLost."""
        content = b"" if body is None else json.dumps(body).encode()
        asking = asyncio.ensure_future(self._client.request(f"{_API}.{method}", content, timeout=CALL_TIMEOUT_S))
        try:
            # What NATS' permissions refuse is not answered.
            waited: set[asyncio.Future[Any]] = {asking, self._lost}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if self._lost.done():
                await self.lost()
            answer = await asking
        except NoRespondersError:
            raise UnusableStream(
                "JetStream does not answer: enable it in the NATS server (-js), or in the account of these credentials"
            ) from None
        except (NatsError, TimeoutError, OSError) as error:
            raise StreamLost(f"{method.split('.', maxsplit=1)[0]} {method.split('.')[1]}: {_text(error)}") from error
        finally:
            asking.cancel()
        return answer.data

    async def _answer(self, method: str, body: Any = None) -> JetStreamAnswer:
        """Raises StreamLost."""
        answer = await self.call(method, body)
        try:
            return JetStreamAnswer.decode(answer)
        except ValueError as error:
            raise StreamLost(f"{method.split('.', maxsplit=1)[0]} {method.split('.')[1]}: {error}") from error

    async def stream(self, new: NewStream | None = None, *, is_checked: bool = True) -> StreamInfo:
        """Return the facts about the stream; create it, if it may be. Raises UnusableStream and StreamLost.

        `is_checked`: whether its settings have to be those that a publisher needs.
        """
        name = self._options.stream
        asking = asyncio.ensure_future(self._answer(f"STREAM.INFO.{name}"))
        try:
            waited: set[asyncio.Future[Any]] = {asking, self.without_info}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if self.without_info.done() and not is_checked:
                # A reader that may not have it, since it names all subjects, reads everything at each connection.
                return StreamInfo(f"unknown {self._inbox}", 0, self._client.max_payload)
            found = await asking
        finally:
            asking.cancel()
        if found.error is not None and found.error.err_code == _STREAM_NOT_FOUND:
            if new is None:
                raise UnusableStream(
                    f"the stream {name} does not exist: start the publisher with --create-stream"
                    if is_checked
                    else f"the stream {name} does not exist: start its publisher"
                )
            found = await self._answer(f"STREAM.CREATE.{name}", _new_config(name, new))
        if found.error is not None:
            raise UnusableStream(f"the stream {name}: {found.error.description}")
        config = found.config
        if is_checked and (problem := config.problem(name)):
            raise UnusableStream(problem)
        server = "" if config.num_replicas > 1 else self._client._server_info.get("server_id")
        limits = [self._client.max_payload, *([config.max_msg_size] if config.max_msg_size > 0 else [])]
        return StreamInfo(f"{found.created} {server}", found.state.last_seq, min(limits))

    async def write(self, command: WriteMessage, answer: Callable[[int | Exception], None]) -> None:
        """Write a message. `answer` is called with its sequence, WriteConflict or StreamFull, or never."""
        headers, body = command.encoded
        headers = {
            **headers,
            "Nats-Expected-Last-Subject-Sequence": str(command.expected),
            **({} if command.ttl_s is None else {"Nats-TTL": f"{int(command.ttl_s)}s"}),
        }
        await self._publish(str(command.subject), headers, body, answer)

    async def beat(self, heartbeat: Heartbeat) -> int:
        """Write that a publisher runs; return the sequence, or 0 if it was not stored. A stream that does not answer
        loses the connection; a full one does not."""
        answered: asyncio.Future[int | Exception] = asyncio.get_running_loop().create_future()
        await self._publish(PUBLISHER, {}, heartbeat.encode(), answered.set_result)
        waited: set[asyncio.Future[Any]] = {answered, self._lost}
        await asyncio.wait(waited, timeout=CALL_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        if not answered.done():
            self.lose(f"a message was not acknowledged for {CALL_TIMEOUT_S:g} s")
            return 0
        return result if isinstance(result := answered.result(), int) else 0

    async def _publish(
        self, subject: str, headers: dict[str, str], body: bytes, answer: Callable[[int | Exception], None]
    ) -> None:
        token = str(next(self._number))
        headers = {**headers, "Nats-Expected-Stream": self._options.stream}
        self._answers[token] = lambda message: self._acknowledged(message, answer)
        try:
            await _awaited(self._client.publish(subject, body, reply=f"{self._inbox}.{token}", headers=headers))
        except StreamLost as error:
            self.lose(str(error))

    def _acknowledged(self, message: Msg, answer: Callable[[int | Exception], None]) -> None:
        if message.headers and message.headers.get("Status") == "503":
            self.lose(f"no stream takes the messages: {self._options.stream} was deleted, or JetStream has no leader")
            return
        try:
            found = JetStreamAnswer.decode(message.data)
        except ValueError as invalid:
            self.lose(f"a message was acknowledged by {invalid}")
            return
        error = found.error
        if error is None:
            answer(found.seq)
        elif error.err_code in _WRONG_LAST_SEQUENCE:
            answer(WriteConflict(error.description))
        elif error.err_code in _FULL:
            answer(StreamFull(f"the stream {self._options.stream}: {error.description}; raise its limits"))
        else:
            self.lose(f"the stream {self._options.stream} refuses a message: {error.description}")

    async def purge(self, subject: str, below: int) -> None:
        """Delete the messages of these subjects with a lower sequence. Raises StreamLost."""
        found = await self._answer(f"STREAM.PURGE.{self._options.stream}", {"filter": subject, "seq": below})
        if found.error is not None:
            raise StreamLost(f"purging {subject}: {found.error.description}")

    # --- reading ---

    async def last_messages(self, filters: Sequence[str]) -> tuple[list[StoredMessage], int]:
        """Return the last message of each subject, and a sequence before which nothing is missing.

        Raises StreamLost.
        """
        last = (await self.stream(is_checked=False)).last_sequence
        found: list[StoredMessage] = []
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def receive(stored: StoredMessage, pending: int) -> None:
            found.append(stored)
            if not pending:
                idle()

        def idle() -> None:
            if not done.done():
                done.set_result(None)

        async with self.consumer(filters, 1, receive, idle, heartbeat_s=0.5) as name:
            await asyncio.wait({done, self._lost}, return_when=asyncio.FIRST_COMPLETED)
        # A server limits consumers, and would keep it for a while. One that it keeps nevertheless does no harm.
        with suppress(StreamLost):
            await _awaited(self._client.publish(f"{_API}.CONSUMER.DELETE.{self._options.stream}.{name}"))
        if not done.done():
            await self.lost()
        return found, last

    async def follow(
        self,
        filters: Sequence[str],
        first: int,
        receive: Callable[[StoredMessage, int], None],
        idle: Callable[[], None],
    ) -> None:
        """Pass on each message from a sequence on, in order, with how many are left. Raises StreamLost.

        `idle` is called when nothing is left, and then every few seconds.
        """
        async with self.consumer(filters, first, receive, idle):
            await self.lost()

    @asynccontextmanager
    async def consumer(
        self,
        filters: Sequence[str],
        first: int,
        receive: Callable[[StoredMessage, int], None],
        idle: Callable[[], None],
        *,
        heartbeat_s: float | None = None,
    ) -> AsyncIterator[str]:
        """Run a consumer that delivers in order, as `follow` does, and yield its name. A gap, or silence, loses the
        connection."""
        heartbeat_s = heartbeat_s or _HEARTBEAT_S
        expected, heard, quiet = 1, 0, 0

        async def deliver(message: Msg) -> None:
            nonlocal expected, heard, quiet
            if self._lost.done():
                return
            heard += 1
            if message.headers and "Status" in message.headers:
                if stalled := message.headers.get("Nats-Consumer-Stalled"):
                    await self._client.publish(stalled)
                if message.reply:
                    await self._client.publish(message.reply)
                elif message.headers.get("Nats-Last-Consumer", "") != str(expected - 1):
                    self.lose("messages of the consumer were lost")
                elif not stalled:
                    quiet += 1
                # A server that waits for flow control sends heartbeats too, and one may precede a slow message.
                if quiet > 1:
                    idle()
                return
            # $JS.ACK.[DOMAIN.ACCOUNT.]STREAM.CONSUMER.DELIVERIES.SEQUENCE.NUMBER.TIME.PENDING[.TOKEN]
            tokens = message.reply.split(".")
            at = 5 if len(tokens) == 9 else 7
            if int(tokens[at + 1]) != expected:
                self.lose("messages of the consumer were lost")
                return
            expected, quiet = expected + 1, 0
            stored_at = int(tokens[at + 2]) / _NANOSECONDS
            stored = StoredMessage(message.subject, int(tokens[at]), message.headers or {}, message.data, stored_at)
            receive(stored, int(tokens[at + 3]))

        inbox, name = self._client.new_inbox(), self._inbox.rpartition(".")[2] + str(next(self._number))
        subscription = await _awaited(self._client.subscribe(inbox, cb=deliver))
        config = {
            "name": name,
            "deliver_subject": inbox,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": max(1, first),
            "ack_policy": "none",
            "max_deliver": 1,
            "replay_policy": "instant",
            "flow_control": True,
            "idle_heartbeat": int(heartbeat_s * _NANOSECONDS),
            "inactive_threshold": 30 * _NANOSECONDS,
            "mem_storage": True,
            "num_replicas": 1,
            **({"filter_subject": filters[0]} if len(filters) == 1 else {"filter_subjects": list(filters)}),
        }
        # With the filter in the subject, as NATS' permissions have it.
        suffix = f".{filters[0]}" if len(filters) == 1 else ""
        stream = self._options.stream
        try:
            body = {"stream_name": stream, "config": config, "action": "create"}
            found = await self._answer(f"CONSUMER.CREATE.{stream}.{name}{suffix}", body)
            if found.error is not None:
                raise UnusableStream(f"reading {', '.join(filters)}: {found.error.description}")
            if not found.num_pending:
                idle()
            watching = asyncio.ensure_future(_watch_silence(lambda: heard, 3 * heartbeat_s + 1.0, self.lose))
            try:
                yield name
            finally:
                watching.cancel()
        finally:
            with suppress(NatsError, OSError):
                await subscription.unsubscribe()


async def _awaited(call: Awaitable[T]) -> T:
    """Return the result of a call of the client, which loses a cancellation while it flushes. Raises StreamLost."""
    try:
        result = await call
    except (NatsError, OSError) as error:
        raise StreamLost(_text(error)) from error
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
    return result


async def _watch_silence(heard: Callable[[], int], limit_s: float, lose: Callable[[str], None]) -> None:
    """Lose the connection if the number of messages has not grown for a while.

    The time is divided into waits, each of which counts once, however late the event loop is: meanwhile it reads.
    """
    before, silent = heard(), 0
    while silent < _SILENT_WAITS:
        await asyncio.sleep(limit_s / _SILENT_WAITS)
        number = heard()
        before, silent = number, silent + 1 if number == before else 0
    lose(f"the consumer was silent for {limit_s:g} s")


@asynccontextmanager
async def open_session(options: NatsOptions, name: str) -> AsyncIterator[NatsSession]:
    """Yield a connection. Raises StreamLost."""
    client = Client()
    session: NatsSession | None = None
    problems: list[str] = []

    async def failed(error: Exception) -> None:
        problems[:] = [_text(error)]
        is_refused = "permissions violation" in str(error).lower()
        if session is not None and is_refused and ".stream.info." in str(error).lower():
            if not session.without_info.done():
                session.without_info.set_result(None)
        elif session is not None and is_refused and ".consumer.delete." not in str(error).lower():
            session.lose(f"NATS refuses: {error}; check the permissions of these credentials")

    async def closed() -> None:
        if session is not None:
            session.lose(problems[-1] if problems else "the connection was closed")

    try:
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S * max(1, len(options.servers)) + 1.0):
                await client.connect(
                    list(options.servers),
                    name=name,
                    allow_reconnect=False,
                    connect_timeout=_CONNECT_TIMEOUT_S,
                    ping_interval=10,
                    max_outstanding_pings=2,
                    error_cb=failed,
                    disconnected_cb=closed,
                    closed_cb=closed,
                    tls=_tls(options),
                    user_credentials=str(options.credentials) if options.credentials else None,
                    inbox_prefix=options.inbox_prefix,
                )
        # The client expects an object as the server's INFO, and raises anything if it is none.
        except (NatsError, OSError, TimeoutError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise StreamLost(f"{', '.join(options.servers)}: {problems[-1] if problems else _text(error)}") from error
        session = NatsSession(client, options)
        await session.begin()
        yield session
    finally:
        try:
            with suppress(NatsError, OSError, TimeoutError, AssertionError):  # the last, if `connect` did not begin
                async with asyncio.timeout(2.0):
                    await client.close()
        finally:
            if client._transport is not None:  # `close` was canceled before it came to this
                client._transport.close()  # type: ignore[no-untyped-call]


def _tls(options: NatsOptions) -> ssl.SSLContext | None:
    """Return how to verify the server, and with what to be verified. Raises OSError."""
    if not options.ca and not options.certificate and not any(url.startswith("tls:") for url in options.servers):
        return None
    context = ssl.create_default_context(cafile=options.ca)
    if options.certificate is not None:
        context.load_cert_chain(options.certificate, options.key)
    return context


def _new_config(name: str, new: NewStream) -> dict[str, Any]:
    return {
        "name": name,
        "subjects": list(STREAM_SUBJECTS),
        "retention": "limits",
        "discard": "new",
        "storage": "file",
        "num_replicas": new.replicas,
        "max_bytes": new.max_bytes,
        "max_msgs": -1,
        "max_age": 0,
        "max_consumers": -1,
        "max_msgs_per_subject": 1,
        "max_msg_size": -1,
        "allow_msg_ttl": True,
        "allow_direct": True,
        "duplicate_window": _NANOSECONDS,
        "description": "Objects of Milo's project control planes, by milo-objects.",
    }


def _text(error: BaseException) -> str:
    return str(error).removeprefix("nats: ") or type(error).__name__
