"""The contexts in which customers and service providers see Milo: paths of its API server. Pure."""

import enum
import re
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


def root_of(server: str) -> str:
    """Return the URL of the whole API that has the context of a server's URL."""
    found = server.rstrip("/")
    while (context := _CONTEXT.search(found)) is not None:
        found = found[: context.start()]
    return found


def context_of(server: str) -> MiloContext:
    """Return the context of a server's URL."""
    path = unquote(urlsplit(server).path).rstrip("/")
    for kind, pattern in _PATHS.items():
        # Proxies may add a prefix, and Milo accepts a project's context within that of its organization.
        if found := re.search(rf"{pattern}\Z", path):
            return MiloContext(ContextKind(kind), found["name"])
    return MiloContext()
