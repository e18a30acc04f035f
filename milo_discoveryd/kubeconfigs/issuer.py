"""Hands out kubeconfigs: for a cluster that is engaged at that very moment, from the source that covers it.

Everything between the look at the registry and the answer happens without waiting, so that there is no hand-out after
a disengagement, whatever was under way.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from milo_discoveryd.credentials.credential import Credential
from milo_discoveryd.credentials.minted import Minted
from milo_discoveryd.credentials.sources.minting import MintingSource, Scope
from milo_discoveryd.daemon_errors import CredentialError, UnfitError
from milo_discoveryd.kubeconfigs import rendering
from milo_discoveryd.kubeconfigs.handed import Kubeconfig, SourceHealth
from milo_discoveryd.kubeconfigs.lease import Draw, refresh_at
from milo_discoveryd.kubeconfigs.minter import Kept, Key, Minter, Told
from milo_discoveryd.kubeconfigs.minter import Tally as MintTally
from milo_discoveryd.kubeconfigs.rendering import Place
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.model.selector import Selector
from milo_discoveryd.rights.rights import UNLIMITED, Recipient, Terms

PATIENCE_S = 10.0
"""For how long a caller waits for the first credential."""
IMPATIENCE_S = 2.0
"""And for how long one that could have the rest of an old one."""
FIRST_ATTEMPT_S = 1.0
"""How long a stream waits for a source that has never answered, so that its first events have credentials."""
NO_SOURCE = "no source of kubeconfigs is configured: this daemon hands out none"


class Tally(MintTally, Protocol):
    def kubeconfig_issued(self, result: str) -> None: ...


class Audit(Protocol):
    """Who writes down what is handed out."""

    def handed_out(self, to: Recipient, what: str, **about: object) -> None: ...


class Offer(msgspec.Struct, frozen=True):
    """A source, and which clusters it is for."""

    source: MintingSource
    selector: Selector = Selector()

    def covers(self, cluster: Cluster) -> bool:
        return self.selector.matches(cluster.target.labels)


class NotCoveredError(UnfitError):
    """No source is for this cluster."""


class NotNowError(CredentialError):
    """Nothing valid is held, and no more can be got at present."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Issuer:
    def __init__(
        self,
        offers: Sequence[Offer],
        *,
        place: Callable[[], Place],
        tally: Tally,
        audit: Audit,
        max_ttl_s: float,
        default_ttl_s: float,
        address: Callable[[], str | None] = lambda: None,
        concurrency: int = 10,
        per_second: float = 50.0,
        draw: Draw = random.random,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.max_ttl_s = max_ttl_s
        self._default_ttl_s = default_ttl_s
        self._place = place
        self._tally = tally
        self._audit = audit
        self._address = address
        self._draw = draw
        self._wall = wall
        self._followers: set[Told] = set()
        self._offers = [
            (
                offer,
                Minter(
                    offer.source,
                    tally=tally,
                    told=self._tell,
                    draw=draw,
                    concurrency=concurrency,
                    per_second=per_second,
                    wall=wall,
                ),
            )
            for offer in offers
        ]

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _, minter in self._offers:
                minter.keep_ready(self._ttl_s(None, UNLIMITED))
                tasks.create_task(minter.run(), name=f"credentials of {minter.source.name}")

    def covers(self, cluster: Cluster, terms: Terms) -> bool:
        return self._serving(cluster, terms) is not None

    # Asking

    async def refusal(self, terms: Terms) -> UnfitError | None:
        """Why no cluster can have a kubeconfig on these terms, however long one waits; None where some can."""
        found: UnfitError = NotCoveredError(NO_SOURCE)
        for _, minter in self._offers:
            if not terms.allow(minter.source.name):
                continue
            await minter.first_attempt(FIRST_ATTEMPT_S)
            if (unfit := _unfit_for_all(minter)) is None:
                return None
            found = unfit
        return found

    def ask(self, cluster: Cluster, ttl_s: float | None, terms: Terms) -> Kept:
        """Sees to it that there is a credential for an engaged cluster, soon. Raises NotCoveredError."""
        return self._minter(cluster, terms).wanted(cluster, self._ttl_s(ttl_s, terms))

    async def settle(self, kept: Kept, within_s: float) -> None:
        """Until there is something useful, or it is known that there won't be soon, or so many seconds have passed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not kept.is_dropped and not self._is_settled(kept):
                    await kept.told()

    def _is_settled(self, kept: Kept) -> bool:
        now = self._minter_of(kept.key).now()
        return kept.lease.useful(now) is not None or not (kept.queued or kept.lease.is_renewing)

    async def await_credential(self, cluster: Cluster, ttl_s: float | None, terms: Terms) -> None:
        """Waits for as long as it makes sense before `hand_out`. Raises NotCoveredError."""
        kept = self.ask(cluster, ttl_s, terms)
        now = self._minter_of(kept.key).now()
        await self.settle(kept, PATIENCE_S if kept.lease.valid(now) is None else IMPATIENCE_S)

    async def await_source(self, cluster: Cluster, terms: Terms) -> None:
        """Waits a little for the first answer of the source that covers it. Raises NotCoveredError."""
        await self._minter(cluster, terms).first_attempt(FIRST_ATTEMPT_S)

    # Handing out: none of this waits

    def peek(self, cluster: Cluster, ttl_s: float | None, terms: Terms) -> Minted | None:
        """What `hand_out` would hand out."""
        kept = self.ask(cluster, ttl_s, terms)
        return kept.lease.valid(self._minter_of(kept.key).now())

    def hand_out(self, cluster: Cluster, incarnation: str, ttl_s: float | None, to: Recipient) -> Kubeconfig:
        """For a cluster that the caller of this has just found engaged. Raises CredentialError."""
        minter = self._minter(cluster, to.terms)
        kept = minter.wanted(cluster, self._ttl_s(ttl_s, to.terms))
        now = minter.now()
        minted = kept.lease.valid(now)
        if minted is None:
            raise self._not_now(minter, kept)
        target = cluster.target
        text = rendering.embedded(target.name, target.endpoint, self._place(), minted.credential)
        kept.is_wanted = True
        self._tally.kubeconfig_issued("ok")
        self._audit.handed_out(
            to,
            "kubeconfig handed out",
            cluster=target.name,
            uid=target.uid,
            incarnation=incarnation,
            source=minter.source.name,
            expires_at=_told(minted.expires_at),
            fingerprint=minted.fingerprint,
        )
        return Kubeconfig(
            cluster=target.name,
            text=text,
            issued_at=now.wall,
            expires_at=minted.expires_at,
            refresh_at=refresh_at(minted, now.wall, self._draw),
            minted=minted,
        )

    def hand_out_command(self, cluster: Cluster, incarnation: str, to: Recipient) -> Kubeconfig:
        """The form that holds no secret, and asks for one each time. Raises UnfitError where it would ask in vain."""
        minter = self._minter(cluster, to.terms)
        if (unfit := _unfit_for_all(minter)) is not None:
            raise unfit
        target = cluster.target
        text = rendering.exec_form(target.name, target.endpoint, self._place(), self._address())
        self._tally.kubeconfig_issued("ok")
        self._audit.handed_out(
            to,
            "kubeconfig without a credential handed out",
            cluster=target.name,
            uid=target.uid,
            incarnation=incarnation,
        )
        return Kubeconfig(cluster=target.name, text=text, issued_at=self._wall())

    def refused(self, result: str) -> None:
        """A request for a kubeconfig came to nothing."""
        self._tally.kubeconfig_issued(result)

    def held(self, cluster: Cluster) -> Credential | None:
        """What its operators have at present, where they have anything; none is got for it."""
        minter = self._serving(cluster, UNLIMITED)
        minted = None if minter is None else minter.held_for(cluster)
        return None if minted is None else minted.credential

    # What changes

    def disengaged(self, cluster: Cluster) -> None:
        """To be called in the same step as its disengagement."""
        for _, minter in self._offers:
            minter.drop(cluster)

    def follow(self, told: Told) -> Callable[[], None]:
        """Calls it for each lease that has something new, until what this returns is called."""
        self._followers.add(told)
        return lambda: self._followers.discard(told)

    @property
    def followers(self) -> int:
        return len(self._followers)

    def key(self, cluster: Cluster, ttl_s: float | None, terms: Terms) -> Key:
        return self._minter(cluster, terms).key(cluster, self._ttl_s(ttl_s, terms))

    # What is told of it

    def health(self) -> list[SourceHealth]:
        found = []
        for _, minter in self._offers:
            ends = [minted.expires_at for minted in minter.held()]
            found.append(
                SourceHealth(
                    name=minter.source.name,
                    type=minter.source.type,
                    trouble="" if minter.trouble is None else str(minter.trouble),
                    expires_at=min(ends, default=None),
                    leases=len(minter),
                )
            )
        return found

    def trouble(self, cluster: Cluster, terms: Terms) -> str | None:
        """Why no kubeconfig can be had for it at present."""
        minter = self._serving(cluster, terms)
        return None if minter is None or minter.trouble is None else str(minter.trouble)

    def _tell(self, key: Key) -> None:
        for told in [*self._followers]:
            told(key)

    def _ttl_s(self, asked: float | None, terms: Terms) -> float:
        return terms.ttl_s(min(self.max_ttl_s, self._default_ttl_s if asked is None else asked))

    def _serving(self, cluster: Cluster, terms: Terms) -> Minter | None:
        """The first that is for the cluster, of those from which there may be something on these terms."""
        return next(
            (minter for offer, minter in self._offers if offer.covers(cluster) and terms.allow(minter.source.name)),
            None,
        )

    def _minter(self, cluster: Cluster, terms: Terms) -> Minter:
        minter = self._serving(cluster, terms)
        if minter is not None:
            return minter
        if not self._offers:
            raise NotCoveredError(NO_SOURCE)
        raise NotCoveredError(
            f"no credential source is for {cluster.target.name}: its labels match none of kubeconfigs.sources"
            f"{'' if terms.sources is None else ' that the rule for this caller names'}"
        )

    def _minter_of(self, key: Key) -> Minter:
        return next(minter for _, minter in self._offers if minter.source.name == key.source)

    def _not_now(self, minter: Minter, kept: Kept) -> CredentialError:
        unfit = kept.lease.failure or _unfit_for_all(minter)
        if isinstance(unfit, UnfitError):
            return unfit
        due_at = kept.lease.due_at
        wait = 1.0 if due_at is None else max(1.0, due_at - minter.now().steady)
        failure = kept.lease.failure or minter.trouble
        return NotNowError(str(failure or f"{minter.source.name} has not answered yet"), wait)


def _unfit_for_all(minter: Minter) -> UnfitError | None:
    """Where each cluster has its own, what is unfit for one says nothing of the others."""
    is_of_all = minter.source.scope is Scope.IDENTITY
    return minter.trouble if is_of_all and isinstance(minter.trouble, UnfitError) else None


def _told(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
