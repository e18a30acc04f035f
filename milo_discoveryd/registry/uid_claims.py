"""Decides which object stands for a project if several objects claim the project's UID.

In mode `project-control-plane` the UID is a label, which every user who can write the object can choose. The earliest
claim is valid. If one list contained several claims, so that none is known to be earlier, none is valid.
"""

from collections.abc import Iterable

from milo_discoveryd.model.observation import Ready

_NOBODY = ""


class UidClaims:
    def __init__(self) -> None:
        self._holders: dict[str, str] = {}
        """The object whose claim is valid, by UID."""
        self._claimed_by: dict[str, str] = {}
        """The UID that an object claims, by name."""
        self._contenders: dict[str, dict[str, Ready | None]] = {}
        """The objects whose claim is not valid, by UID and name, as last observed while ready."""
        self._listed: set[str] = set()
        """UIDs that were claimed first in the list that is being read."""

    def __bool__(self) -> bool:
        return bool(self._claimed_by)

    def begin(self, objects: Iterable[tuple[str, str]]) -> None:
        """Start from objects (name, UID) that each claim their own UID."""
        for name, uid in objects:
            self._holders[uid], self._claimed_by[name] = name, uid

    def claimed_by(self, name: str) -> str | None:
        return self._claimed_by.get(name)

    def claim(self, name: str, uid: str, seen: Ready | None, *, listed: bool) -> str | None:
        """Claim a UID for an object that claims no other; `seen` if the object is ready.

        Return None if the claim is valid. Otherwise return the name of the object whose claim becomes invalid too, or
        an empty string.
        """
        self._claimed_by[name] = uid
        holder = self._holders.setdefault(uid, name)
        if holder == name:
            if listed:
                self._listed.add(uid)
            return None
        self._contenders.setdefault(uid, {})[name] = seen
        if holder == _NOBODY or uid not in self._listed:
            return _NOBODY
        self._holders[uid] = _NOBODY
        self._contenders[uid][holder] = None
        return holder

    def refuse(self, uid: str, seen: Ready) -> None:
        """Keep the last observation of an object whose claim became invalid."""
        self._contenders[uid][seen.name] = seen

    def release(self, name: str) -> Ready | None:
        """Release an object's claim. Return the observation of the object whose claim is valid now."""
        uid = self._claimed_by.pop(name, None)
        if uid is None:
            return None
        contenders = self._contenders.get(uid, {})
        contenders.pop(name, None)
        if self._holders[uid] not in (name, _NOBODY):
            return None
        if len(contenders) > 1:
            self._holders[uid] = _NOBODY
            return None
        self._contenders.pop(uid, None)
        if not contenders:
            del self._holders[uid]
            return None
        [(self._holders[uid], seen)] = contenders.items()
        return seen

    def list_ended(self) -> None:
        self._listed.clear()

    def clear(self) -> None:
        for each in (self._holders, self._claimed_by, self._contenders, self._listed):
            each.clear()
