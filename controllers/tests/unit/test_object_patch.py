"""The merge patch of a change to an object that was read in part."""

import pytest

from milo_controllers.object_patch import PartialListError, merge_patch

WHOLE = {
    "metadata": {"name": "w", "labels": {"a": "1", "b": "2"}, "finalizers": ["f"]},
    "spec": {"size": 1, "color": "red", "ports": [{"port": 80, "name": "http"}]},
}


def test_fields_that_the_part_lacks_are_not_in_the_patch() -> None:
    before = {"metadata": {"name": "w"}, "spec": {"size": 1}}
    assert merge_patch(before, {"metadata": {"name": "w"}, "spec": {"size": 2}}, WHOLE) == {"spec": {"size": 2}}


def test_removed_fields_are_null_and_equal_objects_have_an_empty_patch() -> None:
    after = {**WHOLE, "metadata": {"name": "w", "labels": {"a": "1"}}, "spec": {"size": 1}}
    assert merge_patch(WHOLE, after, WHOLE) == {
        "metadata": {"labels": {"b": None}, "finalizers": None},
        "spec": {"color": None, "ports": None},
    }
    assert merge_patch(WHOLE, WHOLE, WHOLE) == {}


def test_changed_list_replaces_the_stored_one_if_it_was_read_with_all_fields() -> None:
    ports = [{"port": 81, "name": "http"}, {"port": 443}]
    after = {**WHOLE, "spec": {**WHOLE["spec"], "ports": ports}}
    assert merge_patch(WHOLE, after, WHOLE) == {"spec": {"ports": ports}}


def test_changed_list_whose_elements_were_read_in_part_is_refused() -> None:
    before, after = ({"spec": {"ports": [{"port": port}]}} for port in (80, 81))
    assert merge_patch(before, {"spec": {"ports": [{"port": 80}]}}, WHOLE) == {}
    with pytest.raises(PartialListError, match=r"^spec\.ports is a list, .* or call patch$"):
        merge_patch(before, after, WHOLE)
    with pytest.raises(PartialListError):  # a field that was not read at all
        merge_patch({"spec": {}}, after, WHOLE)


def test_changed_list_with_null_elements_is_read_with_all_fields() -> None:
    whole = {"spec": {"sizes": [None, 1]}}
    assert merge_patch(whole, {"spec": {"sizes": [None, 2]}}, whole) == {"spec": {"sizes": [None, 2]}}


def test_field_that_is_null_before_and_missing_after_is_no_change() -> None:
    assert merge_patch({"spec": {"size": None}}, {"spec": {}}, {}) == {}


def test_boolean_that_replaces_an_equal_number_is_a_change() -> None:
    before, after = {"spec": {"on": 1, "all": [0]}}, {"spec": {"on": True, "all": [False]}}
    assert merge_patch(before, after, before) == after
