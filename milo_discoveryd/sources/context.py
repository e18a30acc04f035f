"""The contexts in which customers and service providers see Milo: paths of its API server. Pure."""

import enum
import re
from collections.abc import Collection
from urllib.parse import unquote, urlsplit

import msgspec

_SEGMENT = r"(?P<name>[^/]+)"
_PATHS = {
    "organization": rf"/apis/resourcemanager\.miloapis\.com/v1alpha1/organizations/{_SEGMENT}/control-plane",
    "project": rf"/apis/resourcemanager\.miloapis\.com/v1alpha1/projects/{_SEGMENT}/control-plane",
    "user": rf"/apis/iam\.miloapis\.com/v1alpha1/users/{_SEGMENT}/control-plane",
}


_CONTEXT = re.compile(rf"(?:{'|'.join(pattern.replace('?P<name>', '?:') for pattern in _PATHS.values())})\Z")


class ContextKind(enum.Enum):
    ROOT = "root"
    ORGANIZATION = "organization"
    PROJECT = "project"
    USER = "user"


class MiloContext(msgspec.Struct, frozen=True):
    """A context: the whole API, or the control plane of an organization, a project or a user."""

    kind: ContextKind = ContextKind.ROOT
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind.value} {self.name}".rstrip()


SHOWS = {
    ContextKind.ROOT: "all projects, of all organizations",
    ContextKind.ORGANIZATION: "the projects of the organization",
    ContextKind.PROJECT: "the project's own objects, and no projects",
    ContextKind.USER: "everything that the user may see, not the projects of one organization",
}
_SERVERS = {
    ContextKind.ROOT: "https://MILO",
    ContextKind.ORGANIZATION: "https://MILO/apis/resourcemanager.miloapis.com/v1alpha1/organizations/NAME/control-plane",
    ContextKind.PROJECT: "https://MILO/apis/resourcemanager.miloapis.com/v1alpha1/projects/NAME/control-plane",
}


def root_of(server: str) -> str:
    """Return the URL of the root of the API for a server URL, which may select a context."""
    root = server.rstrip("/")
    while (context := _CONTEXT.search(root)) is not None:
        root = root[: context.start()]
    return root


def context_of(server: str) -> MiloContext:
    """Return the context of Milo that a server URL selects."""
    path = unquote(urlsplit(server).path).rstrip("/")
    for kind, pattern in _PATHS.items():
        # Proxies may add a prefix, and Milo accepts a project's context within the context of its organization.
        if match := re.search(rf"{pattern}\Z", path):
            return MiloContext(ContextKind(kind), match["name"])
    return MiloContext()


def wrong_context(mode: str, server: str, accepted: Collection[ContextKind]) -> tuple[str, str] | None:
    """Return why the mode cannot be used in the context that the server URL selects, and how to fix it; None if the
    mode can be used there."""
    context = context_of(server)
    if not accepted or context.kind in accepted:
        return None
    servers = " or ".join(f"{_SERVERS[kind]} ({kind.value})" for kind in accepted)
    return (
        f"the discovery kubeconfig points to the context of {context}, which shows {SHOWS[context.kind]}; "
        f"mode {mode} cannot work there",
        f"set the kubeconfig's server to {servers}",
    )
