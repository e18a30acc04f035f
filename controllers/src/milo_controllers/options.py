"""Validates the options that authors pass. A call with an invalid option raises an error that shows the right form."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from typing import Any, NamedTuple, Protocol, runtime_checkable

from prometheus_client import CollectorRegistry

from milo_controllers.webhooks import OPERATIONS
from milo_controllers.work_queue import QueuePolicy
from milo_kube.cache_budget import CacheLimits

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@runtime_checkable
class _Engaging(Protocol):
    """A Fleet or a SingleCluster, rather than an address or a client."""

    def on_engage(self, handler: Any, /) -> object: ...


class Option(NamedTuple):
    """The valid values of one option."""

    type: type[Any] | tuple[Any, ...]
    form: str
    """The right form, for error messages. Its `...` is replaced by a number that was passed instead of a timedelta."""
    is_valid: Callable[[Any], bool] = lambda _: True
    may_be_none: bool = False


def _is_positive(given: timedelta) -> bool:
    return given > timedelta(0)


def _is_field_manager(given: str) -> bool:
    """Return whether an API server accepts the name as a field manager."""
    return given.isprintable() and 0 < len(given.encode()) <= 128


def _has_rates(given: QueuePolicy) -> bool:
    return min(given.cluster_retries.per_second, given.retries.per_second) > 0 and given.retries.burst >= 1


OPTIONS: Mapping[str, Option] = {
    # Controllers
    "clusters": Option(_Engaging, "Fleet(...) or SingleCluster(...)", may_be_none=True),
    "registry": Option(CollectorRegistry, "CollectorRegistry()"),
    "resync": Option(
        timedelta, "timedelta(seconds=...) of more than 0, or None for no resync", _is_positive, may_be_none=True
    ),
    "max_clusters_in_metrics": Option(int, "a number of at least 0", lambda given: given >= 0),
    "reporting_controller": Option(str, "a string that is not empty", bool),
    "cache_limits": Option(CacheLimits, "CacheLimits(objects=10_000)"),
    # Controllers.reconcile
    "owns": Option(Collection, 'a list of kinds, such as ["v1/secrets"]'),
    "watches": Option(Collection, "a list, such as [watches(kind, map=function)]"),
    "on": Option((Callable, Collection), '"generation", "labels", "annotations", a function, or a list of these'),
    "on_cluster_change": Option(bool, "True or False"),
    "workers": Option(int, "a number of at least 1", lambda given: given >= 1, may_be_none=True),
    "per_cluster": Option(int, "a number of at least 1", lambda given: given >= 1),
    "timeout": Option(
        timedelta, "timedelta(seconds=...) of more than 0, or None for no limit", _is_positive, may_be_none=True
    ),
    "name": Option(
        str,
        "a string of printable characters, 1 to 128 bytes, which becomes the field manager",
        _is_field_manager,
        may_be_none=True,
    ),
    "queue": Option(QueuePolicy, "QueuePolicy(max_delay_s=60), with rates of more than 0 and a burst of 1", _has_rates),
    "while_deleting": Option(bool, "True or False"),
    # Controllers.validate and mutate
    "operations": Option(
        Collection,
        'a list of some of "CREATE", "UPDATE", "DELETE", "CONNECT"',
        lambda given: bool(given) and not isinstance(given, str) and set(given) <= set(OPERATIONS),
    ),
    "subresource": Option(str, 'the name of a subresource, such as "status"', lambda given: "/" not in given),
    "unknown": Option(str, '"allow" or "deny"', lambda given: given in ("allow", "deny")),
    "failure_policy": Option(str, '"Fail" or "Ignore"', lambda given: given in ("Fail", "Ignore")),
    "webhook_name": Option(str, "a DNS label, such as widgets", lambda given: bool(_LABEL.fullmatch(given)), True),
    # Controllers.background
    "leader_only": Option(bool, "True or False"),
    # Result. A negative timedelta is not refused: it may be computed from a time that has passed, and is replaced by
    # QueuePolicy.min_requeue_s.
    "requeue_after": Option(timedelta, "timedelta(seconds=...) or None", may_be_none=True),
    # main
    "grace": Option(timedelta, "timedelta(seconds=...) of at least 0", lambda given: given >= timedelta(0)),
    # Request.delete
    "propagation": Option(
        str,
        '"Background", "Foreground" or "Orphan"',
        lambda given: given in ("Background", "Foreground", "Orphan"),
        may_be_none=True,
    ),
    # Request.event
    "reason": Option(str, "a string that is not empty", bool),
    "note": Option(str, "a string, such as str(error)"),
    "type": Option(str, '"Normal" or "Warning"', lambda given: given in ("Normal", "Warning")),
    "action": Option(str, "a string that is not empty", bool),
}


def check_options(where: str, /, **given: Any) -> None:
    """Raise TypeError or ValueError unless each option is as in OPTIONS. `where` is the start of the message."""
    for name, value in given.items():
        option = OPTIONS[name]
        if value is None and option.may_be_none:
            continue
        # Python's bool is an int: per_cluster=True would be 1.
        has_type = isinstance(value, option.type) and (option.type is bool or not isinstance(value, bool))
        if has_type and option.is_valid(value):
            continue
        form = option.form
        if option.type is timedelta and isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            form = form.replace("...", str(value))
        shown = f"timedelta(seconds={value.total_seconds():g})" if isinstance(value, timedelta) else repr(value)
        error = ValueError if has_type else TypeError
        raise error(f"{where}{': ' if where else ''}{name}={shown}: write {form}")
