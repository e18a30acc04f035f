"""Follows the configuration file: its rules hold as soon as they are read, all else from the next start on.

What can't be read, or has anything wrong in it, changes nothing: the rules that were read last go on to hold.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import msgspec

from milo_discoveryd.config import Rule, Settings
from milo_discoveryd.daemon_errors import ConfigError
from milo_discoveryd.log import log

LOOK_EVERY_S = 0.25

Load = Callable[[], Settings]
State = tuple[int, int, int]


class Tally(Protocol):
    def rights_reloaded(self, result: str) -> None: ...

    def rules_stand(self, count: int) -> None: ...


class Audit(Protocol):
    def rights_changed(self, **about: object) -> None: ...

    def rights_kept(self, **about: object) -> None: ...


class Reloading:
    def __init__(
        self,
        settings: Settings,
        load: Load,
        file: Path | None,
        *,
        apply: Callable[[tuple[Rule, ...]], None],
        audit: Audit,
        tally: Tally,
    ) -> None:
        """`apply` is given the rules whenever they are others than those of `settings`, or of the last time."""
        self._settings = settings
        self._load = load
        self._file = file
        self._apply = apply
        self._audit = audit
        self._tally = tally
        self._begun = self._state()
        self._asked = asyncio.Event()
        tally.rules_stand(len(settings.rights))

    def ask(self) -> None:
        """Has it read at once, whether or not the file looks as if it had changed."""
        self._asked.set()

    async def run(self) -> None:
        read = seen = self._begun
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S if self._file is not None else None):
                    await self._asked.wait()
            before, seen = seen, self._state()
            # Seen twice as it is: whoever is still writing it is not interrupted.
            if self._asked.is_set() or (seen is not None and read != seen == before):
                self._asked.clear()
                read = seen
                self._tally.rights_reloaded(self._reload())

    def _reload(self) -> str:
        before = self._settings.rights
        try:
            settings = self._load()
        except ConfigError as error:
            return self._refused(error.problems)
        if before and not settings.rights:
            # Of everything that a file could lose by a slip, this would be the worst.
            problem = "rights: all rules are gone, and without any everybody may everything: for that, start anew"
            return self._refused((problem,))
        unread = [name for name in Settings.__struct_fields__ if _differ(name, self._settings, settings)]
        if unread:
            log.warning("settings that hold from the next start on", settings=unread)
        if settings.rights == before:
            return "unchanged"
        self._settings = msgspec.structs.replace(self._settings, rights=settings.rights)
        self._apply(settings.rights)
        self._tally.rules_stand(len(settings.rights))
        self._audit.rights_changed(**_changes(before, settings.rights))
        return "applied"

    def _refused(self, problems: tuple[str, ...]) -> str:
        log.error("configuration refused", problems=problems)
        self._audit.rights_kept(problems=problems)
        return "refused"

    def _state(self) -> State | None:
        """Of what has the file's name now; None while nothing has."""
        try:
            found = None if self._file is None else self._file.stat()
        except OSError:
            return None
        return None if found is None else (found.st_ino, found.st_mtime_ns, found.st_size)


def _differ(name: str, one: Settings, other: Settings) -> bool:
    return name != "rights" and getattr(one, name) != getattr(other, name)


def _changes(before: tuple[Rule, ...], now: tuple[Rule, ...]) -> dict[str, object]:
    """By name; and the order of all, since the first that is met counts."""
    old, new = ({rule.name: rule for rule in rules} for rules in (before, now))
    return {
        "rules": [rule.name for rule in now],
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
        "changed": [name for name in new if name in old and new[name] != old[name]],
    }
