"""Claims of objects on clusters, and the keys of clusters."""

from milo_discoveryd.model.claims import earliest
from milo_discoveryd.model.cluster import Target, key_of


def test_no_claim_means_that_the_cluster_is_deleted() -> None:
    assert earliest("shop", []) is None


def test_key_names_source_and_cluster() -> None:
    assert key_of("shop", "") == "shop"
    target = Target(name=key_of("shop", "eu"), uid="u", place=("https://", ".test"))
    assert (target.name, target.source, target.local_name) == ("eu#shop", "eu", "shop")
    assert target.endpoint == "https://shop.test"
