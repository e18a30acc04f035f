"""Listings under way: all pages of one show the fleet at one revision."""

import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable
from operator import attrgetter

import msgspec

from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.registry.filter import ClusterView
from milo_discoveryd.registry.log import ChangeLog
from milo_discoveryd.server.calls.grpc_errors import ForeignPageTokenError, InvalidRequestError
from milo_discoveryd.server.calls.revision import TokenSigner

_AGAIN = "not known, too old, or not of a listing with this filter: list again from the first page"
"""The same for all of these: which of them it is tells whether somebody else has such a listing."""
AT_ONCE = 64
MAX_PER_CALLER = 16
"""Of those, at most so many are one caller's: nobody is to lose theirs because somebody else begins many."""
LIFE_S = 300.0


class Page(msgspec.Struct, frozen=True):
    clusters: tuple[Cluster, ...]
    revision: int
    total: int
    next_token: str


class ListingOwner(msgspec.Struct, frozen=True):
    """Whom a listing is for."""

    caller: str
    text: str
    """The caller, and what it is shown: see `revision.Seal`."""


class _Listing(msgspec.Struct, frozen=True):
    clusters: tuple[Cluster, ...]
    revision: int
    caller: str
    ends_at: float


class Listings:
    """Keeps the last few; an older one has to be begun again."""

    def __init__(self, log: ChangeLog, seal: TokenSigner) -> None:
        self._log = log
        self._seal = seal
        self._kept: OrderedDict[str, _Listing] = OrderedDict()

    def first(self, wanted: ClusterView, size: int, now: float, holder: ListingOwner) -> Page:
        clusters = sorted(
            filter(wanted.matches, self._log.clusters()),
            key=attrgetter("target.name"),
        )
        listing = _Listing(tuple(clusters), self._log.head, holder.caller, now + LIFE_S)
        key = ""
        if len(clusters) > size:
            key = secrets.token_hex(8)
            self._keep(key, listing)
        return self._page(listing, key, 0, size, holder)

    def next(self, token: str, size: int, now: float, holder: ListingOwner, still: Callable[[Cluster], bool]) -> Page:
        """Of the clusters of then, those that may be seen `still`."""
        held = self._seal.holds(token, holder.text)
        if held is None:
            raise ForeignPageTokenError("page_token", _AGAIN)
        key, _, start = held.partition(".")
        listing = self._kept.get(key)
        if listing is None or listing.ends_at < now:
            raise InvalidRequestError("page_token", _AGAIN)
        page = self._page(listing, key, int(start), size, holder)
        return msgspec.structs.replace(page, clusters=tuple(filter(still, page.clusters)))

    def _keep(self, key: str, listing: _Listing) -> None:
        self._kept[key] = listing
        own = [key for key, each in self._kept.items() if each.caller == listing.caller]
        if len(own) > MAX_PER_CALLER:
            del self._kept[own[0]]
        elif len(self._kept) > AT_ONCE:
            (most, _), *_ = Counter(each.caller for each in self._kept.values()).most_common(1)
            del self._kept[next(key for key, each in self._kept.items() if each.caller == most)]

    def _page(self, listing: _Listing, key: str, start: int, size: int, holder: ListingOwner) -> Page:
        end = start + size
        token = self._seal.put(f"{key}.{end}", holder.text) if end < len(listing.clusters) else ""
        return Page(listing.clusters[start:end], listing.revision, len(listing.clusters), token)
