"""Kinds of objects, by the group, version and plural under which an API server serves them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

import msgspec

T = TypeVar("T")
Document = dict[str, Any]
"""An object as JSON."""

# With a default, `Request` alone means `Request[dict[str, Any]]` to type checkers. They bundle
# typing_extensions, so it is not needed at run time.
if TYPE_CHECKING:
    import typing_extensions

    ObjectT = typing_extensions.TypeVar("ObjectT", default=Document)
else:
    ObjectT = TypeVar("ObjectT")

_RESOURCE = re.compile(r"(?:(?P<group>[a-z0-9.-]+)/)?(?P<version>v[a-z0-9]+)/(?P<plural>[a-z0-9.-]+)")
# A server or proxy that normalizes "..", "%2e%2e", "?" or "#" would apply the request to another path.
_SEGMENT = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._~:@-]+")


class Kind(Generic[T]):
    """A kind of object, for example `Kind("example.com/v1/widgets")`, or `Kind("v1/configmaps", V1ConfigMap)`.

    `model` is a class of the kubernetes package, or one that msgspec can decode to, such as a Struct or a dataclass.
    Without one, objects are dicts.
    """

    @overload
    def __init__(self: Kind[Document], resource: str) -> None: ...
    @overload
    def __init__(self, resource: str, model: type[T]) -> None: ...
    def __init__(self, resource: str, model: Any = None) -> None:
        match = _RESOURCE.fullmatch(resource)
        if match is None:
            raise ValueError(
                f"{resource!r} is not a kind: write GROUP/VERSION/PLURAL, or VERSION/PLURAL in the core group"
            )
        self.resource = resource
        self.group = match["group"] or ""
        self.version: str = match["version"]
        self.plural: str = match["plural"]
        self._model = model
        is_type = model is not None and not hasattr(model, "from_dict")
        self._decoder = msgspec.json.Decoder(cast(Any, model)) if is_type else None

    def __repr__(self) -> str:
        return f"Kind({self.resource!r})"

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def collection(self, namespace: str = "") -> str:
        """Return the path of the collection, in one namespace or in all."""
        root = f"/apis/{self.group}" if self.group else "/api"
        within = f"/namespaces/{_segment(namespace)}" if namespace else ""
        return f"{root}/{self.version}{within}/{self.plural}"

    def path(self, name: str, namespace: str = "", subresource: str = "") -> str:
        """Return the path of an object, or of a subresource of it."""
        return f"{self.collection(namespace)}/{_segment(name)}{f'/{subresource}' if subresource else ''}"

    def decode(self, raw: bytes) -> T:
        if self._decoder is not None:
            return cast(T, self._decoder.decode(raw))
        decoded = msgspec.json.decode(raw)
        return cast(T, decoded if self._model is None else cast(Any, self._model).from_dict(decoded))


AnyKind = Kind[Any] | str


def kind_of(kind: Kind[T] | str) -> Kind[T]:
    return kind if isinstance(kind, Kind) else cast("Kind[T]", Kind(kind))


def document(body: object) -> Document:
    """Return a dict for a dict, an object of the kubernetes package, or one that msgspec can encode."""
    if isinstance(body, dict):
        return body
    if hasattr(body, "to_dict"):
        return cast(Document, _without_none(body.to_dict(serialize=True)))
    return cast(Document, msgspec.to_builtins(body))


def _without_none(value: Any) -> Any:
    """Return the value without absent fields, which the API server would take for null."""
    if isinstance(value, dict):
        return {name: _without_none(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_none(each) for each in value]
    return value


def _segment(name: str) -> str:
    if not _SEGMENT.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a Kubernetes object")
    return name
