"""Compares a complete list with the known objects: the facts by which it is judged. Pure, and changes nothing."""

from collections.abc import Iterator, Mapping

import msgspec

from milo_discoveryd.model.contributions import ObservedObject
from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.model.observation import Malformed
from milo_discoveryd.objects.pending_deletions import PendingDeletions
from milo_discoveryd.objects.staged_list import StagedList
from milo_discoveryd.objects.store import ObjectRecord, ObjectStore
from milo_discoveryd.objects.trust import ListFacts, Nothing, Trust
from milo_kube.reflect.versions import is_older


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
    regressed: list[ObservedObject]
    """Objects that the list shows in an older state, as a server that was restored from a backup does."""
    replacing: Mapping[str, tuple[str, str]]
    """UID and version of each listed object that has the name of a different established object, by name."""


def compare(
    listed: StagedList,
    store: ObjectStore,
    pending_deletions: PendingDeletions,
    trust: Trust,
    *,
    version: str,
    held_since: float,
) -> Comparison:
    """Compare a list of this version. `held_since` is when an object must have been missing for the first time, so that
    this list is the second one that lacks it."""
    is_behind, is_accepted = _is_behind(version, trust, store), trust.accepted_at is not None
    differing = (
        []
        if is_accepted or isinstance(trust.basis, Nothing)
        else _regressed(listed, store, pending_deletions, is_behind=is_behind)
    )
    regressed = {observation.name for observation in differing}
    missing = listed.missing()
    missing += [(name, record.uid) for name in regressed if (record := store[name]) is not None]
    suspects = [
        (observation, record)
        for observation, record in _established(listed.suspects(), store)
        if observation.uid not in ("", record.uid) and observation.name not in regressed
    ]
    kept = set() if is_accepted else {name for name, _ in missing if pending_deletions.is_held_until_accepted(name)}
    judged = [(name, uid) for name, uid in missing if store.is_established(name) and name not in kept]
    judged += [(observation.name, record.uid) for observation, record in suspects]
    is_foreign = (
        store.established_count > 1
        and bool(listed.uids)
        and not any(store.is_established(name) or store.is_present(name, uid) for name, uid in listed.uids.items())
    )
    announced: frozenset[str] = frozenset()
    if not is_foreign and (is_accepted or not (is_behind or regressed - kept)):
        announced = frozenset(name for name, _ in judged if store.is_terminating(name))
        judged = [(name, uid) for name, uid in judged if name not in announced]
    facts = ListFacts(
        version=version,
        listed=len(listed.uids),
        known=store.present_count if is_foreign else 0,
        engaged=store.established_count,
        missing=len(judged),
        held=len([name for name, _ in judged if pending_deletions.is_held_since(name, held_since)]),
        announced=len(announced),
        regressed=len(regressed - kept),
        held_until_accepted=len(kept),
        is_behind=is_behind,
        is_foreign=is_foreign,
    )
    replacing = {observation.name: (observation.uid, observation.version) for observation, _ in suspects}
    return Comparison(facts, missing, judged, announced, differing, replacing)


def _is_behind(version: str, trust: Trust, store: ObjectStore) -> bool:
    """Return whether a list is older than the known state. If that state has no version, the objects are compared."""
    if version in ("", "0") or isinstance(trust.basis, Nothing):
        return False
    return is_older(version, trust.version) if trust.version else store.is_older_than_any(version)


def _established(listed: Iterator[ObservedObject], store: ObjectStore) -> Iterator[tuple[ObservedObject, ObjectRecord]]:
    """Yield listed objects with the established records that they would change."""
    for observation in listed:
        record = store[observation.name]
        if record is not None and record.is_established:
            yield observation, record


def _regressed(
    listed: StagedList, store: ObjectStore, pending_deletions: PendingDeletions, *, is_behind: bool
) -> list[ObservedObject]:
    """Return the listed objects that are older than the established ones."""
    return [
        observation
        for observation, record in _established(listed.differing() if is_behind else listed.suspects(), store)
        if _differs(observation, record)
        and (
            store.is_older_than_known(observation)
            or (is_behind and not record.version)
            or is_held_back(observation, store, pending_deletions)
        )
    ]


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
