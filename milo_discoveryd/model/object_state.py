"""The states of a cluster's object, and what each means: the one table from which all names of states are derived.

To add a reason why clusters are not engaged, add a state with its row here, and an observation in that state (see
`model/observation.py`), which a kind of source returns. The log, the status page, `check`, the responses and the
metrics are derived from the row.
"""

import enum

import msgspec

from milo_discoveryd.model.cluster import DisengageReason

FORGETTABLE_RECORDS_KEPT = 10_000
"""Maximum number of records in states whose `StateMeaning.is_forgettable` is set. It applies to the objects of each
collection, whose records show whether later observations are outdated, and to the clusters of each source, whose
records explain why the clusters are not engaged."""
FORGETTABLE_WEIGHT_KEPT = 32 << 20
"""The maximum weight, in bytes, of what such records of clusters keep of the objects: their users decide how large it
is."""


class ObjectState(enum.Enum):
    """The state of a cluster's object, which decides whether the cluster is engaged."""

    __hash__ = object.__hash__  # Enum defines `__hash__` in Python, which is several times slower

    READY = "ready"
    NOT_READY = "not_ready"
    OUTSIDE = "outside_selector"
    REFUSED = "refused"
    """The object belongs to an organization other than that of the source's context."""
    WITHDRAWN = "withdrawn"
    """The rules of the source keep the cluster from being engaged."""
    MALFORMED = "malformed"
    UNASSIGNED = "unassigned"
    """The object is ready, but another member of the shard group owns the cluster or has not released it yet, or this
    daemon owns no clusters at present."""
    UNREACHABLE = "disengaged_unreachable"
    """The object is ready, but the cluster was disengaged because it was unreachable for too long."""
    DELETED = "deleted"


class StateMeaning(msgspec.Struct, frozen=True, kw_only=True):
    """What an object state means for the object's cluster, and how the API, metrics and reports show the state."""

    reason: str
    """The `Engagement.Reason` of the protocol, without its prefix."""
    words: str
    """The displayed name of the state. It can follow a number of clusters, as in "3 not ready"."""
    count: str = ""
    """The field of `FleetCounts` that counts objects in this state; empty if no field does."""
    is_ready: bool = False
    """The object is ready, whether or not something else keeps its cluster from being engaged."""
    ends: DisengageReason | None = None
    """Why a cluster is disengaged when its object enters the state; None if the engagement continues."""
    ends_at_once: bool = False
    """The disengagement is not planned: the cluster does not drain first."""
    has_grace: bool = False
    """The cluster is kept for a grace period, or while many clusters are not ready: see `engagement/not_ready.py`."""
    is_absent: bool = False
    """A complete list with the daemon's label selector does not contain the object."""
    overrides_selector: bool = False
    """The object is in this state even if the daemon's label selector does not match it."""
    is_forgettable: bool = False
    """Only `FORGETTABLE_RECORDS_KEPT` records in such states are kept."""
    is_reported: bool = False
    """An entry is written to the audit log when an object enters the state, because somebody must correct the
    object."""
    remedy: str = ""
    """What `check` advises if objects are in this state; empty if the state is no problem."""
    tone: str = "plain"
    """How the status page shows the state: good, poor, bad or plain."""
    is_usual: bool = False
    """The status page shows the number of such objects even if there are none."""


MEANINGS = {
    ObjectState.MALFORMED: StateMeaning(
        reason="MALFORMED",
        words="malformed",
        count="malformed",
        is_reported=True,
        remedy="correct the object, or the settings of the source if all of its objects are malformed",
        tone="bad",
        is_usual=True,
    ),
    ObjectState.REFUSED: StateMeaning(
        reason="REFUSED",
        ends=DisengageReason.LABELS_CHANGED,
        ends_at_once=True,
        words="of other organizations",
        count="refused",
        is_absent=True,
        overrides_selector=True,
        is_forgettable=True,
        is_reported=True,
        tone="bad",
        remedy="the server ignores label selectors: check for a proxy in front of Milo, and if the daemon may list",
    ),
    ObjectState.UNREACHABLE: StateMeaning(
        reason="UNREACHABLE", words="disengaged: unreachable", count="unreachable", is_ready=True, tone="bad"
    ),
    ObjectState.NOT_READY: StateMeaning(
        reason="NOT_READY",
        ends=DisengageReason.NOT_READY,
        has_grace=True,
        words="not ready",
        count="not_ready",
        remedy="no object is ready: wait, or correct the condition or field that the source reads as readiness",
        tone="poor",
        is_usual=True,
    ),
    ObjectState.READY: StateMeaning(reason="ENGAGED", words="engaged", is_ready=True, tone="good"),
    ObjectState.UNASSIGNED: StateMeaning(reason="UNASSIGNED", words="unassigned", count="unassigned", is_ready=True),
    ObjectState.OUTSIDE: StateMeaning(
        reason="OUTSIDE_SELECTOR",
        ends=DisengageReason.LABELS_CHANGED,
        words="outside the selector",
        count="outside_selector",
        is_absent=True,
        is_forgettable=True,
        is_usual=True,
    ),
    ObjectState.WITHDRAWN: StateMeaning(
        reason="REMOVED", ends=DisengageReason.REMOVED, words="withdrawn", is_forgettable=True
    ),
    ObjectState.DELETED: StateMeaning(
        reason="DELETED", words="deleted", is_absent=True, is_forgettable=True, is_usual=True
    ),
}
"""All states. Those that need attention come first."""

READY_STATES = tuple(state for state, meaning in MEANINGS.items() if meaning.is_ready)
GRACED_STATES = tuple(state for state, meaning in MEANINGS.items() if meaning.has_grace)
ABSENT_STATES = tuple(state for state, meaning in MEANINGS.items() if meaning.is_absent)
FORGETTABLE_STATES = tuple(state for state, meaning in MEANINGS.items() if meaning.is_forgettable)
STATES_BEYOND_SELECTOR = tuple(state for state, meaning in MEANINGS.items() if meaning.overrides_selector)
REPORTED_STATES = tuple(state for state, meaning in MEANINGS.items() if meaning.is_reported)
