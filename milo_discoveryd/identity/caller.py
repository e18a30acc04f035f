"""Who calls: what the listener, the kernel, a certificate or an API server vouches for."""

import msgspec


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    listener: str
    """The name of the listener that the call came in at."""
    peer: str = ""
    """gRPC's word for the connection. Good for the audit, proves nothing."""
    uid: int | None = None
    """Of the process that connected, by the kernel's word, as are the next three."""
    gid: int | None = None
    gids: tuple[int, ...] = ()
    """Of the groups that it is a member of besides."""
    pid: int | None = None
    sans: tuple[str, ...] = ()
    """Of a verified client certificate: "dns:…", "uri:…", "email:…", "ip:…"."""
    user: str = ""
    """Whose bearer token it was, by the API server's word: "system:serviceaccount:<namespace>:<name>"."""
    groups: tuple[str, ...] = ()
    until: float | None = None
    """When what proves it ends, as Unix time."""
