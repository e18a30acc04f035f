"""Lists a source completely, as the daemon would, and evaluates which clusters its objects mean."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing

import msgspec

from milo_discoveryd.check.finding import Finding, fail, ok, warn
from milo_discoveryd.config import Settings
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.model.moment import Moment
from milo_discoveryd.model.observation import Observation, Ready
from milo_discoveryd.registry.claims import FleetClaims
from milo_discoveryd.registry.cluster_records import ObjectState
from milo_discoveryd.registry.log import ChangeLog, Retention
from milo_discoveryd.registry.object_records import ObjectRecords
from milo_discoveryd.registry.reduction import Reduction
from milo_discoveryd.registry.registry import Registry
from milo_discoveryd.sources.keyed import FollowedCollection, KeyedSource
from milo_discoveryd.watchers.transport import Transport
from milo_discoveryd.wiring.configured_source import ConfiguredSource, at_server
from milo_kube.reflect.wire import ListPageError
from milo_kube.upstream import Upstream

_SAID = {
    ObjectState.NOT_READY: "not ready",
    ObjectState.WITHDRAWN: "withdrawn",
    ObjectState.OUTSIDE: "outside of the label selector",
    ObjectState.REFUSED: "of other organizations refused",
    ObjectState.MALFORMED: "malformed",
}
_FIRST = (ObjectState.MALFORMED, ObjectState.REFUSED, ObjectState.NOT_READY)
"""The states whose first message is reported, the worst first."""


class Evaluation(msgspec.Struct, frozen=True):
    """The clusters that a source engages by its complete lists."""

    clusters: tuple[Cluster, ...]
    """Those that the daemon engages."""
    others: Mapping[ObjectState, tuple[tuple[str, str], ...]]
    """Objects whose clusters are not engaged, by state: name and message, sorted."""


async def evaluate_source(
    source: ConfiguredSource,
    upstream: Upstream | None,
    settings: Settings,
    environ: Mapping[str, str],
    claims: FleetClaims | None = None,
) -> Evaluation:
    """Read a source's objects or files. `upstream` is the watched API server, with the credential to use. `claims` has
    those of the sources before.

    Raises FilesError, TransportError and ListPageError.
    """
    followed = source.followed
    if source.files is not None:
        return evaluate(followed, [list(map(followed.observe_file, source.files.objects_now()))], claims)
    if upstream is None:
        return evaluate(followed, [[Ready(target.uid, "", target) for target in followed.targets]], claims)
    listed = [await _listed(upstream, settings, environ, each) for each in followed.collections]
    return evaluate(followed, listed, claims, upstream.server)


def evaluate(
    followed: KeyedSource, listed: Sequence[Sequence[Observation]], claims: FleetClaims | None = None, server: str = ""
) -> Evaluation:
    """Evaluate complete lists of a source's collections, which are at that server."""
    registry = Registry(ChangeLog(lambda _: b"", Retention()), claims=claims, server=server or followed.name)
    now = Moment(0.0, 0.0)
    if followed.reduce is None:
        registry.commit(listed[0], now, consistent=True, listed=True)
        return _evaluation(registry, ())
    objects = [ObjectRecords() for _ in listed]
    reduction = Reduction(followed.reduce, registry, objects)
    for watch, observations in enumerate(listed):
        changes = objects[watch].commit(observations, now, consistent=True)
        reduction.commit(reduction.apply(watch, changes, 0), now)
    return _evaluation(registry, objects)


def findings(subject: str, found: Evaluation, *, refuses: bool = False) -> Iterator[Finding]:
    """Report how many clusters are engaged, and the first problem of the others.

    `refuses`: whether the source refuses objects of other organizations; their number is then reported if it is 0.
    """
    counts = {state: len(found.others.get(state, ())) for state in _SAID}
    engaged, total = len(found.clusters), len(found.clusters) + sum(counts.values())
    if not total:
        return  # the finding about the list says so
    message = ", ".join(
        [
            f"{engaged} of {total} engaged",
            *(
                f"{count} {_SAID[state]}"
                for state, count in counts.items()
                if count or (refuses and state is ObjectState.REFUSED)
            ),
        ]
    )
    worst = next((state for state in _FIRST if counts[state]), None)
    if worst is None or (worst is ObjectState.NOT_READY and engaged):
        yield ok(subject, message)
        return
    name, problem = found.others[worst][0]
    message = f"{message}; first problem: {name}: {problem}"
    match worst:
        case ObjectState.REFUSED:
            fix = "the server ignores label selectors: check which proxy is before Milo, and what the identity may list"
        case ObjectState.MALFORMED:
            fix = "correct the settings of the source where all objects are like this one, or else the object"
        case _:
            fix = "none is ready: wait, or correct the condition or field that the source takes for it"
    yield (fail if worst is ObjectState.MALFORMED and not engaged else warn)(subject, message, fix)


def _evaluation(registry: Registry, objects: Sequence[ObjectRecords]) -> Evaluation:
    others: dict[ObjectState, list[tuple[str, str]]] = {}
    for name, record in registry.items():
        if record.cluster is None and record.state in _SAID:
            others.setdefault(record.state, []).append((name, record.message))
    for each in objects:
        malformed = [(key, record.message) for key, record in each.items() if record.state is ObjectState.MALFORMED]
        others.setdefault(ObjectState.MALFORMED, []).extend(malformed)
    return Evaluation(
        tuple(sorted(registry.clusters(), key=lambda each: each.target.name)),
        {state: tuple(sorted(named)) for state, named in others.items()},
    )


async def _listed(
    upstream: Upstream, settings: Settings, environ: Mapping[str, str], collection: FollowedCollection
) -> list[Observation]:
    at = at_server(upstream, collection.server)
    transport = Transport(at, response_limit=settings.watch.objects_limit, environ=environ)
    async with aclosing(transport):
        return [each async for each in _objects(transport, settings, collection)]


async def _objects(
    transport: Transport, settings: Settings, collection: FollowedCollection
) -> AsyncIterator[Observation]:
    """Yield the objects of a complete list, as the daemon sees them."""
    how, watched = settings.watch, collection.watched
    token = ""
    while True:
        query = [*watched.query, ("limit", str(how.page_size)), *([("continue", token)] if token else [])]
        answer = await transport.get(watched.path, query, timeout_s=how.request_timeout.total_seconds())
        if answer.status != 200:
            raise ListPageError(f"the API server answered the list with {answer.status}")
        page, observations = collection.decoder.page(answer.body)
        for each in observations:
            yield each
        token = page.continue_token
        if not token:
            return
