"""All pages of one listing show the fleet at one revision, to whom it is for."""

import pytest

from milo_discoveryd.model.cluster import Cluster, DisengageReason
from milo_discoveryd.registry.filter import EVERYTHING, Filter
from milo_discoveryd.server.calls.grpc_errors import InvalidRequestError
from milo_discoveryd.server.calls.listings import AT_ONCE, LIFE_S, MAX_PER_CALLER, ListingOwner, Listings, Page
from milo_discoveryd.server.calls.revision import TokenSigner
from tests.unit.registry.fleets import NamedLog, cluster, readable_log

ME = ListingOwner("me", "me, for everything")


def fleet(*names: str) -> NamedLog:
    log = readable_log()
    for name in names:
        log.engage(log.entry(name), lambda revision, name=name: cluster(name, revision))
    return log


def a_listing(log: NamedLog) -> Listings:
    return Listings(log, TokenSigner(b"key"))


def first(listings: Listings, size: int, holder: ListingOwner = ME) -> Page:
    return listings.first(EVERYTHING, size, 0.0, holder)


def following(listings: Listings, token: str, size: int, now: float = 0.0, holder: ListingOwner = ME) -> Page:
    return listings.next(token, size, now, holder, lambda cluster: True)


def names(page: Page) -> list[str]:
    return [each.target.name for each in page.clusters]


def test_what_fits_into_a_page_is_all_of_it_by_name() -> None:
    page = first(a_listing(fleet("b", "a")), 2)
    assert (names(page), page.revision, page.total, page.next_token) == (["a", "b"], 2, 2, "")


def test_an_empty_fleet_is_an_empty_page() -> None:
    assert first(a_listing(fleet()), 10) == Page((), 0, 0, "")


def test_all_pages_show_one_revision_whatever_happens_meanwhile() -> None:
    log = fleet(*"abcde")
    listings = a_listing(log)
    page = first(listings, 2)
    seen = [names(page)]
    log.disengage(log.entry("c"), DisengageReason.DELETED, "", 0.0)
    log.engage(log.entry("f"), lambda revision: cluster("f", revision))
    while page.next_token:
        page = following(listings, page.next_token, 2, 1.0)
        seen.append(names(page))
        assert (page.revision, page.total) == (5, 5)
    assert seen == [["a", "b"], ["c", "d"], ["e"]]


def test_pages_may_differ_in_size_and_be_read_again() -> None:
    listings = a_listing(fleet(*"abcde"))
    token = first(listings, 2).next_token
    assert names(following(listings, token, 1)) == ["c"]
    assert names(following(listings, token, 10)) == ["c", "d", "e"]


def test_a_listing_shows_what_the_filter_covers() -> None:
    wanted = Filter(names=frozenset({"b", "z"}))
    assert names(a_listing(fleet("a", "b")).first(wanted, 10, 0.0, ME)) == ["b"]


def test_what_may_not_be_seen_any_more_is_left_out_of_the_pages_that_follow() -> None:
    listings = a_listing(fleet(*"abcd"))
    token = first(listings, 1).next_token

    def still(cluster: Cluster) -> bool:
        return cluster.target.name != "c"

    assert names(listings.next(token, 10, 0.0, ME, still)) == ["b", "d"]


@pytest.mark.parametrize(
    "other", [ListingOwner("me", "me, for less"), ListingOwner("another", "another, for everything")]
)
def test_a_token_is_good_for_whom_and_for_what_it_was_given(other: ListingOwner) -> None:
    listings = a_listing(fleet(*"abc"))
    token = first(listings, 1).next_token
    with pytest.raises(InvalidRequestError, match="page_token: not known, too old, or not of a listing with this"):
        following(listings, token, 1, holder=other)


def test_a_token_is_good_for_five_minutes() -> None:
    listings = a_listing(fleet(*"abc"))
    token = first(listings, 1).next_token
    assert names(following(listings, token, 1, LIFE_S)) == ["b"]
    with pytest.raises(InvalidRequestError, match="page_token: not known, too old"):
        following(listings, token, 1, LIFE_S + 0.1)


def test_so_many_of_one_caller_are_under_way_at_once_and_his_oldest_gives_way() -> None:
    listings = a_listing(fleet(*"abc"))
    tokens = [first(listings, 1).next_token for _ in range(MAX_PER_CALLER + 1)]
    with pytest.raises(InvalidRequestError):
        following(listings, tokens[0], 1)
    assert names(following(listings, tokens[1], 1)) == ["b"]


def test_so_many_of_all_are_under_way_at_once_and_who_has_most_gives_way() -> None:
    listings = a_listing(fleet(*"abc"))
    greedy = [first(listings, 1).next_token for _ in range(MAX_PER_CALLER)]
    holders = [ListingOwner(f"caller {number}", "") for number in range(AT_ONCE - MAX_PER_CALLER + 1)]
    tokens = [first(listings, 1, holder).next_token for holder in holders]
    with pytest.raises(InvalidRequestError):
        following(listings, greedy[0], 1)
    for holder, token in zip(holders, tokens, strict=True):
        assert names(following(listings, token, 1, holder=holder)) == ["b"]


def test_a_token_that_was_never_given_out_is_refused() -> None:
    listings = a_listing(fleet(*"abc"))
    token = first(listings, 1).next_token
    key, start, mark = token.split(".")
    for bent in ("", ".", "x", key, f"{key}.2.{mark}", f"{key}.{start}.", f"{key}.{start}", f"{token}.1", f"x{token}"):
        with pytest.raises(InvalidRequestError, match="page_token: not known"):
            following(listings, bent, 1)
