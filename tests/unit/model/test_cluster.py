"""Clusters, and what identifies them."""

import msgspec
import pytest

from milo_discoveryd.model.cluster import Cluster, DisengageReason, Drain, Target, without_content, without_draining


@pytest.mark.parametrize(("source", "text"), [("", "uid-object"), ("milo", "milo#uid-object")])
def test_cluster_identity_is_source_and_uid_of_the_object(source: str, text: str) -> None:
    target = Target(name="a", source=source, uid="uid-of-a-label", place=("https://a",))
    cluster = Cluster(target=target, source_version="7", engaged_at=1.0, incarnation=3, object_uid="uid-object")
    assert str(cluster.identity) == text


def test_removing_the_drain_of_a_cluster_keeps_its_other_fields() -> None:
    cluster = Cluster(
        target=Target(name="a", uid="u", place=("https://a",)), source_version="7", engaged_at=1.0, incarnation=3
    )
    draining = msgspec.structs.replace(cluster, draining=Drain(DisengageReason.DELETED, "deleted", 9.0))
    assert without_draining(draining) == cluster
    assert without_draining(cluster) is cluster


def test_cluster_without_content_has_nothing_that_its_author_can_make_large() -> None:
    large = (("large", "x" * 63),)
    target = Target(name="a", uid="u", place=("https://milo/", ""), organization="o", labels=large, annotations=large)
    drain = Drain(DisengageReason.NOT_READY, "large", 2.0)
    cluster = Cluster(target=target, source_version="1", engaged_at=1.0, incarnation=7, object_uid="u", draining=drain)
    bare = without_content(cluster)
    assert (bare.identity, bare.incarnation, bare.draining) == (cluster.identity, 7, None)
    assert bare.target == Target(name="a", uid="u", place=target.place, organization="o")
