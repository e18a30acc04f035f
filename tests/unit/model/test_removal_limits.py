"""Whether the first list of a run may lack clusters that subscribers know."""

import pytest

from milo_discovery import removals
from milo_discoveryd.model.removal_limits import FirstList, ListedClusters, RemovalLimits


@pytest.mark.parametrize(
    ("missing", "engaged", "is_mass"),
    [
        (1, 1, False),
        (1, 2, False),
        (2, 2, True),
        (2, 3, True),
        (10, 19, True),
        (10, 20, False),
        (10, 50, False),
        (11, 50, True),
        (20, 100, False),
        (21, 100, True),
    ],
)
def test_removal_is_a_mass_removal_if_it_exceeds_both_limits_or_half_of_the_clusters(
    missing: int, engaged: int, is_mass: bool
) -> None:
    assert RemovalLimits().is_mass(missing, engaged) is is_mass
    assert RemovalLimits(count=1, share=0.0).is_mass(2, 100)
    assert not RemovalLimits(count=1, share=0.0).is_mass(1, 100)


@pytest.mark.parametrize(
    ("ended", "engaged", "is_burst"),
    [(1, 1, False), (10, 10, False), (11, 11, True), (20, 100, False), (21, 100, True), (200, 1000, False)],
)
def test_burst_is_more_than_both_limits(ended: int, engaged: int, is_burst: bool) -> None:
    assert RemovalLimits().is_burst(ended, engaged) is is_burst
    limits = RemovalLimits(count=1, share=1.0)
    assert limits.is_burst(51, 100), "at most half of the clusters"
    assert not limits.is_burst(50, 100)


def test_python_client_counts_as_the_daemon_does_from_two_clusters_on() -> None:
    limits = RemovalLimits(count=removals.COUNT, share=removals.SHARE)
    for engaged in range(2, 120):
        for missing in range(engaged + 1):
            assert removals.is_mass(missing, engaged) is limits.is_mass(missing, engaged)
            assert removals.is_burst(missing, engaged) is limits.is_burst(missing, engaged)


def test_first_list_has_the_clusters_of_the_largest_list_that_are_still_engaged() -> None:
    listed = ListedClusters()
    assert listed.first_list(7, None, 5) == FirstList(7, None, 5, 7)
    for count in (3, 9, 6):
        listed.note(count)
    assert listed.first_list(20, RemovalLimits(), 5) == FirstList(9, RemovalLimits(), 5, 3)
    assert listed.first_list(4, None, 0) == FirstList(4, None, 0, 3)


@pytest.mark.parametrize(
    ("known", "present", "may_lack"), [(20, 0, True), (20, 9, True), (20, 10, False), (1, 0, True), (0, 5, False)]
)
def test_first_list_that_lacks_most_or_all_clusters_of_a_subscriber_may_be_incomplete(
    known: int, present: int, may_lack: bool
) -> None:
    assert FirstList(present, RemovalLimits()).may_lack(known, present) is may_lack
    assert not FirstList(present, None).may_lack(known, present)


def test_list_after_a_short_list_may_be_incomplete_until_it_has_all_clusters() -> None:
    for present in (3, 43, 52):
        assert FirstList(present, RemovalLimits(), initial=3).may_lack(53, present)
        assert FirstList(present, RemovalLimits()).may_lack(53, present, has_lacked=True)
    assert not FirstList(53, RemovalLimits(), initial=3).may_lack(53, 53, has_lacked=True)
    assert not FirstList(52, RemovalLimits(), initial=50).may_lack(53, 52)
    assert not FirstList(52, None, initial=3).may_lack(53, 52, has_lacked=True)


@pytest.mark.parametrize(
    ("version", "known", "is_older"), [(41, 42, True), (42, 42, False), (0, 42, False), (41, 0, False)]
)
def test_first_list_is_older_if_the_subscriber_received_a_later_version(
    version: int, known: int, is_older: bool
) -> None:
    assert FirstList(3, RemovalLimits(), version).is_older(known) is is_older
    assert not FirstList(3, None, version).is_older(known)
