"""Checks the Leases of the shard group: access, problems, and whether all members have the same sources."""

from collections.abc import Mapping
from contextlib import AsyncExitStack

from milo_discoveryd.check.finding import Finding, fail, ok, warn
from milo_discoveryd.config import Settings
from milo_discoveryd.daemon_errors import EXPECTED, ConfigError
from milo_discoveryd.wiring.configured_source import ConfiguredSource
from milo_discoveryd.wiring.sharding import fleet_digest, lease_client, member_name

SUBJECT = "sharding"


async def check_leases(settings: Settings, environ: Mapping[str, str]) -> Finding | None:
    """Check the Leases of the shard group. Return None if no group is configured."""
    group = settings.sharding.group
    if group is None:
        return None
    try:
        async with AsyncExitStack() as closing:
            name = member_name(settings, environ)
            leases = await lease_client(settings, group, environ, closing).read()
    except EXPECTED as error:
        return fail(SUBJECT, str(error), "correct the settings in sharding, or bind the Role of the component sharding")
    problems = [*leases.problems, *(member.problem for member in leases.members.values() if member.problem)]
    if problems:
        return warn(SUBJECT, "; ".join(problems), "delete these Leases if no daemon of the group runs under their name")
    try:
        fleet = fleet_digest(ConfiguredSource(source, settings, environ) for source in settings.sources)
    except ConfigError as error:
        return warn(
            SUBJECT,
            f"the sources of group {group} cannot be compared with those of its members: {error}",
            "correct the source's kubeconfig",
        )
    if others := sorted(
        member.member for member in leases.members.values() if member.is_held and member.fleet != fleet
    ):
        return warn(
            SUBJECT,
            f"the sources or selectors of {', '.join(others)} in group {group} differ from the settings of {name}",
            "give all members of the group the same settings: clusters that one of them does not see may have no owner",
        )
    return ok(SUBJECT, f"member {name} can read the Leases of group {group}, which has {len(leases.members)} members")
