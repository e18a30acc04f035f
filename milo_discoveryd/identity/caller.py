"""A caller's identity, as verified by the listener, the kernel, a certificate or an API server."""

import msgspec


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    listener: str
    """The name of the listener that received the call."""
    peer: str = ""
    """The peer address in gRPC's format. Used in audit events only: an address does not authenticate a caller."""
    over_tcp: bool = False
    uid: int | None = None
    """UID of the connecting process. The kernel reports it, like `gid`, `gids` and `pid`."""
    gid: int | None = None
    gids: tuple[int, ...] = ()
    """Supplementary groups of the connecting process."""
    pid: int | None = None
    sans: tuple[str, ...] = ()
    """Subject alternative names of a verified client certificate: "dns:…", "uri:…", "email:…", "ip:…"."""
    user: str = ""
    """The user of a reviewed bearer token: "system:serviceaccount:<namespace>:<name>"."""
    groups: tuple[str, ...] = ()
    expires_at: float | None = None
    """When the certificate or the token expires, in Unix time."""
