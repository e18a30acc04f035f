"""A record of issued credentials and the validator V9, which checks it."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

CAP_S = 900.0
"""The longest lifetime that the daemon may request."""
ROUNDED_S = 0.001
"""The tolerance for expiry times, whose formats differ in precision."""


@dataclass
class Token:
    """A token as issued by its API; `of` is the label of the project that it is bound to."""

    text: str
    of: str
    ends_at: float
    is_revoked: bool = False
    """Whether the daemon revoked it."""


@dataclass(frozen=True)
class IssuedCredential:
    at: float
    """The wall-clock time at which the credential was issued. All other times are wall-clock times, too."""
    who: str
    cluster: str
    uid: str
    """The UID in the response; empty if it has none, as in IssueKubeconfig."""
    incarnation: str
    """The incarnation in the response, or the one in the request of IssueKubeconfig."""
    engaged: tuple[str, str] | None
    """UID and incarnation of the engagement at that time."""
    token: Token
    was_revoked: bool
    """Whether the token was revoked at that time."""
    ends_at: float
    """The expiry in the response."""

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
    """Return the label value of a project on the object that its tokens are bound to."""
    return hashlib.sha256(uid.encode()).hexdigest()[:32]


def credential_violations(handed: Iterable[IssuedCredential]) -> Iterator[str]:
    """Yield violations of V9.

    Credentials are issued to engaged clusters only, are valid, live no longer than allowed, and belong to their
    cluster.
    """
    for issued in handed:
        if issued.engaged is None:
            yield f"{issued}, was issued while the cluster was not engaged"
            continue
        uid, incarnation = issued.engaged
        if issued.uid not in ("", uid) or issued.incarnation not in ("", incarnation):
            yield f"{issued}, was issued for incarnation {issued.incarnation}, while {incarnation} was engaged"
        if issued.token.of != mark(uid):
            yield f"{issued}, belongs to another project"
        if issued.token.ends_at <= issued.at:
            yield f"{issued}, had expired {issued.at - issued.token.ends_at:.1f} s before it was issued"
        if issued.was_revoked:
            yield f"{issued}, had been revoked"
        if issued.ends_at > issued.token.ends_at + ROUNDED_S:
            yield f"{issued}, was reported to expire {issued.ends_at - issued.token.ends_at:.1f} s later than it does"
        if issued.ends_at - issued.at > CAP_S:
            yield f"{issued}, was issued for {issued.ends_at - issued.at:.0f} s; at most {CAP_S:.0f} s are allowed"
