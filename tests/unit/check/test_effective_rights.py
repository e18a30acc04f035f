"""The clusters that the daemon would engage, from complete lists."""

from milo_discoveryd.check.effective_rights import engaged
from milo_discoveryd.sources.keyed import KeyedSource
from tests.unit.sources.test_keyed import METADATA, by_secrets, encoded, seen


def test_clusters_are_engaged_after_complete_lists_of_objects_and_secrets() -> None:
    followed = KeyedSource(by_secrets())
    members, secrets = followed.collections
    listed = [seen(members, metadata={**METADATA, "labels": {"a": "b"}})]
    for data, endpoints in (({"value": encoded("https://b")}, ["https://b"]), ({}, [])):
        targets = engaged(followed, [listed, [seen(secrets, data=data)]])
        assert [each.endpoint for each in targets] == endpoints
