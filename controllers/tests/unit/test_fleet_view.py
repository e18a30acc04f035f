"""Reading the caches of all clusters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from milo_controllers.errors import NotCached
from milo_controllers.event_loop import EventLoop
from milo_controllers.fleet_view import CachedCluster, FleetView, RequestCaches
from milo_controllers.kinds import Kind
from milo_controllers.object_cache import CachedObject, ObjectCache, OwnerReference
from milo_discovery.fleet import DiscoveryState
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted

CONFIG_MAPS: Kind[Any] = Kind("v1/configmaps")


def cluster(name: str, *, owners: tuple[OwnerReference, ...] = (), **contents: bytes) -> CachedCluster:
    """Return a cluster that has listed these ConfigMaps."""
    cache = ObjectCache()
    cache.add_index("data", lambda found: found["data"] if owners else ())
    cache.apply(ListStarted())
    for key, content in contents.items():
        raw = b'{"metadata":{"name":"%s"},"data":%s}' % (key.encode(), content)
        of_key = tuple(owner for owner in owners if key.startswith(owner.name))
        cache.apply(Listed(CachedObject(key, "default", f"uid of {key}", "1", raw, of_key)))
    cache.apply(ListEnded("1"))
    spec, warnings = SimpleNamespace(kind=CONFIG_MAPS), list[str]()
    informer = SimpleNamespace(
        cache=cache, spec=spec, key=CONFIG_MAPS.key, warn=lambda text, *about: warnings.append(text % about)
    )
    engaged = SimpleNamespace(name=name, warnings=warnings)
    found = SimpleNamespace(cluster=engaged, informers={CONFIG_MAPS.key: informer}, loop=EventLoop())
    return cast("CachedCluster", found)


class Model:
    """A type with its own errors, as pydantic's models are."""

    def __init__(self, data: dict[str, int]) -> None:
        self.size = data["size"]

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Model:
        return cls(document["data"])


async def test_object_that_its_type_refuses_fails_no_reader_of_all() -> None:
    hostile, honest = cluster("hostile", bad=b"{}"), cluster("web", fine=b'{"size":2}')
    view = FleetView({"hostile": hostile, "web": honest})
    found = view.list(Kind("v1/configmaps", Model))
    assert [(cluster.name, each.size) for cluster, each in found] == [("web", 2)]
    assert cast("Any", hostile.cluster).warnings == ["hostile: v1/configmaps bad cannot be decoded: 'size'"]


@pytest.mark.parametrize("content", [b'{"a":"\xff"}', b'{"a":1e999}', b'{"a":%s}' % (b"1" * 5000), b"[" * 5000])
async def test_what_one_cluster_sends_fails_no_reader_of_all(content: bytes) -> None:
    hostile, honest = cluster("hostile", bad=content, good=b"{}"), cluster("web", fine=b"{}")
    view = FleetView({"hostile": hostile, "web": honest})
    found = [(cluster.name, each["metadata"]["name"]) for cluster, each in view.list(CONFIG_MAPS)]
    assert found == [("hostile", "good"), ("web", "fine")]
    (warning,) = cast("Any", hostile.cluster).warnings
    assert warning.startswith("hostile: v1/configmaps bad cannot be decoded: ")


async def test_namespace_that_is_not_cached_is_not_taken_for_an_empty_one() -> None:
    """Found by a reader: an object there was said not to exist."""
    shop: Kind[Any] = Kind("v1/configmaps", namespace="default")
    web: Any = cluster("web", fine=b"{}")
    web.informers = {shop.key: web.informers[CONFIG_MAPS.key]}
    view = FleetView({"web": web})
    caches, requested = view.cluster("web"), RequestCaches(web)
    assert caches is not None
    for read in (
        lambda: caches.get(shop, "fine", "other"),
        lambda: list(caches.list(shop, "other")),
        lambda: list(view.list(shop, "other")),
        lambda: requested.cached(shop, "fine", "other"),
        lambda: requested.document(shop, "fine", "other"),
    ):
        with pytest.raises(NotCached, match="the namespace 'other' is not cached, only 'default'"):
            read()
    assert requested.whole_document(shop, "fine", "other") is None  # it is read from the API server
    assert caches.get(shop, "fine", "default") is not None
    assert [len(list(caches.list(shop, namespace))) for namespace in ("default", None)] == [1, 1]


async def test_list_of_an_owner_and_an_index_value_has_only_the_objects_of_both() -> None:
    owners = OwnerReference("uid of a", "a"), OwnerReference("uid of b", "b")
    web = cluster("web", owners=owners, a_old=b'["old"]', a_new=b'["new"]', b_old=b'["old"]')
    caches = FleetView({"web": web}).cluster("web")
    assert caches is not None
    found = caches.list(CONFIG_MAPS, owner="uid of a", index=("data", "old"))
    assert [each["metadata"]["name"] for each in found] == ["a_old"]


class Losing:
    """Engaged clusters that are lost with the ownership, between two reads of another thread."""

    def __init__(self) -> None:
        self.discovery = DiscoveryState(connected=True, synced=True, since=datetime.now(UTC))

    @property
    def clusters(self) -> Mapping[str, object]:
        self.discovery = replace(self.discovery, connected=False, synced=False)
        return {}


async def test_view_is_not_complete_if_the_ownership_is_lost_while_it_is_read() -> None:
    view = FleetView({}, Losing()).view("v1/configmaps")
    assert (view.known, view.is_complete) == (0, False)
