"""Requests to the Lease API, and handling of its responses."""

import asyncio
import json
from collections.abc import Mapping, Sequence

import msgspec
import pytest

from milo_discoveryd.daemon_errors import BackendError
from milo_discoveryd.sharding import lease_client, lease_objects
from milo_discoveryd.sharding.lease_client import MAX_PAGES, PAGE_BYTES, ConflictError, LeaseClient
from milo_discoveryd.sharding.lease_objects import GROUP_LABEL, LeaseNames
from milo_discoveryd.sharding.leases import (
    Delete,
    Evict,
    GroupState,
    MemberLease,
    Read,
    Request,
    View,
    WriteLease,
    WriteView,
)
from milo_kube.http.errors import TransportError

NAMES = LeaseNames("operators", "dns")
PATH = "/apis/coordination.k8s.io/v1/namespaces/operators/leases"
LIST = f"{PATH}?labelSelector=discovery.miloapis.com/shard-group=dns&limit={{}}"
NEW = MemberLease(member="a", holder="a.1", term="a.1.1")
VIEW = View(number=1, id="1", members={})
HELD = msgspec.structs.replace(NEW, version="uid/7")


class Answer(msgspec.Struct, frozen=True):
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = {}


class Api:
    """An API that records its requests, and has scripted responses, of which the last is repeated."""

    def __init__(self, *answers: Answer | TransportError) -> None:
        self._answers = [*answers]
        self.asked: list[tuple[str, str]] = []
        self.body = b""

    async def get(
        self, path: str, query: Sequence[tuple[str, str]] = (), *, timeout_s: float, limit: int | None = None
    ) -> Answer:
        return self._answered("GET", path + "?" + "&".join("=".join(pair) for pair in query), b"")

    async def post(self, path: str, body: bytes, *, timeout_s: float) -> Answer:
        return self._answered("POST", path, body)

    async def put(self, path: str, body: bytes, *, timeout_s: float) -> Answer:
        return self._answered("PUT", path, body)

    async def delete(self, path: str, body: bytes, *, timeout_s: float) -> Answer:
        return self._answered("DELETE", path, body)

    def _answered(self, method: str, path: str, body: bytes) -> Answer:
        self.asked.append((method, path))
        self.body = body
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, TransportError):
            raise answer
        return answer


def client(*answers: Answer | TransportError) -> tuple[LeaseClient, Api]:
    api = Api(*answers)
    return LeaseClient(api, NAMES, origin="the cluster", wall=lambda: 0.0), api


def stored(version: str) -> bytes:
    found = json.loads(lease_objects.encode_member(HELD, NAMES, 0.0))
    found["metadata"]["resourceVersion"] = version
    return json.dumps(found).encode()


@pytest.mark.parametrize("items", [b"[]", b"null"])
async def test_lease_client_lists_leases_by_group_label(items: bytes) -> None:
    leases, api = client(Answer(200, b'{"items": %s}' % items))
    assert await leases.read() == GroupState(members={})
    assert api.asked == [("GET", LIST.format(250))]


async def test_lease_client_lists_leases_in_pages() -> None:
    first = {"items": [json.loads(stored("8"))], "metadata": {"continue": "more"}}
    leases, api = client(Answer(200, json.dumps(first).encode()), Answer(200, b'{"items": []}'))
    assert list((await leases.read()).members) == ["a"]
    assert api.asked == [("GET", LIST.format(250)), ("GET", f"{LIST.format(250)}&continue=more")]


async def test_lease_client_requests_smaller_pages_while_a_page_is_too_large() -> None:
    too_large, empty = TransportError("too_large", "too large"), Answer(200, b'{"items": []}')
    leases, api = client(too_large, too_large, empty)
    await leases.read()
    assert api.asked == [("GET", LIST.format(size)) for size in (250, 50, 10)]
    api.asked.clear()
    await leases.read()
    assert api.asked == [("GET", LIST.format(250))], "all Leases fit into one page again"


async def test_lease_client_keeps_the_size_of_pages_while_the_leases_do_not_fit_into_one() -> None:
    junk = json.dumps({"items": [], "junk": "x" * (PAGE_BYTES // 2)}).encode()
    page = json.dumps({"items": [], "metadata": {"continue": "more"}, "junk": "x" * (PAGE_BYTES // 2)}).encode()
    leases, api = client(TransportError("too_large", "too large"), Answer(200, page), Answer(200, junk))
    await leases.read()
    api.asked.clear()
    await leases.read()
    assert api.asked == [("GET", LIST.format(50))]


async def test_lease_client_keeps_the_size_of_pages_that_a_read_has_found_too_late() -> None:
    too_large, late = TransportError("too_large", "too large"), TransportError("timeout", "no time is left")
    leases, api = client(too_large, late, late, Answer(200, b'{"items": []}'))
    for _ in range(2):
        with pytest.raises(BackendError):
            await leases.read()
    assert api.asked == [("GET", LIST.format(size)) for size in (250, 50, 50)]
    await leases.read()
    assert api.asked[-1] == ("GET", LIST.format(250)), "the small pages may be too many"


async def test_lease_client_requests_large_pages_again_after_a_read_with_too_many_small_ones() -> None:
    """Found by a reader: one large Lease, long gone, kept the group from being read until the process was restarted."""
    too_large = [TransportError("too_large", "too large")] * 4
    page = Answer(200, b'{"items": [], "metadata": {"continue": "more"}}')
    leases, api = client(*too_large, *[page] * MAX_PAGES, Answer(200, b'{"items": []}'))
    with pytest.raises(BackendError, match=f"in more than {MAX_PAGES} pages"):
        await leases.read()
    assert api.asked[-1] == ("GET", LIST.format(1) + "&continue=more")
    await leases.read()
    assert api.asked[-1] == ("GET", LIST.format(250))


async def test_lease_that_does_not_fit_into_a_page_is_an_error() -> None:
    leases, api = client(TransportError("too_large", "more than 2097152 bytes"))
    with pytest.raises(BackendError, match="2097152"):
        await leases.read()
    assert api.asked[-1] == ("GET", LIST.format(1))


async def test_list_of_leases_without_an_end_is_an_error() -> None:
    leases, api = client(Answer(200, b'{"items": [], "metadata": {"continue": "more"}}'))
    with pytest.raises(BackendError, match=f"in more than {MAX_PAGES} pages"):
        await leases.read()
    assert len(api.asked) == MAX_PAGES


async def test_lease_request_that_takes_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it waits for a credential, which the timeout of a request does not contain."""
    leases, api = client(Answer(200, b'{"items": []}'))

    async def hang(*_: object, **__: object) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(lease_client, "TIMEOUT_S", 0.01)
    monkeypatch.setattr(api, "get", hang)
    monkeypatch.setattr(api, "put", hang)
    with pytest.raises(BackendError, match=r"the request to list the Leases of shard group dns in .* in 0\.01 s"):
        await leases.read()
    with pytest.raises(BackendError, match=r"the request to write a Lease in namespace operators in 0\.01 s"):
        await leases.write(WriteLease(HELD))


@pytest.mark.parametrize(
    ("request_", "asked", "over"),
    [
        (WriteLease(NEW), ("POST", PATH), None),
        (WriteLease(HELD), ("PUT", f"{PATH}/milo-discovery-dns-a"), ("uid", "7")),
        (Evict(HELD), ("PUT", f"{PATH}/milo-discovery-dns-a"), ("uid", "7")),
        (WriteView(VIEW, ""), ("POST", PATH), None),
        (
            WriteView(View(number=2, id="2", members={}), "uid/3"),
            ("PUT", f"{PATH}/milo-discovery-dns-view"),
            ("uid", "3"),
        ),
    ],
)
async def test_lease_client_write_creates_or_replaces_lease_with_version_precondition(
    request_: Request, asked: tuple[str, str], over: tuple[str, str] | None
) -> None:
    leases, api = client(Answer(201, stored("8")))
    assert await leases.write(request_) == "uid/8"
    assert api.asked == [asked]
    metadata = json.loads(api.body)["metadata"]
    assert (metadata.get("uid"), metadata.get("resourceVersion")) == (over or (None, None))


async def test_lease_client_deletes_lease_with_version_precondition() -> None:
    leases, api = client(Answer(200, b"{}"))
    assert await leases.write(Delete(HELD)) == ""
    assert api.asked == [("DELETE", f"{PATH}/milo-discovery-dns-a")]
    assert api.body == lease_objects.encode_precondition("uid/7")


@pytest.mark.parametrize("status", [404, 409])
async def test_lease_client_write_raises_conflict_if_the_version_has_changed(status: int) -> None:
    with pytest.raises(ConflictError):
        await client(Answer(status))[0].write(WriteLease(HELD))


async def test_lease_client_error_of_a_missing_namespace_names_it() -> None:
    with pytest.raises(
        BackendError, match=r"cannot create a Lease in namespace operators .* does not exist; create it"
    ):
        await client(Answer(404))[0].write(WriteLease(NEW))


async def test_lease_client_error_contains_the_delay_that_the_server_stated() -> None:
    with pytest.raises(BackendError) as caught:
        await client(Answer(429, headers={"Retry-After": "7"}))[0].write(WriteLease(HELD))
    assert caught.value.retry_after_s == 7.0


@pytest.mark.parametrize(
    ("group", "problem"),
    [
        ("dns-a", "the shard group 'dns-a', not to 'dns': choose another sharding.group"),
        ("", f"no shard group, not to 'dns': restore its label {GROUP_LABEL}, or delete the Lease, or choose another"),
    ],
)
async def test_lease_client_reports_the_group_that_owns_the_lease_name(group: str, problem: str) -> None:
    body = {"items": [{"metadata": {"name": "it", "uid": "u", "resourceVersion": "1", "labels": {GROUP_LABEL: group}}}]}
    leases, api = client(Answer(409, json.dumps(body).encode()), Answer(200, json.dumps(body).encode()))
    with pytest.raises(BackendError, match=f"milo-discovery-dns-a belongs to {problem}"):
        await leases.write(WriteLease(NEW))
    assert api.asked[1] == ("GET", f"{PATH}?fieldSelector=metadata.name=milo-discovery-dns-a")


@pytest.mark.parametrize(
    ("request_", "body"),
    [
        (WriteLease(NEW), lease_objects.encode_member(HELD, NAMES, 0.0)),
        (WriteView(VIEW, ""), lease_objects.encode_view(VIEW, "uid/7", NAMES, 0.0)),
    ],
)
async def test_lease_client_replaces_a_lease_of_the_group_whose_label_was_removed(
    request_: Request, body: bytes
) -> None:
    """Found by a reader: the list lacked the Lease, and its name was refused until somebody repaired it."""
    lease = json.loads(body)
    del lease["metadata"]["labels"][GROUP_LABEL]
    unlisted = json.dumps({"items": [lease]}).encode()
    leases, api = client(Answer(409), Answer(200, unlisted), Answer(200, stored("8")))
    assert await leases.write(request_) == "uid/8"
    assert [method for method, _ in api.asked] == ["POST", "GET", "PUT"]
    assert json.loads(api.body) == json.loads(body), "over this version, with the label"
    with pytest.raises(ConflictError):
        await client(Answer(409), Answer(200, unlisted), Answer(409))[0].write(request_)


async def test_lease_client_reports_a_conflict_if_the_lease_was_deleted_meanwhile() -> None:
    leases, _ = client(Answer(409), Answer(200, b'{"items": null}'))
    with pytest.raises(ConflictError):
        await leases.write(WriteLease(NEW))


@pytest.mark.parametrize(
    "answer", [Answer(403), Answer(500), Answer(200, b"{"), TransportError("timeout", "no answer")]
)
async def test_lease_client_failure_raises_backend_error(answer: Answer | TransportError) -> None:
    leases, _ = client(answer)
    with pytest.raises(BackendError):
        await leases.read()
    with pytest.raises(BackendError):
        await leases.write(WriteLease(HELD))


async def test_lease_client_error_of_denied_request_names_the_rbac_rule() -> None:
    with pytest.raises(BackendError, match=r"list Leases in namespace operators .* leases\.coordination\.k8s\.io"):
        await client(Answer(403))[0].read()


async def test_lease_client_write_rejects_a_read_action() -> None:
    with pytest.raises(AssertionError):
        await client(Answer(200))[0].write(Read())
