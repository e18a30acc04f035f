"""Listings in progress: all pages of one listing show the fleet at one revision."""

import secrets
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import chain
from operator import attrgetter

import msgspec

from milo_discoveryd.log.change_log import ChangeLog
from milo_discoveryd.log.filter import ClusterView
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.server.calls.grpc_errors import ForeignPageTokenError, InvalidRequestError
from milo_discoveryd.server.calls.revision import TokenSigner

_INVALID_TOKEN = "malformed, expired, or issued to another caller or for another filter; list again from the first page"  # noqa: S105
"""One message for all causes, so that a caller cannot find out whether another caller has such a listing."""
MAX_ENTRIES = 2_000_000
"""Maximum clusters in all listings in progress. Above it, the caller with the most clusters loses its oldest
listing."""
MAX_ENTRIES_EACH = 1_000_000
MAX_REPLACED_WEIGHT = 32 << 20
"""A listing expires once changes have replaced descriptions of clusters of this weight, in bytes, since it began: the
listings may be all that keeps them."""
OVERHEAD = 64
"""The weight of a listing in `MAX_ENTRIES`, in addition to its clusters."""
LIFE_S = 300.0
CLUSTERS_PER_STEP = 250
"""Maximum number of clusters compared with a filter in one step."""
_by_name = attrgetter("target.name")


class ListingOwner(msgspec.Struct, frozen=True):
    caller: str
    holder: str
    """The caller and its view, to which page tokens are bound: see `CallContext.holder`."""


class OpenListing(msgspec.Struct, frozen=True):
    """The clusters of one caller's listing, at one revision."""

    clusters: tuple[Cluster, ...]
    counts: Mapping[str, int]
    """The number of clusters, by source."""
    revision: int
    owner: ListingOwner
    ends_at: float
    replaced_weight: int = 0
    """`LogWeights.replaced` when the listing began."""
    pending: frozenset[str] = frozenset()
    """The sources whose clusters are missing from the listing."""

    @property
    def entries(self) -> int:
        return len(self.clusters) + OVERHEAD


class Page(msgspec.Struct, frozen=True):
    """A page before it is cut to the maximum size of a message."""

    listing: OpenListing
    key: str
    """The key of the listing; empty before a page token is issued for it."""
    start: int
    clusters: Sequence[Cluster | None]
    """The clusters, with None for each that the caller may no longer see."""


class Listings:
    """The listings in progress. Above a limit, callers lose their oldest listings, and must list again."""

    def __init__(self, log: ChangeLog, signer: TokenSigner) -> None:
        self._log = log
        self._signer = signer
        self._listings: OrderedDict[str, OpenListing] = OrderedDict()
        self._keys: defaultdict[str, dict[str, None]] = defaultdict(dict)
        """The keys of each caller's listings, the oldest first."""
        self._entries: Counter[str] = Counter()

    def first(
        self,
        view: ClusterView,
        size: int,
        now: float,
        owner: ListingOwner,
        *,
        pending: frozenset[str] = frozenset(),
    ) -> Generator[None, None, Page]:
        """Return the first page; yield between steps of some milliseconds. `pending` are the sources that the view
        leaves out.
        """
        clusters, revision, replaced_weight = self._log.clusters(), self._log.head, self._log.weights.replaced
        yield
        parts: list[list[Cluster]] = []
        counts: Counter[str] = Counter()
        step = min(CLUSTERS_PER_STEP, view.records_per_step)
        for start in range(0, len(clusters), step):
            parts.append(sorted(filter(view.matches, clusters[start : start + step]), key=_by_name))
            counts.update([cluster.target.source for cluster in parts[-1]])
            yield
            # `sorted` merges sorted parts in linear time.
            while len(parts) > 1 and len(parts[-2]) <= len(parts[-1]):
                parts[-2:] = [sorted(chain(*parts[-2:]), key=_by_name)]
                yield
        visible = tuple(sorted(chain(*parts), key=_by_name))
        yield
        listing = OpenListing(visible, counts, revision, owner, now + LIFE_S, replaced_weight, pending)
        return Page(listing, "", 0, visible[:size])

    def next(
        self, token: str, size: int, now: float, owner: ListingOwner, is_visible: Callable[[Cluster], bool]
    ) -> Page:
        """Return a later page, without the clusters that are no longer visible."""
        text = self._signer.verify(token, owner.holder)
        if text is None:
            raise ForeignPageTokenError("page_token", _INVALID_TOKEN)
        key, _, start = text.partition(".")
        listing = self._listings.get(key)
        if listing is None or self._has_expired(listing, now):
            raise InvalidRequestError("page_token", _INVALID_TOKEN)
        place = int(start)
        listed = listing.clusters[place : place + size]
        return Page(listing, key, place, [cluster if is_visible(cluster) else None for cluster in listed])

    def next_token(self, page: Page, taken: int, now: float) -> str:
        """Return the token of the next page, if `taken` items of this page were sent; empty after the last page."""
        listing, next_place = page.listing, page.start + taken
        if next_place >= len(listing.clusters):
            return ""
        return self._signer.sign(f"{page.key or self._add(listing, now)}.{next_place}", listing.owner.holder)

    def _add(self, listing: OpenListing, now: float) -> str:
        while self._listings and self._has_expired(next(iter(self._listings.values())), now):
            self._remove(next(iter(self._listings)))
        key, caller = secrets.token_hex(8), listing.owner.caller
        self._listings[key] = listing
        self._log.weights.counts_replaced = True
        self._keys[caller][key] = None
        self._entries[caller] += listing.entries
        while self._entries[caller] > MAX_ENTRIES_EACH and self._remove_oldest(caller, unless=key):
            pass
        while self._entries.total() > MAX_ENTRIES:
            if not any(self._remove_oldest(caller, unless=key) for caller, _ in self._entries.most_common()):
                break  # only the new listing is left
        return key

    def _has_expired(self, listing: OpenListing, now: float) -> bool:
        return listing.ends_at < now or self._log.weights.replaced - listing.replaced_weight > MAX_REPLACED_WEIGHT

    def _remove_oldest(self, caller: str, *, unless: str) -> bool:
        oldest = next(iter(self._keys[caller]))
        if oldest == unless:
            return False
        self._remove(oldest)
        return True

    def _remove(self, key: str) -> None:
        listing = self._listings.pop(key)
        self._log.weights.counts_replaced = bool(self._listings)
        caller = listing.owner.caller
        self._entries[caller] -= listing.entries
        del self._keys[caller][key]
        if not self._keys[caller]:
            del self._keys[caller], self._entries[caller]
