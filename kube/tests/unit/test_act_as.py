"""The user that requests impersonate."""

from typing import Any

import pytest

from milo_kube import act_as
from milo_kube.act_as import ActAs


def test_impersonated_user_groups_and_extra_are_read_and_sent() -> None:
    fields = {"as": "ann", "as-groups": ["a", "b"], "as-user-extra": {"example.com/x": ["1", "2"]}}
    found = act_as.read({"token": "t", **fields})
    assert found == ActAs(user="ann", groups=("a", "b"), extra=(("example.com/x", ("1", "2")),))
    assert found.fields() == fields
    assert found.headers() == [
        ("Impersonate-User", "ann"),
        ("Impersonate-Group", "a"),
        ("Impersonate-Group", "b"),
        ("Impersonate-Extra-example.com%2Fx", "1"),
        ("Impersonate-Extra-example.com%2Fx", "2"),
    ]


def test_impersonated_user_alone_has_no_other_fields_or_headers() -> None:
    found = act_as.read({"as": "ann"})
    assert found is not None
    assert (found.fields(), found.headers()) == ({"as": "ann"}, [("Impersonate-User", "ann")])
    assert act_as.read({"token": "t"}) is None


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ({"as-groups": ["a"]}, "without 'as'"),
        ({"as-user-extra": {"x": ["1"]}}, "without 'as'"),
        ({"as": 5}, "a value of 'as' or 'as-groups'"),
        ({"as": "a\nb"}, "a value of 'as' or 'as-groups'"),
        ({"as": "a", "as-groups": "b"}, "a value of 'as' or 'as-groups'"),
        ({"as": "a", "as-groups": [""]}, "a value of 'as' or 'as-groups'"),
        ({"as": "a", "as-user-extra": ["x"]}, "as-user-extra"),
        ({"as": "a", "as-user-extra": {"x": "1"}}, "as-user-extra"),
        ({"as": "a", "as-user-extra": {"ä": ["1"]}}, "as-user-extra"),
    ],
)
def test_invalid_impersonated_user_is_refused(user: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        act_as.read(user)
