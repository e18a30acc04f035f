"""Compares a complete list with the known objects: the facts by which it is judged. Pure, and changes nothing."""

from collections.abc import Generator, Iterable, Iterator, Mapping
from itertools import islice
from typing import TypeVar

import msgspec

from milo_discoveryd.model.contributions import ObservedObject
from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.model.observation import Malformed
from milo_discoveryd.objects.pending_deletions import PendingDeletions
from milo_discoveryd.objects.staged_list import StagedList
from milo_discoveryd.objects.store import ObjectRecord, ObjectStore
from milo_discoveryd.objects.trust import ListFacts, Nothing, Trust
from milo_kube.reflect.versions import is_older

OBJECTS_PER_STEP = 2000
"""How many objects of a list, or of those that it lacks, are looked at in one step: some 10 ms."""
T = TypeVar("T")


class Comparison(msgspec.Struct, frozen=True):
    """What a list shows. Objects are pairs of name and UID."""

    facts: ListFacts
    missing: list[tuple[str, str]]
    """The objects that the list lacks, or shows in an older state."""
    judged: list[tuple[str, str]]
    """The established objects of `missing`, and those that the list shows under another UID: the verdict is about
    these."""
    announced: frozenset[str]
    """Names of established objects whose deletion was requested before the list."""
    regressed: Mapping[str, str]
    """Listed versions of the objects that the list shows in an older state, as a server that was restored from a backup
    does, by name."""
    replacing: Mapping[str, tuple[str, str]]
    """UID and version of each listed object that has the name of a different established object, by name."""


def in_steps(objects: Iterable[T]) -> Iterator[list[T]]:
    """Yield the objects, as many at once as one step may look at."""
    rest = iter(objects)
    while step := [*islice(rest, OBJECTS_PER_STEP)]:
        yield step


def compare(
    listed: StagedList,
    store: ObjectStore,
    pending_deletions: PendingDeletions,
    trust: Trust,
    *,
    version: str,
    held_since: float,
) -> Generator[None, None, Comparison]:
    """Compare a list of this version; yield between steps, in which none of the arguments may change. `held_since` is
    when an object must have been missing for the first time, so that this list is the second one that lacks it."""
    is_behind, is_accepted = (yield from _is_behind(version, trust, store)), trust.accepted_at is not None
    regressed: dict[str, str] = {}
    missing: list[tuple[str, str]] = []
    if not is_accepted and not isinstance(trust.basis, Nothing):
        for step in in_steps(listed.differing() if is_behind else listed.suspects()):
            for observation, record in _regressed(step, store, pending_deletions, is_behind=is_behind):
                name = observation.name
                regressed[name] = observation.version
                missing.append((name, record.uid))
            yield
    for unlisted in in_steps(listed.missing()):
        missing += unlisted
        yield
    newly_regressed = len(regressed)
    kept: set[str] = set()
    judged: list[tuple[str, str]] = []
    for unlisted in in_steps(missing):
        if not is_accepted:
            held_before = [name for name, _ in unlisted if pending_deletions.is_held_until_accepted(name)]
            kept.update(held_before)
            newly_regressed -= sum([name in regressed for name in held_before])
        judged += [(name, uid) for name, uid in unlisted if store.is_established(name) and name not in kept]
        yield
    replacing: dict[str, tuple[str, str]] = {}
    for step in in_steps(listed.suspects()):
        for observation, record in _replaced(step, store):
            if (name := observation.name) not in regressed:
                judged.append((name, record.uid))
                replacing[name] = observation.uid, observation.version
        yield
    is_foreign = yield from _is_foreign(listed, store)
    may_announce = not is_foreign and (is_accepted or not (is_behind or newly_regressed))
    announced: set[str] = set()
    held = 0
    for lost in in_steps(judged):
        if may_announce:
            announced.update(name for name, _ in lost if store.is_terminating(name))
        held += sum([pending_deletions.is_kept_since(name, held_since) for name, _ in lost if name not in announced])
        yield
    if announced:
        judged = [(name, uid) for name, uid in judged if name not in announced]
    facts = ListFacts(
        version=version,
        listed=len(listed.uids),
        known=store.present_count if is_foreign else 0,
        engaged=store.established_count,
        missing=len(judged),
        held=held,
        announced=len(announced),
        regressed=newly_regressed,
        held_until_accepted=len(kept),
        is_behind=is_behind,
        is_foreign=is_foreign,
    )
    return Comparison(facts, missing, judged, frozenset(announced), regressed, replacing)


def _is_behind(version: str, trust: Trust, store: ObjectStore) -> Generator[None, None, bool]:
    """Return whether a list is older than the known state. If that state has no version, the objects are compared."""
    if version in ("", "0") or isinstance(trust.basis, Nothing):
        return False
    if trust.version:
        return is_older(version, trust.version)
    for step in in_steps(store.items()):
        if any(is_older(version, record.version) for _, record in step):
            return True
        yield
    return False


def _is_foreign(listed: StagedList, store: ObjectStore) -> Generator[None, None, bool]:
    """Return whether a list contains objects, but none that is known."""
    if store.established_count <= 1 or not listed.uids:
        return False
    for place, (name, uid) in enumerate(listed.uids.items(), 1):  # usually ends at the first one
        if store.is_established(name) or store.is_present(name, uid):
            return False
        if place % OBJECTS_PER_STEP == 0:
            yield
    return True


def _established(listed: Iterable[ObservedObject], store: ObjectStore) -> Iterator[tuple[ObservedObject, ObjectRecord]]:
    """Yield listed objects with the established records that they would change."""
    for observation in listed:
        record = store[observation.name]
        if record is not None and record.is_established:
            yield observation, record


def _replaced(listed: Iterable[ObservedObject], store: ObjectStore) -> Iterator[tuple[ObservedObject, ObjectRecord]]:
    """Yield the listed objects that have the name of a different established one, with the records of these."""
    for observation, record in _established(listed, store):
        if observation.uid not in ("", record.uid):
            yield observation, record


def _regressed(
    listed: Iterable[ObservedObject], store: ObjectStore, pending_deletions: PendingDeletions, *, is_behind: bool
) -> Iterator[tuple[ObservedObject, ObjectRecord]]:
    """Yield the listed objects that are older than the established ones, with the records of these."""
    for observation, record in _established(listed, store):
        if _differs(observation, record) and (
            store.is_older_than_known(observation)
            or (is_behind and not record.version)
            or is_held_back(observation, store, pending_deletions)
        ):
            yield observation, record


def _differs(observation: ObservedObject, record: ObjectRecord) -> bool:
    if isinstance(observation, Malformed):
        return False
    if observation.state is not ObjectState.READY or observation.uid != record.uid:
        return True
    return record.content is not None and observation.content != record.content


def is_held_back(observation: ObservedObject, store: ObjectStore, pending_deletions: PendingDeletions) -> bool:
    """Return whether the object is held since a restore, and the observation repeats its older state."""
    if not pending_deletions.is_held_until_accepted(observation.name):
        return False
    record = store[observation.name]
    return record is not None and record.version != "" and observation.version == record.version
