"""The audit log: issued credentials, denied requests, refused objects, changed authorization rules and other effects of
calls, without secrets.

Events go to the log with `logger: audit` and, at every log level, to the audit file if one is configured.
"""

import json
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from milo_discoveryd.daemon_errors import StartError
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.instruments import AuditMetrics
from milo_discoveryd.logger import log
from milo_discoveryd.rights.caller_selector import verified_fields
from milo_discoveryd.rights.rights import Recipient
from milo_kube.rate_limit import KeyedBuckets, Rate, TokenBucket
from milo_kube.rfc3339 import rfc3339

_LONGEST_NAME = 253
_OBJECT_RATE = Rate(per_second=1.0, burst=20.0)
"""Rate limit of the lines about one object, whose writer can make it malformed and valid repeatedly."""
_OBJECTS_RATE = Rate(per_second=10.0, burst=200.0)
_MAX_OBJECTS = 10_000


class AuditFile:
    """An append-only file with one line of JSON per event."""

    def __init__(self, path: Path) -> None:
        """Raises StartError."""
        self._path = path
        self._descriptor = self._open()
        self._is_torn = _ends_within_a_line(self._descriptor)

    def write(self, line: bytes) -> None:
        """Append a line. Raises OSError."""
        # A full disk may have cut off an earlier line: begin a new one.
        content = b"\n" + line if self._is_torn else line
        written = os.write(self._descriptor, content)
        if written < len(content):
            self._is_torn = True
            raise OSError(f"only {written} of {len(content)} bytes were written")
        self._is_torn = False

    def reopen(self) -> None:
        """Reopen the path after a log rotation. Raises StartError, and then keeps the old file open."""
        before, self._descriptor = self._descriptor, self._open()
        self._is_torn = _ends_within_a_line(self._descriptor)
        os.close(before)

    def close(self) -> None:
        os.close(self._descriptor)

    def _open(self) -> int:
        # A write to a full pipe would block the event loop.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            descriptor = os.open(self._path, flags, 0o600)
        except OSError as error:
            raise StartError(f"audit.file: cannot append to {self._path}: {error.strerror}") from error
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_uid not in (0, os.geteuid()):
            os.close(descriptor)
            raise StartError(
                f"audit.file: {self._path} belongs to user {status.st_uid}, who could change the audit log: remove it, "
                "or change its owner to the daemon's user"
            )
        return descriptor


def _ends_within_a_line(descriptor: int) -> bool:
    """Return whether the last line of the file is incomplete."""
    found = os.fstat(descriptor)
    return stat.S_ISREG(found.st_mode) and found.st_size > 0 and os.pread(descriptor, 1, found.st_size - 1) != b"\n"


class Audit:
    def __init__(
        self,
        metrics: AuditMetrics,
        file: AuditFile | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._file = file
        self._clock = clock
        self._of_objects: KeyedBuckets[str] = KeyedBuckets(_MAX_OBJECTS)
        self._objects = TokenBucket(_OBJECTS_RATE, clock())
        self._suppressed = 0

    def reopen(self) -> None:
        """Reopen the audit file after a log rotation. Raises StartError, and then keeps the old file open."""
        if self._file is not None:
            self._file.reopen()

    def issued(self, to: Recipient, what: str, **about: object) -> None:
        self._note(what, rule=to.rule, **about, caller=dict(verified_fields(to.caller)))

    def noted(self, caller: Caller, rule: str, event: str, **about: object) -> None:
        """Record a call that succeeded."""
        self._note(event, rule=rule, **about, caller=dict(verified_fields(caller)))

    def refused(self, caller: Caller, rule: str, reason: str, **about: object) -> None:
        self._metrics.refused(reason.lower())
        self._note("refused", reason=reason, rule=rule, **about, caller=dict(verified_fields(caller)))

    def suppressed(self, reason: str) -> None:
        """Count a denial for which no separate line is written: see `server.paced_audit`."""
        self._metrics.refused(reason.lower())

    def object_reported(self, name: str, uid: str, problem: str) -> None:
        """Record an object that was refused. Its writer is not a caller, but may be a tenant that tries hostile names.

        Lines above the rate limit are only counted, and the next line contains their number.
        """
        now, cluster = self._clock(), name[:_LONGEST_NAME]
        if self._of_objects.bucket(cluster, _OBJECT_RATE, now).take(now) or self._objects.take(now):
            self._suppressed += 1
            return
        suppressed, self._suppressed = self._suppressed or "", 0
        self._note("object refused", cluster=cluster, uid=uid, problem=problem, suppressed=suppressed)

    def rights_changed(self, **about: object) -> None:
        self._note("rights changed", **about)

    def reload_rejected(self, **about: object) -> None:
        """Record that the new rules cannot be loaded; the previous rules stay in force."""
        self._note("rights kept", **about)

    def _note(self, event: str, **fields: object) -> None:
        stated = {name: value for name, value in fields.items() if value != ""}
        log.info(event, logger="audit", **stated)
        if self._file is None:
            return
        at = rfc3339(time.time(), "milliseconds")
        try:
            self._file.write(json.dumps({"timestamp": at, "event": event, **stated}).encode() + b"\n")
        except OSError as error:
            # The log has the event. A full disk does not fail requests; the metric counts the loss.
            self._metrics.audit_lost()
            log.warning("audit event not written", problem=str(error))
