"""Builds the credential issuers of the settings."""

import os
import re
import secrets
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from functools import partial
from pathlib import Path
from typing import assert_never

import msgspec

from milo_discoveryd.config import Settings, issuers
from milo_discoveryd.credentials.issuers.exec_command import ExecIssuer
from milo_discoveryd.credentials.issuers.issuer import (
    EachSourceIssuer,
    FencingIssuer,
    Issuer,
    IssuerOrigin,
    Scope,
)
from milo_discoveryd.credentials.issuers.kubeconfig_file import KubeconfigFileIssuer
from milo_discoveryd.credentials.issuers.kubeconfig_request import KubeconfigRequestIssuer
from milo_discoveryd.credentials.issuers.kubeconfig_secret import CredentialPaths, KubeconfigSecretIssuer, SecretPlace
from milo_discoveryd.credentials.issuers.passthrough import PassthroughIssuer
from milo_discoveryd.credentials.issuers.token_endpoint import TokenEndpoint
from milo_discoveryd.credentials.issuers.token_request import RequestedTokens, RequestingDaemon, TokenRequestIssuer
from milo_discoveryd.credentials.kubernetes_api import KubernetesApi
from milo_discoveryd.daemon_errors import ConfigError
from milo_discoveryd.kubeconfigs.kubeconfigs import IssuerAssignment
from milo_discoveryd.logger import log
from milo_discoveryd.sources.kind import ProjectServer
from milo_discoveryd.wiring.configured_source import ConfiguredSource
from milo_discoveryd.wiring.sharding import member_name
from milo_discoveryd.wiring.upstreams import note_renewal, open_upstream
from milo_kube.credential_providers import CredentialOrigin, FileOrigin, RenewedCredential
from milo_kube.exec_plugin import ExecCommand
from milo_kube.file_content import FileContent
from milo_kube.http.proxy import environment_proxy
from milo_kube.label_selector import parse as parse_selector
from milo_kube.upstream import Upstream, share_identity

RUN_FILE = "run"
"""Name of the file in the state directory that keeps the identity of the run."""
_IDENTITY = re.compile(rb"[0-9a-f]{16}\n")

# The issuers that sign import the cryptography package: 8 MB, which only daemons with such an issuer need.
# ruff: noqa: PLC0415


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
        self._made: dict[str, Issuer] = {issuer.name: self._make(issuer) for issuer in settings.kubeconfigs.issuers}

    def assignments(self) -> list[IssuerAssignment]:
        """Return the issuers for kubeconfigs, in the order of the settings."""
        return [
            IssuerAssignment(self._made[issuer.name], parse_selector(issuer.label_selector), frozenset(issuer.sources))
            for issuer in self._settings.kubeconfigs.issuers
            if issuer.hand_out
        ]

    def fencing(self) -> list[FencingIssuer]:
        """Return the issuers that can revoke credentials that other members of the shard group issued.

        Raises ConfigError if an issuer of kubeconfigs cannot revoke them.
        """
        found: list[FencingIssuer] = []
        for configured in self._settings.kubeconfigs.issuers:
            issuer = self._made[configured.name]
            if issuer.scope is Scope.CLUSTER and isinstance(issuer, FencingIssuer):
                found.append(issuer)
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
        issuer = self._made[name]
        if issuer.scope is not Scope.IDENTITY:
            raise ConfigError(
                [
                    f"the issuer {name} mints a credential for each cluster, and has none for discovery: name a "
                    "different issuer in watch.credentials, or in the setting `credentials` of the source"
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

    def _make(self, of: issuers.IssuerSettings) -> Issuer:  # noqa: PLR0911 - one for each type
        match of:
            case issuers.ProjectKubeconfig():
                project = self._served(of)[0].project
                self._require_own_identity(of, project)
                origin = f"the user of {project.origin}"
                return PassthroughIssuer(project.credentials, name=of.name, type=of.type, origin=origin)
            case issuers.DatumServiceAccount():
                from milo_discoveryd.credentials.issuers.datum_service_account import DatumServiceAccountIssuer

                return DatumServiceAccountIssuer(
                    of.name,
                    FileContent(of.key_file),
                    TokenEndpoint(_file(of.ca_file), self._proxy),
                    audiences=of.audiences,
                )
            case issuers.TokenExchange():
                return self._token_exchange(of)
            case issuers.TokenRequest():
                api, origin = self._infrastructure(of, self._served(of)[0])
                return TokenRequestIssuer(
                    of.name,
                    api,
                    origin=origin,
                    tokens=RequestedTokens(
                        namespace=of.namespace,
                        service_account=of.service_account,
                        audiences=of.audiences,
                        bound=of.bound,
                    ),
                    daemon=self._requesting_daemon(),
                )
            case issuers.ClientCertificateSettings():
                from milo_discoveryd.credentials.issuers.client_certificate import ClientCertificateIssuer

                self._require_distinct_names(of)
                return ClientCertificateIssuer(
                    of.name,
                    authority=FileContent(of.ca_certificate),
                    key=FileContent(of.ca_key),
                    common_name=of.common_name,
                    organizations=of.organizations,
                )
            case issuers.ExecSettings():
                return ExecIssuer(
                    of.name,
                    ExecCommand(api_version=of.api_version, argv=(of.command, *of.args), environment=of.env),
                    project=self._served(of)[0].project,
                    per_cluster=of.per_cluster,
                    timeout_s=of.timeout.total_seconds(),
                )
            case issuers.TokenFileSettings():
                file = self._renewed(FileOrigin(token=FileContent(of.path)), str(of.path))
                return PassthroughIssuer(file, name=of.name, type=of.type, origin=str(of.path), audiences=of.audiences)
            case issuers.KubeconfigSecret():
                return self._of_each_source(of, lambda served: self._kubeconfig_secret(of, served))
            case issuers.KubeconfigRequest():
                return self._of_each_source(of, lambda served: self._kubeconfig_request(of, served))
            case issuers.KubeconfigFileSettings():
                files = {source.of.name: source.files for source in self._served(of) if source.files is not None}
                return KubeconfigFileIssuer(of.name, files, allow_long_lived=of.allow_long_lived)
            case _:
                assert_never(of)

    def _of_each_source(
        self,
        of: issuers.KubeconfigSecret | issuers.KubeconfigRequest,
        make: Callable[[ConfiguredSource], Issuer],
    ) -> Issuer:
        """Return an issuer that reads each cluster's object at the API server of the cluster's source.

        Raises ConfigError if one API server has the objects of several sources, and names would not distinguish them.
        """
        served = self._served(of)
        goes_by_uid = isinstance(of, issuers.KubeconfigSecret) and "{uid}" in of.namespace_template + of.secret
        if len(served) > 1 and of.kubeconfig is not None and not goes_by_uid:
            raise ConfigError(
                [
                    f"kubeconfigs.issuers: {of.name} would issue the same credential for clusters that have the same"
                    " name in different sources: remove `kubeconfig` to use each source's own API server, or"
                    " configure an issuer per source"
                ]
            )
        made = {source.of.name: make(source) for source in served}
        return EachSourceIssuer(made) if len(made) > 1 else next(iter(made.values()))

    def _require_distinct_names(self, of: issuers.ClientCertificateSettings) -> None:
        """Reject templates that give clusters with the same name in different sources the same identity.

        Raises ConfigError.
        """
        if len(self._served(of)) > 1 and any("{name}" in template for template in (of.common_name, *of.organizations)):
            raise ConfigError(
                [
                    f"kubeconfigs.issuers: {of.name} would use the same identity for clusters that have the same name"
                    " in different sources: use {uid} instead of {name}, or configure an issuer per source"
                ]
            )

    def _kubeconfig_secret(self, of: issuers.KubeconfigSecret, served: ConfiguredSource) -> Issuer:
        api, origin = self._infrastructure(of, served)
        # With a namespace for each cluster, whoever can write a Secret can change the server of that cluster only.
        is_own_namespace = "{uid}" in of.namespace_template or "{name}" in of.namespace_template
        return KubeconfigSecretIssuer(
            of.name,
            api,
            origin=origin,
            place=SecretPlace(of.namespace_template, of.secret),
            reading=CredentialPaths(of.token, of.certificate, of.private_key, of.ca) if of.has_fields else of.key,
            states_server=is_own_namespace and served.of.settings.project_server is ProjectServer.IDENTITY,
            allow_long_lived=of.allow_long_lived,
        )

    def _kubeconfig_request(self, of: issuers.KubeconfigRequest, served: ConfiguredSource) -> Issuer:
        api, origin = self._infrastructure(of, served)
        objects, *_ = served.followed.collections
        return KubeconfigRequestIssuer(
            of.name,
            api,
            origin=origin,
            resource=objects.watched.resource,
            subresource=of.subresource,
            api_version=of.api_version,
            kind=of.kind,
        )

    def _token_exchange(self, of: issuers.TokenExchange) -> Issuer:
        from milo_discoveryd.credentials.issuers import token_exchange as exchange

        client: exchange.ClientAuthentication = exchange.PublicClient(of.client_id)
        if of.client_secret_file is not None:
            client = exchange.ClientSecret(of.client_id, FileContent(of.client_secret_file))
        elif of.client_key_file is not None:
            client = exchange.ClientKey(of.client_id, FileContent(of.client_key_file), of.client_key_id)
        actor = None
        if of.actor_token_file is not None:
            actor = exchange.RenewedToken(FileContent(of.actor_token_file), of.actor_token_type)
        return exchange.TokenExchangeIssuer(
            of.name,
            TokenEndpoint(_file(of.ca_file), self._proxy),
            exchange.ExchangeRequest(
                url=of.token_url,
                grant=exchange.EXCHANGE if of.grant == "token-exchange" else exchange.ASSERTION,
                audiences=of.audience,
                resources=of.resource,
                scope=of.scope,
                requested_token_type=of.requested_token_type,
                parameters=tuple(of.parameters.items()),
            ),
            subject=exchange.RenewedToken(FileContent(of.subject_token_file), of.subject_token_type),
            actor=actor,
            client=client,
            accepted_audiences=of.audiences,
        )

    def _require_own_identity(self, of: issuers.ProjectKubeconfig, project: Upstream) -> None:
        """Reject an issuer that would issue the daemon's own credential without permission. Raises ConfigError."""
        if of.share_discovery_identity or not of.hand_out:
            return
        for source in self._sources:
            discovery = source.discovery
            if discovery is None or source.of.credentials is not None:
                continue  # discovery does not use a kubeconfig's user
            if share_identity(project.credentials, discovery.credentials):
                raise ConfigError(
                    [
                        f"kubeconfigs.issuers: {of.name} would issue the credential that discovery uses "
                        f"({discovery.origin}): set project_kubeconfig to a kubeconfig of another user, or "
                        "share_discovery_identity: true"
                    ]
                )

    def _requesting_daemon(self) -> RequestingDaemon:
        group = self._settings.sharding.group or ""
        member = member_name(self._settings, self._environ) if group else ""
        return RequestingDaemon(run=self._run, group=group, member=member)

    def _infrastructure(
        self,
        of: issuers.TokenRequest | issuers.KubeconfigSecret | issuers.KubeconfigRequest,
        served: ConfiguredSource,
    ) -> tuple[KubernetesApi, str]:
        kubeconfig = of.kubeconfig or served.of.discovery_kubeconfig
        return open_upstream(kubeconfig, self._settings, self._environ, self._closing)

    def _served(self, of: issuers.IssuerSettings) -> list[ConfiguredSource]:
        """Return the sources whose clusters an issuer serves."""
        return [source for source in self._sources if not of.sources or source.of.name in of.sources]

    @property
    def _proxy(self) -> Callable[[str], str | None]:
        return lambda url: environment_proxy(url, self._environ)


def _file(path: Path | None) -> FileContent | None:
    return None if path is None else FileContent(path)


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
