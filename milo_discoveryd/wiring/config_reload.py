"""Reloads authorization rules when the configuration file changes. Other settings take effect at the next start.

A file that cannot be read or has any error changes nothing: the rules that were loaded last stay in force. So they do
while the new rules name what does not run yet, such as a source that the same file renames.
"""

import asyncio
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import msgspec

from milo_discoveryd.config import RuleSettings, Settings, not_running
from milo_discoveryd.daemon_errors import ConfigError
from milo_discoveryd.instruments import ReloadMetrics
from milo_discoveryd.logger import log
from milo_discoveryd.telemetry.status import FileRefused, ReloadState, RulesCurrent, RulesWaiting
from milo_kube.file_content import SETTLED_S, file_version

POLL_INTERVAL_S = 0.25
MAX_PROBLEMS = 50
"""Maximum number of problems of a refused file that are logged and shown."""

Load = Callable[[], Settings]
State = tuple[int, ...]


class ReloadAudit(Protocol):
    def rights_changed(self, **about: object) -> None: ...

    def reload_rejected(self, **about: object) -> None: ...


class ConfigReloader:
    """Polls the configuration file and applies its rules."""

    def __init__(
        self,
        settings: Settings,
        load: Load,
        file: Path | None,
        *,
        audit: ReloadAudit,
        metrics: ReloadMetrics,
    ) -> None:
        self._settings = settings
        """The settings that run, with the rules in force."""
        self.state: ReloadState = RulesCurrent()
        self._load = load
        self._file = file
        self._audit = audit
        self._metrics = metrics
        self._begun = self._state()
        self._requested = asyncio.Event()
        metrics.rules_loaded(len(settings.rights))

    def reload_now(self) -> None:
        """Reload at once, whether or not the file seems to have changed."""
        self._requested.set()

    async def run(self, apply: Callable[[tuple[RuleSettings, ...]], None]) -> None:
        """Pass reloaded rules to `apply` if they differ from the rules in force, which initially are those of the
        settings."""
        clock = asyncio.get_running_loop().time
        read = seen = self._begun
        changed_at = clock()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_INTERVAL_S if self._file is not None else None):
                    await self._requested.wait()
            before, seen = seen, self._state()
            changed_at = changed_at if seen == before else clock()
            # Reload on request, or once the writer of a changed file has finished: between two polls if it replaced the
            # file, and after a while if it writes in place, since the beginning of a file can be valid, with fewer
            # rules.
            is_finished = seen == before and clock() - changed_at >= (SETTLED_S if _is_same_file(read, seen) else 0.0)
            if self._requested.is_set() or (seen is not None and seen != read and is_finished):
                self._requested.clear()
                read = seen
                self._metrics.rights_reloaded(await self._reload(apply))

    async def _reload(self, apply: Callable[[tuple[RuleSettings, ...]], None]) -> str:
        before = self._settings.rights
        try:
            settings = await self._read()
        except ConfigError as error:
            return self._refused(error.problems)
        if before and not settings.rights:
            # Without rules every caller sees all clusters, and rules can be missing from a file by accident.
            problem = (
                "rights: all rules were removed, which would show all clusters to all callers; restart to apply it"
            )
            return self._refused((problem,))
        unread = [name for name in Settings.__struct_fields__ if _differ(name, self._settings, settings)]
        if unread:
            log.warning("changed settings take effect at the next start", settings=unread)
        if waiting := tuple(f"rights{found.place}: {found.text}" for found in not_running(settings, self._settings)):
            log.warning("changed rights wait for the restart", problems=waiting)
            self._audit.reload_rejected(problems=waiting)
            self.state = RulesWaiting(waiting)
            return "waiting"
        self.state = RulesCurrent()
        if settings.rights == before:
            return "unchanged"
        self._settings = msgspec.structs.replace(self._settings, rights=settings.rights)
        apply(settings.rights)
        self._metrics.rules_loaded(len(settings.rights))
        self._audit.rights_changed(**_changes(before, settings.rights))
        return "applied"

    async def _read(self) -> Settings:
        """Raises ConfigError, whatever is in the file: it does not end the daemon."""
        if not self._can_be_read_again():
            # Opening a named pipe waits for a writer, and a shell's <(command) can be read only once.
            raise ConfigError([f"file {self._file}: is not a regular file"])
        try:
            return await asyncio.to_thread(self._load)  # parsing many rules takes seconds
        except ConfigError:
            raise
        except Exception as error:
            log.exception("configuration not read")
            raise ConfigError([f"unexpected error: {error!r}"]) from error

    def _refused(self, problems: tuple[str, ...]) -> str:
        if (more := len(problems) - MAX_PROBLEMS) > 0:
            problems = (*problems[:MAX_PROBLEMS], f"and {more} more; the command `check` prints all of them")
        log.error("configuration rejected", problems=problems)
        self._audit.reload_rejected(problems=problems)
        self.state = FileRefused(problems)
        return "refused"

    def _can_be_read_again(self) -> bool:
        try:
            return self._file is None or stat.S_ISREG(self._file.stat().st_mode)
        except OSError:
            return True  # the error of reading it says why

    def _state(self) -> State | None:
        """Return values that change with each version of the file; None if there is no file, or no access to it."""
        try:
            return None if self._file is None else file_version(self._file.stat())
        except OSError:
            return None


def _is_same_file(one: State | None, other: State | None) -> bool:
    return one is not None and other is not None and one[0] == other[0]


def _differ(name: str, one: Settings, other: Settings) -> bool:
    return name != "rights" and getattr(one, name) != getattr(other, name)


def _changes(before: tuple[RuleSettings, ...], now: tuple[RuleSettings, ...]) -> dict[str, object]:
    """Return the names of the changed rules, and the order of all rules, because the first one that matches a caller
    applies."""
    old, new = ({rule.name: rule for rule in rules} for rules in (before, now))
    return {
        "rules": [rule.name for rule in now],
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
        "changed": [name for name in new if name in old and new[name] != old[name]],
    }
