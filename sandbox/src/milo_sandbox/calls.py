"""Method and path of a request, parsed into a verb and an object as an API server does."""

from collections.abc import Mapping, Sequence

import msgspec

from milo_sandbox import options, refusals
from milo_sandbox.resources import ResourceDefinition
from milo_sandbox.rights import Action

_ON_ONE = {"GET": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_ON_ALL = {"GET": "list", "POST": "create", "DELETE": "deletecollection"}


class Call(msgspec.Struct, frozen=True, kw_only=True):
    verb: str
    resource: ResourceDefinition
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    subject: str = ""
    """The user that sends it."""

    @property
    def action(self) -> Action:
        return Action(
            verb=self.verb,
            group=self.resource.group,
            resource=self.resource.plural,
            subresource=self.subresource,
            name=self.name,
            namespace=self.namespace,
        )


def read(
    method: str, segments: Sequence[str], query: Mapping[str, str], resources: Sequence[ResourceDefinition]
) -> Call:
    """Parse a request. Raises an error for an unknown path, or a method that is not allowed."""
    match segments:
        case ("api", "v1", *rest):
            group, version = "", "v1"
        case ("apis", group, version, *rest):
            pass
        case _:
            raise refusals.no_such_path()
    served = {
        definition.plural: definition
        for definition in resources
        if (definition.group, definition.version) == (group, version)
    }
    namespace = ""
    match rest:
        case ("namespaces", inside, plural, *_) if plural in served and served[plural].namespaced:
            namespace, rest = inside, rest[2:]
    if not rest or len(rest) > 3 or rest[0] not in served:
        raise refusals.no_such_path()
    resource = served[rest[0]]
    name, subresource = (*rest[1:], "", "")[:2]
    if subresource and not (subresource == "status" and resource.has_status):
        raise refusals.not_found(resource, name) if resource.is_custom else refusals.no_such_path()
    verb = (_ON_ONE if name else _ON_ALL).get("GET" if method == "HEAD" else method)
    if verb is None and resource.is_custom:
        verb = _on_a_custom_resource(method, subresource)
    if verb is None or (subresource and verb == "delete"):
        raise refusals.method_not_allowed()
    if resource.namespaced and not namespace and verb not in {"list", "watch"}:
        raise refusals.method_not_allowed()
    if verb == "list" and options.wants_watch(query):
        verb = "watch"
    return Call(verb=verb, resource=resource, namespace=namespace, name=name, subresource=subresource)


def _on_a_custom_resource(method: str, subresource: str) -> str | None:
    """Return the verb of a request that is allowed for custom resources only; None if it is never allowed."""
    if method in {"PUT", "PATCH"}:
        raise refusals.bad_request("name must be provided")
    return "create" if method == "POST" and not subresource else None
