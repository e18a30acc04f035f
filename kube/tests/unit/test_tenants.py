"""The tenants of clusters."""

import pytest

from milo_kube.tenants import TenantTurns, tenant_of


class Cluster:
    def __init__(self, name: str, organization: str = "", source: str = "") -> None:
        self.name = name
        self.organization = organization
        self.source = source


def test_tenant_is_the_organization_in_its_source_or_else_the_cluster() -> None:
    clusters = [Cluster("a", "acme"), Cluster("b", "acme"), Cluster("s#a", "acme", "s"), Cluster("acme"), Cluster("b")]
    assert [tenant_of(cluster) for cluster in clusters] == [
        *(("", "acme"), ("", "acme"), ("s", "acme")),
        *(("", "", "acme"), ("", "", "b")),
    ]


def test_tenants_take_turns_and_the_items_of_each_in_their_order() -> None:
    turns = TenantTurns[str](lambda item: (item[0],))
    for item in ("a1", "a2", "a3", "b1", "b2", "a1"):
        turns.add(item)
    assert "a2" in turns
    assert "c1" not in turns
    assert [turns.pop() for _ in range(5)] == ["a1", "b1", "a2", "b2", "a3"]
    assert not turns
    with pytest.raises(KeyError):
        turns.pop()


def test_item_that_is_first_of_its_tenant_waits_for_the_turn_that_its_tenant_has() -> None:
    turns = TenantTurns[str](lambda item: (item[0],))
    for item in ("b1", "a1", "a2"):
        turns.add(item)
    turns.add_first("a2")
    turns.add_first("a3")
    turns.add_first("c1")
    assert [turns.pop() for _ in range(5)] == ["c1", "b1", "a3", "a2", "a1"]


def test_discarded_items_have_no_turn() -> None:
    turns = TenantTurns[str](lambda item: (item[0],))
    for item in ("a1", "a2", "b1"):
        turns.add(item)
    for item in ("a1", "b1", "b1", "c1"):
        turns.discard(item)
    assert turns.pop() == "a2"
    assert not turns
