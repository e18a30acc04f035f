"""A call without DiscoveryClient, for a program that makes one and ends: importing the client takes longer."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

import grpc

from milo_discovery._channel import open_channel
from milo_discovery._grpc_status import status_error_of_call, understood
from milo_discovery._timestamps import time
from milo_discovery.address import grpc_target
from milo_discovery.client_credentials import ClientCredentials
from milo_discovery.kubeconfig_access import KubeconfigAccess, read_access, usable_until
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub


class IssuedAccess(NamedTuple):
    """The access to a cluster from a kubeconfig that the daemon issued."""

    access: KubeconfigAccess
    usable_until: datetime | None
    """None if it does not expire."""


def issue_access(
    cluster: str, address: str, *, credentials: ClientCredentials, timeout: timedelta | None
) -> IssuedAccess:
    """Issue a short-lived credential for an engaged cluster. Raises DiscoveryError."""
    timeout_s = None if timeout is None else timeout.total_seconds()
    try:
        with open_channel(grpc_target(address), credentials) as channel:
            request, metadata = pb.IssueKubeconfigRequest(cluster=cluster), credentials.metadata()
            response = DiscoveryServiceStub(channel).IssueKubeconfig(request, timeout=timeout_s, metadata=metadata)
    except grpc.RpcError as error:
        raise status_error_of_call(error) from error
    issued = understood(response).kubeconfig
    access = read_access(issued.kubeconfig)
    expires_at = time(issued, "expires_at")
    return IssuedAccess(access, None if expires_at is None else usable_until(expires_at, time(issued, "issued_at")))
