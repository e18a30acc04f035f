"""Requests to the Lease API, and handling of its responses."""

import json
from collections.abc import Mapping, Sequence

import msgspec
import pytest

from milo_discoveryd.daemon_errors import BackendError
from milo_discoveryd.sharding import lease_objects
from milo_discoveryd.sharding.lease_client import ConflictError, LeaseClient
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
NEW = MemberLease(member="a", holder="a.1", term="a.1.1")
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

    async def get(self, path: str, query: Sequence[tuple[str, str]] = (), *, timeout_s: float) -> Answer:
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


def client(answer: Answer | TransportError, then: Answer | None = None) -> tuple[LeaseClient, Api]:
    api = Api(answer, *(() if then is None else (then,)))
    return LeaseClient(api, NAMES, origin="the cluster", wall=lambda: 0.0), api


def stored(version: str) -> bytes:
    found = json.loads(lease_objects.encode_member(HELD, NAMES, 0.0))
    found["metadata"]["resourceVersion"] = version
    return json.dumps(found).encode()


async def test_lease_client_lists_leases_by_group_label() -> None:
    leases, api = client(Answer(200, b'{"items": []}'))
    assert await leases.read() == GroupState(members={})
    assert api.asked == [("GET", f"{PATH}?labelSelector=discovery.miloapis.com/shard-group=dns")]


@pytest.mark.parametrize(
    ("request_", "asked", "over"),
    [
        (WriteLease(NEW), ("POST", PATH), None),
        (WriteLease(HELD), ("PUT", f"{PATH}/milo-discovery-dns-a"), ("uid", "7")),
        (Evict(HELD), ("PUT", f"{PATH}/milo-discovery-dns-a"), ("uid", "7")),
        (WriteView(View(number=1, id="1", members={}), ""), ("POST", PATH), None),
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


@pytest.mark.parametrize(("group", "whose"), [("dns-a", "the shard group 'dns-a'"), ("", "no shard group")])
async def test_lease_client_reports_the_group_that_owns_the_lease_name(group: str, whose: str) -> None:
    body = {"items": [{"metadata": {"name": "it", "uid": "u", "resourceVersion": "1", "labels": {GROUP_LABEL: group}}}]}
    leases, api = client(Answer(409, json.dumps(body).encode()), then=Answer(200, json.dumps(body).encode()))
    with pytest.raises(BackendError, match=f"milo-discovery-dns-a belongs to {whose}, not to 'dns': choose another"):
        await leases.write(WriteLease(NEW))
    assert api.asked[1] == ("GET", f"{PATH}?fieldSelector=metadata.name=milo-discovery-dns-a")


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
