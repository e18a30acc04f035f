"""The fields that scopes evaluate, for each kind of observation."""

import pytest

from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.observation import Malformed, NotReady, ObjectFields, Observation, Outside, Ready

FIELDS = ObjectFields("a", "acme", (("env", "prod"),))
TARGET = Target(name="a", uid="u", place=("https://a.test",))


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (Ready("u", "1", TARGET), TARGET),
        (NotReady("a", "u", "1", "not yet", fields=FIELDS), FIELDS),
        (Outside("a", "u", "1", "not selected", fields=FIELDS), FIELDS),
        (Malformed("a", "u", "1", "nonsense"), None),
    ],
    ids=["ready", "not ready", "outside", "malformed"],
)
def test_observation_has_fields_in_each_object_state_except_malformed(seen: Observation, expected: object) -> None:
    assert seen.fields == expected
