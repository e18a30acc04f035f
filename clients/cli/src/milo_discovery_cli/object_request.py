"""Which objects `milo-discovery get` is asked for, and the requests that read them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import msgspec

from milo_discovery_cli.served_resources import ServedResource
from milo_kube.api_request import is_segment

_KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")
_FORMS = "give KIND/NAME for each object, or KIND and then the names"
Query = tuple[tuple[str, str], ...]


class RequestError(ValueError):
    """The arguments do not say which objects are meant."""


class Wanted(msgspec.Struct, frozen=True):
    """The resources that one argument names, and the names of their objects; all objects if there are none."""

    resources: tuple[str, ...]
    names: tuple[str, ...] = ()


class ObjectRead(msgspec.Struct, frozen=True):
    """A request for objects: for a list, or for one object."""

    path: str
    query: Query = ()
    name: str = ""
    """The name of the object that is meant; empty for all objects of a collection."""
    is_list: bool = True


class ObjectScope(msgspec.Struct, frozen=True, kw_only=True):
    """Which objects of a resource are meant."""

    namespace: str = ""
    """Empty for all namespaces."""
    selector: str = ""
    field_selector: str = ""

    def reads(self, resource: ServedResource, names: Sequence[str]) -> Iterator[ObjectRead]:
        """Yield the requests for the objects with these names, or for all."""
        for name in names:
            if resource.is_namespaced and not self.namespace:
                # No path leads to the objects of one name in all namespaces.
                yield ObjectRead(resource.path(), (("fieldSelector", f"metadata.name={name}"),), name)
            else:
                yield ObjectRead(resource.path(self.namespace, name), name=name, is_list=False)
        if not names:
            yield ObjectRead(resource.path(self.namespace), self._query())

    def collection(self, resource: ServedResource, names: Sequence[str]) -> ObjectRead:
        """Return the request that lists the objects, to be watched afterwards: those of at most one name."""
        fields = ",".join(filter(None, (self.field_selector, *(f"metadata.name={name}" for name in names))))
        return ObjectRead(resource.path(self.namespace), msgspec.structs.replace(self, field_selector=fields)._query())

    def _query(self) -> Query:
        given = (("labelSelector", self.selector), ("fieldSelector", self.field_selector))
        return tuple((parameter, value) for parameter, value in given if value)


def parse(arguments: Sequence[str]) -> tuple[Wanted, ...]:
    """Read the arguments: `KIND[,KIND...] [NAME...]`, or `KIND/NAME...`. Raises RequestError."""
    resources, *names = arguments
    if "/" in resources:
        return tuple(map(_pair, arguments))
    for name in names:
        _check(name)
    kinds = tuple(dict.fromkeys(resources.split(",")))
    for kind in kinds:
        _check_kind(kind)
    return (Wanted(kinds, tuple(names)),)


def _pair(argument: str) -> Wanted:
    kind, slash, name = argument.partition("/")
    if not slash:
        raise RequestError(f"{argument!r} has no '/': {_FORMS}")
    if "," in kind:
        raise RequestError(f"{argument!r} names several kinds: {_FORMS}")
    _check_kind(kind)
    _check(name)
    return Wanted((kind,), (name,))


def _check_kind(kind: str) -> None:
    if not _KIND.fullmatch(kind):
        raise RequestError(f"{kind!r} is not the name of a kind")


def _check(name: str) -> None:
    if not is_segment(name):
        hint = f": {_FORMS}" if "/" in name else ""
        raise RequestError(f"{name!r} is not the name of an object{hint}")
