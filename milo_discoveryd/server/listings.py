"""Listings under way: all pages of one show the fleet at one revision."""

import secrets
from collections import OrderedDict

import msgspec

from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.registry.filter import Filter
from milo_discoveryd.registry.log import ChangeLog
from milo_discoveryd.server.errors import InvalidRequestError

AT_ONCE = 32
LIFE_S = 300.0


class Page(msgspec.Struct, frozen=True):
    clusters: tuple[Cluster, ...]
    revision: int
    total: int
    next_token: str


class _Listing(msgspec.Struct, frozen=True):
    clusters: tuple[Cluster, ...]
    revision: int
    fingerprint: str
    ends_at: float


class Listings:
    """Keeps the last few; an older one has to be begun again."""

    def __init__(self, log: ChangeLog) -> None:
        self._log = log
        self._kept: OrderedDict[str, _Listing] = OrderedDict()

    def first(self, wanted: Filter, size: int, now: float) -> Page:
        clusters = sorted(
            (view.cluster for view in self._log.current() if wanted.matches(view.cluster)),
            key=lambda cluster: cluster.target.name,
        )
        listing = _Listing(tuple(clusters), self._log.head, wanted.fingerprint, now + LIFE_S)
        if len(clusters) <= size:
            return _page(listing, "", 0, size)
        key = secrets.token_hex(8)
        self._kept[key] = listing
        while len(self._kept) > AT_ONCE:
            self._kept.popitem(last=False)
        return _page(listing, key, 0, size)

    def next(self, token: str, wanted: Filter, size: int, now: float) -> Page:
        key, _, start = token.partition(".")
        listing = self._kept.get(key)
        if not (start.isascii() and start.isdigit()) or listing is None or listing.ends_at < now:
            raise InvalidRequestError("page_token", "not known, or too old: list again from the first page")
        if listing.fingerprint != wanted.fingerprint:
            raise InvalidRequestError("page_token", "given out for another filter: repeat that one, or list again")
        return _page(listing, key, int(start), size)


def _page(listing: _Listing, key: str, start: int, size: int) -> Page:
    end = start + size
    token = f"{key}.{end}" if end < len(listing.clusters) else ""
    return Page(listing.clusters[start:end], listing.revision, len(listing.clusters), token)
