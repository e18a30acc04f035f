"""A record of issued credentials and the validator V9, which checks it."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

CAP_S = 900.0
"""The longest life that the daemon is to ask for."""
ROUNDED_S = 0.001
"""Times are told in several forms."""


@dataclass
class Token:
    """As its API made it. `of` is the mark of the project that it is bound to."""

    text: str
    of: str
    ends_at: float
    is_revoked: bool = False
    """The daemon had it ended."""


@dataclass(frozen=True)
class HandedOut:
    at: float
    """Wall time, as all of these."""
    who: str
    cluster: str
    uid: str
    """For which it is said to be; empty where nothing is said, as by IssueKubeconfig."""
    incarnation: str
    """The same; there, it is the one that was asked for."""
    engaged: tuple[str, str] | None
    """As what the cluster was engaged at that moment: UID and incarnation."""
    token: Token
    was_revoked: bool
    """At that moment."""
    ends_at: float
    """As it was told."""

    def __str__(self) -> str:
        return f"{self.token.text.rpartition('.')[2]} for {self.cluster}, to {self.who}"


class _Held(msgspec.Struct, frozen=True):
    token: str


class _User(msgspec.Struct, frozen=True):
    user: _Held


class _Config(msgspec.Struct, frozen=True):
    users: tuple[_User]


def token_in(kubeconfig: bytes) -> str:
    return msgspec.json.decode(kubeconfig, type=_Config).users[0].user.token


def mark(uid: str) -> str:
    """Of a project, on what its tokens are bound to."""
    return hashlib.sha256(uid.encode()).hexdigest()[:32]


def handed_rightly(handed: Iterable[HandedOut]) -> Iterator[str]:
    """Nothing after a disengagement, nothing that has ended or lives for too long, and to each cluster its own."""
    for each in handed:
        if each.engaged is None:
            yield f"{each}, was handed out when that was not engaged"
            continue
        uid, incarnation = each.engaged
        if each.uid not in ("", uid) or each.incarnation not in ("", incarnation):
            yield f"{each}, was handed out for incarnation {each.incarnation}, when it was {incarnation}"
        if each.token.of != mark(uid):
            yield f"{each}, is another project's"
        if each.token.ends_at <= each.at:
            yield f"{each}, had ended {each.at - each.token.ends_at:.1f} s before"
        if each.was_revoked:
            yield f"{each}, had been revoked"
        if each.ends_at > each.token.ends_at + ROUNDED_S:
            yield f"{each}, was said to live {each.ends_at - each.token.ends_at:.1f} s longer than it does"
        if each.ends_at - each.at > CAP_S:
            yield f"{each}, was handed out for {each.ends_at - each.at:.0f} s, and {CAP_S:.0f} are allowed"
