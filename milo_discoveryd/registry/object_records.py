"""The objects of one resource that are not clusters themselves, with what they claim about clusters."""

from typing import Any

import msgspec

from milo_discoveryd.model.claims import Claim, ClaimingObject
from milo_discoveryd.model.moment import Moment
from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.model.observation import Malformed, Observation, Ready
from milo_discoveryd.registry.known_objects import KnownObjects
from milo_discoveryd.registry.pending_deletions import ConfirmedDeletion


class ObjectRecord(msgspec.Struct, kw_only=True, gc=False):
    uid: str
    version: str
    state: ObjectState
    since: float
    message: str = ""
    weight: int = 0
    claims: tuple[Claim, ...] | None = None
    """None if the object is not in use, because it does not exist or has nothing to say."""
    content: Any = None
    is_terminating: bool = False
    is_established: bool = False

    @property
    def engaged(self) -> bool:
        return self.claims is not None

    @property
    def kept(self) -> tuple[Any, ...]:
        return (self.claims, self.content)

    def describes(self, target: ClaimingObject) -> bool:
        return self.claims == target.claims and self.content == target.content


class ObjectChange(msgspec.Struct, frozen=True, gc=False):
    """A change of what an object claims, of its content, or of the object that has the key."""

    key: str
    before: tuple[Claim, ...]
    """The claims before the change."""


class ObjectRecords(KnownObjects[ObjectRecord, ObjectChange]):
    """The objects of one resource that are not clusters themselves."""

    def restore(self, seen: Ready, engaged_at: float, now: Moment) -> list[ObjectChange]:
        del engaged_at
        changes = self._observed(seen, now, listed=False)
        self._set_weight(seen.name, self.weight_of(seen))
        return changes

    def _new(self, seen: Observation, state: ObjectState, now: Moment) -> ObjectRecord:
        return ObjectRecord(uid=seen.uid, version=seen.version, state=state, since=now.wall)

    def _observed(self, seen: Observation, now: Moment, *, listed: bool) -> list[ObjectChange]:
        del listed
        is_replaced = bool(self._replaced_by(seen))
        if not isinstance(seen, Ready):
            record = self._record(seen, seen.state, now)
            # A malformed object stays as it last was.
            return self._use(seen.name, record, None) if is_replaced or not isinstance(seen, Malformed) else []
        record = self._record(seen, ObjectState.READY, now)
        assert isinstance(seen.target, ClaimingObject)
        record.is_terminating = seen.target.is_terminating
        is_same = not is_replaced and record.describes(seen.target)
        return [] if is_same else self._use(seen.name, record, seen.target)

    def _kept_beside(self, seen: Observation, record: ObjectRecord) -> Any:
        return record.kept if isinstance(seen, Malformed) else None

    def _delete(self, deleted: ConfirmedDeletion, now: Moment) -> list[ObjectChange]:
        record = self._records.get(deleted.name)
        if record is None or record.uid != deleted.uid or record.state is ObjectState.DELETED:
            return []
        self._move(deleted.name, record, ObjectState.DELETED, now)
        return self._use(deleted.name, record, None)

    def _use(self, key: str, record: ObjectRecord, target: ClaimingObject | None) -> list[ObjectChange]:
        before, was_engaged = record.claims or (), record.engaged
        record.claims, record.content = (None, None) if target is None else (target.claims, target.content)
        self._engaged += record.engaged - was_engaged
        return [ObjectChange(key, before)] if record.engaged or was_engaged else []
