"""TokenRequest: the tokens of each project are bound to a Secret, and deleting the Secret revokes them."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from milo_discoveryd.credentials.issuers.issuer import MintRequest, RequestingDaemon, RevokingIssuer, Scope
from milo_discoveryd.credentials.issuers.token_request import (
    CLUSTER_ANNOTATION,
    DELETED_LEEWAY_S,
    EXPIRED_AFTER_S,
    ROTATE_AFTER_S,
    RUN_LABEL,
    RequestedTokens,
    TokenRequestIssuer,
)
from milo_discoveryd.daemon_errors import BackendError
from milo_discoveryd.model.cluster import Target
from milo_discoveryd.watchers.transport import Transport
from milo_kube.credential import CredentialError, Secret
from milo_kube.http.errors import TransportError
from milo_kube.list_pages import MAX_PAGES
from milo_kube.upstream import load_kubeconfig
from milo_sandbox import Rule, Sandbox
from milo_sandbox.refusals import RefusalError
from tests.support.eventually import LIMIT_S, eventually
from tests.support.logs import capture_logs
from tests.unit.credentials.backend import ALPHA, Answer, ScriptedApi, answering, engaged
from tests.unit.credentials.tokens import CANARY, jwt

BETA = Target(name="beta", uid="uid-beta", place=("https://milo.test/beta",))
IN_OTHER_SOURCE = msgspec.structs.replace(ALPHA, name="eu#alpha", source="eu")
WANTED = MintRequest(ttl_s=900, cluster=engaged())
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
    async with aclosing(Transport(load_kubeconfig(path), environ={})) as transport:
        yield transport


def a_source(api: object, **differing: object) -> TokenRequestIssuer:
    """Return an issuer; `differing` overrides fields of RequestedTokens and RequestingDaemon, or the clock."""
    tokens, daemon = {"namespace": "milo", "service_account": "operators"}, {"run": "r"}
    for struct, given in ((RequestedTokens, tokens), (RequestingDaemon, daemon)):
        given.update({key: differing.pop(key) for key in struct.__struct_fields__ if key in differing})
    return TokenRequestIssuer(
        "requested",
        api,
        origin="test",
        tokens=RequestedTokens(**tokens),
        daemon=RequestingDaemon(**daemon),
        **differing,
    )


async def test_token_is_for_service_account_and_bound_to_secret(sandbox: Sandbox, api: Transport) -> None:
    source = a_source(api)
    assert (source.scope, isinstance(source, RevokingIssuer)) == (Scope.CLUSTER, True)
    minted = await source.mint(WANTED)
    assert minted.credential.token is not None
    assert sandbox.tokens.subject(minted.credential.token.reveal()) == SUBJECT
    assert 890 < minted.expires_at - time.time() <= 900
    assert len(sandbox.infrastructure.secret_names()) == 1


async def test_token_lifetime_is_at_least_ten_minutes(api: Transport) -> None:
    minted = await a_source(api).mint(MintRequest(ttl_s=10, cluster=engaged()))
    assert 590 < minted.expires_at - time.time() <= 600


async def test_revocation_invalidates_every_token_of_the_project(sandbox: Sandbox, api: Transport) -> None:
    source = a_source(api)
    tokens = [(await source.mint(WANTED)).credential.token for _ in range(2)]
    await source.revoke(engaged())
    assert not sandbox.infrastructure.secret_names()
    for token in tokens:
        assert token is not None
        with pytest.raises(RefusalError, match="Unauthorized"):
            sandbox.tokens.subject(token.reveal())


async def test_revocation_is_idempotent(api: Transport) -> None:
    source = a_source(api)
    await source.revoke(engaged())
    await source.revoke(engaged())


async def test_credential_request_after_revocation_creates_no_secret(sandbox: Sandbox, api: Transport) -> None:
    source = a_source(api)
    await source.revoke(engaged())
    with pytest.raises(BackendError, match="was disengaged before its credential was issued"):
        await source.mint(WANTED)
    assert not sandbox.infrastructure.secret_names()


async def test_revocation_for_former_incarnation_keeps_tokens_of_next_incarnation(
    sandbox: Sandbox, api: Transport
) -> None:
    source = a_source(api)
    old = (await source.mint(WANTED)).credential.token
    new = (await source.mint(MintRequest(ttl_s=900, cluster=engaged(ALPHA, 2)))).credential.token
    await source.revoke(engaged())  # a late revocation must not end the tokens of the next incarnation
    assert old is not None
    assert new is not None
    assert sandbox.tokens.subject(new.reveal()) == SUBJECT
    with pytest.raises(RefusalError):
        sandbox.tokens.subject(old.reveal())


async def test_revocation_after_restart_with_same_run_id_includes_earlier_tokens(
    sandbox: Sandbox, api: Transport
) -> None:
    before = (await a_source(api).mint(WANTED)).credential.token
    after = a_source(api)
    await after.mint(MintRequest(ttl_s=900, cluster=engaged(ALPHA, 7)))
    assert before is not None
    assert sandbox.tokens.subject(before.reveal()) == SUBJECT, "a restart revokes nothing"
    await after.revoke(engaged(ALPHA, 7))
    assert not sandbox.infrastructure.secret_names()


async def test_daemons_that_share_a_service_account_do_not_revoke_each_others_tokens(
    sandbox: Sandbox, api: Transport
) -> None:
    one, other = a_source(api, run="one"), a_source(api, run="other")
    await one.mint(WANTED)
    theirs = (await other.mint(WANTED)).credential.token
    assert theirs is not None
    for incarnation in (1, 2, 3):
        await one.mint(MintRequest(ttl_s=900, cluster=engaged(ALPHA, incarnation)))
        await one.revoke(engaged(ALPHA, incarnation))
    assert sandbox.tokens.subject(theirs.reveal()) == SUBJECT
    await other.revoke(engaged())
    assert not sandbox.infrastructure.secret_names()


async def test_objects_that_claim_the_same_project_do_not_share_a_secret(sandbox: Sandbox, api: Transport) -> None:
    source = a_source(api)
    ours = (await source.mint(MintRequest(ttl_s=900, cluster=engaged(ALPHA, 1, object_uid="bank")))).credential.token
    await source.mint(MintRequest(ttl_s=900, cluster=engaged(ALPHA, 2, object_uid="shop")))
    await source.revoke(engaged(ALPHA, 2, object_uid="shop"))
    assert ours is not None
    assert sandbox.tokens.subject(ours.reveal()) == SUBJECT


async def test_sources_that_share_an_object_do_not_revoke_each_others_tokens(sandbox: Sandbox, api: Transport) -> None:
    """Objects of two sources have one UID: the sources follow one API server, or a server copies the UID of another."""
    source = a_source(api)
    clusters = [engaged(ALPHA, 1), engaged(IN_OTHER_SOURCE, 2)]
    assert clusters[0].object_uid == clusters[1].object_uid
    ours, theirs = [
        (await source.mint(MintRequest(ttl_s=900, cluster=cluster))).credential.token for cluster in clusters
    ]
    assert (_is_accepted(sandbox, ours), _is_accepted(sandbox, theirs)) == (True, True)
    await source.revoke(clusters[1])
    assert (_is_accepted(sandbox, ours), _is_accepted(sandbox, theirs)) == (True, False)


async def test_secret_is_deleted_with_its_uid_as_precondition() -> None:
    kept = {"metadata": {"name": "s", "uid": "s1", "creationTimestamp": "2020-01-01T00:00:00Z"}}
    api = ScriptedApi(answering(200, {"items": [kept]}), answering(409, {}))
    await a_source(api).revoke(engaged())  # a conflict means that a new Secret has this name
    assert api.asked[-1] == ("DELETE", "/api/v1/namespaces/milo/secrets/s")
    assert json.loads(api.bodies[-1])["preconditions"] == {"uid": "s1"}


async def test_secret_is_replaced_after_a_day(sandbox: Sandbox, api: Transport) -> None:
    now = time.time()
    source = a_source(api, clock=lambda: now)
    await source.mint(WANTED)
    now += ROTATE_AFTER_S
    with suppress(CredentialError):  # by this clock, the server's tokens are expired already
        await source.mint(WANTED)
    assert len(sandbox.infrastructure.secret_names()) == 2


async def test_old_secrets_of_any_run_are_deleted_after_two_days(
    sandbox: Sandbox, api: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as then:
        created_at = datetime.now(UTC) - timedelta(seconds=EXPIRED_AFTER_S + 60.0)
        then.setattr(sandbox.infrastructure.api.store, "_clock", lambda: created_at)
        await a_source(api, run="gone").mint(WANTED)
        await a_source(api).mint(WANTED)
    old = {*sandbox.infrastructure.secret_names()}
    assert len(old) == 2
    await a_source(api).mint(WANTED)
    await eventually(lambda: not old & {*sandbox.infrastructure.secret_names()})
    assert len(sandbox.infrastructure.secret_names()) == 1


async def test_daemon_with_a_wrong_clock_deletes_no_secret_of_others(sandbox: Sandbox, api: Transport) -> None:
    """Found by a reader: a daemon whose clock was days ahead revoked the tokens of all daemons in the namespace."""
    theirs = (await a_source(api, run="other").mint(WANTED)).credential.token
    ours = a_source(api, clock=lambda: time.time() + 2 * EXPIRED_AFTER_S)
    with pytest.raises(CredentialError, match="check this machine's clock"):
        await ours.mint(WANTED)
    await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name().startswith("clean up at")))
    assert _is_accepted(sandbox, theirs)


@pytest.mark.parametrize("error", [None, ZeroDivisionError()])
async def test_mints_do_not_wait_for_the_deletion_of_old_secrets(error: Exception | None) -> None:
    cleans = asyncio.Event()

    class CleaningApi(ScriptedApi):
        async def get(self, path: str, query: Iterable[tuple[str, str]] = (), *, timeout_s: float) -> Answer:
            cleans.set()
            if error is not None:
                raise error
            await asyncio.Event().wait()
            raise AssertionError

    token = given({"token": jwt(exp=4102444800, sub=SUBJECT), "expirationTimestamp": ENDS})
    source = a_source(CleaningApi(SECRET, token, token), clock=lambda: 4102444800.0 - 900)
    with capture_logs() as logs:
        for _ in range(2):
            async with asyncio.timeout(LIMIT_S):
                assert await source.mint(WANTED)
                await cleans.wait()
    failures = [entry["event"] for entry in logs if entry["log_level"] == "error"]
    assert failures == ([] if error is None else ["old Secrets not deleted"])


async def test_old_secret_that_cannot_be_deleted_keeps_no_others() -> None:
    old = [{"metadata": {"name": name, "uid": name, "creationTimestamp": "2020-01-01T00:00:00Z"}} for name in "ab"]
    token = given({"token": jwt(exp=4102444800, sub=SUBJECT), "expirationTimestamp": ENDS})
    listed = answering(200, {"items": old})
    api = ScriptedApi(SECRET, token, listed, answering(403, {}), answering(200, {}))
    await a_source(api, clock=lambda: 4102444800.0 - 900).mint(WANTED)
    await eventually(lambda: [path[-1] for method, path in api.asked if method == "DELETE"] == ["a", "b"])


async def test_revocation_deletes_secrets_of_all_list_pages() -> None:
    kept = [{"metadata": {"name": name, "uid": name, "creationTimestamp": "2020-01-01T00:00:00Z"}} for name in "ab"]
    first = answering(200, {"metadata": {"continue": "more"}, "items": kept[:1]})
    api = ScriptedApi(first, answering(200, {"items": kept[1:]}), answering(200, {}), answering(200, {}))
    await a_source(api).revoke(engaged())
    assert [path.rpartition("/")[2] for method, path in api.asked if method == "DELETE"] == ["a", "b"]


async def test_endless_list_of_secrets_is_an_error() -> None:
    endless = answering(200, {"metadata": {"continue": "more"}, "items": []})
    api = ScriptedApi(*[endless] * (MAX_PAGES + 1))
    with pytest.raises(BackendError, match="the list did not end in 2000 pages"):
        await a_source(api).revoke(engaged())
    assert len(api.asked) == MAX_PAGES


async def test_deleted_secret_is_created_again(sandbox: Sandbox, api: Transport) -> None:
    source = a_source(api)
    await source.mint(WANTED)
    (name,) = sandbox.infrastructure.secret_names()
    await api.delete(f"/api/v1/namespaces/milo/secrets/{name}", b"{}", timeout_s=5)
    with pytest.raises(BackendError, match="the Secret no longer exists"):
        await source.mint(WANTED)
    minted = await source.mint(WANTED)
    assert minted.credential.token is not None
    assert sandbox.tokens.subject(minted.credential.token.reveal()) == SUBJECT


async def test_unbound_token_has_identity_scope_and_no_secret(sandbox: Sandbox, api: Transport) -> None:
    source = a_source(api, bound=False)
    assert source.scope is Scope.IDENTITY
    await source.mint(MintRequest(ttl_s=600))
    assert not sandbox.infrastructure.secret_names()


async def test_revoked_tokens_are_invalid_after_requests_and_revocations_in_a_random_order(
    sandbox: Sandbox, api: Transport
) -> None:
    """Incarnations of one project start and end while tokens for them are requested."""
    source, chance = a_source(api), random.Random(1)
    given: dict[int, list[str]] = {}

    async def mint(incarnation: int) -> None:
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        try:
            minted = await source.mint(MintRequest(ttl_s=600, cluster=engaged(ALPHA, incarnation)))
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
            await source.revoke(engaged(ALPHA, incarnation))
    assert given
    assert not sandbox.infrastructure.secret_names()
    for tokens in given.values():
        for token in tokens:
            with pytest.raises(RefusalError):
                sandbox.tokens.subject(token)


async def test_token_request_without_permission_suggests_the_rbac_rule(sandbox: Sandbox, tmp_path: Path) -> None:
    rules = [Rule(verbs=frozenset({"create", "list", "delete"}), resources=frozenset({"secrets"}))]
    path = tmp_path / "limited"
    path.write_text(json.dumps(sandbox.infrastructure_kubeconfig(token=sandbox.token("limited", rules=rules))))
    async with aclosing(Transport(load_kubeconfig(path), environ={})) as transport:
        with pytest.raises(BackendError, match=r"create serviceaccounts/token, resourceNames \[operators\]"):
            await a_source(transport).mint(WANTED)


def given(status: dict[str, object]) -> Answer:
    return answering(201, {"kind": "TokenRequest", "status": status})


LISTED = answering(200, {"items": []})
SECRET = answering(201, {"metadata": {"name": "s", "uid": "s1", "creationTimestamp": "2020-01-01T00:00:00Z"}})
CREATE_SECRET = ("POST", "/api/v1/namespaces/milo/secrets")
ENDS = "2100-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([TransportError("connect", "milo cannot be reached")], "cannot be reached"),
        ([answering(403, {"message": CANARY})], "create, list and delete secrets in namespace milo"),
        ([answering(500, {"message": CANARY})], "answered 500"),
        ([Answer(201, CANARY.encode())], "is not a Kubernetes object"),
        ([SECRET, answering(404, {})], "the service account does not exist"),
        ([SECRET, answering(409, {})], "answered 409"),
        ([SECRET, answering(429, {}, **{"Retry-After": "3"})], "answered 429"),
        ([SECRET, Answer(201, b"<html>")], "is not a Kubernetes object"),
        ([SECRET, given({"token": CANARY})], "is not a Kubernetes object"),
        ([SECRET, given({"token": CANARY, "expirationTimestamp": "soon"})], "is not a Kubernetes object"),
        ([SECRET, given({"token": CANARY, "expirationTimestamp": ENDS})], "are issued"),
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
async def test_failed_token_request_is_reported_without_quoting_the_response(
    answers: list[Answer | TransportError], expected: str
) -> None:
    with pytest.raises(CredentialError) as raised:
        await a_source(ScriptedApi(*answers), audiences=["milo"]).mint(WANTED)
    assert expected in str(raised.value)
    assert CANARY not in str(raised.value)


@pytest.mark.parametrize("bound", [True, False])
async def test_error_from_server_without_token_request_api_contains_the_cause(bound: bool) -> None:
    answers = [SECRET] if bound else []
    source = a_source(ScriptedApi(*answers, answering(404, {})), bound=bound)
    with pytest.raises(BackendError, match="Milo's own API server serves no TokenRequest"):
        await source.mint(WANTED if bound else MintRequest(ttl_s=900))


def not_found(kind: str, name: str) -> Answer:
    return answering(404, {"kind": "Status", "reason": "NotFound", "details": {"kind": kind, "name": name}})


@pytest.mark.parametrize("answer", [not_found("serviceaccounts", "operators"), Answer(404, b"404 page not found\n")])
async def test_retry_of_token_request_without_service_account_creates_no_further_secret(answer: Answer) -> None:
    api = ScriptedApi(SECRET, answer, answer)
    source = a_source(api)
    for _ in range(2):
        with pytest.raises(BackendError, match="the service account does not exist") as raised:
            await source.mint(WANTED)
        assert not raised.value.of_cluster
    assert api.asked.count(CREATE_SECRET) == 1


async def test_bound_secret_recreated_with_another_uid_is_replaced() -> None:
    api = ScriptedApi(SECRET, answering(500, {}))
    source = a_source(api)
    with pytest.raises(BackendError, match="answered 500"):
        await source.mint(WANTED)
    name = json.loads(api.bodies[0])["metadata"]["name"]
    conflict = answering(409, {"kind": "Status", "reason": "Conflict", "details": {"kind": "Secret", "name": name}})
    api.answers.extend([conflict, SECRET, answering(500, {})])
    with pytest.raises(BackendError, match="the Secret no longer exists"):
        await source.mint(WANTED)
    with pytest.raises(BackendError, match="answered 500"):
        await source.mint(WANTED)
    assert api.asked.count(CREATE_SECRET) == 2


async def test_failed_revocation_is_reported_and_can_be_repeated() -> None:
    api = ScriptedApi(answering(500, {}), LISTED)
    source = a_source(api)
    with pytest.raises(BackendError, match="answered 500"):
        await source.revoke(engaged())
    await source.revoke(engaged())


async def test_bound_secret_name_is_safe_for_hostile_uid() -> None:
    api = ScriptedApi(SECRET, answering(500, {}))
    strange = Target(name="alpha", uid="../../../x?y#z", place=("https://a",))
    with pytest.raises(BackendError):
        await a_source(api).mint(MintRequest(ttl_s=600, cluster=engaged(strange)))
    assert json.loads(api.bodies[0])["metadata"]["name"].replace("-", "").isalnum()


async def test_member_revokes_tokens_that_other_members_issued_for_its_clusters(
    sandbox: Sandbox, api: Transport
) -> None:
    former = a_source(api, run="1", group="ops", member="operator-0")
    tokens = [(await former.mint(MintRequest(ttl_s=900, cluster=engaged(of)))).credential.token for of in (ALPHA, BETA)]
    other_group = (await a_source(api, run="2", group="other").mint(WANTED)).credential.token
    no_group = (await a_source(api, run="3").mint(WANTED)).credential.token
    member = a_source(api, run="4", group="ops", member="operator-1")
    own = (await member.mint(WANTED)).credential.token
    await member.revoke_others(lambda name: name == ALPHA.name)
    assert [_is_accepted(sandbox, token) for token in (*tokens, other_group, no_group, own)] == [
        False, True, True, True, True,
    ]  # fmt: skip


def of_another_run(*clusters: str) -> Answer:
    """Return a list of Secrets that another run made for these clusters."""
    metadata = {"creationTimestamp": "2020-01-01T00:00:00Z", "labels": {RUN_LABEL: "gone"}}
    found = [{**metadata, "name": name, "uid": name, "annotations": {CLUSTER_ANNOTATION: name}} for name in clusters]
    return answering(200, {"items": [{"metadata": each} for each in found]})


async def test_token_whose_revocation_is_refused_keeps_no_others_of_other_members() -> None:
    api = ScriptedApi(of_another_run("alpha", "beta"), answering(403, {}), answering(200, {}))
    refused = await a_source(api, group="ops", member="operator-1").revoke_others(lambda _: True)
    assert [*refused] == ["alpha"]
    assert "denied the request to delete the Secret" in str(refused["alpha"])
    assert [path.rpartition("/")[2] for method, path in api.asked if method == "DELETE"] == ["alpha", "beta"]


async def test_secret_whose_deletion_is_not_answered_keeps_no_others_of_other_members() -> None:
    silent = TransportError("timeout", "the webhook does not answer")
    api = ScriptedApi(of_another_run("alpha", "beta", "gamma"), silent, answering(200, {}), answering(200, {}))
    refused = await a_source(api, group="ops", member="operator-1").revoke_others(lambda _: True)
    assert [*refused] == ["alpha"]
    assert {path.rpartition("/")[2] for method, path in api.asked if method == "DELETE"} == {"alpha", "beta", "gamma"}


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (answering(200, {"metadata": {"name": "alpha", "deletionTimestamp": "2026-01-01T00:00:00Z"}}), "finalizers"),
        (Answer(404, b"<html>404 page not found</html>"), "answered 404"),
        (answering(409, {"reason": "Conflict", "message": "a webhook refused it"}), "answered 409"),
    ],
)
async def test_secret_that_may_remain_after_its_deletion_is_not_revoked(answer: Answer, problem: str) -> None:
    deleted_at = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    api = ScriptedApi(of_another_run("alpha", "beta"), answer, answering(200, {"kind": "Status", "metadata": {}}))
    issuer = a_source(api, group="ops", member="operator-1", clock=lambda: deleted_at + 60.0)
    refused = await issuer.revoke_others(lambda _: True)
    assert [*refused] == ["alpha"]
    assert problem in str(refused["alpha"])


@pytest.mark.parametrize(
    "answer",
    [
        answering(200, {"metadata": {"name": "alpha", "deletionTimestamp": "2026-01-01T00:00:00Z"}}),
        answering(404, {"kind": "Status", "reason": "NotFound", "details": {"name": "alpha", "kind": "secrets"}}),
    ],
)
async def test_secret_that_was_deleted_long_ago_or_is_gone_is_revoked(answer: Answer) -> None:
    """A finalizer that is never removed keeps no cluster without an owner."""
    deleted_at = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    issuer = a_source(
        ScriptedApi(of_another_run("alpha"), answer),
        group="ops",
        member="operator-1",
        clock=lambda: deleted_at + DELETED_LEEWAY_S,
    )
    assert await issuer.revoke_others(lambda _: True) == {}


async def test_secret_whose_deletion_hangs_delays_no_others_of_other_members() -> None:
    api = ScriptedApi(of_another_run("alpha", "beta"), answering(200, {}))
    hanging, waits = asyncio.Event(), [asyncio.Event().wait]

    async def wait() -> None:
        if waits:
            hanging.set()
            await waits.pop()()

    api.before_deletions = wait
    revoking = asyncio.create_task(a_source(api, group="ops", member="operator-1").revoke_others(lambda _: True))
    await hanging.wait()
    await eventually(lambda: [path.rpartition("/")[2] for method, path in api.asked if method == "DELETE"] == ["beta"])
    revoking.cancel()


async def test_secrets_of_clusters_of_other_members_are_skipped_with_turns_for_other_tasks() -> None:
    """Found by a reader: with 20,000 Secrets and 200 members, the event loop did nothing else for 5 s."""
    api, turns = ScriptedApi(of_another_run(*map(str, range(100)))), [0]

    async def count() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    def covers(_: str) -> bool:
        decided_at.append(turns[0])
        return False

    decided_at: list[int] = []
    counting = asyncio.create_task(count())
    assert await a_source(api, group="ops", member="operator-1").revoke_others(covers) == {}
    counting.cancel()
    assert len(decided_at) == 100
    assert max(map(decided_at.count, decided_at)) < 20


async def test_revocation_for_other_members_ends_when_the_server_cannot_be_reached() -> None:
    api = ScriptedApi(of_another_run("alpha", "beta"), *[TransportError("connect", "refused")] * 2)
    with pytest.raises(BackendError, match="refused"):
        await a_source(api, group="ops", member="operator-1").revoke_others(lambda _: True)


async def test_secret_of_another_member_is_not_deleted_once_that_is_not_permitted() -> None:
    api, permitted = ScriptedApi(of_another_run("alpha")), {"alpha"}

    async def wait_for_connection() -> None:
        permitted.clear()

    api.before_deletions = wait_for_connection
    assert await a_source(api, group="ops", member="operator-1").revoke_others(permitted.__contains__) == {}
    assert [method for method, _ in api.asked] == ["GET"]


async def test_unexpected_error_of_a_secret_keeps_no_others_of_other_members() -> None:
    api, failures = ScriptedApi(of_another_run("alpha", "beta"), answering(200, {})), [ZeroDivisionError()]

    async def fail() -> None:
        if failures:
            raise failures.pop()

    api.before_deletions = fail
    with capture_logs() as logs:
        refused = await a_source(api, group="ops", member="operator-1").revoke_others(lambda _: True)
    assert [*refused] == ["alpha"]
    assert [entry["log_level"] for entry in logs] == ["error"]
    assert [path.rpartition("/")[2] for method, path in api.asked if method == "DELETE"] == ["beta"]


async def test_list_of_secrets_without_items_is_empty() -> None:
    api = ScriptedApi(answering(200, {"items": None}))
    assert await a_source(api, group="ops", member="operator-1").revoke_others(lambda _: True) == {}


@pytest.mark.parametrize(("status", "most"), [(401, 8), (429, 16), (503, 16)])
async def test_revocation_for_other_members_ends_when_the_server_refuses_the_daemon(status: int, most: int) -> None:
    api = ScriptedApi(of_another_run(*map(str, range(100))), *[answering(status, {})] * 100)
    with pytest.raises(BackendError, match=str(status)):
        await a_source(api, group="ops", member="operator-1").revoke_others(lambda _: True)
    assert len([method for method, _ in api.asked if method == "DELETE"]) <= most


@pytest.mark.parametrize("status", [429, 503])
async def test_secret_whose_deletion_is_always_throttled_keeps_no_others_of_other_members(status: int) -> None:
    names = [str(number) for number in range(20)]
    api = ScriptedApi(of_another_run(*names), answering(status, {}), *[answering(200, {})] * 19)
    refused = await a_source(api, group="ops", member="operator-1").revoke_others(lambda _: True)
    assert len(refused) == 1
    assert len([method for method, _ in api.asked if method == "DELETE"]) == 20


async def test_bound_secret_is_named_after_the_member_and_the_cluster_identity(
    sandbox: Sandbox, api: Transport
) -> None:
    source = a_source(api, group="ops", member="operator-0")
    await source.mint(MintRequest(ttl_s=900, cluster=engaged(ALPHA, 7)))
    await source.mint(MintRequest(ttl_s=900, cluster=engaged(IN_OTHER_SOURCE, 8)))
    names = sandbox.infrastructure.secret_names()
    assert all(name.startswith("milo-discovery-operator-0-") for name in names)
    assert len({name.rpartition("-")[0] for name in names}) == 2


def _is_accepted(sandbox: Sandbox, token: Secret | None) -> bool:
    assert token is not None
    with suppress(RefusalError):
        return sandbox.tokens.subject(token.reveal()) == SUBJECT
    return False
