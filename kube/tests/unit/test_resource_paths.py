"""The paths of a resource, of its collection in a namespace or in all, and of an object and its subresources."""

import pytest

from milo_kube.api_request import ApiRequest
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


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("my role", "my%20role"),
        ("a+b", "a%2Bb"),
        ("system:a@b~", "system:a@b~"),
        ("r\u00f6le", "r%C3%B6le"),
        (".. ", "..%20"),
        ("!\"$&'()*,<=>[]^`{|}", "%21%22%24%26%27%28%29%2A%2C%3C%3D%3E%5B%5D%5E%60%7B%7C%7D"),
    ],
)
def test_name_of_a_role_is_encoded_in_the_path(name: str, encoded: str):
    path = ResourcePaths("rbac.authorization.k8s.io/v1/clusterroles").path(name)
    assert path == f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{encoded}"
    assert ApiRequest("GET", path).url("https://api") == f"https://api{path}"


@pytest.mark.parametrize(
    "name", ["..", ".", "a/b", "a?b", "a#b", "a%b", "a%2Fb", "..;", "a\\b", "a\nb", "a\0", "\ud800", ""]
)
def test_name_that_is_not_one_segment_of_a_path_is_refused(name: str):
    """Some are valid: RBAC accepts any but "/" and "%" in the name of a role."""
    with pytest.raises(
        ValueError, match=r"^no request is sent for the name '.*any of #%/;\?\\, could lead to another path$"
    ):
        ResourcePaths("v1/secrets").path(name)
