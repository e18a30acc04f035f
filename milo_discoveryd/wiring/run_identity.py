"""The identity of a daemon's run, by which it finds what it created in other clusters."""

import os
import re
import secrets
import stat
from pathlib import Path

from milo_discoveryd.logger import log

FILE = "run"
_IDENTITY = re.compile(rb"[0-9a-f]{16}\n")


def run_identity(directory: Path | None) -> str:
    """Return the identity kept in the state directory; a new one if there is none, or if it cannot be kept.

    Each replica needs a state directory of its own: two daemons with one identity revoke each other's credentials.
    """
    created = secrets.token_hex(8)
    if directory is None:
        return created
    path = directory / FILE
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                log.warning("run identity not kept", path=str(path), problem="not a file of this user; delete it")
                return created
            kept = file.read(64)
            if _IDENTITY.fullmatch(kept):
                return kept.decode().strip()
            file.seek(0)
            file.truncate()
            file.write(created.encode() + b"\n")
    except OSError as error:
        log.warning("run identity not kept", path=str(path), problem=error.strerror)
    return created
