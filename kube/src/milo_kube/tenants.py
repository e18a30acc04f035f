"""The tenants of clusters, and turns of tenants, so that one with thousands of clusters delays no other.

Does no I/O. A tenant is the organization of its clusters, as their source names it. A cluster without an organization
is a tenant of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from typing import Generic, Protocol, TypeAlias, TypeVar

K = TypeVar("K", bound=Hashable)
Tenant: TypeAlias = tuple[str, ...]
working_for: ContextVar[Tenant] = ContextVar("working_for", default=())
"""The tenant of the cluster for which the current task works; empty if it does for none, or that is not known."""


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


class TenantTurns(Generic[K]):
    """Of each tenant in turn, the item that has waited for longest is next. Each operation takes constant time."""

    def __init__(self, tenant: Callable[[K], Tenant]) -> None:
        """`tenant` returns that of an item."""
        self._tenant = tenant
        # OrderedDict rather than dict, which takes linear time to find its first entry after many removals.
        self._waiting: OrderedDict[Tenant, OrderedDict[K, None]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __contains__(self, item: K) -> bool:
        return item in self._waiting.get(self._tenant(item), ())

    def add(self, item: K) -> None:
        """Add an item, unless it waits already."""
        tenant = self._tenant(item)
        if (waiting := self._waiting.get(tenant)) is None:
            waiting = self._waiting[tenant] = OrderedDict()
        waiting.setdefault(item, None)

    def add_first(self, item: K) -> None:
        """Add an item before the others of its tenant, whose turn is next if it had none."""
        tenant = self._tenant(item)
        has_turn = tenant in self._waiting
        self.add(item)
        self._waiting[tenant].move_to_end(item, last=False)
        if not has_turn:
            self._waiting.move_to_end(tenant, last=False)

    def discard(self, item: K) -> None:
        """Remove an item, if it waits."""
        tenant = self._tenant(item)
        if (waiting := self._waiting.get(tenant)) is not None:
            waiting.pop(item, None)
            if not waiting:
                del self._waiting[tenant]

    def pop(self) -> K:
        """Remove the next item. Raises KeyError if none waits."""
        tenant, waiting = self._waiting.popitem(last=False)
        item, _ = waiting.popitem(last=False)
        if waiting:
            self._waiting[tenant] = waiting
        return item
