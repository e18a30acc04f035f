"""Decodes lists and watch events from bytes. A malformed object or line yields a value, not an exception.

One malformed object does not affect the others. A line that is not an event at all ends its watch.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from hashlib import sha256
from typing import Final, Generic, Protocol, TypeVar

import msgspec

from milo_kube.list_pages import LONGEST_TOKEN

INITIAL_EVENTS_END: Final = "k8s.io/initial-events-end"
MAX_LINE: Final = 8 * 1024 * 1024
_UNCHECKED_OBJECT = 1 << 19
"""Objects larger than this have their values counted before they are decoded."""
_MOST_VALUES = 150_000
"""Maximum number of values of such an object, about. Etcd stores up to 1.5 MiB, and managed fields take some 20 bytes
each. Short values take many times their size in memory, and a microsecond of the event loop each."""
_LONGEST_ID = 128
_LONGEST_NAME = 1024
"""Maximum bytes that a name and a namespace take: of each object, they are kept in several places, in part when the
object is invalid or was deleted. Of longer ones, which API servers accept for some kinds, such as roles, the object is
malformed, under a shortened name."""
_SHORTENED_TO = 100
_SHORTENED_DIGEST = 16
"""Characters that a shortened name or namespace has of the whole one, and of its digest."""
_LONGEST_REASON = 64
_DEEPEST = 500
"""Nesting that is kept of a text that is nested too deeply for the JSON decoder."""
_LARGEST_CUT = 3 << 20
"""Maximum bytes of a text that is cut. API servers refuse requests, and so objects, that are larger. It takes some 7 ms
for each MiB, and up to 35 ms if the nesting varies around `_DEEPEST` everywhere."""
_CUT_AT_ONCE = 1 << 10
_CUT = b"\r"
"""Replaces each byte of what is nested more deeply. API servers send no such white space."""
_TOO_DEEP = "nested too deeply"
TOO_MANY_VALUES = f"more than {_MOST_VALUES} values"
_TOO_LONG = f"its name and namespace take more than {_LONGEST_NAME} bytes"
_OPENED, _CLOSED = 2, 0
_STEPS = bytes(_OPENED if byte in b"[{" else _CLOSED if byte in b"]}" else 1 for byte in range(256))
"""For each byte, by how much it changes the depth, and one more."""
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b'"[{')
_KEPT, _REPLACED = bytes((255, 0)).ljust(256, b"\0"), bytes((0, *_CUT)).ljust(256, b"\0")
"""The mask of a byte, and what replaces it, by whether it is dropped."""
_DOUBLED = tuple(16 << shift for shift in range(_CUT_AT_ONCE.bit_length() - 1))
_EACH_LANE = int.from_bytes(b"\1\0" * _CUT_AT_ONCE, "little")
_ALL_LANES = (1 << 16 * _CUT_AT_ONCE) - 1
_NO_DEPTHS = sum((1 << 15) - number - 2 << 16 * number for number in range(_CUT_AT_ONCE))
"""What makes the sum of the steps so far have its highest bit if they open brackets."""
_UNCHECKED_PAGE = 2 << 20
"""Pages larger than this have their items counted before they are decoded."""
_SMALLEST_ITEM = 64
"""Minimum average size of the items of a page that is larger than `_UNCHECKED_PAGE`. Each item takes about this much
memory in addition to its content."""


class Identified(Protocol):
    """The fields of a decoded object that the reflector needs; decoders can add others."""

    @property
    def name(self) -> str: ...
    @property
    def uid(self) -> str:
        """The UID; empty if it could not be read."""

    @property
    def version(self) -> str:
        """The resource version."""


Seen = TypeVar("Seen", bound=Identified)
Object = TypeVar("Object")
Content = TypeVar("Content")


class ObjectSeen(msgspec.Struct, Generic[Seen], frozen=True, gc=False):
    """An object was added or modified."""

    observation: Seen


class ObjectRemoved(msgspec.Struct, Generic[Seen], frozen=True):
    """An object was deleted or left the selector: the protocol does not distinguish the two."""

    name: str
    uid: str
    version: str
    namespace: str = ""
    last: Seen | None = None
    """The object as it was last, if the decoder keeps it."""


class Bookmark(msgspec.Struct, frozen=True):
    version: str
    ends_initial_list: bool


class ErrorStatus(msgspec.Struct, frozen=True):
    """A Status object: why the server refused a request or ended a watch."""

    code: int
    reason: str
    message: str
    name: str = ""
    """The name of the object that the status is about, if any."""


class Undecodable(msgspec.Struct, frozen=True):
    """A line that is not an event. Nothing further from this connection can be trusted."""

    problem: str


class UnknownEvent(msgspec.Struct, frozen=True):
    """An event of an unknown type, an object without a name, or a malformed bookmark."""

    problem: str


WatchEvent = ObjectSeen[Seen] | ObjectRemoved[Seen] | Bookmark | ErrorStatus | Undecodable | UnknownEvent


class ListPage(msgspec.Struct, frozen=True):
    """The metadata of one page of a list."""

    version: str
    continue_token: str


class _Names(msgspec.Struct):
    """The fields that are needed to report a malformed object."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resourceVersion: str = ""  # noqa: N815


class _Named(msgspec.Struct):
    metadata: _Names = msgspec.field(default_factory=_Names)


class _Marks(msgspec.Struct):
    resourceVersion: str = ""  # noqa: N815
    annotations: dict[str, str] | None = None


class _Marked(msgspec.Struct):
    metadata: _Marks


class _Details(msgspec.Struct):
    name: str = ""


class _StatusObject(msgspec.Struct):
    code: int = 0
    reason: str = ""
    message: str = ""
    details: _Details | None = None


class _Line(msgspec.Struct, Generic[Content], gc=False):
    type: str
    object: Content


class _ListMeta(msgspec.Struct):
    resourceVersion: str = ""  # noqa: N815
    continue_: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None
    """May be null in an empty list, but not absent: a response without items is not a list, and proves no deletion."""


class _Empty(msgspec.Struct, frozen=True):
    """An object whose fields are ignored."""


class _AnyObject(msgspec.Struct, frozen=True):
    metadata: _Empty


class _Items(msgspec.Struct):
    items: frozenset[_AnyObject] | None
    """All items compare equal, so that the set keeps only one."""


_LINE = msgspec.json.Decoder(_Line[msgspec.Raw])
_NAMED = msgspec.json.Decoder(_Named)
_MARKED = msgspec.json.Decoder(_Marked)
_STATUS = msgspec.json.Decoder(_StatusObject)
_LIST = msgspec.json.Decoder(_List)
_ITEMS = msgspec.json.Decoder(_Items)

_OBJECT_EVENTS = frozenset({"ADDED", "MODIFIED"})

# msgspec raises UnicodeError for invalid text and RecursionError for deep nesting.
_UNDECODABLE = (msgspec.DecodeError, UnicodeError, RecursionError)


class ListPageError(ValueError):
    """A response cannot be decoded as a list."""


class LargePageError(ListPageError):
    """A response cannot be decoded as a list, but smaller pages of the same objects may be."""


class Decoder(Generic[Object, Seen]):
    """A decoder of one kind of object. A function converts each object to the form that is kept."""

    def __init__(
        self,
        kind: type[Object],
        observe: Callable[[Object], Seen],
        malformed: Callable[[str, str, str, str], Seen],
        key: Callable[[str, str], str] = lambda _, name: name,
        failed: Callable[[str, Exception], None] = lambda *_: None,
    ) -> None:
        """`malformed` returns the result for an invalid object, given its key, UID, version and problem; `key` returns
        the key for a namespace and a name; `failed` is called with the key of an object for which `observe` raised an
        unexpected exception. If objects are kept with their namespace, `observe` returns one without a name unless
        `is_named`: of nearly all, nothing is measured here but the other texts."""
        self._objects = msgspec.json.Decoder(kind)
        # mypy does not accept a variable as a type parameter; at run time it is fine.
        self._lines: msgspec.json.Decoder[_Line[Object]] = msgspec.json.Decoder(_Line[kind])  # type: ignore[valid-type]
        self._observe = observe
        self._malformed = malformed
        self._key = key
        self._failed = failed

    def object(self, raw: bytes | msgspec.Raw) -> Seen | None:
        """Decode one object; None if it has no name."""
        size = memoryview(raw).nbytes
        if size > MAX_LINE:  # the decoded fields could take far more memory
            return self._unusable(raw, f"larger than {MAX_LINE} bytes")
        if size > _UNCHECKED_OBJECT and has_too_many_values(raw):
            return self._unusable(raw, TOO_MANY_VALUES)
        try:
            found = self._observe(self._objects.decode(raw))
            if found.name and len(f"{found.name}{found.uid}{found.version}") <= _LONGEST_ID:  # nearly all
                return found
            found = self._bounded(found)
        except _UNDECODABLE as error:
            return self._unusable(raw, _problem(error))
        except Exception as error:  # noqa: BLE001  (what one object causes must not affect the others)
            names = _names(raw)
            self._failed(self._key(names.namespace, names.name), error)
            return self._unusable(raw, f"internal error ({type(error).__name__})")
        return found if is_named(found) else self._unusable(raw, _TOO_LONG)

    def _object_of_cut(self, raw: msgspec.Raw) -> Seen | None:
        return self._unusable(raw, _TOO_DEEP) if _CUT in bytes(raw) else self.object(raw)

    def _unusable(self, raw: bytes | msgspec.Raw, problem: str) -> Seen | None:
        names = _names(raw)
        key = self._key(names.namespace, names.name)
        found = self._bounded(self._malformed(key, names.uid, names.resourceVersion, problem))
        return found if is_named(found) else None

    def page(self, body: bytes) -> tuple[ListPage, Iterator[Seen | None]]:
        """Return the page's metadata, and its observations lazily: there may be thousands. One without a name is
        None."""
        is_cut = False
        try:
            try:
                listed = _listed(body)
            except RecursionError:  # one object must not affect the others
                body, is_cut = cut(body), True
                listed = _listed(body)
        except RecursionError as error:
            raise LargePageError(f"the response is not a list: {_TOO_DEEP}") from error
        except _UNDECODABLE as error:
            raise ListPageError(f"the response is not a list: {_problem(error)}") from error
        items = listed.items or []
        page = ListPage(listed.metadata.resourceVersion, listed.metadata.continue_)
        if max(len(page.version), len(page.continue_token)) > LONGEST_TOKEN:
            raise ListPageError(f"the list's resourceVersion or continue is longer than {LONGEST_TOKEN} characters")
        return page, map(self._object_of_cut if is_cut else self.object, items)

    def lines(self, lines: Iterable[bytes | bytearray]) -> list[WatchEvent[Seen]]:
        """Decode lines, up to the first one that is not an event."""
        events: list[WatchEvent[Seen]] = []
        for line in lines:
            events.append(event := self.line(line))
            if isinstance(event, Undecodable):
                break
        return events

    def line(self, line: bytes | bytearray) -> WatchEvent[Seen]:
        if len(line) > _UNCHECKED_OBJECT and has_too_many_values(line):
            return self._other_line(line, partial(self._unusable, problem=TOO_MANY_VALUES))
        decode: Callable[[msgspec.Raw], Seen | None] = self.object
        try:
            event = self._lines.decode(line)  # nearly all lines take only this path
            if event.type in _OBJECT_EVENTS:
                try:
                    found = self._observe(event.object)
                except _UNDECODABLE as error:  # not observed twice: that may have taken long
                    decode = partial(self._unusable, problem=_problem(error))
                    raise
                if found.name and len(f"{found.name}{found.uid}{found.version}") <= _LONGEST_ID:
                    return ObjectSeen(found)
                if is_named(found := self._bounded(found)):
                    return ObjectSeen(found)
        except Exception:  # noqa: BLE001, S110
            pass  # decoded step by step below
        return self._other_line(line, decode)

    def _other_line(self, line: bytes | bytearray, decode: Callable[[msgspec.Raw], Seen | None]) -> WatchEvent[Seen]:
        """Decode a line with a malformed object, or with something other than an object."""
        try:
            try:
                event = _LINE.decode(line)
            except RecursionError:
                event, decode = _LINE.decode(cut(bytes(line))), self._object_of_cut
        except _UNDECODABLE as error:
            return Undecodable(f"a line of the watch is not an event: {_problem(error)}")
        match event.type:
            case kind if kind in _OBJECT_EVENTS:
                return _seen(kind, decode(event.object))
            case "DELETED":
                return _removed(event.object)
            case "BOOKMARK":
                return _bookmark(event.object)
            case "ERROR":
                return error_status(bytes(event.object))
            case other:
                return UnknownEvent(f"a watch event of unknown type {other[:40]!r}")

    def _bounded(self, found: Seen) -> Seen:
        """Return the object, or a malformed one if its UID or version is longer than those of any API server."""
        if len(found.uid) <= _LONGEST_ID and len(found.version) <= _LONGEST_ID:
            return found
        problem = f"its UID or its resourceVersion is longer than {_LONGEST_ID} characters"
        namespace = getattr(found, "namespace", "")
        key = self._key(namespace, found.name) if namespace else found.name
        return self._malformed(key, found.uid[:_LONGEST_ID], found.version[:_LONGEST_ID], problem)


def _listed(body: bytes) -> _List:
    if len(body) > _UNCHECKED_PAGE:
        _check_items(body)
    return _LIST.decode(body)


def has_more_containers(text: bytes, limit: int) -> bool:
    """Return whether a JSON text has more lists and maps than `limit`. Up to 16 ms for each MiB."""
    if text.count(b"[") + text.count(b"{") <= limit:
        return False
    plain = text.replace(rb"\\", b"").replace(rb"\"", b"")
    # Without two quotes that follow each other, few are left, and each bracket is in a string or not as before.
    brackets = plain.translate(None, _NO_BRACKETS).replace(b'""', b"")
    return brackets.count(b'"') > limit or sum(map(len, brackets.split(b'"')[::2])) > limit


def cut(text: bytes) -> bytes:
    """Replace what is nested too deeply for the JSON decoder by `_CUT`, unless that would take too long.

    API servers accept ten times the nesting of the decoder.
    """
    if len(text) > _LARGEST_CUT:
        return text
    plain = text.replace(rb"\\", b"__").replace(rb"\"", b"__")
    parts: list[bytes] = []
    depth, in_string = 0, False
    for start in range(0, len(text), _CUT_AT_ONCE):
        part = text[start : start + _CUT_AT_ONCE]
        pieces = plain[start : start + _CUT_AT_ONCE].split(b'"')
        steps = b"".join(pieces[in_string::2]).translate(_STEPS)
        opened, closed = steps.count(_OPENED), steps.count(_CLOSED)
        if depth - closed > _DEEPEST:
            part = _CUT * len(part)
        elif depth + opened > _DEEPEST:
            pieces[not in_string :: 2] = map(bytes, map(len, pieces[not in_string :: 2]))
            part = _shallow(part, b'"'.join(pieces).translate(_STEPS), _DEEPEST - depth)
        parts.append(part)
        depth += opened - closed
        in_string ^= len(pieces) % 2 == 0
    return b"".join(parts)


def _shallow(part: bytes, steps: bytes, left: int) -> bytes:
    """Return a part of a text without what is within lists and maps that are nested more deeply than by `left` in the
    part. `steps` has its brackets.

    Numbers with 16 bits for each byte of the part have all its depths, so that no step takes a time for each of them.
    """
    lanes = bytearray(2 * _CUT_AT_ONCE)
    lanes[: 2 * len(steps) : 2] = steps
    depths = int.from_bytes(lanes, "little")
    for lane in _DOUBLED:
        depths += depths << lane
    too_deep = (depths & _ALL_LANES) + _NO_DEPTHS - left * _EACH_LANE >> 15 & _EACH_LANE
    # The brackets of a list or map are kept in which everything is nested too deeply.
    inside = too_deep & (too_deep << 16 | (left < 0))
    dropped = inside.to_bytes(2 * _CUT_AT_ONCE + 2, "little")[: 2 * len(part) : 2]
    kept = int.from_bytes(part) & int.from_bytes(dropped.translate(_KEPT))
    return (kept | int.from_bytes(dropped.translate(_REPLACED))).to_bytes(len(part))


def _check_items(body: bytes) -> None:
    """Raise an error if the items of a page would take far more memory than the page."""
    # API servers do not escape letters, so each of their items contains "metadata". A hostile item may escape letters.
    items = sum(map(body.count, (b'"metadata"', b"\\u006", b"\\u007")))
    if items * _SMALLEST_ITEM > len(body):
        raise ListPageError(
            f"the response is refused: a list of {items} items in {len(body)} bytes would take too much memory"
        )
    _ITEMS.decode(body)


def error_status(body: bytes, code: int = 0) -> ErrorStatus:
    """Decode a Status object. Any other body, such as the error page of a proxy, is shortened and stripped of tags."""
    try:
        status = _STATUS.decode(body)
    except _UNDECODABLE:
        words = " ".join(re.sub(r"<[^>]*>", " ", body[:400].decode("utf-8", "replace")).split())
        return ErrorStatus(code, "", words[:160])
    return ErrorStatus(
        status.code or code,
        status.reason[:_LONGEST_REASON],
        status.message[:600],
        status.details.name if status.details else "",
    )


class Lines:
    """A splitter of a stream of bytes into lines of limited length."""

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._rest = bytearray()

    @property
    def partial(self) -> int:
        """Number of bytes of the line that has begun."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[bytes | bytearray]:
        """Return the lines that `data` completes. Raises LineTooLongError."""
        first, *others = data.split(b"\n")
        self._rest += first
        lines: list[bytes | bytearray] = [self._rest, *others]
        if max(map(len, lines)) > self._limit:
            raise LineTooLongError(f"a line of the watch is longer than {self._limit} bytes")
        if others:
            self._rest = bytearray(lines.pop())
            return [line for line in lines if line]
        return []


class LineTooLongError(ValueError):
    """A line without end, or an object larger than any API server stores."""


def _seen(kind: str, found: Seen | None) -> ObjectSeen[Seen] | UnknownEvent:
    return UnknownEvent(f"a watch event of type {kind} has no object name") if found is None else ObjectSeen(found)


def _removed(raw: msgspec.Raw) -> ObjectRemoved[Seen] | UnknownEvent:
    names = _names(raw)
    if not names.name:
        return UnknownEvent("a watch event of type DELETED has no object name")
    uid, version = names.uid[:_LONGEST_ID], names.resourceVersion[:_LONGEST_ID]  # as in `Decoder._bounded`
    return ObjectRemoved(names.name, uid, version, names.namespace)


def _bookmark(raw: msgspec.Raw) -> Bookmark | UnknownEvent:
    if memoryview(raw).nbytes > _UNCHECKED_OBJECT and has_too_many_values(raw):
        return UnknownEvent(f"a watch event of type BOOKMARK has more than {_MOST_VALUES} values")
    try:
        marks = _MARKED.decode(raw).metadata
    except _UNDECODABLE as error:
        return UnknownEvent(f"a watch event of type BOOKMARK is malformed: {_problem(error)}")
    if len(marks.resourceVersion) > LONGEST_TOKEN:
        return UnknownEvent("a watch event of type BOOKMARK has a resourceVersion that is too long")
    return Bookmark(marks.resourceVersion, (marks.annotations or {}).get(INITIAL_EVENTS_END) == "true")


def has_too_many_values(raw: bytes | bytearray | msgspec.Raw) -> bool:
    """Return whether a JSON text would take far more time and memory than an object that an API server stores."""
    text = bytes(raw)
    if not _has_more_values(text):
        return False
    # Strings, such as a table in a ConfigMap, may contain any number of these characters.
    text = text.replace(rb"\\", b"").replace(rb"\"", b"")
    if text.count(b'"') > 2 * _MOST_VALUES:
        return True
    outside = text.split(b'"')[::2]
    del text  # of several MiB
    return _has_more_values(b"".join(outside))


def _has_more_values(text: bytes) -> bool:
    commas = containers = 0
    for start in range(0, len(text), _UNCHECKED_OBJECT):
        end = start + _UNCHECKED_OBJECT
        commas += text.count(b",", start, end)
        containers += text.count(b"[", start, end) + text.count(b"{", start, end)
        if max(commas, containers) > _MOST_VALUES:
            return True
    return False


class _HasName(Protocol):
    @property
    def name(self) -> str: ...


def is_named(found: _HasName) -> bool:
    """Return whether an object has a name, not longer with its namespace than those of any API server."""
    return bool(found.name) and text_bytes(f"{found.name}{getattr(found, 'namespace', '')}") <= _LONGEST_NAME


def bounded_name(name: str, namespace: str = "") -> tuple[str, str]:
    """Return the name and namespace under which an object is known: shortened ones if they are very long."""
    if text_bytes(name + namespace) <= _LONGEST_NAME:
        return name, namespace
    return _shortened(name), _shortened(namespace)


def _shortened(text: str) -> str:
    """Return the beginning of a text, with its digest if it is longer. No name has the character between them."""
    if len(text) <= _SHORTENED_TO:
        return text
    return f"{text[:_SHORTENED_TO]}%{sha256(text.encode(errors='replace')).hexdigest()[:_SHORTENED_DIGEST]}"


def text_bytes(text: str) -> int:
    """Return how many bytes of memory the characters of a text take, at most: one emoji makes all of them wide."""
    return len(text) if text.isascii() else 4 * len(text)


def _names(raw: bytes | msgspec.Raw) -> _Names:
    try:
        try:
            names = _NAMED.decode(raw).metadata
        except RecursionError:
            names = _NAMED.decode(cut(bytes(raw))).metadata
    except _UNDECODABLE:
        return _Names()
    name, namespace = bounded_name(names.name, names.namespace)
    return msgspec.structs.replace(names, name=name, namespace=namespace)


def _problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return _TOO_DEEP
    return str(error)[:300]
