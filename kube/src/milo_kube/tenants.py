"""The tenants of clusters, so that one with thousands of clusters takes nothing from another one.

Does no I/O. A tenant is the organization of its clusters, as their source names it. A cluster without an organization
is a tenant of its own.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

Tenant: TypeAlias = tuple[str, ...]


class TenantCluster(Protocol):
    """What a cluster belongs to."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def organization(self) -> str: ...


def tenant_of(cluster: TenantCluster) -> Tenant:
    """Return the tenant of a cluster. The objects of a source may name the organizations of another one."""
    return (cluster.source, cluster.organization) if cluster.organization else (cluster.source, "", cluster.name)
