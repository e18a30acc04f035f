"""Lists a source completely, as the daemon would, and determines which clusters its objects describe."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing

import msgspec

from milo_discoveryd.check.finding import Finding, fail, ok, warn
from milo_discoveryd.config import Settings
from milo_discoveryd.engagement.claims import FleetEngagements
from milo_discoveryd.engagement.contribution_index import ContributionIndex
from milo_discoveryd.engagement.engagement import Engagements
from milo_discoveryd.fleet.source import ObjectsAreClusters
from milo_discoveryd.log.change_log import ChangeLog, Retention
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.model.contributions import ObservedObject
from milo_discoveryd.model.object_state import MEANINGS, ObjectState
from milo_discoveryd.model.observation import Ready
from milo_discoveryd.objects.store import ObjectChanges, ObjectPosition, ObjectStore
from milo_discoveryd.sources.keyed import FollowedCollection, KeyedSource
from milo_discoveryd.watchers.transport import Transport
from milo_discoveryd.wiring.configured_source import ConfiguredSource, at_server
from milo_kube.list_pages import EndlessListError, ListPages
from milo_kube.moment import Moment
from milo_kube.reflect.wire import ListPageError
from milo_kube.upstream import Upstream

_REPORTED = [state for state, meaning in MEANINGS.items() if not meaning.is_ready and state is not ObjectState.DELETED]
"""The states of listed objects that engage no cluster, worst first."""


class Evaluation(msgspec.Struct, frozen=True):
    """The result of a source's complete lists: which clusters are engaged, and which objects engage none."""

    clusters: tuple[Cluster, ...]
    """The clusters that the daemon engages."""
    others: Mapping[ObjectState, tuple[tuple[str, str], ...]]
    """Objects that engage no cluster, by state: sorted pairs of name and message."""
    duplicate_of: str = ""
    """An earlier source that has most of this source's projects."""


async def evaluate_source(
    source: ConfiguredSource,
    upstream: Upstream | None,
    settings: Settings,
    environ: Mapping[str, str],
    fleet: FleetEngagements | None = None,
) -> Evaluation:
    """Read a source's objects or files. `upstream` is the watched API server, with the credential to use. `fleet`
    contains the clusters of the sources that were evaluated earlier.

    Raises FilesError, TransportError and ListPageError.
    """
    followed = source.followed
    if source.files is not None:
        objects = await asyncio.to_thread(source.files.objects_now)
        return evaluate(followed, [list(map(followed.observe_file, objects))], fleet)
    if upstream is None:
        return evaluate(followed, [[Ready(target.uid, "", target) for target in followed.targets]], fleet)
    listed = [await _listed(upstream, settings, environ, collection) for collection in followed.collections]
    return evaluate(followed, listed, fleet, upstream.server)


def evaluate(
    followed: KeyedSource,
    listed: Sequence[Sequence[ObservedObject]],
    fleet: FleetEngagements | None = None,
    server: str = "",
) -> Evaluation:
    """Evaluate complete lists of a source's collections at `server`."""
    engagements = Engagements(ChangeLog(lambda _: b"", Retention()))
    fleet = fleet or FleetEngagements()
    claimant = fleet.add_source(followed.name, engagements, server or followed.name)
    stores, position = [ObjectStore() for _ in listed], ObjectPosition(1)
    reduce = followed.reduce
    meaning = ObjectsAreClusters() if reduce is None else ContributionIndex(reduce, engagements, stores)
    for collection, (store, observed) in enumerate(zip(stores, listed, strict=True)):
        changes = store.apply_listed((seen, 0, "") for seen in observed)
        for states in meaning.states(collection, ObjectChanges(changes, position)):
            fleet.commit(claimant, states, Moment(0.0, 0.0))
    found = _evaluation(engagements, [] if followed.reduce is None else stores)
    return msgspec.structs.replace(found, duplicate_of=fleet.duplicate_of(claimant))


def findings(subject: str, found: Evaluation, *, refuses: bool = False) -> Iterator[Finding]:
    """Report how many clusters are engaged, and the first problem of the objects that engage no cluster.

    `refuses`: whether the source refuses objects of other organizations; if so, the number of refused objects is
    reported even if it is 0.
    """
    counts = {state: len(found.others.get(state, ())) for state in _REPORTED}
    engaged, total = len(found.clusters), len(found.clusters) + sum(counts.values())
    if not total:
        return  # the finding about the list reports that no object matches
    message = ", ".join(
        [
            f"{engaged} of {total} engaged",
            *(
                f"{count} {MEANINGS[state].words}"
                for state, count in counts.items()
                if count or (refuses and state is ObjectState.REFUSED)
            ),
        ]
    )
    worst = next((state for state in _REPORTED if counts[state] and MEANINGS[state].remedy), None)
    if worst is None or (worst is ObjectState.NOT_READY and engaged):
        yield ok(subject, message)
        return
    report = fail if worst is ObjectState.MALFORMED and not engaged else warn
    if worst is ObjectState.MALFORMED and (other := found.duplicate_of):
        message = f"{message}; the sources {subject.partition(':')[0]} and {other} follow the same projects"
        yield report(subject, message, "remove one of the two sources")
        return
    name, problem = found.others[worst][0]
    yield report(subject, f"{message}; first problem: {name}: {problem}", MEANINGS[worst].remedy)


def _evaluation(engagements: Engagements, stores: Sequence[ObjectStore]) -> Evaluation:
    others: dict[ObjectState, list[tuple[str, str]]] = {}
    for name, record in engagements.items():
        if record.cluster is None and record.state in _REPORTED:
            others.setdefault(record.state, []).append((name, record.message))
    for store in stores:
        malformed = [(key, record.message) for key, record in store.items() if record.state is ObjectState.MALFORMED]
        others.setdefault(ObjectState.MALFORMED, []).extend(malformed)
    return Evaluation(
        tuple(sorted(engagements.clusters(), key=lambda cluster: cluster.target.name)),
        {state: tuple(sorted(named)) for state, named in others.items()},
    )


async def _listed(
    upstream: Upstream, settings: Settings, environ: Mapping[str, str], collection: FollowedCollection
) -> list[ObservedObject]:
    at = at_server(upstream, collection.server)
    transport = Transport(at, response_limit=settings.watch.response_limit(len(settings.sources)), environ=environ)
    async with aclosing(transport):
        return [observation async for observation in _objects(transport, settings, collection)]


async def _objects(
    transport: Transport, settings: Settings, collection: FollowedCollection
) -> AsyncIterator[ObservedObject]:
    """Read all pages of a list, and yield an observation of each object, decoded as in the daemon."""
    how, watched = settings.watch, collection.watched
    token, pages = "", ListPages(time.monotonic())
    while True:
        query = [*watched.query, ("limit", str(how.page_size)), *([("continue", token)] if token else [])]
        answer = await transport.get(watched.path, query, timeout_s=how.request_timeout.total_seconds())
        if answer.status != 200:
            raise ListPageError(f"the API server answered {answer.status} to the request for {watched.path}")
        page, observations = collection.decoder.page(answer.body)
        for observation in observations:
            if observation is not None:
                yield observation
        token = page.continue_token
        if not token:
            return
        try:
            pages = pages.next(token, time.monotonic())
        except EndlessListError as error:
            raise ListPageError(str(error)) from None
