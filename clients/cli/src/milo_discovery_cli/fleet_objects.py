"""Prints objects of all selected clusters, and which clusters did not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from milo_discovery.errors import DiscoveryError, InvalidRequest, PermissionDenied
from milo_discovery_cli.cluster_objects import (
    ClusterReader,
    FailedRead,
    FoundPage,
    KnownResources,
    Lacking,
    Unanswered,
    opened,
)
from milo_discovery_cli.exit_status import ExitStatus, print_message
from milo_discovery_cli.names import why_not_selected
from milo_discovery_cli.object_output import Form, Line, Spool
from milo_discovery_cli.object_request import ObjectScope, Wanted
from milo_discovery_cli.options import ConnectionOptions
from milo_discovery_cli.progress import Progress
from milo_discovery_cli.queries import no_clusters, warn_of_incompleteness
from milo_discovery_cli.text_output import table
from milo_kube.api_server import Pools
from milo_kube.list_pages import MAX_S

if TYPE_CHECKING:
    from milo_discovery.client import DiscoveryClient
    from milo_discovery.model import Cluster, Listing
    from milo_discovery.options import FilterOptions

USER_AGENT = "milo-discovery"
AT_ONCE = 32
"""Maximum number of clusters that are asked at the same time."""
_PENDING_PAGES = 64
_OPTION_OF_FIELD = {"filter.label_selector": "--cluster-selector", "filter.names": "--cluster"}
_NAMED = 5
"""Maximum number of clusters that a message names, unless they did not answer."""


class FleetObjects:
    """The wanted objects of all selected clusters."""

    def __init__(
        self, connection: ConnectionOptions, scope: ObjectScope, wanted: tuple[Wanted, ...], form: Form
    ) -> None:
        assert connection.timeout is not None
        self._timeout_s = connection.timeout.total_seconds()
        self._scope = scope
        self._wanted = wanted
        self._form = form
        self._failures: dict[str, tuple[str, ...]] = {}
        self._denied = 0
        self._in_part = False
        """Whether a cluster answered with a part of what was asked for."""
        self._absent: dict[Lacking, set[str]] = {}
        self._found = 0
        self._is_within_namespace = False
        """Whether a resource that was read has namespaces."""

    async def print(self, client: DiscoveryClient, only: FilterOptions) -> ExitStatus:
        """Print the objects, then what is missing, and return the exit status."""
        with naming_options():
            listing = await client.list(**only)
        known = KnownResources(self._timeout_s)
        for name in sorted({*only["names"]} - {cluster.name for cluster in listing}):
            self._failures[name] = (await why_not_selected(client, name),)
        await self._print_objects(client, listing.clusters, known)
        return self._report(listing, only, known)

    async def _print_objects(self, client: DiscoveryClient, clusters: Sequence[Cluster], known: KnownResources) -> None:
        pages: asyncio.Queue[Sequence[Line] | None] = asyncio.Queue(_PENDING_PAGES)
        pools, remaining, spool = Pools(user_agent=USER_AGENT), iter(clusters), Spool()
        async with Progress(len(clusters)) as progress:

            async def work() -> None:
                for cluster in remaining:
                    failures = await self._read(client, cluster, pools, known, pages)
                    progress.done += 1
                    if failures:
                        self._failures[cluster.name] = failures
                        progress.failed += 1
                await pages.put(None)

            working = [asyncio.create_task(work(), name="read clusters") for _ in clusters[:AT_ONCE]]
            try:
                for _ in working:
                    while (lines := await pages.get()) is not None:
                        if due := spool.add(lines):
                            progress.close()
                            # In a thread, since a reader that waits must not let the other requests time out.
                            await asyncio.to_thread(click.echo, self._form.text(due), nl=False)
            finally:
                for task in working:
                    task.cancel()
                await asyncio.gather(*working, return_exceptions=True)
                await pools.aclose()
        if due := spool.take():
            click.echo(self._form.text(due), nl=False)
        click.echo(self._form.end(), nl=False)

    async def _read(
        self,
        client: DiscoveryClient,
        cluster: Cluster,
        pools: Pools,
        known: KnownResources,
        pages: asyncio.Queue[Sequence[Line] | None],
    ) -> tuple[str, ...]:
        """Read one cluster; return why it did not answer, or not with everything."""
        failed: list[FailedRead] = []
        has_answered, cause = False, ""
        try:
            async with opened(client, cluster, pools) as api:
                reader = ClusterReader(
                    api, cluster.name, self._scope, known, accept=self._form.accept, timeout_s=self._timeout_s
                )
                async with asyncio.timeout(MAX_S):
                    async for found in reader.read(self._wanted):
                        if isinstance(found, FailedRead):
                            failed.append(found)
                            continue
                        has_answered = True
                        if isinstance(found, FoundPage):
                            self._found += found.page.count
                            self._is_within_namespace |= found.resource.is_namespaced
                            await pages.put(await asyncio.to_thread(self._lines, found, cluster.name))
                        else:
                            self._absent.setdefault(found, set()).add(cluster.name)
        except TimeoutError:
            cause = f"what it sends did not end within {MAX_S:g} s"
        except (Unanswered, DiscoveryError) as error:
            self._denied += isinstance(error, PermissionDenied)
            cause = str(error) or type(error).__name__
        except Exception as error:  # noqa: BLE001  (what one cluster sends must not affect the others)
            cause = f"what it sent cannot be shown: {type(error).__name__}: {error}"
        causes = [*(each.cause for each in failed), *([cause] if cause else [])]
        if not has_answered and len({*causes}) == 1:
            return (causes[0],)
        self._in_part |= has_answered and bool(causes)
        return (*(f"{each.subject}: {each.cause}" for each in failed), *([cause] if cause else []))

    def _lines(self, found: FoundPage, cluster: str) -> list[Line]:
        """Return the lines of a page. Called in a thread: those of a large one may take seconds, and the others'
        requests must not time out."""
        return [*self._form.lines(found.page, found.resource, cluster, place=found.place)]

    def _report(self, listing: Listing, only: FilterOptions, known: KnownResources) -> ExitStatus:
        """Print what is missing, and return the exit status."""
        total = len({cluster.name for cluster in listing} | self._failures.keys())
        answered = total - len(self._failures)
        if not total:
            print_message(no_clusters(only))
        for absent, clusters in self._absent.items():
            print_message(_lacking(absent, clusters, total, known))
        if answered and not self._found and not self._absent:
            print_message(f"no objects found in {self._place()}{_count(answered)}")
        if self._form.hint:
            print_message(self._form.hint)
        is_incomplete = warn_of_incompleteness(listing)
        if self._failures:
            self._print_failures(total)
            return ExitStatus.DENIED if self._denied == total else ExitStatus.FAILED
        if is_incomplete:
            return ExitStatus.NOT_SYNCED
        is_missing = any(len(clusters) == total for clusters in self._absent.values())
        return ExitStatus.NOT_FOUND if is_missing or (self._absent and not self._found) else ExitStatus.OK

    def _place(self) -> str:
        if not self._is_within_namespace:
            return ""
        return f"namespace {self._scope.namespace} of " if self._scope.namespace else "any namespace of "

    def _print_failures(self, total: int) -> None:
        causes, in_full = {*self._failures.values()}, " in full" if self._in_part else ""
        if len(causes) == 1 and len(self._failures) == total > 1:
            print_message(f"none of {total} clusters answered{in_full}: {'; '.join(causes.pop())}")
            return
        print_message(f"{len(self._failures)} of {_count(total)} did not answer{in_full}:")
        rows = ((name, cause) for name, causes in sorted(self._failures.items()) for cause in causes)
        for line in table([("CLUSTER", "CAUSE"), *rows]):
            click.echo(line, err=True)


def _lacking(absent: Lacking, clusters: Set[str], total: int, known: KnownResources) -> str:
    if len(clusters) == total:
        return f"no cluster has {absent.resource}/{absent.name}" if absent.name else suggested(absent.resource, known)
    names = f": {', '.join(sorted(clusters))}" if len(clusters) <= _NAMED else ""
    if absent.name:
        return f"{len(clusters)} of {total} clusters have no {absent.resource}/{absent.name}{names}"
    return (
        f"{len(clusters)} of {total} clusters do not serve {absent.resource}{names}{known.suggestion(absent.resource)}"
    )


def _count(clusters: int) -> str:
    return "1 cluster" if clusters == 1 else f"{clusters} clusters"


@contextmanager
def naming_options() -> Iterator[None]:
    """Name the option of an invalid selector or name of clusters, which another command would call otherwise."""
    try:
        yield
    except InvalidRequest as error:
        error.violations = tuple(
            replace(each, field=_OPTION_OF_FIELD.get(each.field, each.field)) for each in error.violations
        )
        raise


def suggested(name: str, known: KnownResources) -> str:
    """Say that no cluster serves a resource."""
    return f"no cluster serves a resource {name!r}{known.suggestion(name)}"
