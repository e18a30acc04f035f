"""The contexts (path prefixes) under which Milo serves its API: those of organizations, users and projects."""

import re
from collections.abc import Mapping

import msgspec
from multidict import MultiDict

from milo_sandbox import options, refusals
from milo_sandbox.resources import PROJECTS

ORGANIZATION_LABEL = "resourcemanager.miloapis.com/organization-name"
_ORGANIZATION = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_COMMAS_BETWEEN_REQUIREMENTS = re.compile(r",(?![^(]*\))")


class Entered(msgspec.Struct, frozen=True):
    """A request's path without its contexts, and the organization and the project of the contexts."""

    segments: list[str]
    organization: str = ""
    project: str = ""


def entered(segments: list[str]) -> Entered:
    """Return the contexts of a path. A project's context may follow that of an organization or a user."""
    organization = ""
    match segments:
        case ("apis", PROJECTS.group, PROJECTS.version, "organizations", organization, "control-plane", *below):
            if not _ORGANIZATION.fullmatch(organization):
                raise refusals.bad_request(f'invalid organization ID "{organization}"')
            segments = below
        case ("apis", "iam.miloapis.com", "v1alpha1", "users", _, "control-plane", *below):
            segments = below
    match segments:
        case ("apis", PROJECTS.group, PROJECTS.version, PROJECTS.plural, project, "control-plane", *below):
            return Entered(below, organization, project)
    return Entered(segments, organization)


def constrained(of: Entered, method: str, query: Mapping[str, str], *, watches: bool) -> MultiDict[str] | None:
    """Return a request's query with the selector of the context's organization, or None if the request is not limited.

    Milo v0.32.5 limits only lists; `watches` limits watches too.
    """
    is_list = of.segments == ["apis", PROJECTS.group, PROJECTS.version, PROJECTS.plural] and method == "GET"
    if not of.organization or not is_list or (options.wants_watch(query) and not watches):
        return None
    given = filter(None, _COMMAS_BETWEEN_REQUIREMENTS.split(query.get("labelSelector", "")))
    kept = [requirement for requirement in given if ORGANIZATION_LABEL not in requirement]
    selector = ",".join([f"{ORGANIZATION_LABEL}={of.organization}", *kept])
    return MultiDict(
        [*((name, value) for name, value in query.items() if name != "labelSelector"), ("labelSelector", selector)]
    )
