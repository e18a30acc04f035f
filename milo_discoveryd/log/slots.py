"""The slots of the change log: the last change of each cluster in revision order.

An entry that changes again leaves a stale slot behind, and stale slots are removed in portions.
"""

from itertools import compress

from milo_discoveryd.log.events import LogEntry

STALE_SLOTS = 512
"""How many slots may become stale before a part of the log is compacted."""
_COMPACTED_PER_STALE_SLOT = 4
"""How many slots a compaction examines for each stale one. This keeps the log below about twice the minimum size."""


class LogSlots:
    """Two parallel lists, in revision order. Only `append` changes them."""

    def __init__(self, stale_allowed: int) -> None:
        self.revisions: list[int] = []
        self.entries: list[LogEntry] = []
        self._stale_allowed = stale_allowed
        self._stale = 0
        self._compacted_to = 0

    def append(self, entry: LogEntry, revision: int, stale: int) -> None:
        """Append a slot. `stale`: how many others are no longer needed because of it, or will not be."""
        self.revisions.append(revision)
        self.entries.append(entry)
        self._stale += stale
        if self._stale >= self._stale_allowed:
            self._compact()

    def engaged(self) -> list[LogEntry]:
        # The entries are scattered over memory. In a loop as tight as this one the processor fetches several at once,
        # which takes a third of the time.
        return [
            entry
            for entry, slot_revision in zip(self.entries, self.revisions, strict=True)
            if entry.cluster is not None and entry.revision == slot_revision
        ]

    def readable(self) -> list[LogEntry]:
        """Return the entries that are engaged or have past states."""
        return [
            entry
            for entry, slot_revision in zip(self.entries, self.revisions, strict=True)
            if entry.revision == slot_revision and (entry.cluster is not None or entry.history)
        ]

    def _compact(self) -> None:
        """Remove the stale slots of a part of the log. The next call continues where this one ended."""
        start = self._compacted_to
        part = slice(start, start + _COMPACTED_PER_STALE_SLOT * self._stale_allowed)
        entries, revisions = self.entries[part], self.revisions[part]
        is_needed = [entry.needs_slot(revision) for entry, revision in zip(entries, revisions, strict=True)]
        self.entries[part] = compress(entries, is_needed)
        self.revisions[part] = compress(revisions, is_needed)
        self._compacted_to += sum(is_needed)
        if self._compacted_to == len(self.entries):
            self._compacted_to = 0
        self._stale = 0
