"""Keys that are engaged only after the credentials of their former owners were revoked."""

import msgspec

from milo_discoveryd.sharding.credential_fence import CredentialFence
from milo_discoveryd.sharding.leases import View, ViewMember
from milo_discoveryd.sharding.ownership import Ownership

VIEW = View(number=2, id="2", members={"a": ViewMember("a.1")}, previous={"b": ViewMember("b.1")})
WAITING = Ownership(view=VIEW, member="a", term="a.1", unsettled=frozenset({"b"}))
SETTLED = msgspec.structs.replace(WAITING, unsettled=frozenset())
STARTED = msgspec.structs.replace(WAITING, may_engage=False)
NEXT = msgspec.structs.replace(
    SETTLED, view=msgspec.structs.replace(VIEW, number=3, id="3", previous={"a": ViewMember("a.1")})
)


def cleared(fence: CredentialFence) -> None:
    due = fence.due
    assert due is not None
    fence.revoked(due)


def test_no_credential_revocation_is_due_before_the_member_may_engage() -> None:
    fence = CredentialFence()
    assert fence.due is None
    fence.follow(STARTED)
    assert fence.due is None
    assert not fence.is_cleared


def test_credential_fence_permits_engagement_of_key_once_its_credentials_are_revoked() -> None:
    fence = CredentialFence()
    fence.follow(SETTLED)
    assert not fence.clears("key")
    assert fence.due is not None
    assert fence.covers(fence.due, lambda: SETTLED, "key")
    cleared(fence)
    assert fence.clears("key")
    assert fence.is_cleared
    assert fence.due is None


def test_credential_fence_requires_another_revocation_for_key_that_was_not_released() -> None:
    fence = CredentialFence()
    fence.follow(WAITING)
    assert fence.due is not None
    assert not fence.covers(fence.due, lambda: WAITING, "key")
    cleared(fence)
    assert not fence.clears("key")
    fence.follow(SETTLED)
    assert not fence.clears("key")
    cleared(fence)
    assert fence.clears("key")


def test_credential_fence_accepts_revocation_while_other_members_are_unsettled() -> None:
    fence = CredentialFence()
    fence.follow(SETTLED)
    due = fence.due
    assert due is not None
    fence.follow(msgspec.structs.replace(SETTLED, unsettled=frozenset({"c"})))
    fence.revoked(due)
    assert fence.clears("key")


def test_credential_fence_requires_another_revocation_for_next_view() -> None:
    fence = CredentialFence()
    fence.follow(SETTLED)
    due = fence.due
    cleared(fence)
    fence.follow(NEXT)
    assert not fence.clears("key")
    assert due is not None
    fence.revoked(due)
    assert not fence.clears("key"), "the key's credentials were revoked before the view"


def test_credential_fence_requires_another_revocation_after_lost_ownership() -> None:
    fence = CredentialFence()
    fence.follow(SETTLED)
    due = fence.due
    fence.follow(None)
    fence.follow(SETTLED)
    assert due is not None
    fence.revoked(due)
    assert not fence.clears("key")
    cleared(fence)
    assert fence.clears("key")


def test_credential_revocation_covers_nothing_once_the_view_changed_or_ownership_was_interrupted() -> None:
    for later in (None, NEXT):
        fence = CredentialFence()
        fence.follow(SETTLED)
        due = fence.due
        assert due is not None
        fence.follow(later)
        assert not fence.covers(due, lambda later=later: later or SETTLED, "key")


def test_credential_revocation_of_a_process_that_was_paused_covers_nothing() -> None:
    fence = CredentialFence()
    fence.follow(SETTLED)
    due = fence.due
    assert due is not None
    assert not fence.covers(due, lambda: None, "key")
    assert not fence.covers(due, lambda: SETTLED, "key"), "the permit ended with the period"


def test_later_attempt_takes_back_nothing_that_was_revoked_before() -> None:
    fence = CredentialFence()
    fence.follow(SETTLED)
    for unrevoked in ({"a", "c"}, {"a", "b"}):
        due = fence.due
        assert due is not None
        fence.revoked(due, frozenset(unrevoked))
    assert [key for key in "abcd" if not fence.clears(key)] == ["a"]
    assert fence.due is not None
    cleared(fence)
    assert fence.due is None
