"""Answers that their clients do not read."""

import asyncio
from collections.abc import Sequence

import grpc
import pytest

from milo_discoveryd.server.calls import unread_answers
from milo_discoveryd.server.calls.rpc_context import RpcContext
from milo_discoveryd.server.calls.unread_answers import UnreadAnswers
from tests.support.eventually import eventually


class Client:
    """A call whose client reads its answer once it is allowed to."""

    def __init__(self, *, reads: bool, owner: str = "unix:") -> None:
        self._reads = reads
        self._owner = owner

    async def send_initial_metadata(self, metadata: Sequence[tuple[str, str | bytes]]) -> None: ...

    async def write(self, message: bytes) -> None:
        if not self._reads:
            await asyncio.Event().wait()

    def peer(self) -> str:
        return self._owner

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        return ()


def owners(context: RpcContext) -> tuple[str, ...]:
    return (context.peer(),)


class GoneClient(Client):
    async def write(self, message: bytes) -> None:
        raise grpc.aio.InternalError


async def test_answer_that_is_read_closes_nothing() -> None:
    closed: list[RpcContext] = []
    answers = UnreadAnswers(closed.append, owners)
    await answers.send(b"answer", Client(reads=True))
    assert not closed
    assert not len(answers)


async def test_connection_is_closed_if_its_answer_is_not_read_in_time() -> None:
    closed: list[RpcContext] = []
    answers, client = UnreadAnswers(closed.append, owners, timeout_s=0.01), Client(reads=False)
    await answers.send(b"answer", client)
    assert closed == [client]
    assert not len(answers)


async def test_oldest_connections_are_closed_for_newer_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread_answers, "MAX_BYTES", 60)
    closed: list[RpcContext] = []
    answers, clients = UnreadAnswers(closed.append, owners, 2), [Client(reads=False) for _ in range(3)]
    sending = []
    for count, client in enumerate(clients, 1):
        sending.append(asyncio.create_task(answers.send(b"x" * 10, client)))
        await eventually(lambda count=count: len(answers) == count)  # type: ignore[misc]
    await answers.send(b"x" * 20, Client(reads=True))
    await asyncio.wait(sending[:2])
    assert closed == clients[:2]
    await answers.send(b"x" * 100, Client(reads=True))
    await sending[2]
    assert closed == clients
    assert not len(answers)


async def test_many_small_answers_of_one_caller_close_its_own_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by an attacker: 3,000 that it did not read made gRPC reject the calls of all others for a minute."""
    monkeypatch.setattr(unread_answers, "MAX_ANSWERS", 3)
    closed: list[RpcContext] = []
    answers, slow = UnreadAnswers(closed.append, owners), Client(reads=False, owner="slow")
    hostile = [Client(reads=False, owner="hostile") for _ in range(4)]
    sending = []
    for count, client in enumerate((slow, *hostile), 1):
        sending.append(asyncio.create_task(answers.send(b"x", client)))
        await eventually(lambda count=count: len(answers) == min(count, 3))  # type: ignore[misc]
    await asyncio.wait(sending[1:3])
    assert closed == hostile[:2]
    for task in sending:
        task.cancel()


async def test_call_of_a_client_that_has_disconnected_is_canceled() -> None:
    closed: list[RpcContext] = []
    with pytest.raises(asyncio.CancelledError):
        await UnreadAnswers(closed.append, owners).send(b"answer", GoneClient(reads=True))
    assert not closed
