"""Listings: all pages show one revision, to one caller."""

import time
from collections.abc import Generator

import pytest
from msgspec.structs import replace

from milo_discoveryd.log.filter import EVERYTHING, ClusterView, Filter
from milo_discoveryd.model.cluster import DisengageReason
from milo_discoveryd.server.calls import listings as listings_module
from milo_discoveryd.server.calls.grpc_errors import ForeignPageTokenError, InvalidRequestError
from milo_discoveryd.server.calls.listings import (
    LIFE_S,
    MAX_ENTRIES_EACH,
    OVERHEAD,
    ListingOwner,
    Listings,
    OpenListing,
    Page,
)
from milo_discoveryd.server.calls.revision import TokenSigner
from tests.unit.fleet.fleets import NamedLog, cluster, readable_log

ME = ListingOwner("me", "me, for everything")


def fleet(*names: str) -> NamedLog:
    log = readable_log()
    for name in names:
        log.engage(log.entry(name), lambda revision, name=name: cluster(name, revision))
    return log


def a_listing(log: NamedLog) -> Listings:
    return Listings(log, TokenSigner(b"key"))


class Listing:
    """One caller reading a listing page by page."""

    def __init__(self, listings: Listings, owner: ListingOwner = ME) -> None:
        self.listings = listings
        self.owner = owner
        self.token = ""

    def first(self, size: int, view: ClusterView = EVERYTHING) -> Page:
        return self._turned(completed(self.listings.first(view, size, 0.0, self.owner)), size)

    def next(self, size: int, now: float = 0.0, token: str | None = None) -> Page:
        page = self.listings.next(self.token if token is None else token, size, now, self.owner, lambda cluster: True)
        return self._turned(page, size)

    def _turned(self, page: Page, size: int) -> Page:
        self.token = self.listings.next_token(page, min(size, len(page.clusters)), 0.0)
        return page


def completed(steps: Generator[None, None, Page]) -> Page:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def names(page: Page) -> list[str]:
    return [each.target.name for each in page.clusters if each is not None]


def test_listing_of_one_page_is_sorted_by_name() -> None:
    listing = Listing(a_listing(fleet("b", "a")))
    page = listing.first(2)
    assert (names(page), page.listing.revision, listing.token) == (["a", "b"], 2, "")
    assert not listing.listings._listings, "a listing of one page is not kept"


def test_listing_in_several_steps_shows_one_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings_module, "CLUSTERS_PER_STEP", 2)
    log = fleet(*"edcba")
    steps = a_listing(log).first(EVERYTHING, 10, 0.0, ME)
    next(steps)
    log.disengage(log.entry("a"), DisengageReason.DELETED, "", 0.0)
    page = completed(steps)
    assert (names(page), page.listing.revision) == ([*"abcde"], 5)


def test_listing_of_empty_fleet_is_empty_page() -> None:
    listing = Listing(a_listing(fleet()))
    assert (names(listing.first(10)), listing.token) == ([], "")


def test_listing_pages_show_one_revision() -> None:
    log = fleet(*"abcde")
    listing = Listing(a_listing(log))
    seen = [names(listing.first(2))]
    log.disengage(log.entry("c"), DisengageReason.DELETED, "", 0.0)
    log.engage(log.entry("f"), lambda revision: cluster("f", revision))
    while listing.token:
        page = listing.next(2, 1.0)
        seen.append(names(page))
        assert (page.listing.revision, len(page.listing.clusters)) == (5, 5)
    assert seen == [["a", "b"], ["c", "d"], ["e"]]


def test_listing_pages_may_differ_in_size_and_be_repeated() -> None:
    listing = Listing(a_listing(fleet(*"abcde")))
    listing.first(2)
    token = listing.token
    assert names(listing.next(1, token=token)) == ["c"]
    assert names(listing.next(10, token=token)) == ["c", "d", "e"]


def test_listing_continues_after_a_page_that_was_cut_short() -> None:
    listings = a_listing(fleet(*"abcde"))
    page = completed(listings.first(EVERYTHING, 5, 0.0, ME))
    token = listings.next_token(page, 2, 0.0)
    assert names(listings.next(token, 5, 0.0, ME, lambda cluster: True)) == ["c", "d", "e"]


def test_listing_applies_filter() -> None:
    wanted = Filter(names=frozenset({"b", "z"}))
    assert names(Listing(a_listing(fleet("a", "b"))).first(10, wanted)) == ["b"]


def test_listing_pages_omit_clusters_that_became_invisible() -> None:
    listing = Listing(a_listing(fleet(*"abcd")))
    listing.first(1)
    page = listing.listings.next(listing.token, 10, 0.0, ME, lambda cluster: cluster.target.name != "c")
    assert names(page) == ["b", "d"]
    assert len(page.clusters) == 3, "omitted clusters count for the position in the listing"


@pytest.mark.parametrize(
    "other", [ListingOwner("me", "me, for less"), ListingOwner("another", "another, for everything")]
)
def test_page_token_is_bound_to_caller_and_view(other: ListingOwner) -> None:
    listing = Listing(a_listing(fleet(*"abc")))
    listing.first(1)
    with pytest.raises(ForeignPageTokenError, match="page_token"):
        Listing(listing.listings, other).next(1, token=listing.token)


def test_page_token_expires_after_five_minutes() -> None:
    listing = Listing(a_listing(fleet(*"abc")))
    listing.first(1)
    token = listing.token
    assert names(listing.next(1, LIFE_S)) == ["b"]
    with pytest.raises(InvalidRequestError, match="page_token"):
        listing.next(1, LIFE_S + 0.1, token)


def test_forty_listings_of_one_caller_are_kept() -> None:
    listings = a_listing(fleet(*(f"c-{number:04}" for number in range(1000))))
    each = [Listing(listings) for _ in range(40)]
    for listing in each:
        listing.first(10)
    assert all(names(listing.next(1)) == ["c-0010"] for listing in each)


def test_listings_of_one_caller_evict_the_oldest_listing_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings_module, "MAX_ENTRIES_EACH", 3 * (3 + OVERHEAD))
    listings = a_listing(fleet(*"abc"))
    each = [Listing(listings) for _ in range(4)]
    for listing in each:
        listing.first(1)
    with pytest.raises(InvalidRequestError):
        each[0].next(1)
    assert [names(listing.next(1)) for listing in each[1:]] == [["b"]] * 3


def test_total_listing_limit_evicts_listings_of_the_caller_with_the_most_entries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listings_module, "MAX_ENTRIES", 6 * (3 + OVERHEAD))
    listings = a_listing(fleet(*"abc"))
    greedy = [Listing(listings) for _ in range(4)]
    others = [Listing(listings, ListingOwner(f"caller {number}", "")) for number in range(3)]
    for listing in (*greedy, *others):
        listing.first(1)
    with pytest.raises(InvalidRequestError):
        greedy[0].next(1)
    assert [names(listing.next(1)) for listing in others] == [["b"]] * 3


def test_listing_over_the_limit_evicts_other_listings_and_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings_module, "MAX_ENTRIES", 1)
    listings = a_listing(fleet(*"abc"))
    listing, later = Listing(listings), Listing(listings, ListingOwner("another", ""))
    listing.first(1)
    later.first(1)
    assert names(later.next(1)) == ["b"]
    with pytest.raises(InvalidRequestError):
        listing.next(1)


def test_expired_listings_are_removed() -> None:
    listings = a_listing(fleet(*"abc"))
    for now in (0.0, LIFE_S + 1):
        listings.next_token(completed(listings.first(EVERYTHING, 1, now, ME)), 1, now)
    assert len(listings._listings) == 1


def test_listings_expire_once_they_keep_too_many_former_descriptions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings_module, "MAX_REPLACED_WEIGHT", 100_000)
    log = fleet(*"abc")
    listing, entry = Listing(a_listing(log)), log.entry("a")
    former = entry.cluster
    assert former is not None
    kept = listing.listings._listings

    def change(number: int) -> None:
        changed = cluster("a", former.incarnation, labels={"change": f"{number}{10_000 * 'x'}"})
        log.update(entry, changed, 0.0)

    for number in range(40):
        log.update(entry, replace(former, source_version=f"{number}"), 0.0)
        listing.first(1)
    assert len(kept) == 40, "each has the same description of the cluster"
    for number in range(40):
        change(number)
        listing.first(1)
    assert len(kept) < 12
    token = listing.token
    assert names(listing.next(1, token=token)) == ["b"]
    for number in range(12):
        change(number)
    with pytest.raises(InvalidRequestError):
        listing.next(1, token=token)


def test_forged_page_token_is_rejected() -> None:
    listing = Listing(a_listing(fleet(*"abc")))
    listing.first(1)
    token = listing.token
    key, start, mark = token.split(".")
    for bent in ("", ".", "x", key, f"{key}.2.{mark}", f"{key}.{start}.", f"{key}.{start}", f"{token}.1", f"x{token}"):
        with pytest.raises(ForeignPageTokenError):
            listing.next(1, token=bent)


@pytest.mark.untraced
def test_large_listing_evicts_many_listings_quickly() -> None:
    # The listings of another caller, which are older, are not looked at again for each that is evicted.
    listings = a_listing(fleet())

    def keep(caller: str, clusters: int) -> None:
        listed = (cluster(),) * clusters
        listing = OpenListing(listed, {}, 1, ListingOwner(caller, ""), LIFE_S)
        listings.next_token(Page(listing, "", 0, listed[:1]), 1, 0.0)

    for caller in ("other", "me"):
        for _ in range(MAX_ENTRIES_EACH // (2 + OVERHEAD)):
            keep(caller, 2)
    began = time.thread_time()
    keep("me", MAX_ENTRIES_EACH // 10)
    assert time.thread_time() - began < 0.5
