"""Validators and mutators: reviews by the kit, and by a sandbox that calls them as Milo does."""

import asyncio
import base64
import os
import socket
import ssl
import sys
import threading
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
import yaml
from click.testing import CliRunner, Result

from milo_controllers import Controllers, Deny, Kind, Review, SingleCluster, WebhookServer
from milo_controllers.admission_review import project_fields
from milo_controllers.testing import ReviewFailed, ReviewResult, send_review
from milo_controllers.webhook_command import webhooks
from milo_controllers.webhook_registration import configurations, differences
from milo_controllers.webhook_server import serve_webhooks
from milo_discovery import DiscoveryClient, Fleet
from milo_discovery.errors import Unavailable
from milo_discovery.testing import ControlPlane, FakeDiscovery, MiloSandbox, RefusedError, eventually
from milo_kube.http.headers import Headers
from milo_kube.http.server import ServerRequest
from tests.support.eventually import LIMIT_S

from .widgets import WIDGETS, widget, with_widgets

VALIDATING = "admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
MUTATING = "admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        found: int = listening.getsockname()[1]
        return found


class Spec(msgspec.Struct):
    size: int = 1


class Widget(msgspec.Struct):
    spec: Spec = msgspec.field(default_factory=Spec)


def too_large(review: Review) -> None:
    size = review.object["spec"].get("size", 0)
    if size > 5:
        raise Deny(f"at most 5 in {review.cluster.name}", field="spec.size")
    if size > 3:
        review.warn("more than 3 are slow")


@pytest.fixture
def controllers(plane: ControlPlane) -> Iterator[Controllers]:
    made = Controllers(Fleet(FakeDiscovery(plane)))
    yield made
    made.webhooks.close()


async def reviewed(controllers: Controllers, plane: ControlPlane, size: int = 1, **more: Any) -> ReviewResult:
    return await send_review(controllers, WIDGETS, widget("one", size=size), project=plane.project, **more)


async def failure(controllers: Controllers, plane: ControlPlane, caplog: pytest.LogCaptureFixture) -> str:
    """Return the log of a review that fails. The API server shows the answer to its user, a tenant."""
    with pytest.raises(ReviewFailed, match=r"^500: validate widgets: its function failed$"):
        await reviewed(controllers, plane)
    return caplog.text


async def test_plain_and_async_validators_allow_warn_and_deny(plane: ControlPlane) -> None:
    async def validator(review: Review) -> None:
        too_large(review)

    for function in (too_large, validator):
        controllers = Controllers(Fleet(FakeDiscovery(plane)))
        controllers.validate(WIDGETS)(function)
        assert await reviewed(controllers, plane) == ReviewResult(allowed=True, object=widget("one", size=1))
        assert (await reviewed(controllers, plane, 4)).warnings == ("more than 3 are slow",)
        denied = await reviewed(controllers, plane, 6)
        assert (denied.allowed, denied.code, denied.field) == (False, 422, "spec.size")
        assert denied.message == f"spec.size: at most 5 in {plane.project}"
        controllers.webhooks.close()


async def test_mutator_changes_a_typed_object_and_keeps_fields_that_the_type_lacks(
    controllers: Controllers, plane: ControlPlane
) -> None:
    @controllers.mutate(Kind(WIDGETS, Widget))
    async def enlarge(review: Review[Widget]) -> None:
        review.object.spec.size += 1

    @controllers.validate(WIDGETS)
    def check(review: Review) -> None:
        assert review.object["spec"]["size"] == 2

    body = widget("one", size=1)
    body["spec"]["color"] = "red"
    result = await send_review(controllers, WIDGETS, body, project=plane.project)
    assert result.object == {**body, "spec": {"size": 2, "color": "red"}}


@pytest.mark.parametrize(
    "kind",
    [
        Kind("v1/configmaps", selector="app=web"),
        Kind("v1/configmaps", field_selector="metadata.name=web"),
        Kind("v1/configmaps", namespace="web"),
    ],
    ids=lambda kind: str(kind.key),
)
def test_webhook_of_a_kind_with_selectors_is_refused(controllers: Controllers, kind: Kind[Any]) -> None:
    for register in (controllers.validate, controllers.mutate):
        with pytest.raises(ValueError, match=r"is called for all v1/configmaps, not only .*web\)"):
            register(kind)


async def test_mutator_of_metadata_keeps_the_other_fields(controllers: Controllers, plane: ControlPlane) -> None:
    @controllers.mutate(Kind(WIDGETS, metadata_only=True))
    async def label(review: Review) -> None:
        review.object["metadata"]["labels"] = {"a": "b"}

    body = widget("one", size=1)
    result = await send_review(controllers, WIDGETS, body, project=plane.project)
    assert result.object == {**body, "metadata": {**body["metadata"], "labels": {"a": "b"}}}


async def test_unknown_project_and_the_core_are_an_explicit_case(controllers: Controllers, plane: ControlPlane) -> None:
    calls: list[str] = []
    for unknown in ("allow", "deny"):
        controllers.validate(WIDGETS, unknown=unknown, name=unknown)(lambda review: calls.append(review.name))  # type: ignore[call-overload]
    for project, why in (("nowhere", "project nowhere is not engaged"), ("", "the core API is no project")):
        result = await send_review(controllers, WIDGETS, widget("one"), project=project)
        assert (result.allowed, result.code) == (False, 403)
        assert why in result.message
    assert calls == []
    assert (await reviewed(controllers, plane)).allowed
    assert calls == ["one", "one"]


async def test_validator_gets_both_states_the_operation_and_the_user(
    controllers: Controllers, plane: ControlPlane
) -> None:
    seen: list[Review] = []
    controllers.validate(WIDGETS, operations=["UPDATE", "DELETE"])(seen.append)
    await reviewed(controllers, plane)
    assert seen == []
    await reviewed(controllers, plane, 2, old=widget("one", size=1), username="alice", dry_run=True)
    await send_review(controllers, WIDGETS, old=widget("one"), project=plane.project)
    update, delete = seen
    assert (update.operation, update.user.username, update.dry_run) == ("UPDATE", "alice", True)
    assert update.old is not None
    assert update.old["spec"]["size"] == 1
    assert (delete.operation, delete.object, delete.name) == ("DELETE", delete.old, "one")
    assert (update.cluster.name, update.engaged) == (plane.project, None)  # nothing runs that could engage it


async def test_stored_object_that_the_type_refuses_can_be_repaired_and_end(
    controllers: Controllers, plane: ControlPlane
) -> None:
    calls: list[Any] = []

    @controllers.validate(Kind(WIDGETS, Widget), operations=["CREATE", "UPDATE", "DELETE"])
    async def check(review: Review[Widget]) -> None:
        calls.append((review.operation, review.object.spec.size, review.old))

    @controllers.mutate(Kind(WIDGETS, Widget))
    async def enlarge(review: Review[Widget]) -> None:
        review.object.spec.size += 1

    async def sent(new: object, old: object) -> ReviewResult:
        return await send_review(controllers, WIDGETS, new, old=old, project=plane.project)

    wrong = widget("one", size="five")
    assert (await sent(widget("one", size=1), wrong)).allowed
    assert calls == [("UPDATE", 2, None)]
    for refused, what in ((await sent(wrong, wrong), ""), (await sent(None, wrong), "stored object: update it first")):
        assert (refused.allowed, refused.code) == (False, 400)
        assert refused.message.startswith("not a valid widgets: Expected `int`, got `str` - at `$.spec.size`")
        assert refused.message.endswith(what)
    wrong["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    without_finalizers = await sent(wrong, {**wrong, "metadata": {**wrong["metadata"], "finalizers": ["a/b"]}})
    assert (without_finalizers.allowed, without_finalizers.object) == (True, wrong)
    assert without_finalizers.warnings[-1] == "not checked by widgets: one is stored with invalid fields"
    valid = {**wrong, "spec": {"size": 1}}
    assert not (await sent(wrong, valid)).allowed
    assert len(calls) == 1


async def test_failing_validator_fails_its_review_alone(
    controllers: Controllers, plane: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    @controllers.validate(WIDGETS)
    def broken(review: Review) -> None:
        if review.name == "one":
            raise ZeroDivisionError("by a size of 0")

    log = await failure(controllers, plane, caplog)
    assert "validate widgets: its function failed: ZeroDivisionError: by a size of 0" in log
    assert "Traceback" in log
    assert (await send_review(controllers, WIDGETS, widget("two"), project=plane.project)).allowed


@pytest.mark.parametrize(
    "error",
    [ValueError("no number"), TimeoutError("of a quota server"), Unavailable("of another daemon", code="UNAVAILABLE")],
    ids=repr,
)
async def test_error_of_a_validator_is_logged_as_its_own_whatever_its_type(
    controllers: Controllers, plane: ControlPlane, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    @controllers.validate(WIDGETS)
    async def broken(_: Review) -> None:
        raise error

    log = await failure(controllers, plane, caplog)
    assert f"validate widgets: its function failed: {type(error).__name__}: {error}" in log
    assert "Traceback" in log


async def test_tenant_is_not_shown_why_its_project_cannot_be_looked_up(
    controllers: Controllers, plane: ControlPlane, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    controllers.validate(WIDGETS)(too_large)

    async def refused(*_: object) -> None:
        raise Unavailable("discovery.internal:7443 refused the connection", code="UNAVAILABLE")

    monkeypatch.setattr("milo_controllers.webhooks._ProjectLookUps.cluster", refused)
    with pytest.raises(ReviewFailed, match=r"^503: validate widgets: the project cannot be looked up$"):
        await reviewed(controllers, plane)
    assert "discovery.internal" in caplog.text


async def test_validator_that_a_task_of_its_own_cancels_fails_its_review(
    controllers: Controllers, plane: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    @controllers.validate(WIDGETS)
    async def canceled(_: Review) -> None:
        raise asyncio.CancelledError

    assert "the review was canceled, but not by its server" in await failure(controllers, plane, caplog)


async def test_review_of_the_deletion_of_a_collection_has_the_name_of_its_object(
    controllers: Controllers, plane: ControlPlane
) -> None:
    names: list[str] = []

    @controllers.validate(WIDGETS, operations=["CREATE", "DELETE"])
    def keep(review: Review) -> None:
        names.append(review.name)

    sent = {"uid": "1", "userInfo": {"extra": project_fields(plane.project)}, "name": ""}
    for change in (
        {"operation": "DELETE", "oldObject": widget("one")},
        {"operation": "CREATE", "object": {"metadata": {"generateName": "one-"}}},
        {"operation": "CREATE", "object": {"metadata": {"name": None}}},
    ):
        review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {**sent, **change}}
        body = msgspec.json.encode(review)
        request = ServerRequest(path="/validate/widgets", query={}, headers=Headers(), peer="", body=body)
        assert (await controllers.webhooks.answer(request)).status == 200
    assert names == ["one", "", ""]


async def test_plain_validator_that_raises_stop_iteration_fails_its_review(
    controllers: Controllers, plane: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    @controllers.validate(WIDGETS)
    def broken(_: Review) -> None:
        next(iter(()))

    log = await failure(controllers, plane, caplog)
    assert "validate widgets: its function failed: RuntimeError: the function raised StopIteration" in log


async def test_validator_that_exits_fails_its_review_and_not_the_process(
    controllers: Controllers, plane: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    @controllers.validate(WIDGETS)
    async def broken(_: Review) -> None:
        sys.exit("a library ends the process")

    assert "RuntimeError: SystemExit: a library ends the process" in await failure(controllers, plane, caplog)


async def test_validator_that_returns_an_awaitable_or_false_fails_its_review(
    controllers: Controllers, plane: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    """Found by a reader: an async validator that a plain function wraps was never awaited, so all writes were
    allowed."""
    returned = iter([asyncio.get_running_loop().create_future(), False])

    @controllers.validate(WIDGETS)
    def wrong(_: Review) -> Any:
        return next(returned)

    for _ in range(2):
        assert "validate widgets: its function failed: TypeError: widgets returned" in await failure(
            controllers, plane, caplog
        )


@pytest.mark.parametrize("code", [422, 460])
async def test_write_is_denied_with_any_code_and_with_an_error_as_the_message(
    controllers: Controllers, plane: ControlPlane, code: int
) -> None:
    @controllers.validate(WIDGETS)
    def refuse(review: Review) -> None:
        cause = ValueError("no number")
        review.warn(cause)  # type: ignore[arg-type]
        raise Deny(cause, code=code)  # type: ignore[arg-type]

    denied = await reviewed(controllers, plane)
    assert (denied.allowed, denied.code, denied.message) == (False, code, "no number")
    assert denied.warnings == ("no number",)


async def test_write_is_denied_by_a_task_of_the_validator(controllers: Controllers, plane: ControlPlane) -> None:
    """It was an error, so that a write with the failure policy Ignore was stored."""
    began = asyncio.Event()

    async def check_quota() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("the quota server is gone")

    async def check_name() -> None:
        await began.wait()
        raise Deny("reserved", field="metadata.name")

    @controllers.validate(WIDGETS)
    async def check(_: Review) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(check_quota())
            async with asyncio.TaskGroup() as inner:
                inner.create_task(check_name())

    denied = await reviewed(controllers, plane)
    assert (denied.allowed, denied.message) == (False, "metadata.name: reserved")


async def test_write_to_a_single_cluster_is_reviewed_while_the_threads_of_asyncio_are_occupied(
    plane: ControlPlane, tmp_path: Path
) -> None:
    """Each review ended with 504."""
    controllers = Controllers(SingleCluster(plane.write_kubeconfig(tmp_path / "kubeconfig")))
    controllers.validate(WIDGETS)(too_large)
    loop, ended = asyncio.get_running_loop(), threading.Event()
    loop.set_default_executor(ThreadPoolExecutor(1))
    waiting = loop.run_in_executor(None, ended.wait)
    try:
        assert not (await send_review(controllers, WIDGETS, widget("one", size=6), project="")).allowed
    finally:
        ended.set()
        controllers.webhooks.close()
    await waiting


async def test_answer_that_is_no_json_fails_its_review(
    controllers: Controllers, plane: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    @controllers.validate(WIDGETS)
    def broken(review: Review) -> None:
        review.warnings.append(object())  # type: ignore[arg-type]

    assert "validate widgets: its function failed: TypeError" in await failure(controllers, plane, caplog)


async def test_object_that_is_nested_too_deeply_is_answered(controllers: Controllers, plane: ControlPlane) -> None:
    """Found by a reader: the connection was closed, and a tenant could fill the log with stacks."""
    controllers.validate(WIDGETS)(too_large)
    nested = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    body = b'{"request": {"uid": "u", "operation": "CREATE", "object": ' + nested + b"}}"
    request = ServerRequest(path="/validate/widgets", query={}, headers=Headers(), peer="", body=body)
    reply = await controllers.webhooks.answer(request)
    assert (reply.status, b"its object is nested too deeply" in reply.body) == (400, True)


async def test_object_of_very_many_values_is_denied(controllers: Controllers, plane: ControlPlane) -> None:
    """Found by an attacker: 4 MiB of lists in each other blocked the event loop for a second, and took 700 MB."""
    controllers.validate(WIDGETS)(too_large)
    values: list[Any] = [[] for _ in range(300_000)]
    answer = await send_review(controllers, WIDGETS, {**widget("one"), "values": values}, project=plane.project)
    assert not answer.allowed
    assert "has more than 200,000 lists and maps" in answer.message


async def test_large_objects_are_decoded_beside_other_reviews_and_one_after_another(
    controllers: Controllers, plane: ControlPlane
) -> None:
    answered, decoding = threading.Event(), [0]

    class Large:
        @staticmethod
        def from_dict(found: dict[str, Any]) -> dict[str, Any]:
            if "large" in found:
                decoding.append(decoding[-1] + 1)
                assert answered.wait(LIMIT_S), "the event loop waits for this function"
            return found

    @controllers.validate(Kind(WIDGETS, Large), name="large")
    async def check(review: Review[Any]) -> None:
        if "large" in review.object:
            await asyncio.sleep(0)
            decoding.append(decoding[-1] - 1)

    large = {**widget("one"), "large": "x" * (1 << 20)}
    sent = [asyncio.create_task(send_review(controllers, WIDGETS, large, project=plane.project)) for _ in range(2)]
    await eventually(lambda: decoding == [0, 1])
    assert (await reviewed(controllers, plane)).allowed
    answered.set()
    assert all(result.allowed for result in await asyncio.gather(*sent))
    assert decoding == [0, 1, 0, 1, 0]


async def test_large_objects_of_one_project_do_not_wait_for_those_of_another(
    sandbox: MiloSandbox, plane: ControlPlane
) -> None:
    """Found by a reader: forty writes in one project made large writes of all others wait until they were denied."""
    other = with_widgets(sandbox)
    controllers = Controllers(Fleet(FakeDiscovery(plane, other)))
    begun: list[str] = []
    is_done = asyncio.Event()

    @controllers.validate(WIDGETS)
    async def check(review: Review) -> None:
        begun.append(review.cluster.name)
        if review.cluster.name == plane.project:
            await is_done.wait()

    large = {**widget("one"), "large": "x" * (1 << 20)}
    sent = [asyncio.create_task(send_review(controllers, WIDGETS, large, project=plane.project)) for _ in range(3)]
    await eventually(lambda: begun == [plane.project])
    assert (await send_review(controllers, WIDGETS, large, project=other.project)).allowed
    assert begun == [plane.project, other.project]
    is_done.set()
    assert all(result.allowed for result in await asyncio.gather(*sent))
    controllers.webhooks.close()


async def test_calls_that_hang_for_one_project_leave_threads_to_others(
    sandbox: MiloSandbox, plane: ControlPlane
) -> None:
    other = with_widgets(sandbox)
    controllers = Controllers(Fleet(FakeDiscovery(plane, other)))
    answered, begun = threading.Event(), list[str]()

    @controllers.validate(WIDGETS)
    def check(review: Review) -> None:
        begun.append(review.cluster.name)
        if review.cluster.name == plane.project:
            answered.wait()

    sent = [
        asyncio.create_task(send_review(controllers, WIDGETS, widget("one"), project=plane.project)) for _ in "1" * 20
    ]
    try:
        await eventually(lambda: begun == [plane.project] * 8)
        for one in sent[:8]:  # their time is over, and their threads still run
            one.cancel()
        assert (await send_review(controllers, WIDGETS, widget("one"), project=other.project)).allowed
        assert begun == [*[plane.project] * 8, other.project]
    finally:
        answered.set()
    assert all(result.allowed for result in await asyncio.gather(*sent[8:]))
    controllers.webhooks.close()


async def test_validator_that_hangs_delays_no_large_objects_of_another(
    controllers: Controllers, plane: ControlPlane
) -> None:
    """Found by a reader: writes of other large objects waited for it until their time was over, and were denied."""
    has_begun = asyncio.Event()

    @controllers.validate(WIDGETS)
    async def hang(review: Review) -> None:
        has_begun.set()
        await asyncio.Event().wait()

    @controllers.validate("v1/configmaps")
    async def check(review: Review) -> None: ...

    text = "x" * (1 << 20)
    hanging = asyncio.create_task(send_review(controllers, WIDGETS, widget("one", text=text), project=plane.project))
    await has_begun.wait()
    body = {"metadata": {"name": "one", "namespace": "default"}, "data": {"text": text}}
    assert (await send_review(controllers, "v1/configmaps", body, project=plane.project)).allowed
    hanging.cancel()
    with suppress(asyncio.CancelledError):
        await hanging


async def test_last_known_cluster_is_used_while_the_daemon_does_not_answer(
    controllers: Controllers, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    controllers.validate(WIDGETS)(too_large)
    assert (await reviewed(controllers, plane)).allowed
    now = asyncio.get_running_loop().time
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now() + 2)
    monkeypatch.setattr(FakeDiscovery, "get", lambda *_: asyncio.Event().wait())
    assert (await reviewed(controllers, plane)).allowed
    assert not (await reviewed(controllers, plane, 6)).allowed


async def test_project_engaged_since_the_last_answer_is_reviewed_while_the_daemon_does_not_answer(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    discovery = FakeDiscovery()
    controllers = Controllers(Fleet(discovery))
    controllers.validate(WIDGETS)(too_large)
    async with controllers:
        assert (await reviewed(controllers, plane, 6)).allowed
        monkeypatch.setattr(FakeDiscovery, "get", lambda *_: asyncio.Event().wait())
        discovery.engage(plane)
        await eventually(lambda: controllers.health().clusters)
        now = asyncio.get_running_loop().time
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now() + 2)
        assert not (await reviewed(controllers, plane, 6)).allowed
    controllers.webhooks.close()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"operations": "CREATE"}, "write a list of some of"),
        ({"operations": ["create"]}, "write a list of some of"),
        ({"unknown": "maybe"}, 'write "allow" or "deny"'),
        ({"name": "No Label"}, "write a DNS label"),
    ],
)
def test_wrong_options_are_refused_with_the_right_form(
    controllers: Controllers, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        controllers.validate(WIDGETS, **wrong)


# --- with a server ---


class Certificates:
    def __init__(self, directory: Path) -> None:
        self.authority = trustme.CA()
        self.certificate, self.key = directory / "tls.crt", directory / "tls.key"
        self.renew()

    def renew(self, key_type: trustme.KeyType = trustme.KeyType.ECDSA) -> None:
        made = self.authority.issue_cert("127.0.0.1", key_type=key_type)
        for path, content in (
            (self.certificate, b"".join(pem.bytes() for pem in made.cert_chain_pems)),
            (self.key, made.private_key_pem.bytes()),
        ):
            fresh = path.with_suffix(".new")
            fresh.write_bytes(content)
            fresh.replace(path)

    @property
    def server(self) -> WebhookServer:
        return WebhookServer(self.certificate, self.key, "127.0.0.1:0")


@asynccontextmanager
async def registered(
    milo: MiloSandbox, controllers: Controllers, certificates: Certificates, **changes: Any
) -> AsyncIterator[str]:
    """Serve the webhooks, and register them in the sandbox's core API."""
    async with serve_webhooks(controllers.webhooks, certificates.server) as url:
        ca = certificates.authority.cert_pem.bytes()
        made = list(configurations(controllers.webhooks.all, name="widgets.example.com", url=url, ca_bundle=ca))
        core = milo.core()
        for one in made:
            for webhook in one["webhooks"]:
                webhook.update(changes)
            await asyncio.to_thread(core.create, one)
        try:
            yield url
        finally:
            for one in made:
                plural = f"{one['kind'].lower()}s"
                kind = f"admissionregistration.k8s.io/v1/{plural}"
                await asyncio.to_thread(core.delete, kind, one["metadata"]["name"])


async def test_writes_in_every_project_are_reviewed_by_one_registration(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    with MiloSandbox.start() as milo:
        planes = [with_widgets(milo) for _ in range(2)]
        async with DiscoveryClient(milo.address) as client:
            controllers = Controllers(Fleet(client))
            controllers.validate(WIDGETS)(too_large)

            @controllers.mutate(WIDGETS)
            def color(review: Review) -> None:
                review.object["spec"]["color"] = review.cluster.name

            async with registered(milo, controllers, certificates):
                for plane in planes:
                    await asyncio.to_thread(plane.create, widget("one", size=1))
                    assert plane.get(WIDGETS, "one")["spec"] == {"size": 1, "color": plane.project}
                    with pytest.raises(
                        RefusedError, match=f"denied the request: spec.size: at most 5 in {plane.project}"
                    ):
                        await asyncio.to_thread(plane.create, widget("two", size=6))
                    with pytest.raises(RefusedError, match="at most 5"):
                        await asyncio.to_thread(plane.patch, WIDGETS, "one", {"spec": {"size": 7}})
                    assert plane.find(WIDGETS, "two") is None
            for plane in planes:  # the registration is gone
                await asyncio.to_thread(plane.create, widget("two", size=6))


async def test_deletions_of_a_collection_are_reviewed_one_by_one(tmp_path: Path) -> None:
    with MiloSandbox.start() as milo:
        plane = with_widgets(milo)
        async with DiscoveryClient(milo.address) as client:
            controllers = Controllers(Fleet(client))

            @controllers.validate(WIDGETS, operations=["DELETE"])
            def keep(review: Review) -> None:
                if review.name == "kept":
                    raise Deny("it is to be kept")

            for name in ("kept", "other"):
                plane.create(widget(name))
            async with registered(milo, controllers, Certificates(tmp_path)):
                collection = plane._collection(WIDGETS, "default")
                with pytest.raises(RefusedError, match="it is to be kept"):
                    await asyncio.to_thread(plane._document, "DELETE", collection)
            assert plane.find(WIDGETS, "kept") is not None


@pytest.mark.parametrize("key_type", trustme.KeyType)
async def test_certificate_is_replaced_without_a_restart(
    tmp_path: Path, controllers: Controllers, monkeypatch: pytest.MonkeyPatch, key_type: trustme.KeyType
) -> None:
    monkeypatch.setattr("milo_controllers.webhook_server._LOOK_EVERY_S", 0.01)
    certificates = Certificates(tmp_path)
    async with serve_webhooks(controllers.webhooks, certificates.server) as url:
        host, port = url.removeprefix("https://").split(":")

        async def shown() -> bytes:
            context = ssl.create_default_context()
            certificates.authority.configure_trust(context)
            _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="127.0.0.1")
            try:
                found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
                return found
            finally:
                writer.close()

        first = await shown()
        certificates.key.write_text("half written")
        assert await shown() == first
        certificates.renew(key_type)

        async def is_replaced() -> bool:
            return await shown() != first

        await eventually(is_replaced)


async def test_review_that_has_begun_is_answered_at_the_end(
    tmp_path: Path, controllers: Controllers, plane: ControlPlane
) -> None:
    """Each rollout denied what was being reviewed then."""
    is_asked, may_answer = asyncio.Event(), asyncio.Event()
    certificates = Certificates(tmp_path)
    context = ssl.create_default_context()
    certificates.authority.configure_trust(context)

    @controllers.validate(WIDGETS)
    async def wait(review: Review) -> None:
        is_asked.set()
        await may_answer.wait()

    user = {"extra": project_fields(plane.project)}
    request = {"uid": "1", "operation": "CREATE", "userInfo": user, "object": widget("one")}
    body = msgspec.json.encode({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})
    head = f"POST /validate/widgets HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    async with serve_webhooks(controllers.webhooks, certificates.server) as url:
        host, port = url.removeprefix("https://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        writer.write(head.encode() + body)
        await is_asked.wait()
        asyncio.get_running_loop().call_later(0.1, may_answer.set)
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"allowed":true' in answer


async def test_each_of_many_concurrent_reviews_of_large_objects_is_answered(
    tmp_path: Path, controllers: Controllers, plane: ControlPlane
) -> None:
    began, together = 0, asyncio.Event()
    certificates = Certificates(tmp_path)
    context = ssl.create_default_context()
    certificates.authority.configure_trust(context)

    @controllers.validate(WIDGETS)
    async def wait_for_each_other(review: Review) -> None:
        nonlocal began
        began += 1
        if began == 100:
            together.set()
        await together.wait()

    request = {
        "uid": "1",
        "operation": "CREATE",
        "userInfo": {"extra": project_fields(plane.project)},
        "object": widget("one", text="x" * 200_000),
    }
    body = msgspec.json.encode({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})
    head = f"POST /validate/widgets HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"

    async def review(host: str, port: int) -> bytes:
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        try:
            writer.write(head.encode() + body)
            return await reader.readline()
        finally:
            writer.close()

    async with serve_webhooks(controllers.webhooks, certificates.server) as url:
        host, port = url.removeprefix("https://").split(":")
        answers = await asyncio.gather(*(review(host, int(port)) for _ in range(100)))
    assert answers == [b"HTTP/1.1 200 OK\r\n"] * 100


def test_installed_configuration_is_compared(controllers: Controllers) -> None:
    controllers.validate(WIDGETS)(too_large)
    [wanted] = configurations(controllers.webhooks.all, name="w.example.com", url="https://w:9443/", ca_bundle=b"pem")
    [webhook] = wanted["webhooks"]
    assert webhook["clientConfig"] == {
        "url": "https://w:9443/validate/widgets",
        "caBundle": base64.b64encode(b"pem").decode(),
    }
    assert list(differences(wanted, wanted)) == []
    assert list(differences(wanted, None)) == [
        "ValidatingWebhookConfiguration w.example.com is not installed: no webhook of it is called"
    ]
    installed = {
        **wanted,
        "webhooks": [
            {**webhook, "failurePolicy": "Ignore", "namespaceSelector": {"matchLabels": {"a": "b"}}, "rules": []},
            {"name": "former"},
        ],
    }
    found = "\n".join(differences(wanted, installed))
    for part in ("failurePolicy is 'Ignore', not 'Fail'", "namespaceSelector is set", "rules are []", "former"):
        assert part in found


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"matchConditions": [{"name": "a", "expression": "false"}]}, "matchConditions are set"),
        ({"objectSelector": {"matchLabels": {"a": "b"}}}, "objectSelector is set"),
        ({"scope": "Namespaced"}, "CREATE example.com/v1/widgets (only Namespaced)"),
        ({"scope": "*", "matchConditions": [], "objectSelector": {}}, ""),
        ({"scope": None}, ""),
    ],
)
def test_condition_that_was_added_to_a_registration_is_reported(
    controllers: Controllers, changes: dict[str, Any], problem: str
) -> None:
    controllers.validate(WIDGETS)(too_large)
    [wanted] = configurations(controllers.webhooks.all, name="w.example.com", url="https://w:9443", ca_bundle=b"pem")
    [webhook] = wanted["webhooks"]
    rules = [{**rule, "scope": changes.get("scope", "*")} for rule in webhook["rules"]]
    added = {name: value for name, value in changes.items() if name != "scope"}
    found = [*differences(wanted, {**wanted, "webhooks": [{**webhook, "rules": rules, **added}]})]
    assert len(found) == bool(problem)
    assert problem in "".join(found)


# --- the command, and the process ---

OPERATOR = """
import sys
from pathlib import Path
from milo_controllers import Controllers, Deny, WebhookServer, main

controllers = Controllers()

@controllers.validate("example.com/v1/widgets", failure_policy="Ignore")
async def small(review):
    if review.object["spec"].get("size", 0) > 5:
        raise Deny("at most 5", field="spec.size")

directory, listen = Path(*sys.argv[1:2]), "".join(sys.argv[2:])
main(controllers, webhooks=WebhookServer(directory / "tls.crt", directory / "tls.key", listen), listen="off")
"""


def command(*arguments: str) -> Result:
    return CliRunner().invoke(webhooks, arguments)


def test_command_prints_the_registration_and_compares_the_installed_one(tmp_path: Path, sandbox: MiloSandbox) -> None:
    program, ca = tmp_path / "widgets_operator.py", tmp_path / "ca.crt"
    program.write_text(OPERATOR)
    ca.write_text("pem")
    given = (str(program), "--url", "https://widgets:9443", "--name", "widgets.example.com", "--ca-file", str(ca))
    printed = command(*given)
    assert printed.exit_code == 0
    assert "namespaceSelector" in printed.output
    made = yaml.safe_load(printed.output)
    assert made["webhooks"][0]["failurePolicy"] == "Ignore"
    assert "namespaceSelector" not in made["webhooks"][0]
    kubeconfig = sandbox.core().write_kubeconfig(tmp_path / "core.kubeconfig")
    checking = (*given, "--check", "--kubeconfig", str(kubeconfig))
    missing = command(*checking)
    assert missing.exit_code == 1
    assert "is not installed" in missing.output, missing.output
    left = yaml.safe_load(printed.output.replace("kind: Validating", "kind: Mutating"))
    left["webhooks"][0]["name"] = "former.mutate.widgets.example.com"
    sandbox.core().create(made)
    try:
        assert command(*checking).exit_code == 0
        sandbox.core().create(left)
        found = command(*checking)
        assert found.exit_code == 1
        assert "has the webhook former.mutate.widgets.example.com, which this operator does not answer" in found.output
    finally:
        sandbox.core().delete(VALIDATING, "widgets.example.com")
        sandbox.core().delete(MUTATING, "widgets.example.com")


def test_command_says_what_is_wrong_with_the_program(tmp_path: Path) -> None:
    program = tmp_path / "widgets_operator.py"
    given = (str(program), "--url", "https://w", "--name", "w.example.com", "--ca-file", str(program))
    for text, message in (
        ("raise SystemExit('broken')", "has not called main(controllers):"),
        ("from milo_controllers import *\nmain(Controllers())", "registers no webhooks"),
    ):
        program.write_text(text)
        found = command(*given)
        assert found.exit_code != 0
        assert message in str(found.exception) + found.output


async def test_writes_are_reviewed_by_whichever_replica_is_left(tmp_path: Path) -> None:
    """Three replicas as processes behind one address, which a proxy stands for: a Service."""
    certificates = Certificates(tmp_path)
    program = tmp_path / "widgets_operator.py"
    program.write_text(OPERATOR)
    with MiloSandbox.start() as milo:
        plane = with_widgets(milo)
        environ = {**os.environ, "MILO_DISCOVERY_ADDRESS": milo.address}
        replicas: list[tuple[asyncio.subprocess.Process, int]] = []
        for _ in range(3):
            port = free_port()
            arguments = (sys.executable, str(program), str(tmp_path), f"127.0.0.1:{port}")
            replicas.append((await asyncio.create_subprocess_exec(*arguments, env=environ, stderr=PIPE), port))
        async with AsyncExitStack() as stack:
            for process, _ in replicas:
                stack.callback(lambda process=process: process.returncode is None and process.kill())
                assert process.stderr is not None
                printed = [line async for line in lines_until(process.stderr, b"serving webhooks")]
                assert b"serving webhooks on" in printed[-1], printed
            service = await stack.enter_async_context(proxied([port for _, port in replicas]))
            described = Controllers(Fleet(FakeDiscovery()))
            described.validate(WIDGETS, failure_policy="Ignore")(too_large)
            ca = certificates.authority.cert_pem.bytes()
            [one] = configurations(described.webhooks.all, name="w.example.com", url=service, ca_bundle=ca)
            await asyncio.to_thread(milo.core().create, one)

            async def is_denied(name: str) -> bool:
                try:
                    await asyncio.to_thread(plane.create, widget(name, size=6))
                except RefusedError as error:
                    return "at most 5" in str(error)
                return False

            assert await is_denied("a")
            for process, _ in replicas[:-1]:
                process.kill()
                await process.wait()
                assert await is_denied("b")
            replicas[-1][0].kill()
            await replicas[-1][0].wait()
            assert not await is_denied("c")  # failurePolicy: Ignore


HANGING = """
import sys, threading
from milo_controllers import Controllers, SingleCluster, WebhookServer, main

directory = sys.argv[1]
controllers = Controllers(SingleCluster(f"{directory}/kubeconfig"))

@controllers.validate("v1/configmaps")
def hang(review):
    threading.Event().wait()

main(controllers, webhooks=WebhookServer(f"{directory}/tls.crt", f"{directory}/tls.key", "127.0.0.1:0"), listen="off")
"""


async def test_process_ends_although_a_plain_validator_hangs(tmp_path: Path, plane: ControlPlane) -> None:
    """Found by a reader: it waited for the thread, also after it had lost its Lease."""
    certificates = Certificates(tmp_path)
    plane.write_kubeconfig(tmp_path / "kubeconfig")
    (tmp_path / "hanging.py").write_text(HANGING)
    arguments = (sys.executable, str(tmp_path / "hanging.py"), str(tmp_path))
    process = await asyncio.create_subprocess_exec(*arguments, stderr=PIPE)
    try:
        assert process.stderr is not None
        printed = [line async for line in lines_until(process.stderr, b"serving webhooks")]
        port = int(printed[-1].rpartition(b":")[2])
        context = ssl.create_default_context()
        certificates.authority.configure_trust(context)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        body = b'{"request": {"uid": "u", "operation": "CREATE", "object": {}}}'
        writer.write(b"POST /validate/configmaps?timeout=1s HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert b"504 Gateway Timeout" in await reader.readline()
        writer.close()
        process.terminate()
        async with asyncio.timeout(LIMIT_S):
            ended = b"".join([line async for line in process.stderr])
            assert await process.wait() == 0
        assert b"validators or mutators did not finish" in ended
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def lines_until(stream: asyncio.StreamReader, mark: bytes) -> AsyncIterator[bytes]:
    async for line in stream:
        yield line
        if mark in line:
            return


@asynccontextmanager
async def proxied(ports: Sequence[int]) -> AsyncIterator[str]:
    """Forward connections to the first of the ports that accepts them."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for port in ports:
            try:
                up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                continue
            await asyncio.gather(copy(reader, up_writer), copy(up_reader, writer))
            return
        writer.close()

    async with await asyncio.start_server(forward, "127.0.0.1", 0) as server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
