"""Validation of requests: each becomes a value, or an error that names the field. Pure."""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TypeVar

import msgspec
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.log.filter import EVERYTHING, Filter
from milo_discoveryd.server.calls import revision
from milo_discoveryd.server.calls.grpc_errors import InvalidRequestError
from milo_kube.label_selector import SelectorError, parse

M = TypeVar("M", bound=Message)

MAX_FILTER_BYTES = 64 * 1024
MAX_SELECTOR_LENGTH = 8 * 1024
"""The approximate length that API servers accept in a URL. Longer selectors take long to parse."""
MAX_REQUIREMENTS = 64
"""Maximum number of requirements in a label selector. They are evaluated whenever a cluster changes."""
MAX_VALUES = 5000
"""Maximum number of names, organizations and sources in a filter."""
VALUE_BYTES = 256
"""The memory that one short value of a filter takes in the request and in the set built from it, in bytes."""
SELECTOR_BYTES, SELECTOR_VALUE_BYTES = 2048, 512
"""The memory that a label selector takes, and that each of its requirements and further values takes, in bytes."""
MAX_PAGE_SIZE = 5000
DEFAULT_PAGE_SIZE = 500
HEARTBEAT_BOUNDS_S = (1.0, 3600.0)
MAX_TOKEN_LENGTH = 256
MAX_INCARNATION_LENGTH = 64
MAX_REQUEST_BYTES = MAX_FILTER_BYTES + 8 * 1024
"""Maximum size of a request, including unknown fields."""
_LONGEST_NAME = 253 + 64
"""Maximum length of a cluster's name, including the name of its source."""
_SUBSCRIBER = re.compile(r"[A-Za-z0-9._:/@-]+")
_LONGEST_SUBSCRIBER = 253


class WatchRequest(msgspec.Struct, frozen=True):
    wanted: Filter
    resume_revision: str
    heartbeat_s: float
    with_kubeconfigs: bool
    kubeconfig_ttl_s: float | None = None
    subscriber: str = ""
    """The name of a subscriber that confirms releases; empty if the subscriber does not confirm them."""
    accepts_pending_sources: bool = False


class IssueRequest(msgspec.Struct, frozen=True):
    cluster: str
    ttl_s: float | None
    incarnation: str
    as_command: bool
    """Whether to return the EXEC form, which contains no secret."""


class ReleaseRequest(msgspec.Struct, frozen=True):
    cluster: str
    incarnation: str
    subscriber: str


class ListRequest(msgspec.Struct, frozen=True):
    wanted: Filter
    page_size: int
    page_token: str


def limited(parse: Callable[[bytes], M]) -> Callable[[bytes], M | None]:
    """Return a parser that does not parse requests that are too long, and returns None for them."""
    return lambda data: parse(data) if len(data) <= MAX_REQUEST_BYTES else None


def size(request: Message | None) -> int:
    """Return the encoded size of a request; 0 if the request was too long, and so not parsed."""
    return 0 if request is None else request.ByteSize()


def kept_bytes(request: pb.WatchClustersRequest) -> int:
    """Return approximately how much memory the request of an open stream takes: its bytes, the message, and the
    filter."""
    wanted = request.filter
    values = len(wanted.names) + len(wanted.organizations) + len(wanted.sources)
    kept = 3 * request.ByteSize() + VALUE_BYTES * values
    if selector := wanted.label_selector:
        kept += SELECTOR_BYTES + SELECTOR_VALUE_BYTES * (selector.count(",") + 1)
    return kept


def whole(request: M | None) -> M:
    """Return the request. Raises InvalidRequestError if it was too long."""
    if request is None:
        raise InvalidRequestError("request", f"more than {MAX_REQUEST_BYTES} bytes")
    return request


def watch(request: pb.WatchClustersRequest, default_heartbeat_s: float, *, sources: int = 1) -> WatchRequest:
    """Validate a WatchClusters request. `sources` is the daemon's number of sources."""
    longest_revision = revision.longest(sources)
    if len(request.resume_revision) > longest_revision:
        problem = f"longer than any revision of this daemon ({longest_revision} characters)"
        raise InvalidRequestError("resume_revision", problem)
    if len(request.subscriber) > _LONGEST_SUBSCRIBER:
        subscriber(request.subscriber)
    heartbeat_s = default_heartbeat_s
    if request.HasField("heartbeat_interval"):
        shortest, longest = HEARTBEAT_BOUNDS_S
        heartbeat_s = min(longest, max(shortest, _positive(request.heartbeat_interval, "heartbeat_interval")))
    ttl_s = _positive(request.kubeconfig_ttl, "kubeconfig_ttl") if request.HasField("kubeconfig_ttl") else None
    return WatchRequest(
        _filter(request, confirms_releases=request.confirm_releases),
        request.resume_revision,
        heartbeat_s,
        request.include_kubeconfigs,
        ttl_s,
        subscriber(request.subscriber) if request.confirm_releases else "",
        request.accepts_pending_sources,
    )


def release(request: pb.ReleaseClusterRequest) -> ReleaseRequest:
    if not request.incarnation:
        raise InvalidRequestError("incarnation", "empty; give the incarnation on which your work has ended")
    return ReleaseRequest(
        name(request.cluster, "cluster"), _incarnation(request.incarnation), subscriber(request.subscriber)
    )


def subscriber(text: str) -> str:
    if not text:
        raise InvalidRequestError("subscriber", "empty; give the name under which this subscriber confirms releases")
    if len(text) > _LONGEST_SUBSCRIBER or _SUBSCRIBER.fullmatch(text) is None:
        raise InvalidRequestError(
            "subscriber", f'must be at most {_LONGEST_SUBSCRIBER} characters: ASCII letters, digits and "-._:/@"'
        )
    return text


def issue(request: pb.IssueKubeconfigRequest) -> IssueRequest:
    if request.format not in pb.KubeconfigFormat.values():
        raise InvalidRequestError("format", f"{request.format} is not one of EMBEDDED (1) and EXEC (2)")
    return IssueRequest(
        cluster=name(request.cluster, "cluster"),
        ttl_s=_positive(request.ttl, "ttl") if request.HasField("ttl") else None,
        incarnation=_incarnation(request.incarnation),
        as_command=request.format == pb.KUBECONFIG_FORMAT_EXEC,
    )


def listing(request: pb.ListClustersRequest) -> ListRequest:
    if request.page_size < 0:
        raise InvalidRequestError("page_size", f"{request.page_size} is negative; leave it out for {DEFAULT_PAGE_SIZE}")
    if len(request.page_token) > MAX_TOKEN_LENGTH:
        raise InvalidRequestError("page_token", f"longer than any page token ({MAX_TOKEN_LENGTH} characters)")
    return ListRequest(_filter(request), min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE), request.page_token)


def name(text: str, field: str) -> str:
    if not text:
        raise InvalidRequestError(field, "empty; give the name of a cluster")
    if len(text) > _LONGEST_NAME:
        raise InvalidRequestError(field, f"longer than the name of a cluster can be ({_LONGEST_NAME} characters)")
    return text


def known_sources(wanted: Filter, fleet: Iterable[str]) -> None:
    """Raise InvalidRequestError if the filter contains a source that the fleet does not have."""
    if unknown := wanted.sources - frozenset(fleet):
        there_are = ", ".join(filter(None, sorted(fleet))) or "none with a name that this caller may see"
        raise InvalidRequestError("filter.sources", f"unknown source {min(unknown)!r}; configured: {there_are}")


def truncated_name(text: str) -> str:
    """Return a name from a request that was not validated, cut to the length of a valid one."""
    return text[:_LONGEST_NAME]


def _filter(request: pb.WatchClustersRequest | pb.ListClustersRequest, *, confirms_releases: bool = False) -> Filter:
    if not request.HasField("filter"):
        return _EVERYTHING_DRAINING if confirms_releases else EVERYTHING
    filter_bytes = request.filter.ByteSize()
    if filter_bytes > MAX_FILTER_BYTES:
        raise InvalidRequestError("filter", f"{filter_bytes} bytes; the limit is {MAX_FILTER_BYTES}")
    data = request.filter.SerializeToString(deterministic=True)
    # Large filters are not cached, because a few callers could exhaust the memory with filters that are used once.
    return (_cached if filter_bytes <= _CACHED_BYTES else _compiled)(data, confirms_releases)


_EVERYTHING_DRAINING = Filter(confirms_releases=True)
_CACHED_BYTES = 4096


def _compiled(data: bytes, confirms_releases: bool) -> Filter:
    asked = pb.ClusterFilter.FromString(data)
    if (length := len(asked.label_selector)) > MAX_SELECTOR_LENGTH:
        raise InvalidRequestError("filter.label_selector", f"{length} characters; the limit is {MAX_SELECTOR_LENGTH}")
    try:
        selector = parse(asked.label_selector)
    except SelectorError as error:
        raise InvalidRequestError("filter.label_selector", str(error)) from error
    if (count := len(selector.requirements)) > MAX_REQUIREMENTS:
        raise InvalidRequestError("filter.label_selector", f"{count} requirements; the limit is {MAX_REQUIREMENTS}")
    count = 0
    for field, values in (
        ("names", asked.names),
        ("organizations", asked.organizations),
        ("sources", asked.sources),
    ):
        if "" in values:
            raise InvalidRequestError(f"filter.{field}", "contains an empty string, which matches nothing")
        count += len(values)
    if count > MAX_VALUES:
        problem = f"names, organizations and sources have {count} values together; the limit is {MAX_VALUES}"
        raise InvalidRequestError("filter", problem)
    return Filter(
        selector, frozenset(asked.names), frozenset(asked.organizations), confirms_releases, frozenset(asked.sources)
    )


_cached = lru_cache(maxsize=256)(_compiled)  # one shared object for equal filters


def _incarnation(text: str) -> str:
    if len(text) > MAX_INCARNATION_LENGTH:
        raise InvalidRequestError("incarnation", f"longer than any incarnation ({MAX_INCARNATION_LENGTH} characters)")
    return text


def _positive(duration: Duration, field: str) -> float:
    seconds = duration.seconds + duration.nanos / 1e9
    if seconds <= 0:
        raise InvalidRequestError(field, f"{seconds:g} s is not a positive duration; leave it out for the default")
    return seconds
