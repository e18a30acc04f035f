"""Contributions of objects to clusters, and the keys of clusters."""

from milo_discoveryd.model.cluster import Target, key_of, source_of
from milo_discoveryd.model.contributions import ObjectContribution, earliest
from milo_discoveryd.model.observation import Malformed, Ready


def a_contribution(name: str, order: int) -> ObjectContribution:
    target = Target(name="shop", uid=name, place=("https://shop.test",))
    return ObjectContribution(0, name, name, "1", order, Ready(name, "1", target))


def test_cluster_without_contributions_has_no_observation() -> None:
    assert earliest("shop", []) is None


def test_earliest_contribution_to_cluster_applies() -> None:
    first = a_contribution("first", 1)
    assert earliest("shop", [first, a_contribution("second", 2)]) == first.content


def test_cluster_claimed_by_two_objects_of_one_list_is_malformed() -> None:
    found = earliest("shop", [a_contribution("first", 1), a_contribution("second", 1)])
    assert isinstance(found, Malformed)
    assert (found.name, found.uid, found.version) == ("shop", "first", "1")
    assert found.message.endswith("is claimed by two objects: first and second")


def test_cluster_key_contains_source_and_cluster_name() -> None:
    assert key_of("shop", "") == "shop"
    assert source_of("shop") == ""
    assert source_of("eu#shop") == "eu"
    target = Target(name=key_of("shop", "eu"), source="eu", uid="u", place=("https://", ".test"))
    assert (target.name, target.source, target.local_name) == ("eu#shop", "eu", "shop")
    assert target.endpoint == "https://shop.test"
