"""Whom a rule is for."""

from collections.abc import Iterator

import msgspec

from milo_discoveryd.identity.caller import Caller


class CallerSelector(msgspec.Struct, frozen=True, kw_only=True):
    """All that is set must match; of several values for one thing, any."""

    listeners: frozenset[str] = frozenset()
    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()
    sans: tuple[str, ...] = ()
    """Each as a caller has it ("uri:spiffe://…"), or its beginning up to a "*"."""
    users: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()

    def matches(self, caller: Caller) -> bool:
        return (
            (not self.listeners or caller.listener in self.listeners)
            and (not self.uids or caller.uid in self.uids)
            and (not self.gids or caller.gid in self.gids or not self.gids.isdisjoint(caller.gids))
            and (not self.sans or any(_is_san(wanted, san) for wanted in self.sans for san in caller.sans))
            and (not self.users or caller.user in self.users)
            and (not self.groups or not self.groups.isdisjoint(caller.groups))
        )

    @property
    def is_everybody(self) -> bool:
        return not (self.listeners or self.uids or self.gids or self.sans or self.users or self.groups)

    def __str__(self) -> str:
        return ", ".join(self._said()) or "everybody"

    def _said(self) -> Iterator[str]:
        for word, values in (
            ("listener", self.listeners),
            ("uid", self.uids),
            ("gid", self.gids),
            ("san", self.sans),
            ("user", self.users),
            ("group", self.groups),
        ):
            if values:
                yield f"{word} {' or '.join(sorted(map(str, values)))}"


def _is_san(wanted: str, san: str) -> bool:
    if wanted.startswith("dns:"):
        wanted, san = wanted.lower(), san.lower()
    return san.startswith(wanted[:-1]) if wanted.endswith("*") else san == wanted


def verified_fields(caller: Caller) -> Iterator[tuple[str, object]]:
    """What is known of a caller, as far as anything is."""
    for field in ("listener", "uid", "gid", "gids", "pid", "sans", "user", "groups", "peer"):
        value = getattr(caller, field)
        if value not in (None, "", ()):
            yield field, value


def caller_key(caller: Caller) -> str:
    """The same for all calls of one caller, on whatever connection, and for nobody else's."""
    return repr((caller.listener, caller.uid, caller.gid, sorted(caller.sans), caller.user))
