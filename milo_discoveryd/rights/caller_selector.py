"""Conditions of a rule for callers, and the keys that distinguish callers."""

from collections.abc import Iterator
from hashlib import sha256

import msgspec

from milo_discoveryd.identity.caller import Caller


class CallerSelector(msgspec.Struct, frozen=True, kw_only=True):
    """The callers that a rule applies to. Of every field that is set, at least one value must match."""

    listeners: frozenset[str] = frozenset()
    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()
    sans: tuple[str, ...] = ()
    """Subject alternative names in the format of `Caller.sans` ("uri:spiffe://…"), or prefixes that end with "*"."""
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

    def __str__(self) -> str:
        return ", ".join(self._conditions()) or "everybody"

    def _conditions(self) -> Iterator[str]:
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
    if not wanted.endswith("*"):
        return san == wanted
    return san.startswith(wanted[:-1]) and _is_plain_uri(san)


def _is_plain_uri(uri: str) -> bool:
    """Return whether every parser resolves the URI to the same path: no segment is empty, "." or "..", and it contains
    no "%" or backslash."""
    path = uri.partition("://")[2]
    return "%" not in path and "\\" not in path and not {"", ".", ".."} & set(path.split("/"))


def verified_fields(caller: Caller) -> Iterator[tuple[str, object]]:
    """Yield the name and value of each field that identifies the caller."""
    for field in ("listener", "uid", "gid", "gids", "pid", "sans", "user", "groups", "peer"):
        value = getattr(caller, field)
        if value not in (None, "", ()):
            yield field, value


def caller_key(caller: Caller) -> str:
    """Return a key that is equal for all calls of one caller, on any connection, and differs between callers. It is
    short however many names a certificate has: streams and listings keep it."""
    names = repr((caller.listener, caller.uid, caller.gid, sorted(caller.sans), caller.user))
    return sha256(names.encode()).hexdigest()


def quota_keys(caller: Caller) -> tuple[str, ...]:
    """Return the keys under which a caller's quotas are counted: one verified name, or each name of a certificate; the
    listener if no name was verified.

    A process can choose among its groups, and a certificate can contain additional names. Neither gives the caller an
    additional quota.
    """
    if caller.user:
        return (f"user {caller.user}",)
    if caller.uid is not None:
        return (f"uid {caller.uid}",)
    return tuple(sorted(set(caller.sans))) or (f"listener {caller.listener}",)
