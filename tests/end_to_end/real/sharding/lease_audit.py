"""Requests to the Lease API, counted in the audit log of the API server."""

from collections import Counter
from datetime import datetime
from pathlib import Path

import msgspec

from tests.end_to_end.real.programs import Programs
from tests.end_to_end.real.servers import InfrastructureApi

_LEASES = {
    "level": "Metadata",
    "namespaces": ["default"],
    "resources": [{"group": "coordination.k8s.io", "resources": ["leases"]}],
}


class _User(msgspec.Struct, frozen=True):
    username: str


class _Event(msgspec.Struct, frozen=True, rename="camel"):
    verb: str
    user: _User
    request_received_timestamp: datetime


class AuditedApi(InfrastructureApi):
    """A kube-apiserver that logs requests to the Leases of the namespace `default`."""

    def __init__(self, programs: Programs, directory: Path) -> None:
        super().__init__(programs, directory, proxied=False, audit=[_LEASES])

    def lease_requests(self, since: float, until: float) -> Counter[str]:
        """Count the requests of each user between two times of the wall clock."""
        events = (msgspec.json.decode(line, type=_Event) for line in self.audit_log.read_bytes().splitlines())
        return Counter(
            event.user.username for event in events if since <= event.request_received_timestamp.timestamp() < until
        )
