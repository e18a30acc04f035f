"""TokenRequest: bound to a Secret for each project, which ends what was given out when it goes."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from milo_discoveryd.credentials import load_kubeconfig
from milo_discoveryd.credentials.sources.source import MintRequest, RevokingSource, Scope
from milo_discoveryd.credentials.sources.token_request import TokenRequestSource
from milo_discoveryd.daemon_errors import BackendError, CredentialError, TransportError
from milo_discoveryd.model.cluster import Target
from milo_discoveryd.watchers.transport import Transport, open_transport
from milo_sandbox import Rule, Sandbox
from milo_sandbox.refusals import RefusedError
from tests.unit.credentials.backend import ALPHA, Answer, ScriptedApi, answering
from tests.unit.credentials.tokens import CANARY, jwt

WANTED = MintRequest(ttl_s=900, target=ALPHA, incarnation=1)
SUBJECT = "system:serviceaccount:milo:operators"


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(seed=1) as running:
        running.add_service_account("milo", "operators")
        yield running


@pytest.fixture
async def api(sandbox: Sandbox, tmp_path: Path) -> AsyncIterator[Transport]:
    path = tmp_path / "infrastructure"
    path.write_text(json.dumps(sandbox.infrastructure_kubeconfig()))
    async with aclosing(open_transport(load_kubeconfig(path), environ={})) as transport:
        yield transport


def a_source(api: object, **differing: object) -> TokenRequestSource:
    given = {"origin": "test", "namespace": "milo", "service_account": "operators", "audiences": ["milo"]} | differing
    return TokenRequestSource("requested", api, **given)  # type: ignore[arg-type]


async def test_a_token_is_for_the_account_and_bound_to_a_secret_of_the_project(
    sandbox: Sandbox, api: Transport
) -> None:
    source = a_source(api)
    assert (source.scope, isinstance(source, RevokingSource)) == (Scope.CLUSTER, True)
    minted = await source.mint(WANTED)
    assert minted.credential.token is not None
    assert sandbox.tokens.subject(minted.credential.token.reveal()) == SUBJECT
    assert 890 < minted.expires_at - time.time() <= 900
    assert len(sandbox.infrastructure.secret_names()) == 1


async def test_it_lives_for_ten_minutes_at_least_since_api_servers_give_no_less(api: Transport) -> None:
    minted = await a_source(api).mint(MintRequest(ttl_s=10, target=ALPHA, incarnation=1))
    assert 590 < minted.expires_at - time.time() <= 600


async def test_revoking_ends_every_token_of_the_project_at_once(sandbox: Sandbox, api: Transport) -> None:
    source = a_source(api)
    tokens = [(await source.mint(WANTED)).credential.token for _ in range(2)]
    await source.revoke(ALPHA, 1)
    assert not sandbox.infrastructure.secret_names()
    for token in tokens:
        assert token is not None
        with pytest.raises(RefusedError, match="Unauthorized"):
            sandbox.tokens.subject(token.reveal())


async def test_revoking_twice_or_what_never_was_is_well(api: Transport) -> None:
    source = a_source(api)
    await source.revoke(ALPHA, 1)
    await source.revoke(ALPHA, 1)


async def test_a_late_mint_does_not_bring_back_what_was_revoked(sandbox: Sandbox, api: Transport) -> None:
    source = a_source(api)
    await source.revoke(ALPHA, 1)
    with pytest.raises(BackendError, match="was disengaged meanwhile"):
        await source.mint(WANTED)
    assert not sandbox.infrastructure.secret_names()


async def test_the_next_incarnation_has_a_secret_of_its_own(sandbox: Sandbox, api: Transport) -> None:
    source = a_source(api)
    old = (await source.mint(WANTED)).credential.token
    new = (await source.mint(MintRequest(ttl_s=900, target=ALPHA, incarnation=2))).credential.token
    await source.revoke(ALPHA, 1)  # late: it must not end what the next one has
    assert old is not None
    assert new is not None
    assert sandbox.tokens.subject(new.reveal()) == SUBJECT
    with pytest.raises(RefusedError):
        sandbox.tokens.subject(old.reveal())


async def test_a_restarted_daemon_finds_the_secret_instead_of_making_another(sandbox: Sandbox, api: Transport) -> None:
    await a_source(api).mint(WANTED)
    after = a_source(api)
    await after.mint(MintRequest(ttl_s=900, target=ALPHA, incarnation=7))
    assert len(sandbox.infrastructure.secret_names()) == 1
    await after.revoke(ALPHA, 7)
    assert not sandbox.infrastructure.secret_names()


async def test_a_secret_that_somebody_deleted_is_made_again(sandbox: Sandbox, api: Transport) -> None:
    source = a_source(api)
    await source.mint(WANTED)
    (name,) = sandbox.infrastructure.secret_names()
    await api.delete(f"/api/v1/namespaces/milo/secrets/{name}", timeout_s=5)
    with pytest.raises(BackendError, match="has no such Secret"):
        await source.mint(WANTED)
    minted = await source.mint(WANTED)
    assert minted.credential.token is not None
    assert sandbox.tokens.subject(minted.credential.token.reveal()) == SUBJECT


async def test_unbound_one_token_is_for_all_projects(sandbox: Sandbox, api: Transport) -> None:
    source = a_source(api, bound=False)
    assert source.scope is Scope.IDENTITY
    await source.mint(MintRequest(ttl_s=600))
    assert not sandbox.infrastructure.secret_names()


async def test_whatever_the_order_of_mints_and_revocations_nothing_revoked_is_good(
    sandbox: Sandbox, api: Transport
) -> None:
    """The incarnations of one project come and go while mints for them are under way."""
    source, chance = a_source(api), random.Random(1)
    given: dict[int, list[str]] = {}

    async def mint(incarnation: int) -> None:
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        try:
            minted = await source.mint(MintRequest(ttl_s=600, target=ALPHA, incarnation=incarnation))
        except CredentialError:
            return
        assert minted.credential.token is not None
        given.setdefault(incarnation, []).append(minted.credential.token.reveal())

    async with asyncio.TaskGroup() as tasks:
        for incarnation in range(1, 40):
            tasks.create_task(mint(incarnation))
            tasks.create_task(mint(incarnation))
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0.0005)
            await source.revoke(ALPHA, incarnation)
    assert given
    assert not sandbox.infrastructure.secret_names()
    for tokens in given.values():
        for token in tokens:
            with pytest.raises(RefusedError):
                sandbox.tokens.subject(token)


async def test_missing_permission_fails_and_suggests_the_rbac_rule(sandbox: Sandbox, tmp_path: Path) -> None:
    rules = [Rule(verbs=frozenset({"create", "get", "delete"}), resources=frozenset({"secrets"}))]
    path = tmp_path / "limited"
    path.write_text(json.dumps(sandbox.infrastructure_kubeconfig(token=sandbox.token("limited", rules=rules))))
    async with aclosing(open_transport(load_kubeconfig(path), environ={})) as transport:
        with pytest.raises(BackendError, match=r"create serviceaccounts/token, resourceNames \[operators\]"):
            await a_source(transport).mint(WANTED)


def given(status: dict[str, object]) -> Answer:
    return answering(201, {"kind": "TokenRequest", "status": status})


SECRET = answering(201, {"metadata": {"uid": "s1"}})
ENDS = "2100-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([TransportError("connect", "milo cannot be reached")], "cannot be reached"),
        ([answering(403, {"message": CANARY})], "create, get and delete secrets in namespace milo"),
        ([answering(500, {"message": CANARY})], "answered 500"),
        ([Answer(201, CANARY.encode())], "is not a Kubernetes object"),
        ([SECRET, answering(404, {})], "no such Secret or service account"),
        ([SECRET, answering(429, {}, **{"Retry-After": "3"})], "answered 429"),
        ([SECRET, Answer(201, b"<html>")], "is not a Kubernetes object"),
        ([SECRET, given({"token": CANARY})], "is not a Kubernetes object"),
        ([SECRET, given({"token": CANARY, "expirationTimestamp": "soon"})], "is not a Kubernetes object"),
        ([SECRET, given({"token": CANARY, "expirationTimestamp": ENDS})], "are handed out"),
        (
            [SECRET, given({"token": CANARY + "\n", "expirationTimestamp": "2000-01-01T00:00:00Z"})],
            "expired",
        ),
        (
            [SECRET, given({"token": jwt(aud=["other"], sub=SUBJECT), "expirationTimestamp": ENDS})],
            "audience other than",
        ),
        ([SECRET, given({"token": jwt(aud=["milo"], sub="you"), "expirationTimestamp": ENDS})], "whose subject is not"),
    ],
)
async def test_an_answer_that_is_no_good_is_refused_and_nothing_of_it_repeated(
    answers: list[Answer | TransportError], expected: str
) -> None:
    with pytest.raises(CredentialError) as raised:
        await a_source(ScriptedApi(*answers)).mint(WANTED)
    assert expected in str(raised.value)
    assert CANARY not in str(raised.value)


async def test_a_revocation_that_fails_says_so_and_can_be_tried_again() -> None:
    api = ScriptedApi(answering(500, {}), answering(200, {}))
    source = a_source(api)
    with pytest.raises(BackendError, match="answered 500"):
        await source.revoke(ALPHA, 1)
    await source.revoke(ALPHA, 1)


async def test_a_uid_does_not_choose_where_we_write() -> None:
    api = ScriptedApi(SECRET, answering(500, {}))
    strange = Target(name="alpha", uid="../../../x?y#z", place=("https://a",))
    with pytest.raises(BackendError):
        await a_source(api).mint(MintRequest(ttl_s=600, target=strange, incarnation=1))
    assert json.loads(api.bodies[0])["metadata"]["name"].removeprefix("milo-discovery-").isalnum()
