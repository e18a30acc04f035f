"""A strict reader for one YAML document, which keeps the line of every key and item.

Common loaders are too lenient for a file that decides where credentials are sent: the last of several equal keys wins
silently, a few aliases expand to gigabytes, and `no` is a boolean. This reader rejects duplicate and merge keys, keeps
unknown tags from constructing objects, limits the expansion of aliases, and can keep numbers and booleans as text.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import yaml

Path: TypeAlias = tuple[str | int, ...]
Scalars: TypeAlias = Literal["text", "typed"]

MAX_BYTES = 1 << 20
MAX_NODES = 50_000  # after the expansion of aliases; a kubeconfig with 1,000 contexts has about 20,000
MAX_DEPTH = 40
MAX_NUMBER = 100  # Characters: base-60 numbers (1:59:59) take quadratic time.
MAX_TAG_DIRECTIVES = 10  # The parser compares each of them with all before it.
MAX_NESTING_MARKS = 2_000  # Flow brackets: the parser recurses on them before nodes are counted.

_Fast: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Tags of the scalars that "typed" converts. All other scalars except nulls (!!python/..., !!binary, timestamps) become
# text.
_TYPED = frozenset({"tag:yaml.org,2002:bool", "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"})
_NULL = "tag:yaml.org,2002:null"
_MERGE = "tag:yaml.org,2002:merge"


class DocumentError(ValueError):
    """A document that is rejected. `line` counts from 1; it is 0 if the line is unknown."""

    def __init__(self, message: str, line: int = 0) -> None:
        self.line = line
        self.message = message
        super().__init__(f"line {line}: {message}" if line else message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    value: Any
    lines: Mapping[Path, int]  # the line of each key of a mapping and each item of a list

    def line(self, path: Path) -> int:
        """Return the line of `path`, or of the nearest enclosing key or item."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 0)


def read(content: bytes, *, scalars: Scalars, nodes: int = MAX_NODES, fast: bool = False) -> Document:
    """Parse a document of at most `nodes` nodes. Raises DocumentError.

    `fast`: use the parser in C, if PyYAML was built with it. That parser rejects escaped surrogates.
    """
    if len(content) > MAX_BYTES:
        raise DocumentError(f"is {len(content)} bytes long; at most {MAX_BYTES} are read")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"is not UTF-8 text (byte {error.start})", content.count(b"\n", 0, error.start) + 1
        ) from None
    if text.count("[") + text.count("{") > MAX_NESTING_MARKS:
        raise DocumentError(f"has more than {MAX_NESTING_MARKS} brackets")
    if text.count("%TAG") > MAX_TAG_DIRECTIVES:
        raise DocumentError(f"has more than {MAX_TAG_DIRECTIVES} %TAG directives")
    try:
        made = _Fast if fast else yaml.SafeLoader
        if fast:
            # Count nodes before the C composer runs: it recurses without a limit, and takes as long for a node as the
            # parser for 100 events.
            _count(yaml.parse(text, Loader=made), nodes)
        loader = made(text)
        node = loader.get_single_node()
        builder = _Builder(loader, scalars, nodes)
        value = None if node is None else builder.build(node, (), 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise DocumentError(f"is not YAML: {error.problem or error.context}", mark.line + 1 if mark else 0) from None
    except yaml.YAMLError as error:
        # An invalid character; `reason` quotes nothing else of the file.
        raise DocumentError(f"is not YAML: {getattr(error, 'reason', 'unreadable')}") from None
    except RecursionError:
        raise DocumentError("is nested too deeply") from None
    return Document(value=value, lines=builder.lines)


def _count(events: Iterable[yaml.Event], most: int) -> None:
    nodes = depth = 0
    for event in events:
        nodes += isinstance(event, yaml.NodeEvent)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if nodes > 2 * most or depth > MAX_DEPTH:
            raise DocumentError("is too large or too deeply nested")


class _Builder:
    """Converts nodes to values, and counts them, which bounds the expansion of aliases."""

    def __init__(self, loader: yaml.SafeLoader, scalars: Scalars, nodes: int) -> None:
        self._loader = loader
        self._most = nodes
        self._scalars = scalars
        self._built = 0
        self.lines: dict[Path, int] = {}

    def build(self, node: yaml.Node, path: Path, depth: int) -> Any:
        self._built += 1
        if self._built > self._most or depth > MAX_DEPTH:
            raise DocumentError("is too large or too deeply nested once its aliases are expanded", _line(node))
        self.lines.setdefault(path, _line(node))
        match node:
            case yaml.MappingNode():
                return self._mapping(node, path, depth)
            case yaml.SequenceNode():
                return [self.build(item, (*path, index), depth + 1) for index, item in enumerate(node.value)]
            case _:
                return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: Path, depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise DocumentError("has a key that is not a scalar; use a string", _line(key_node))
            if key_node.tag == _MERGE:
                raise DocumentError("uses a merge key (<<); write the keys out", _line(key_node))
            key = _text(key_node)
            if key in mapping:
                first = self.lines[(*path, key)]
                raise DocumentError(f'has the key "{key[:80]}" twice (first on line {first})', _line(key_node))
            self.lines[(*path, key)] = _line(key_node)
            mapping[key] = self.build(value_node, (*path, key), depth + 1)
        return mapping

    def _scalar(self, node: yaml.Node) -> Any:
        if node.tag == _NULL:
            return None
        if self._scalars == "typed" and node.tag in _TYPED:
            if len(node.value) > MAX_NUMBER:
                raise DocumentError(f"has a number of more than {MAX_NUMBER} characters", _line(node))
            try:
                return self._loader.construct_object(node)
            except (ValueError, LookupError):  # PyYAML raises LookupError for a tagged scalar, such as `!!bool word`
                raise DocumentError("has an invalid number or boolean", _line(node)) from None
        return _text(node)


def _text(node: yaml.Node) -> str:
    text: str = node.value
    if text.isascii():
        return text
    try:
        # JSON escapes characters above U+FFFF as surrogate pairs, which YAML does not combine.
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise DocumentError("has an unpaired surrogate, which is not a valid character", _line(node)) from None


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
