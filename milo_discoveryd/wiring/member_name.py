"""The name of this daemon in its shard group."""

import re
import socket
from collections.abc import Mapping

from milo_discoveryd.config import Settings
from milo_discoveryd.daemon_errors import StartError
from milo_discoveryd.sharding.lease_objects import VIEW

_MEMBER = re.compile(r"[a-z0-9]([-.a-z0-9]{0,168}[a-z0-9])?")


def member_name(settings: Settings, environ: Mapping[str, str]) -> str:
    """Return the name. Raises StartError if it is not valid."""
    name = settings.sharding.member or environ.get("POD_NAME") or socket.gethostname()
    if not _MEMBER.fullmatch(name) or name == VIEW:
        raise StartError(
            f"sharding.member: {name!r} can't be a member's name; set a DNS name in lower case, and not {VIEW!r}"
        )
    return name
