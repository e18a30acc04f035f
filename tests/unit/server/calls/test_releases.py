"""Authorization of releases, and the list of pending releases."""

import pytest

from milo_discoveryd.engagement.engagement import Engagements
from milo_discoveryd.engagement.subscriber import SubscriberKey, Subscription
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.log.filter import Filter
from milo_discoveryd.rights.caller_selector import caller_key
from milo_discoveryd.rights.scope import ALL_CLUSTERS, NO_CLUSTERS
from milo_discoveryd.server.calls import releases
from milo_discoveryd.server.calls.grpc_errors import CallError
from milo_discoveryd.server.calls.requests import ReleaseRequest
from tests.unit.fleet.fleets import at, engagements, finish, not_ready, ready

EPOCH = "e"
CALLER = Caller(listener="here", uid=7)
OTHER = Caller(listener="here", uid=8)
VIEW = Filter(confirms_releases=True)
KEY = SubscriberKey(caller_key(CALLER), "operator")


def opened() -> Subscription:
    return releases.subscription(CALLER, "operator", VIEW, 12)


def engaged(stream: Subscription | None = None) -> Engagements:
    fleet = engagements(drain_s=30.0)
    fleet.commit([ready()], at(0))
    finish(fleet.releases.open(stream or opened(), 0.0))
    return fleet


def draining(stream: Subscription | None = None) -> Engagements:
    fleet = engaged(stream)
    fleet.commit([not_ready()], at(10))
    return fleet


def must_note(
    fleet: Engagements, *, incarnation: str = "e.1", subscriber: str = "operator", caller: Caller = CALLER
) -> bool:
    asked = ReleaseRequest("a", incarnation, subscriber)
    key = SubscriberKey(caller_key(caller), subscriber)
    return releases.must_note(asked, fleet["a"], key, fleet.releases, EPOCH)


def refusal(
    fleet: Engagements, *, incarnation: str = "e.1", subscriber: str = "operator", caller: Caller = CALLER
) -> tuple[str, str]:
    with pytest.raises(CallError) as raised:
        must_note(fleet, incarnation=incarnation, subscriber=subscriber, caller=caller)
    return raised.value.reason, str(raised.value)


def test_release_of_a_draining_cluster_is_recorded_once() -> None:
    fleet = draining()
    assert must_note(fleet)
    fleet.releases.release(KEY, "a")
    assert not must_note(fleet)


def test_release_after_the_end_of_the_drain_is_a_no_op() -> None:
    fleet = draining()
    fleet.end_drain("a", at(40))
    assert not must_note(fleet, subscriber="anything")
    assert refusal(fleet, incarnation="e.2")[0] == "OTHER_INCARNATION"


def test_refused_release_reports_its_reason() -> None:
    known, drained = "cluster 'a' was last engaged as incarnation e.1, not", draining()
    assert refusal(engagements()) == ("NEVER_SEEN", "cluster 'a' is not known")
    assert refusal(engaged()) == (
        "NOT_DRAINING",
        "cluster 'a' is engaged and not draining; release it once it drains",
    )
    assert refusal(drained, incarnation="e.2") == ("OTHER_INCARNATION", f"{known} 'e.2'")
    assert refusal(drained, incarnation="f.1") == ("OTHER_INCARNATION", f"{known} 'f.1'")
    assert refusal(drained, subscriber="another") == (
        "NO_SUBSCRIPTION",
        "this caller has no recent stream with confirm_releases as subscriber 'another'; release with the subscriber "
        "name of the stream",
    )
    assert refusal(drained, caller=OTHER)[0] == "NO_SUBSCRIPTION"


def test_release_of_an_object_that_was_never_engaged_is_refused() -> None:
    fleet = engagements()
    fleet.commit([not_ready()], at(0))
    assert refusal(fleet)[0] == "NEVER_SEEN"


def test_pending_releases_of_other_callers_are_shown_only_with_full_scope() -> None:
    stream = opened()
    fleet = draining(stream)
    fleet.releases.close(stream, 12.0)
    mine, everything, nothing = (
        [*releases.pending("a", fleet.releases, key, scope, at(20))]
        for key, scope in (
            (KEY.caller, NO_CLUSTERS),
            (caller_key(OTHER), ALL_CLUSTERS),
            (caller_key(OTHER), NO_CLUSTERS),
        )
    )
    assert mine == everything
    assert nothing == []
    (pending,) = mine
    assert (pending.subscriber, pending.caller, pending.connected) == ("operator", "uid 7", False)
    assert pending.since.seconds == at(12).wall


def test_pending_release_of_a_forgotten_subscriber_has_no_disconnect_time() -> None:
    stream = opened()
    fleet = draining(stream)
    fleet.releases.close(stream, 12.0)
    fleet.commit([ready("b", uid="u2")], at(100))
    fleet.releases.begin_drain(fleet["b"].cluster, 200.0, 100.0)  # type: ignore[union-attr,arg-type]
    (pending,) = releases.pending("a", fleet.releases, KEY.caller, NO_CLUSTERS, at(100))
    assert (pending.subscriber, pending.HasField("since")) == ("operator", False)


def test_subscription_has_subscriber_name_caller_label_view_and_filter_size() -> None:
    stream = releases.subscription(Caller(listener="tcp", sans=("b", "a")), "operator", VIEW, 12)
    assert (stream.key.name, stream.label, stream.view, stream.filter_bytes) == ("operator", "a, b", VIEW, 12)
