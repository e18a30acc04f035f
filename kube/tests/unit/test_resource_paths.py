"""The paths of a resource, of its collection in a namespace or in all, and of an object and its subresources."""

import pytest

from milo_kube.resource_paths import ResourcePaths


def test_paths_of_a_resource_of_a_group_and_of_the_core_group():
    widgets, secrets = ResourcePaths("example.com/v1/widgets"), ResourcePaths("v1/secrets")
    assert (widgets.group, widgets.version, widgets.plural) == ("example.com", "v1", "widgets")
    assert (widgets.api_version, secrets.api_version) == ("example.com/v1", "v1")
    assert widgets.collection() == "/apis/example.com/v1/widgets"
    assert widgets.path("one", "there", "status") == "/apis/example.com/v1/namespaces/there/widgets/one/status"
    assert secrets.path("one", "there") == "/api/v1/namespaces/there/secrets/one"


@pytest.mark.parametrize("given", ["widgets", "v1/Widgets", "example.com/widgets", "/v1/widgets", 7])
def test_other_names_are_refused_with_the_right_form(given: object):
    with pytest.raises(ValueError, match="does not name a resource: write GROUP/VERSION/PLURAL"):
        ResourcePaths(given)


@pytest.mark.parametrize("name", ["..", "a/b", "a?b", ""])
def test_name_that_is_not_one_segment_of_a_path_is_refused(name: str):
    with pytest.raises(ValueError, match="is not a valid name of an object or a namespace"):
        ResourcePaths("v1/secrets").path(name)
