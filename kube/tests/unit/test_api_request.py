"""Requests to API servers: safe paths, and headers."""

import pytest

from milo_kube.act_as import ActAs
from milo_kube.api_request import Access, ApiRequest, is_segment
from milo_kube.credential import Credential, Secret


@pytest.mark.parametrize(
    "path",
    [
        *("", "apis", "//x", "/a/../b", "/a/..", "/.", "/a%2e", "/a?b", "/a#b", "/a b", "/a\n", "/ä", "/a//b", "/a\\b"),
        *(f"/a%{code}b" for code in ("2E", "2F", "2f", "25", "23", "3F", "3B", "5C", "0A", "00", "7F", "41", "2", "")),
        *("/%2E%2E/b", "/a/%2E."),
    ],
)
def test_request_to_an_unsafe_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="unsafe path"):
        ApiRequest("GET", path)


@pytest.mark.parametrize(
    "path", ["/", "/healthz", "/api/v1/nodes/", "/api/v1/services/https:x.y:443/proxy", "/a/..b", "/.a"]
)
def test_request_url_is_the_server_url_with_path_and_query(path: str) -> None:
    assert ApiRequest("GET", path).url("https://api/prefix") == f"https://api/prefix{path}"


def test_request_query_is_percent_encoded() -> None:
    url = ApiRequest("GET", "/x", (("labelSelector", "a in (b, c)"), ("limit", "5"))).url("https://api")
    assert url == "https://api/x?labelSelector=a%20in%20%28b%2C%20c%29&limit=5"


@pytest.mark.parametrize(
    ("name", "is_safe"), [("a.b", True), ("..b", True), ("..", False), (".", False), ("a/b", False)]
)
def test_name_with_path_syntax_is_not_a_path_segment(name: str, is_safe: bool) -> None:
    assert is_segment(name) is is_safe


def test_request_headers_have_the_token_and_the_impersonated_user() -> None:
    acting = ActAs(user="jane", groups=("a", "b"))
    access = Access(server="https://api", credential=Credential(token=Secret("t")), act_as=acting)
    assert ApiRequest("PATCH", "/x", body=b"{}", content_type="application/json-patch+json").headers(access) == {
        "Accept": "application/json",
        "Accept-Encoding": "gzip",
        "Content-Type": "application/json-patch+json",
        "Authorization": "Bearer t",
        "Impersonate-User": ("jane",),
        "Impersonate-Group": ("a", "b"),
    }


def test_anonymous_request_without_a_body_has_neither_authorization_nor_content_type() -> None:
    headers = ApiRequest("GET", "/x", encoding="identity").headers(Access(server="https://api"))
    assert headers == {"Accept": "application/json", "Accept-Encoding": "identity"}
