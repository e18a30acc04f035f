"""A renewed credential: its task renews it before the end, and requests wait only where nothing valid is held."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from milo_kube import credential_providers, credential_renewal
from milo_kube.credential import Credential, CredentialError, Secret
from milo_kube.credential_providers import RenewedCredential
from tests.support.eventually import eventually


def token(text: str, life_s: float | None = None) -> Credential:
    return Credential(token=Secret(text), expires_at=None if life_s is None else time.time() + life_s)


class Origin:
    """An origin whose attempts end when the test says so."""

    gap_s = 0.0
    is_watched = True
    problem = ""

    def __init__(self) -> None:
        self.attempts: list[tuple[Credential | None, bool]] = []
        """The arguments of each attempt."""
        self.results: asyncio.Queue[Credential | Exception] = asyncio.Queue()
        self.is_changed = False
        self.fails_to_look = False

    def __str__(self) -> str:
        return "exec plugin login"

    def has_changed(self) -> bool:
        if self.fails_to_look:
            raise ValueError("no such path")
        changed, self.is_changed = self.is_changed, False
        return changed

    async def obtain(self, *, refused: Credential | None, is_due: bool) -> Credential:
        self.attempts.append((refused, is_due))
        result = await self.results.get()
        if isinstance(result, Exception):
            raise result
        return result


class Clock:
    """The wall clock, which a test may set."""

    ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credential_providers, "LOOK_EVERY_S", 0.005)


@pytest.fixture
def origin() -> Origin:
    return Origin()


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
async def provider(origin: Origin, notes: list[str]) -> AsyncIterator[RenewedCredential]:
    async with aclosing(RenewedCredential(origin, note=notes.append)) as made:
        yield made


async def test_concurrent_requests_wait_for_one_attempt(origin: Origin, provider: RenewedCredential) -> None:
    assert provider.held() == Credential()
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(provider.credential(within_s=20)) for _ in range(20)]
        await eventually(lambda: origin.attempts)
        origin.results.put_nowait(token("a"))
    assert {task.result() for task in asked} == {token("a")}
    assert origin.attempts == [(None, True)]
    assert provider.held() == token("a")


async def test_requests_use_the_held_credential_while_its_renewal_hangs(
    origin: Origin, provider: RenewedCredential
) -> None:
    """Before, each of them waited for the plugin: 20, 40, 60 s and so on."""
    origin.results.put_nowait(token("a", life_s=1.05))
    await provider.credential(within_s=20)
    await eventually(lambda: len(origin.attempts) == 2)  # the renewal, without any request
    assert {await provider.credential(within_s=0) for _ in range(20)} == {token("a")}
    assert len(origin.attempts) == 2
    origin.results.put_nowait(token("b"))
    await eventually(lambda: provider.held() == token("b"))
    assert await provider.credential(within_s=0) == token("b")


async def test_requests_without_a_valid_credential_wait_no_longer_than_their_own_timeout(
    origin: Origin, provider: RenewedCredential
) -> None:
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(refusal(provider, 0.03)) for _ in range(10)]
    assert all("exec plugin login has not answered for" in str(task.result()) for task in asked)
    origin.results.put_nowait(CredentialError("down"))
    await eventually(lambda: not origin.results.qsize())
    assert str(await refusal(provider, 0.06)).endswith("; the attempt before failed: down")
    origin.results.put_nowait(token("a"))
    assert await provider.credential(within_s=20) == token("a")


async def refusal(provider: RenewedCredential, within_s: float, refused: Credential | None = None) -> CredentialError:
    with pytest.raises(CredentialError) as raised:
        await provider.credential(within_s=within_s, refused=refused)
    return raised.value


async def test_refused_credential_is_replaced_and_others_do_not_wait(
    origin: Origin, provider: RenewedCredential
) -> None:
    origin.results.put_nowait(token("a"))
    refused = await provider.credential(within_s=20)
    asking = asyncio.create_task(provider.credential(within_s=20, refused=refused))
    await eventually(lambda: len(origin.attempts) == 2)
    assert origin.attempts[1] == (refused, True)
    assert await provider.credential(within_s=0) == refused
    origin.results.put_nowait(token("b"))
    assert await asking == token("b")
    assert await provider.credential(within_s=0, refused=refused) == token("b")


async def test_refused_credential_that_cannot_be_replaced_is_returned_again(
    origin: Origin, provider: RenewedCredential
) -> None:
    origin.results.put_nowait(token("a"))
    refused = await provider.credential(within_s=20)
    origin.results.put_nowait(token("a"))
    assert await provider.credential(within_s=20, refused=refused) == refused
    origin.results.put_nowait(CredentialError("down"))
    assert str(await refusal(provider, 20, refused)) == "down"
    assert await provider.credential(within_s=0) == refused


async def test_refusals_a_moment_after_an_attempt_do_not_cause_another(origin: Origin) -> None:
    origin.gap_s = 1000.0
    async with aclosing(RenewedCredential(origin)) as provider:
        origin.results.put_nowait(token("a"))
        refused = await provider.credential(within_s=20)
        assert await provider.credential(within_s=20, refused=refused) == refused
    async with aclosing(RenewedCredential(origin)) as provider:
        origin.results.put_nowait(CredentialError("down"))
        assert str(await refusal(provider, 20)) == "down"
        assert str(await refusal(provider, 20)) == "down"
    assert len(origin.attempts) == 2


async def test_canceled_request_does_not_cancel_the_attempt(origin: Origin, provider: RenewedCredential) -> None:
    asking = asyncio.create_task(provider.credential(within_s=20))
    await eventually(lambda: origin.attempts)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    origin.results.put_nowait(token("a"))
    await eventually(lambda: provider.held() == token("a"))
    assert len(origin.attempts) == 1


async def test_problem_of_the_renewal_is_noted_once_and_never_empty(
    origin: Origin, provider: RenewedCredential, notes: list[str]
) -> None:
    origin.results.put_nowait(token("a"))
    await provider.credential(within_s=20)
    for failure in (CredentialError("down"), CredentialError("down"), TimeoutError(), OSError("no such thing")):
        origin.results.put_nowait(failure)
        assert str(await refusal(provider, 20, token("a")))
    origin.problem = "the kubeconfig is invalid"
    origin.results.put_nowait(token("a"))
    await provider.credential(within_s=20, refused=token("a"))
    origin.problem = ""
    origin.results.put_nowait(token("b"))
    await provider.credential(within_s=20, refused=token("a"))
    assert notes == [
        "down",
        "exec plugin login failed: TimeoutError",
        "exec plugin login failed: no such thing",
        "the kubeconfig is invalid",
        "",
    ]


async def test_changed_origin_is_used_without_a_request(origin: Origin, provider: RenewedCredential) -> None:
    origin.results.put_nowait(token("a"))
    await provider.credential(within_s=20)
    origin.is_changed = True
    origin.results.put_nowait(token("b"))
    await eventually(lambda: provider.held() == token("b"))
    assert origin.attempts[1] == (None, False)


async def test_error_in_looking_for_changes_does_not_end_the_renewal(
    origin: Origin, provider: RenewedCredential
) -> None:
    origin.fails_to_look = True
    origin.results.put_nowait(token("a"))
    assert await provider.credential(within_s=20) == token("a")
    origin.results.put_nowait(token("b"))
    await eventually(lambda: provider.held() == token("b"))


class Broken(Origin):
    """An origin that stays changed, because each attempt fails at once."""

    def has_changed(self) -> bool:
        return True

    async def obtain(self, *, refused: Credential | None, is_due: bool) -> Credential:
        self.attempts.append((refused, is_due))
        if len(self.attempts) > 10:
            raise asyncio.CancelledError  # ends the task: the event loop would never run anything else
        raise ValueError("broken")


async def test_origin_that_stays_changed_is_tried_once_for_each_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by a reader: the process hung once its kubeconfig was replaced by one with `!!bool word`."""
    monkeypatch.setattr(credential_providers, "LOOK_EVERY_S", 1000.0)
    monkeypatch.setattr(credential_renewal, "BACKOFF_S", (1000.0, 1000.0))
    origin = Broken()
    async with aclosing(RenewedCredential(origin)) as provider:
        assert "broken" in str(await refusal(provider, 20))
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(origin.attempts) == 1


async def test_expired_credential_is_not_used(origin: Origin, provider: RenewedCredential) -> None:
    origin.results.put_nowait(token("a", life_s=-1))
    assert "returned a credential that has expired" in str(await refusal(provider, 20))
    assert provider.held() == token("a")


async def test_step_of_the_clock_renews_the_credential_and_delays_no_request(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credential_providers, "CHECK_EVERY_S", 0.005)
    origin.is_watched = False
    clock = Clock()
    async with aclosing(RenewedCredential(origin, wall=clock)) as provider:
        origin.results.put_nowait(token("a", life_s=3600))
        await provider.credential(within_s=20)
        clock.ahead_s = 7200
        assert await provider.credential(within_s=0) == token("a")
        await eventually(lambda: len(origin.attempts) == 2)
        assert await provider.credential(within_s=0) == token("a")


async def test_closed_provider_ends_its_attempt(origin: Origin) -> None:
    provider = RenewedCredential(origin)
    await provider.aclose()
    asking = asyncio.create_task(refusal(provider, 0.05))
    await eventually(lambda: origin.attempts)
    await provider.aclose()
    await asking
    assert not [task for task in asyncio.all_tasks() if "renew the credential" in task.get_name()]
