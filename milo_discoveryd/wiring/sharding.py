"""Builds the member of a shard group from settings and from the pod that the daemon runs in."""

import asyncio
import re
import secrets
import socket
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from hashlib import blake2b
from pathlib import Path

import msgspec

from milo_discoveryd.config import Settings
from milo_discoveryd.daemon_errors import StartError
from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.instruments import ShardLeaseMetrics
from milo_discoveryd.logger import log
from milo_discoveryd.sharding.assignment import CredentialRevocation, FencedIssuer, FleetAssignment
from milo_discoveryd.sharding.group import ShardGroup
from milo_discoveryd.sharding.lease_client import LeaseClient
from milo_discoveryd.sharding.lease_objects import VIEW, LeaseNames
from milo_discoveryd.sharding.member import Member
from milo_discoveryd.wiring.configured_source import ConfiguredSource
from milo_discoveryd.wiring.upstreams import open_upstream
from milo_kube.upstream import SERVICE_ACCOUNT

LEAVE_S = 20.0
"""How long leaving the group may take. It is shorter than the grace period of a pod, which is 30 s by default."""
BEGIN_S = 3.0
"""How long `/handed-over` waits for the hand-over to begin: the kubelet runs the hooks with `milo-discoveryd leave` and
with `/handed-over` concurrently."""
_STABLE = re.compile(r".*-[0-9]{1,4}")
"""Names of a StatefulSet's pods: a pod has the same name again after a restart."""
_MEMBER = re.compile(r"[a-z0-9]([-.a-z0-9]{0,168}[a-z0-9])?")


def member_name(settings: Settings, environ: Mapping[str, str]) -> str:
    """Return the name of this member of the group. Raises StartError if it is not valid."""
    name = settings.sharding.member or environ.get("POD_NAME") or socket.gethostname()
    if not _MEMBER.fullmatch(name) or name == VIEW:
        raise StartError(
            f"sharding.member: {name!r} can't be a member's name; set a lowercase DNS name of up to 170 characters, "
            f"and not {VIEW!r}"
        )
    return name


def is_stable(member: str) -> bool:
    """Return whether a successor with the same name is expected, for which this member should keep its clusters."""
    return _STABLE.fullmatch(member) is not None


def fleet_digest(sources: Iterable[ConfiguredSource]) -> str:
    """Return a digest of the settings that define which clusters exist: it must be the same for all members.

    A source is identified by the URL of its API server: members may have different kubeconfigs for it. A source of
    files is identified by their path: when a file changes, members read it at different times.
    """
    defining = [
        [source.of.name, source.of.kind, source.of.settings, source.of.label_selector, source.origin.server]
        for source in sources
    ]
    encoded = msgspec.json.encode(defining, enc_hook=str, order="sorted")
    return blake2b(encoded, digest_size=8).hexdigest()


class Membership:
    """The daemon's membership in its shard group, and how it ends."""

    def __init__(self, group: ShardGroup, *, hand_over: bool) -> None:
        """`hand_over`: whether a member with a stable name also hands its clusters over when it stops."""
        self.group = group
        self.is_leaving = False
        self._keeps_term = is_stable(group.member.name) and not hand_over
        """Whether the member keeps its clusters for a successor with the same name."""

    def hand_over(self) -> None:
        """Hand the clusters over to the other members."""
        if not self.is_leaving and not self._keeps_term:
            log.info("hand-over of clusters began", member=self.group.member.name)
            self.group.hand_over()

    async def handed_over(self) -> None:
        """Wait until the member has handed its clusters over; only briefly if the hand-over does not begin."""
        if self._keeps_term:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(BEGIN_S):
                await self.group.leaving.wait()
        if self.group.leaving.is_set():
            # The operator must terminate before the kubelet kills it, even if the Leases cannot be written.
            with suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    await self.group.ended.wait()

    def leave(self) -> Coroutine[None, None, None]:
        """Leave the group, or keep the membership for a successor, within `LEAVE_S`."""
        self.is_leaving = True
        return self._leave()

    async def _leave(self) -> None:
        try:
            async with asyncio.timeout(LEAVE_S):
                await self.group.leave(keeps_term=self._keeps_term)
        except TimeoutError:
            log.warning(
                "shard group not left in time; other members take over the clusters when this member's Lease expires"
            )


def shard_group(
    settings: Settings,
    environ: Mapping[str, str],
    fleet: Fleet,
    metrics: ShardLeaseMetrics,
    closing: AsyncExitStack,
    *,
    sources: Iterable[ConfiguredSource],
    fencing: Callable[[], Sequence[FencedIssuer]],
) -> ShardGroup:
    """Return the configured group. `closing` closes its connections. Raises StartError.

    `fencing` returns the issuers whose credentials are revoked before clusters are engaged.
    """
    wanted = settings.sharding
    assert wanted.group is not None
    name = member_name(settings, environ)
    leases = lease_client(settings, wanted.group, environ, closing)
    revocation = CredentialRevocation(fencing()) if wanted.fence_credentials else None
    return ShardGroup(
        wanted.group,
        Member(
            name,
            f"{name}.{secrets.token_hex(8)}",
            weight=wanted.weight,
            instance=environ.get("POD_UID", ""),
            fleet=fleet_digest(sources),
        ),
        leases,
        FleetAssignment(fleet, wanted.release_timeout.total_seconds(), revocation),
        metrics=metrics,
        revocation=revocation,
    )


def lease_client(settings: Settings, group: str, environ: Mapping[str, str], closing: AsyncExitStack) -> LeaseClient:
    """Return a client for the Leases of a group. `closing` closes its connections. Raises ConfigError."""
    wanted = settings.sharding
    transport, origin = open_upstream(wanted.kubeconfig, settings, environ, closing)
    return LeaseClient(transport, LeaseNames(wanted.namespace or _own_namespace(environ), group), origin=origin)


def _own_namespace(environ: Mapping[str, str], service_account: Path = SERVICE_ACCOUNT) -> str:
    if found := environ.get("POD_NAMESPACE"):
        return found
    try:
        return (service_account / "namespace").read_text().strip()
    except OSError as error:
        raise StartError(
            f"sharding.namespace is not set, and the pod's namespace cannot be read ({error}): set sharding.namespace"
        ) from error
