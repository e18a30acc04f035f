"""Human-readable output: tables, durations and explanations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from milo_discovery.events import Event
from milo_discovery.model import (
    Cluster,
    ClusterReport,
    ConnectivityState,
    CredentialIssuer,
    EngagementReason,
    EventType,
    PendingRelease,
    ServerInfo,
    Sharding,
    ShardMember,
    SourceState,
    SourceStatus,
    Suspension,
    Transition,
)
from milo_discovery_cli.exit_status import printable
from milo_kube.rfc3339 import rfc3339

NONE = "-"
_GAP = "   "


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield lines with aligned columns, the same on a terminal and in a pipe."""
    cells = [tuple(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield aligned(row, widths)


def aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    return _GAP.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def format_duration(value: timedelta) -> str:
    """Format a duration with at most the two largest units: 3d4h, 5m10s, 42s."""
    seconds = max(0, int(value.total_seconds()))
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    units = ((days, "d"), (hours, "h"), (minutes, "m"), (seconds, "s"))
    first = next((index for index, (count, _) in enumerate(units) if count), len(units) - 1)
    return "".join(f"{count}{unit}" for count, unit in units[first : first + 2] if count) or "0s"


def age(moment: datetime | None, now: datetime) -> str:
    return NONE if moment is None else format_duration(now - moment)


def timestamp(moment: datetime | None) -> str:
    return NONE if moment is None else rfc3339(moment)


def state(cluster: Cluster) -> str:
    """Summarize the state of an engaged cluster."""
    flags = [
        name
        for name, holds in (
            ("Draining", cluster.draining is not None),
            ("Terminating", cluster.deletion_requested_at is not None),
            ("Suspended", cluster.suspended),
            ("Unreachable", cluster.connectivity.state is ConnectivityState.UNREACHABLE),
        )
        if holds
    ]
    return ",".join(flags) or "Ready"


def labels(cluster: Cluster) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(cluster.labels.items())) or NONE


CLUSTER_COLUMNS = ("NAME", "ORGANIZATION", "STATE", "ENGAGED FOR")
CLUSTER_COLUMNS_WIDE = (*CLUSTER_COLUMNS, "UID", "ENDPOINT", "LABELS")


def cluster_row(cluster: Cluster, now: datetime, *, wide: bool) -> tuple[str, ...]:
    row = (cluster.name, cluster.organization or NONE, state(cluster), age(cluster.engaged_at, now))
    return (*row, cluster.uid, cluster.endpoint, labels(cluster)) if wide else row


EVENT_COLUMNS = ("EVENT", "NAME", "ORGANIZATION", "DETAILS")
EVENT_COLUMNS_WIDE = (*EVENT_COLUMNS[:-1], "UID", "ENDPOINT", "LABELS", EVENT_COLUMNS[-1])
# Events are printed as they arrive, so column widths are fixed. Without -o wide, a line fits into 120 columns unless
# name or organization are longer than their columns.
_LINE_WIDTH = 120
_MIN_DETAILS_WIDTH = 18  # the width that remains after a name of 63 characters, the longest DNS label
_EVENT_WIDTHS = {"EVENT": 10, "NAME": 30, "ORGANIZATION": 20, "UID": 36, "ENDPOINT": 60, "LABELS": 30}


def event_line(cells: Sequence[str], *, wide: bool, indent: int = 0) -> str:
    """Format one line; `indent` columns precede it."""
    columns = EVENT_COLUMNS_WIDE if wide else EVENT_COLUMNS
    *leading, details = (
        printable(cell).ljust(_EVENT_WIDTHS.get(column, 0)) for cell, column in zip(cells, columns, strict=True)
    )
    head = _GAP.join([*leading, ""])
    room = max(_LINE_WIDTH - indent - len(head), _MIN_DETAILS_WIDTH)
    if not wide and len(details) > room:
        details = f"{details[: room - 1]}…"
    return (head + details).rstrip()


def event_row(event: Event, before: Cluster | None, *, wide: bool) -> tuple[str, ...]:
    """Return the cells of an event; `before` is the previously received state of the cluster."""
    cluster = event.cluster
    head = (event.type.name, cluster.name, cluster.organization or NONE)
    if wide:
        return (*head, cluster.uid, cluster.endpoint, labels(cluster), _details(event, before))
    return (*head, _details(event, before))


def _details(event: Event, before: Cluster | None) -> str:
    match event.type:
        case EventType.DISENGAGED:
            reason = event.reason.name if event.reason.value else ""
            return ": ".join(part for part in (reason, event.message) if part)
        case EventType.KUBECONFIG if event.kubeconfig is not None:
            return f"until {timestamp(event.kubeconfig.expires_at)}"
        case EventType.UPDATED if before is not None:
            return ", ".join(changes(before, event.cluster))
        case _:
            about = state(event.cluster)
            return f"{about}: {event.cluster.deletion_message}" if event.cluster.deletion_message else about


def changes(before: Cluster, after: Cluster) -> Iterator[str]:
    """Yield a description of each change between two states of a cluster."""
    for name in ("endpoint", "organization"):
        if (value := getattr(after, name)) != getattr(before, name):
            yield f"{name} {value or NONE}"
    if after.deletion_requested_at != before.deletion_requested_at:
        yield "deletion requested" if after.deletion_requested_at else "deletion withdrawn"
    if after.deletion_message != before.deletion_message:
        yield f"deletion: {after.deletion_message or NONE}"
    if after.draining is not None and after.draining != before.draining:
        yield f"draining until {timestamp(after.draining.deadline)} ({after.draining.reason.name})"
    if after.suspended != before.suspended:
        yield "suspended" if after.suspended else "reinstated"
    elif after.suspensions != before.suspensions:
        yield f"suspensions: {', '.join(suspension.reason for suspension in after.suspensions) or NONE}"
    if after.connectivity.state is not before.connectivity.state:
        yield after.connectivity.state.name.lower()
    elif after.connectivity.message != before.connectivity.message:
        yield f"connectivity: {after.connectivity.message or NONE}"
    yield from _mapping_changes("label", before.labels, after.labels)
    yield from _mapping_changes("annotation", before.annotations, after.annotations)


def _mapping_changes(kind: str, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    for key in sorted(before.keys() | after.keys()):
        if key not in after:
            yield f"{kind} {key} removed"
        elif before.get(key) != after[key]:
            yield f"{kind} {key}={after[key]}"


def explanation(name: str, report: ClusterReport, now: datetime) -> Iterator[str]:
    """Yield lines that explain why a project is or is not engaged, since when, and its last transitions."""
    engagement = report.engagement
    verdict = "is engaged" if engagement.engaged else "is not engaged"
    plain = engagement.engaged and engagement.reason is EngagementReason.ENGAGED
    reason = "" if plain else f": {engagement.reason.name}"
    yield f"{printable(name)} {verdict}{reason}, {_since(engagement.since, now)}."
    if engagement.message:
        yield f"  {printable(engagement.message)}"
    if (warning := out_of_date(report.source, now)) is not None:
        yield f"  The report {warning}."
    if report.cluster is None:
        yield "  This daemon has never engaged it."
    else:
        yield ""
        yield "Cluster:" if engagement.engaged else "Cluster, as last engaged:"
        yield from _cluster_facts(report.cluster, now)
    if report.pending_releases:
        yield ""
        yield "Not released yet by:"
        yield from ("  " + line for line in table([_release_row(pending, now) for pending in report.pending_releases]))
    if report.transitions:
        yield ""
        yield "Last transitions:"
        yield from ("  " + line for line in table([_transition_row(transition) for transition in report.transitions]))


def _cluster_facts(cluster: Cluster, now: datetime) -> Iterator[str]:
    facts = [
        ("endpoint", cluster.endpoint),
        ("uid", cluster.uid),
        ("organization", cluster.organization or NONE),
        ("labels", labels(cluster)),
        ("state", state(cluster)),
    ]
    if cluster.draining is not None:
        why = ": ".join(part for part in (cluster.draining.reason.name, cluster.draining.message) if part)
        facts.append(("draining", f"until {timestamp(cluster.draining.deadline)} ({why})"))
    facts += [("suspension", _suspension(suspension, now)) for suspension in cluster.suspensions]
    if cluster.deletion_requested_at is not None:
        requested = cluster.deletion_requested_at
        waiting = f"; {cluster.deletion_message}" if cluster.deletion_message else ""
        facts.append(("deletion", f"requested at {timestamp(requested)}, {age(requested, now)} ago{waiting}"))
    probed = cluster.connectivity.state in {ConnectivityState.REACHABLE, ConnectivityState.UNREACHABLE}
    if probed or cluster.connectivity.message:
        about = f": {cluster.connectivity.message}" if cluster.connectivity.message else ""
        facts.append(
            ("connectivity", f"{cluster.connectivity.state.name}, {_since(cluster.connectivity.since, now)}{about}")
        )
    yield from ("  " + line for line in table(facts))


def _release_row(pending: PendingRelease, now: datetime) -> tuple[str, ...]:
    connection = "connected" if pending.connected else "disconnected"
    return (pending.subscriber, pending.caller or NONE, f"{connection} {_since(pending.since, now)}")


def _suspension(of: Suspension, now: datetime) -> str:
    by = f"; can be reinstated by {of.reinstate_authority}" if of.reinstate_authority else ""
    message = f"; {of.message}" if of.message else ""
    return f"{of.reason or 'no reason given'}, {_since(of.suspended_at, now)}{by}{message}"


def _transition_row(transition: Transition) -> tuple[str, ...]:
    reason = transition.reason.name if transition.reason.value else ""
    return (
        timestamp(transition.at),
        transition.type.name,
        ": ".join(part for part in (reason, transition.message) if part),
    )


def status(info: ServerInfo, now: datetime) -> Iterator[str]:
    """Yield lines that describe the daemon's state."""
    counts, mode = info.counts, _in_context(info.mode, info.context)
    facts = [
        ("daemon", f"milo-discoveryd {info.version}, mode {mode}, up {age(info.started_at, now)}"),
        *_sources(info, now),
        ("synced", _synced(info)),
        (
            "clusters",
            f"{counts.engaged} engaged, {counts.not_ready} not ready, "
            f"{counts.outside_selector} outside the selector, {counts.malformed} malformed, "
            f"{counts.unreachable} unreachable, {counts.draining} draining"
            f"{f', {counts.refused} of other organizations' if counts.refused else ''}"
            f"{'' if info.sharding is None else f', {counts.unassigned} unassigned'}",
        ),
        ("subscribers", str(counts.subscribers)),
    ]
    facts += [("kubeconfigs", _credential_issuer(issuer, now)) for issuer in info.credential_issuers]
    if not info.credential_issuers:
        facts.append(("kubeconfigs", "not issued: no credential issuer is configured"))
    yield from table(facts)


def _in_context(mode: str, context: str) -> str:
    return f"{mode} in context {context}" if context else mode


def _synced(info: ServerInfo) -> str:
    missing = ", ".join(source.name for source in info.sources if not source.synced) or "the source"
    return "yes" if info.synced else f"no: the first complete list of {missing} has not arrived yet"


def _sources(info: ServerInfo, now: datetime) -> Iterator[tuple[str, str]]:
    if not info.sources:
        yield "source", freshness(info.source, now)
    for source in info.sources:
        unsynced = "" if source.synced else "; no complete list yet"
        kind = _in_context(source.kind, source.context)
        yield (
            f"source {source.name}",
            f"{kind}, {source.counts.engaged} engaged{unsynced}, {freshness(source.status, now)}",
        )


SHARD_COLUMNS = ("MEMBER", "WEIGHT", "CLUSTERS", "ACKNOWLEDGED", "STATE")


def shards(sharding: Sharding, draining: int) -> Iterator[str]:
    """Yield lines that describe the shard group, without its members.

    `draining`: the number of this daemon's clusters that wait for subscribers to release them.
    """
    held = "currently owns no clusters" if sharding.valid_for is None else "owns its share"
    settled = "settled" if sharding.settled else "waiting for acknowledgments, or for members to join or leave"
    facts = [
        ("group", sharding.group),
        ("member", f"{sharding.member}, {held}"),
        ("view", f"{sharding.view}, {settled}"),
    ]
    if draining:
        more = draining - len(sharding.draining)
        counted = [f"{more} more" if sharding.draining else f"{more} clusters"] if more > 0 else []
        facts.append(("draining", ", ".join((*sharding.draining, *counted))))
    if sharding.problem:
        facts.append(("problem", sharding.problem))
    yield from table(facts)


def shard_row(member: ShardMember) -> tuple[str, ...]:
    states = [
        *([] if member.alive else ["not running"]),
        *(["leaving"] if member.leaving else []),
        *([] if member.in_view else ["not in the view"]),
    ]
    return (
        member.name,
        f"{member.weight:g}",
        str(member.clusters),
        str(member.acknowledged_view),
        ", ".join(states) or "member",
    )


def out_of_date(status: SourceStatus, now: datetime) -> str | None:
    """If the source is stale, return a warning that the output may be out of date; otherwise None."""
    if status.state is not SourceState.STALE:
        return None
    which = f"source {printable(status.name)}" if status.name else "the source"
    return f"may be out of date: {which} is {printable(freshness(status, now))}"


def freshness(status: SourceStatus, now: datetime) -> str:
    why = ": ".join(part for part in (status.reason, status.message) if part)
    contact = f"; last response from Milo {age(status.last_contact, now)} ago" if status.last_contact else ""
    healthy = status.state is SourceState.STREAMING
    return f"{status.state.name} {_since(status.since, now)}{'' if healthy else contact}{f' ({why})' if why else ''}"


def _credential_issuer(issuer: CredentialIssuer, now: datetime) -> str:
    health = "healthy" if issuer.healthy else f"unhealthy: {issuer.message}"
    ends = f", its credential expires in {format_duration(issuer.expires_at - now)}" if issuer.expires_at else ""
    failing = ", ".join(f"{count} {reason}" for reason, count in sorted(issuer.failing_clusters.items()))
    clusters = f"; clusters with failing credentials: {failing} (run explain for the reason)" if failing else ""
    return f"{issuer.name} ({issuer.type}), {health}{ends}{clusters}"


def _since(moment: datetime | None, now: datetime) -> str:
    return "since an unknown time" if moment is None else f"since {timestamp(moment)} ({age(moment, now)})"
