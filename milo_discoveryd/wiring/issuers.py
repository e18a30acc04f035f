"""Builds the credential issuers of the settings."""

import os
import re
import secrets
import stat
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from functools import partial
from pathlib import Path

import msgspec

from milo_discoveryd.config import Settings
from milo_discoveryd.credentials.issuers.cluster_objects import ClusterObjects
from milo_discoveryd.credentials.issuers.issuer import FencingIssuer, Issuer, IssuerOrigin, RequestingDaemon, Scope
from milo_discoveryd.credentials.issuers.settings import IssuerContext, IssuerSettings, ServedSource
from milo_discoveryd.daemon_errors import ConfigError
from milo_discoveryd.kubeconfigs.kubeconfigs import IssuerAssignment
from milo_discoveryd.logger import log
from milo_discoveryd.sharding.assignment import FencedIssuer
from milo_discoveryd.wiring.configured_source import ConfiguredSource, at_server
from milo_discoveryd.wiring.sharding import member_name
from milo_discoveryd.wiring.upstreams import note_renewal, open_upstream, opened
from milo_kube.credential_providers import CredentialOrigin, RenewedCredential
from milo_kube.http.proxy import environment_proxy
from milo_kube.label_selector import parse as parse_selector
from milo_kube.upstream import Upstream

RUN_FILE = "run"
"""Name of the file in the state directory that keeps the identity of the run."""
_IDENTITY = re.compile(rb"[0-9a-f]{16}\n")


class Issuers:
    """The configured issuers. Their connections are closed with `closing`."""

    def __init__(
        self,
        settings: Settings,
        sources: Sequence[ConfiguredSource],
        environ: Mapping[str, str],
        closing: AsyncExitStack,
        *,
        run: str,
    ) -> None:
        """`run`: see `run_identity`."""
        self._settings = settings
        self._sources = sources
        self._environ = environ
        self._closing = closing
        self._run = run
        self._made: dict[str, Issuer] = {}
        # The credential of an identity may be the one with which the objects of clusters are read.
        for issuer in sorted(settings.kubeconfigs.issuers, key=lambda issuer: issuer.is_per_cluster):
            self._made[issuer.name] = self._make(issuer)

    def assignments(self) -> list[IssuerAssignment]:
        """Return the issuers for kubeconfigs, in the order of the settings."""
        return [
            IssuerAssignment(self._made[issuer.name], parse_selector(issuer.label_selector), frozenset(issuer.sources))
            for issuer in self._settings.kubeconfigs.issuers
            if issuer.hand_out
        ]

    def fencing(self) -> list[FencedIssuer]:
        """Return the issuers that can revoke credentials that other members of the shard group issued.

        Raises ConfigError if an issuer of kubeconfigs cannot revoke them.
        """
        found: list[FencedIssuer] = []
        for configured in self._settings.kubeconfigs.issuers:
            issuer = self._made[configured.name]
            if issuer.scope is Scope.CLUSTER and isinstance(issuer, FencingIssuer):
                found.append(FencedIssuer(issuer, frozenset(configured.sources)))
            elif configured.hand_out:
                raise ConfigError(
                    [
                        f"sharding.fence_credentials: kubeconfigs of {configured.name} cannot be revoked;"
                        " use only issuers of type token-request with bound: true, or set fence_credentials to false"
                    ]
                )
        return found

    def authenticated(self, discovery: Upstream, name: str | None) -> Upstream:
        """Return the watched API server with the credential of the named issuer. Raises ConfigError."""
        if name is None:
            return discovery
        issuer = self._made.get(name)
        if issuer is None or issuer.scope is not Scope.IDENTITY:
            raise ConfigError(
                [
                    f"the issuer {name} mints a credential for each cluster, and has none for discovery: name a "
                    "different issuer in the setting `credentials` of the source"
                ]
            )
        ttl_s = self._settings.kubeconfigs.default_ttl.total_seconds()
        origin = f"{discovery.origin} with credentials of the issuer {name}"
        return msgspec.structs.replace(
            discovery, origin=origin, credentials=self._renewed(IssuerOrigin(issuer, ttl_s=ttl_s), origin)
        )

    def _renewed(self, origin: CredentialOrigin, name: str) -> RenewedCredential:
        provider = RenewedCredential(origin, note=partial(note_renewal, name))
        self._closing.push_async_exit(aclosing(provider))
        return provider

    def _make(self, of: IssuerSettings) -> Issuer:
        watched = ((source.discovery, source.of.credentials) for source in self._sources)
        return of.issuer(
            IssuerContext(
                served=tuple(
                    self._served(source) for source in self._sources if not of.sources or source.of.name in of.sources
                ),
                # Discovery with an issuer's credential does not use the user of its kubeconfig.
                discovery=tuple(server for server, named in watched if server is not None and named is None),
                requesting_daemon=self._requesting_daemon,
                open_api=lambda path: open_upstream(path, self._settings, self._environ, self._closing),
                renewed=self._renewed,
                proxy=lambda url: environment_proxy(url, self._environ),
                note=note_renewal,
            )
        )

    def _served(self, source: ConfiguredSource) -> ServedSource:
        return ServedSource(
            name=source.of.name,
            project=source.project,
            project_server=source.of.settings.project_server,
            discovery_kubeconfig=source.of.discovery_kubeconfig,
            open_objects=lambda: self._objects(source),
            files=source.files,
        )

    def _objects(self, source: ConfiguredSource) -> ClusterObjects | None:
        resource = source.followed.objects
        if resource is None or source.discovery is None:
            return None
        upstream = self.authenticated(source.discovery, source.of.credentials)
        upstream = at_server(upstream, source.followed.objects_server)
        api = opened(upstream, self._settings, self._environ, self._closing)
        return ClusterObjects(api, upstream.origin, resource)

    def _requesting_daemon(self) -> RequestingDaemon:
        group = self._settings.sharding.group or ""
        member = member_name(self._settings, self._environ) if group else ""
        return RequestingDaemon(run=self._run, group=group, member=member)


def run_identity(directory: Path | None) -> str:
    """Return the identity of this run, by which the daemon finds what it created in other clusters.

    It is kept in the state directory. Without a state directory, or if the file cannot be used, each run has a new
    identity. Each replica needs its own state directory: two daemons with the same identity revoke each other's
    credentials.
    """
    created = secrets.token_hex(8)
    if directory is None:
        return created
    path = directory / RUN_FILE
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                log.warning(
                    "run identity not kept",
                    path=str(path),
                    problem="not a regular file owned by the daemon's user; delete it",
                )
                return created
            kept = file.read(64)
            if _IDENTITY.fullmatch(kept):
                return kept.decode().strip()
            file.seek(0)
            file.truncate()
            file.write(created.encode() + b"\n")
    except OSError as error:
        log.warning("run identity not kept", path=str(path), problem=error.strerror)
    return created
