"""Reports stored clusters whose key is different, or missing, with this configuration."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from milo_discoveryd.check.finding import Finding, warn
from milo_discoveryd.model.cluster import key_of
from milo_discoveryd.state_file.encoding import StateOrigin
from milo_discoveryd.state_file.state_file import stored_fleets

_SHOWN = 3


def check_stored_keys(directory: Path, configured: Iterable[tuple[str, StateOrigin]]) -> Iterator[Finding]:
    """Compare the stored sources with the configured ones, which are given by name and origin."""
    origins = dict(configured)
    for source, fleet in stored_fleets(directory):
        if origins.get(source) == fleet.origin or not fleet.clusters:
            continue
        names = sorted(cluster.target.local_name for cluster in fleet.clusters)[:_SHOWN]
        old = ", ".join(key_of(name, source) for name in names)
        more = f" and {len(fleet.clusters) - len(names)} more" if len(fleet.clusters) > len(names) else ""
        become = next((name for name, origin in origins.items() if origin == fleet.origin), None)
        subject, count = f"keys of {f'source {source}' if source else 'the source without a name'}", len(fleet.clusters)
        if become is None:
            yield warn(
                subject,
                f"{count} stored clusters ({old}{more}) are from {fleet.origin}, which is not configured by that name",
                "subscribers will see these clusters disengaged; remove the state file if that is intended",
            )
        else:
            yield warn(
                subject,
                f"{count} stored clusters change their keys: {old}{more} become "
                f"{', '.join(key_of(name, become) for name in names)}{more}",
                "subscribers will see the old keys disengaged and the new ones engaged; to keep the old keys, "
                + (f"name the source {source}" if source else "configure the source by mode, without a name"),
            )
