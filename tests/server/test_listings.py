"""All pages of one listing show the fleet at one revision."""

import pytest

from milo_discoveryd.model.cluster import DisengageReason
from milo_discoveryd.registry.filter import EVERYTHING, Filter
from milo_discoveryd.registry.log import ChangeLog
from milo_discoveryd.server.errors import InvalidRequestError
from milo_discoveryd.server.listings import AT_ONCE, LIFE_S, Listings, Page
from tests.registry.fleets import cluster, readable_log


def fleet(*names: str) -> ChangeLog:
    log = readable_log()
    for name in names:
        log.engage(name, lambda revision, name=name: cluster(name, revision))
    return log


def names(page: Page) -> list[str]:
    return [each.target.name for each in page.clusters]


def test_what_fits_into_a_page_is_all_of_it_by_name() -> None:
    page = Listings(fleet("b", "a")).first(EVERYTHING, 2, 0.0)
    assert (names(page), page.revision, page.total, page.next_token) == (["a", "b"], 2, 2, "")


def test_an_empty_fleet_is_an_empty_page() -> None:
    assert Listings(fleet()).first(EVERYTHING, 10, 0.0) == Page((), 0, 0, "")


def test_all_pages_show_one_revision_whatever_happens_meanwhile() -> None:
    log = fleet(*"abcde")
    listings = Listings(log)
    page = listings.first(EVERYTHING, 2, 0.0)
    seen = [names(page)]
    log.disengage("c", DisengageReason.DELETED, "", 0.0)
    log.engage("f", lambda revision: cluster("f", revision))
    while page.next_token:
        page = listings.next(page.next_token, EVERYTHING, 2, 1.0)
        seen.append(names(page))
        assert (page.revision, page.total) == (5, 5)
    assert seen == [["a", "b"], ["c", "d"], ["e"]]


def test_pages_may_differ_in_size_and_be_read_again() -> None:
    listings = Listings(fleet(*"abcde"))
    token = listings.first(EVERYTHING, 2, 0.0).next_token
    assert names(listings.next(token, EVERYTHING, 1, 0.0)) == ["c"]
    assert names(listings.next(token, EVERYTHING, 10, 0.0)) == ["c", "d", "e"]


def test_a_listing_shows_what_the_filter_covers() -> None:
    wanted = Filter(names=frozenset({"b", "z"}))
    assert names(Listings(fleet("a", "b")).first(wanted, 10, 0.0)) == ["b"]


def test_a_token_is_good_for_the_filter_it_was_given_for() -> None:
    listings = Listings(fleet(*"abc"))
    token = listings.first(EVERYTHING, 1, 0.0).next_token
    with pytest.raises(InvalidRequestError, match="page_token: given out for another filter"):
        listings.next(token, Filter(names=frozenset({"a"})), 1, 0.0)


def test_a_token_is_good_for_five_minutes() -> None:
    listings = Listings(fleet(*"abc"))
    token = listings.first(EVERYTHING, 1, 0.0).next_token
    assert names(listings.next(token, EVERYTHING, 1, LIFE_S)) == ["b"]
    with pytest.raises(InvalidRequestError, match="page_token: not known, or too old: list again"):
        listings.next(token, EVERYTHING, 1, LIFE_S + 0.1)


def test_so_many_listings_are_under_way_at_once_and_the_oldest_gives_way() -> None:
    listings = Listings(fleet(*"abc"))
    tokens = [listings.first(EVERYTHING, 1, 0.0).next_token for _ in range(AT_ONCE + 1)]
    with pytest.raises(InvalidRequestError):
        listings.next(tokens[0], EVERYTHING, 1, 0.0)
    assert names(listings.next(tokens[1], EVERYTHING, 1, 0.0)) == ["b"]


@pytest.mark.parametrize(
    "token", ["", ".", "x", "x.1", "{key}", "{key}.", "{key}.-1", "{key}.x", "{key}.\u0661", "{key}.1.1"]
)
def test_a_token_that_was_never_given_out_is_refused(token: str) -> None:
    listings = Listings(fleet(*"abc"))
    key = listings.first(EVERYTHING, 1, 0.0).next_token.partition(".")[0]
    with pytest.raises(InvalidRequestError, match="page_token: not known"):
        listings.next(token.format(key=key), EVERYTHING, 1, 0.0)


def test_a_token_from_beyond_the_end_shows_nothing() -> None:
    listings = Listings(fleet(*"abc"))
    key = listings.first(EVERYTHING, 1, 0.0).next_token.partition(".")[0]
    assert listings.next(f"{key}.{'9' * 200}", EVERYTHING, 1, 0.0) == Page((), 3, 3, "")
