"""Kinds of objects, by the group, version and plural under which an API server serves them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, NoReturn, TypedDict, TypeVar, cast, overload

import msgspec

from milo_controllers.errors import NotCached
from milo_kube.label_selector import SelectorError, parse
from milo_kube.resource_paths import ResourcePaths, not_a_resource
from milo_kube.user_code import call

T = TypeVar("T")
Document = dict[str, Any]
"""An object as JSON."""
Transform = Callable[[Document], Document]

# With a default, `Request` alone means `Request[dict[str, Any]]` to type checkers. They bundle
# typing_extensions, so it is not needed at run time.
if TYPE_CHECKING:
    import typing_extensions

    ObjectT = typing_extensions.TypeVar("ObjectT", default=Document)
else:
    ObjectT = TypeVar("ObjectT")

_METADATA_FIELDS = frozenset({"apiVersion", "kind", "metadata"})


class CacheKey(NamedTuple):
    """Identity of a cache within a cluster: controllers with equal keys share the cache."""

    resource: str
    selector: str = ""
    field_selector: str = ""
    namespace: str = ""

    def __str__(self) -> str:
        limits = ", ".join(limit for limit in (self.namespace, self.selector, self.field_selector) if limit)
        return f"{self.resource} ({limits})" if limits else self.resource


class MetadataDocument(Document):
    """The metadata of an object. Reading another field raises NotCached."""

    def __missing__(self, name: str) -> NoReturn:
        raise NotCached(f"the field {name!r} is not cached: leave out metadata_only=True, or use request.read")

    def get(self, name: str, default: Any = None) -> Any:
        return default if name in _METADATA_FIELDS and name not in self else self[name]

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (name not in _METADATA_FIELDS and self.__missing__(str(name)))

    def pop(self, name: str, *default: Any) -> Any:
        _ = name in self  # raises NotCached
        return super().pop(name, *default)


class Kind(ResourcePaths, Generic[T]):
    """A kind of object, for example `Kind("example.com/v1/widgets")`, or `Kind("v1/configmaps", V1ConfigMap)`.

    `model` is the type of its objects: a class of the kubernetes package, a pydantic model, a dataclass, or a
    `msgspec.Struct`. Without one, objects are dicts.

    The other arguments restrict what is cached. `selector`, `field_selector`, `namespace`: only the objects that match.
    `metadata_only`: only the metadata of each object; other fields raise NotCached. `transform`: a function that
    returns the object, a dict, as it is to be cached, for example without large fields.
    """

    @overload
    def __init__(
        self: Kind[Document],
        resource: str,
        *,
        selector: str = "",
        field_selector: str = "",
        namespace: str = "",
        metadata_only: bool = False,
        transform: Transform | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        resource: str,
        model: type[T],
        *,
        selector: str = "",
        field_selector: str = "",
        namespace: str = "",
        transform: Transform | None = None,
    ) -> None: ...
    def __init__(
        self,
        resource: str,
        model: Any = None,
        *,
        selector: str = "",
        field_selector: str = "",
        namespace: str = "",
        metadata_only: bool = False,
        transform: Transform | None = None,
    ) -> None:
        super().__init__(resource)
        try:
            parse(selector)
        except SelectorError as error:
            raise ValueError(f"{resource}: the label selector {selector!r}: {error}") from None
        self.key = CacheKey(resource, selector, field_selector, namespace)
        self.metadata_only = metadata_only
        self.transform = transform
        if metadata_only and (model is not None or transform is not None):
            raise ValueError(
                f"{resource}: with metadata_only=True objects are dicts; leave out the type and transform="
            )
        self.has_type = model is not None
        self._decode: Callable[[bytes], Any] = _decode_metadata if metadata_only else _decoder(resource, model)

    def __repr__(self) -> str:
        return f"Kind({self.resource!r})"

    @property
    def is_partial(self) -> bool:
        """Whether objects are cached without some of their fields."""
        return self.metadata_only or self.transform is not None

    def cached_part(self, whole: Document) -> Document:
        """Return what is cached of an object."""
        whole = {**whole, "metadata": {**whole["metadata"]}}
        whole["metadata"].pop("managedFields", None)
        if self.metadata_only:
            return {name: value for name, value in whole.items() if name in _METADATA_FIELDS}
        # Through JSON, as the cache does: the function may change what it is given.
        if self.transform is None:
            return whole
        return transformed(self.transform, _decode_document(msgspec.json.encode(whole)))

    def decode(self, raw: bytes) -> T:
        return cast(T, self._decode(raw))

    def document(self, raw: bytes) -> Document:
        """Return the object as a dict."""
        return _decode_metadata(raw) if self.metadata_only else _decode_document(raw)


class NoObject(TypeError):  # noqa: N818
    """What `transform=` returned is no object."""


def transformed(transform: Transform, whole: Document) -> Document:
    """Return what is cached of an object with `transform=`. Raises NoObject, and what the function raises.

    Kept in any case: whether the object is terminating decides what is reconciled, and its generation what a condition
    says of it.
    """
    before: Document = whole["metadata"]
    kept = {name: before[name] for name in ("generation", "deletionTimestamp") if before.get(name) is not None}
    found: object = call(transform, whole)
    if not isinstance(found, dict):
        raise NoObject(f"transform= returned {found!r}, not a dict")
    if not isinstance(metadata := found.get("metadata"), dict):
        raise NoObject("transform= returned the object without its metadata")
    return {**found, "metadata": {**metadata, **kept}}


AnyKind = Kind[Any] | str


def kind_of(kind: Kind[T] | str) -> Kind[T]:
    if isinstance(kind, Kind):
        return kind
    if not isinstance(kind, str):
        raise not_a_resource(kind)
    return cast("Kind[T]", _kind_named(kind))


@lru_cache(maxsize=1024)
def _kind_named(resource: str) -> Kind[Document]:
    return Kind(resource)


def copied(body: Document) -> Document:
    """Copy a response of an API server: by JSON, since its server determines how many values it has."""
    return _decode_document(msgspec.json.encode(body))


def document(body: object) -> Document:
    """Convert an object to a dict. It may have any type that a Kind can have; a dict is returned unchanged."""
    if isinstance(body, dict):
        return body
    if hasattr(body, "to_dict"):
        return cast(Document, _without_none(body.to_dict(serialize=True)))
    if hasattr(body, "model_dump"):
        return cast(Document, body.model_dump(mode="json", by_alias=True, exclude_none=True))
    return cast(Document, _without_none(msgspec.to_builtins(body)))


def retyped(kind: Kind[Any], model: type[Any], whole: Document) -> Document:
    """Return what the fields of a type keep of an object. Raises TypeError if it cannot be decoded to the type."""
    return document(_decoder_of(kind.resource, cast(Hashable, model))(msgspec.json.encode(whole)))


def _without_none(value: Any) -> Any:
    """Return the value without fields that are None, which the API server would read as null."""
    if isinstance(value, dict):
        return {name: _without_none(field) for name, field in value.items() if field is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value


_MOST_ERRORS = 100
"""Maximum number of invalid values of an object that are named."""
_decode_document = msgspec.json.Decoder(Document).decode


class _MetadataFields(TypedDict, total=False):
    apiVersion: Any
    kind: Any
    metadata: Any


_decode_metadata_fields = msgspec.json.Decoder(_MetadataFields).decode


def _decode_metadata(raw: bytes) -> MetadataDocument:
    """Decode the metadata of an object, which may be cached whole."""
    return MetadataDocument(_decode_metadata_fields(raw))


def _decoder(resource: str, model: Any) -> Callable[[bytes], Any]:
    """Return the function that decodes an object. Raises TypeError for a type that no object can be decoded to."""
    if model is None:
        return _decode_document
    if hasattr(model, "from_dict"):
        return lambda raw: model.from_dict(_decode_document(raw))
    if hasattr(model, "model_validate_json"):
        return partial(_validated, model.model_validate_json)
    try:
        decoder = msgspec.json.Decoder(model)
        problem = _undecodable(msgspec.inspect.type_info(model))
    except TypeError as error:
        problem = str(error)
    if problem:
        raise TypeError(
            f"{resource}: an object cannot be decoded to {getattr(model, '__name__', model)}: {problem}; "
            "use a class of the kubernetes package, a pydantic model, a dataclass or a msgspec.Struct"
        )
    return decoder.decode


def _validated(validate: Callable[[bytes], Any], raw: bytes) -> Any:
    """Decode an object by a pydantic model, whose error names each invalid value: a tenant chooses how many."""
    try:
        return validate(raw)
    except ValueError as error:
        count = getattr(error, "error_count", int)()
        if count <= _MOST_ERRORS:
            raise
    raise ValueError(f"{count} values are not valid")


@lru_cache(maxsize=256)
def _decoder_of(resource: str, model: Hashable) -> Callable[[bytes], Any]:
    return _decoder(resource, model)


def _undecodable(found: msgspec.inspect.Type) -> str:
    """Return why no object can be decoded to the type; empty if one can."""
    structures = (msgspec.inspect.StructType, msgspec.inspect.DataclassType, msgspec.inspect.TypedDictType)
    if isinstance(found, msgspec.inspect.DictType):
        return ""
    if not isinstance(found, structures):
        return "it has no fields"
    for field in found.fields:
        if isinstance(field.type, msgspec.inspect.CustomType):
            return f"its field {field.name} has the type {field.type.cls.__name__}"
    return ""


EVENTS = Kind("events.k8s.io/v1/events")
CORE_EVENTS = Kind("v1/events")
"""Events of the core group, for API servers without events.k8s.io, such as Milo."""
