"""Untrusted names do not change the host or path of an endpoint."""

import re
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from milo_discoveryd.model.observation import Malformed, Ready
from milo_discoveryd.sources.kind import SourceOptions
from milo_discoveryd.sources.project import ProjectObjects
from milo_discoveryd.sources.project_control_plane import ControlPlaneObjects, ProjectControlPlaneKind
from tests.unit.sources.objects import control_plane, project

API = "https://api.example.com:6443"
PROJECTS = ProjectObjects(SourceOptions(project_server=API))
CONTROL_PLANES = ControlPlaneObjects(ProjectControlPlaneKind(), SourceOptions(project_server=API))

HOSTILE = [
    "",
    ".",
    "..",
    "../..",
    "a/../b",
    "%2e%2e",
    "..%2e",
    "a%2fb",
    "a?b",
    "a#b",
    "a\\b",
    "a\n",
    "\na",
    "a\r\nX-Evil: 1",
    "a b",
    "a\x00",
    "A",
    "Apollo",
    "-a",
    "a-",
    ".a",
    "a.",
    "a..b",
    "a_b",
    "a:b",
    "a@b",
    "{name}",
    "\u0430pollo",  # a Cyrillic letter that resembles a Latin one
    "apollo\u200b",
    "\uff41",
    "a\u0301",
    "\u0661",  # a digit by str.isdigit
    "a" * 300,
]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name[:20]))
def test_object_with_hostile_name_is_malformed(name: str) -> None:
    for observed in (PROJECTS.observe(project(name)), CONTROL_PLANES.observe(control_plane(name))):
        assert isinstance(observed, Malformed)
        assert observed.name == name
        assert observed.message.startswith(f"the name {name[:80]!r} is not a DNS ")


def test_name_length_and_dots_are_validated_per_mode() -> None:
    assert isinstance(PROJECTS.observe(project("a.b")), Ready)
    assert isinstance(PROJECTS.observe(project(f"{'a' * 63}.{'b' * 63}")), Ready)
    assert isinstance(PROJECTS.observe(project("a" * 64)), Malformed)
    assert isinstance(CONTROL_PLANES.observe(control_plane("a.b")), Malformed)
    assert isinstance(CONTROL_PLANES.observe(control_plane("a" * 63)), Ready)
    assert isinstance(CONTROL_PLANES.observe(control_plane("a" * 64)), Malformed)


NAMES = st.one_of(
    st.text(max_size=30),
    st.from_regex(re.compile(r"[a-z0-9.%/-]{1,20}"), fullmatch=True),
    st.from_regex(re.compile(r"[a-z0-9-]{1,20}"), fullmatch=True),
)


@given(NAMES)
def test_endpoint_is_derived_from_name_only(name: str) -> None:
    observed = PROJECTS.observe(project(name))
    if isinstance(observed, Ready):
        parts = URL(observed.target.endpoint)
        assert (parts.scheme, parts.host, parts.port) == ("https", "api.example.com", 6443)
        assert parts.path == f"/apis/resourcemanager.miloapis.com/v1alpha1/projects/{name}/control-plane"
        assert not parts.query_string
        assert not parts.fragment
    observed = CONTROL_PLANES.observe(control_plane(name))
    if isinstance(observed, Ready):
        address = urlsplit(observed.target.endpoint)
        assert address.netloc == f"milo-apiserver.project-{name}.svc.cluster.local:6443"
        assert URL(observed.target.endpoint).host == f"milo-apiserver.project-{name}.svc.cluster.local"
