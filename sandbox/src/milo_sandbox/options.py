"""The options of lists and watches, parsed from the query with the API server's validation."""

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Collection, Mapping

import msgspec

from milo_sandbox import refusals, selectors
from milo_sandbox.refusals import RefusalError
from milo_sandbox.resources import Cause
from milo_sandbox.selectors import LabelSelector

NOT_OLDER_THAN = "NotOlderThan"
EXACT = "Exact"
INCONSISTENT = -1
"""The version in a continue token that continues at the newest version."""


class Continue(msgspec.Struct, frozen=True):
    """A continue token: the key and the version where a paged list continues."""

    rv: int
    start: str

    def token(self) -> str:
        return urlsafe_b64encode(msgspec.json.encode(self)).decode().rstrip("=")


class ListOptions(msgspec.Struct, frozen=True, kw_only=True):
    selector: LabelSelector
    version: int | None  # None: the newest version
    match: str
    limit: int
    continued: Continue | None


class WatchParameters(msgspec.Struct, frozen=True, kw_only=True):
    selector: LabelSelector
    version: int  # 0: watch from the current state
    bookmarks: bool
    initial_events: bool
    streaming_list: bool
    timeout: float | None  # seconds; None: chosen by the server


def wants_watch(query: Mapping[str, str]) -> bool:
    return _flag(query, "watch")


def wants_streaming_list(query: Mapping[str, str]) -> bool:
    return _flag(query, "sendInitialEvents")


def list_options(query: Mapping[str, str], *, namespace: str, selectable: Collection[str] = ()) -> ListOptions:
    version = _version(query, refuse=refusals.bad_request)
    match = query.get("resourceVersionMatch", "")
    token = query.get("continue", "")
    causes = []
    if query.get("sendInitialEvents"):
        causes.append(_forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"))
    if match and not query.get("resourceVersion"):
        causes.append(
            _forbidden("resourceVersionMatch", "resourceVersionMatch is forbidden unless resourceVersion is provided")
        )
    if match and token:
        causes.append(_forbidden("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided"))
    if match not in {"", EXACT, NOT_OLDER_THAN}:
        causes.append(_unsupported_match(match, EXACT, NOT_OLDER_THAN))
    if match == EXACT and version == 0:
        causes.append(
            _forbidden("resourceVersionMatch", 'resourceVersionMatch "Exact" is forbidden for resourceVersion "0"')
        )
    if causes:
        raise refusals.invalid_options(causes)
    if token and version:
        raise refusals.bad_request("specifying resource version is not allowed when using continue")
    limit = _integer(query, "limit")
    return ListOptions(
        selector=_selector(query, namespace, selectable),
        version=version or None,
        # With a limit, a version is exact unless resourceVersionMatch is set.
        match=match or (EXACT if limit and version else NOT_OLDER_THAN),
        limit=limit,
        continued=_continued(token) if token else None,
    )


def watch_options(
    query: Mapping[str, str], *, namespace: str, streaming_lists: bool, selectable: Collection[str] = ()
) -> WatchParameters:
    match = query.get("resourceVersionMatch", "")
    requested = "sendInitialEvents" in query
    causes = []
    if requested and match != NOT_OLDER_THAN:
        causes.append(
            _forbidden(
                "resourceVersionMatch", "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            )
        )
    if requested and not streaming_lists:
        why = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
        causes.append(_forbidden("sendInitialEvents", why))
    if match and not requested:
        why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
        causes.append(_forbidden("resourceVersionMatch", why))
    if match and match != NOT_OLDER_THAN:
        causes.append(_unsupported_match(match, NOT_OLDER_THAN))
    if causes:
        raise refusals.invalid_options(causes)
    version = _version(query, refuse=refusals.own_failure)
    streaming_list = wants_streaming_list(query)
    timeout = _integer(query, "timeoutSeconds")
    return WatchParameters(
        selector=_selector(query, namespace, selectable),
        version=version,
        bookmarks=_flag(query, "allowWatchBookmarks"),
        # Without a version, or with version 0, a watch begins with the current objects.
        initial_events=streaming_list or (version == 0 and not requested),
        streaming_list=streaming_list,
        timeout=timeout or None,
    )


def _selector(query: Mapping[str, str], namespace: str, selectable: Collection[str]) -> LabelSelector:
    labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
    return selectors.parse(labels, fields, namespace=namespace, selectable=selectable)


def _version(query: Mapping[str, str], *, refuse: Callable[[str], RefusalError]) -> int:
    text = query.get("resourceVersion", "")
    if text and not (text.isascii() and text.isdigit()):
        raise refuse(f'resourceVersion: Invalid value: "{text}": strconv.ParseUint: invalid syntax')
    return int(text or 0)


def _integer(query: Mapping[str, str], name: str) -> int:
    text = query.get(name) or "0"
    try:
        return int(text)
    except ValueError as error:
        raise refusals.bad_request(f"{name} must be an integer, not {text!r}") from error


def _flag(query: Mapping[str, str], name: str) -> bool:
    return query.get(name, "false").lower() not in {"false", "0"} if name in query else False


def _continued(token: str) -> Continue:
    try:
        return msgspec.json.decode(urlsafe_b64decode(token + "=" * (-len(token) % 4)), type=Continue)
    except (binascii.Error, ValueError) as error:
        raise refusals.bad_request(f"continue key is not valid: {error}") from error


def _forbidden(field: str, why: str) -> Cause:
    return Cause(reason="FieldValueForbidden", message=f"Forbidden: {why}", field=field)


def _unsupported_match(match: str, *supported: str) -> Cause:
    named = ", ".join(f'"{value}"' for value in supported)
    return Cause(
        reason="FieldValueNotSupported",
        message=f'Unsupported value: "{match}": supported values: {named}',
        field="resourceVersionMatch",
    )
