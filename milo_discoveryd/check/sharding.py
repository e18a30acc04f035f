"""Checks that the Leases of the shard group can be read."""

from collections.abc import Mapping
from contextlib import AsyncExitStack

from milo_discoveryd.check.finding import Finding, fail, ok
from milo_discoveryd.config import Settings
from milo_discoveryd.daemon_errors import DiscoveryError
from milo_discoveryd.wiring.member_name import member_name
from milo_discoveryd.wiring.sharding import lease_client

SUBJECT = "sharding"


async def check_leases(settings: Settings, environ: Mapping[str, str]) -> Finding | None:
    """Check access to the Leases of the shard group. Return None if no group is configured."""
    group = settings.sharding.group
    if group is None:
        return None
    try:
        async with AsyncExitStack() as closing:
            name = member_name(settings, environ)
            leases = await lease_client(settings, group, environ, closing).read()
    except DiscoveryError as error:
        return fail(SUBJECT, str(error), "correct the settings in sharding, or bind the Role of the component sharding")
    return ok(SUBJECT, f"member {name} can read the Leases of group {group}, which has {len(leases.members)} members")
