"""Builds the credential sources of the settings."""

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import assert_never

import msgspec

from milo_discoveryd.config import Settings, sources
from milo_discoveryd.credentials import Upstream, load_discovery_upstream
from milo_discoveryd.credentials.authentication.credential_provider import FileCredential
from milo_discoveryd.credentials.authentication.exec_plugin import ExecCommand
from milo_discoveryd.credentials.authentication.shared_identity import share_identity
from milo_discoveryd.credentials.files import FileContent
from milo_discoveryd.credentials.kubeconfig_files import KubeconfigFiles
from milo_discoveryd.credentials.kubernetes_api import KubernetesApi
from milo_discoveryd.credentials.sources.exec_source import ExecSource
from milo_discoveryd.credentials.sources.kubeconfig_file import KubeconfigFileSource
from milo_discoveryd.credentials.sources.kubeconfig_request import KubeconfigRequestSource
from milo_discoveryd.credentials.sources.kubeconfig_secret import KubeconfigSecretSource
from milo_discoveryd.credentials.sources.passthrough import PassthroughSource
from milo_discoveryd.credentials.sources.renewing_credential import RenewingCredential
from milo_discoveryd.credentials.sources.source import FencingSource, MintingSource, Scope
from milo_discoveryd.credentials.sources.token_request import TokenRequestSource
from milo_discoveryd.daemon_errors import ConfigError
from milo_discoveryd.kubeconfigs.issuer import SourceAssignment
from milo_discoveryd.model.selector import parse as parse_selector
from milo_discoveryd.modes import mode as modes
from milo_discoveryd.wiring.member_name import member_name
from milo_discoveryd.wiring.open_upstream import open_upstream
from milo_kube.http.proxy import environment_proxy

# The sources that sign import the cryptography package: 8 MB, which only daemons with such a source need.
# ruff: noqa: PLC0415


class Sources:
    """The configured sources. Their connections are closed with `closing`."""

    def __init__(
        self,
        settings: Settings,
        projects: Mapping[str, Upstream],
        files: Mapping[str, KubeconfigFiles],
        environ: Mapping[str, str],
        closing: AsyncExitStack,
        *,
        run: str,
    ) -> None:
        """`projects`: the API servers of each source's clusters. `files`: the files of sources without an API server.
        `run`: see `run_identity`.
        """
        self._settings = settings
        self._projects = projects
        self._files = files
        self._environ = environ
        self._closing = closing
        self._run = run
        self._made: dict[str, MintingSource] = {each.name: self._make(each) for each in settings.kubeconfigs.sources}

    def assignments(self) -> list[SourceAssignment]:
        """Return the sources for issued kubeconfigs, in their order."""
        return [
            SourceAssignment(self._made[each.name], parse_selector(each.label_selector), self._cluster_sources(each))
            for each in self._settings.kubeconfigs.sources
            if each.hand_out
        ]

    def fencing(self) -> list[FencingSource]:
        """Return the sources of issued kubeconfigs, which can revoke what other members issued. Raises ConfigError."""
        found: list[FencingSource] = []
        for each in self._settings.kubeconfigs.sources:
            source = self._made[each.name]
            if source.scope is Scope.CLUSTER and isinstance(source, FencingSource):
                found.append(source)
            elif each.hand_out:
                raise ConfigError(
                    [
                        f"sharding.fence_credentials: kubeconfigs of {each.name} cannot be revoked;"
                        " use only sources of type token-request with bound: true, or disable it"
                    ]
                )
        return found

    def authenticated(self, discovery: Upstream, name: str | None) -> Upstream:
        """Return the watched API server with the credential of the named source. Raises ConfigError."""
        if name is None:
            return discovery
        source = self._made[name]
        if source.scope is not Scope.IDENTITY:
            raise ConfigError([f"source.credentials: {name} mints per cluster, and has no credential for discovery"])
        ttl_s = self._settings.kubeconfigs.default_ttl.total_seconds()
        return msgspec.structs.replace(discovery, credentials=RenewingCredential(source, ttl_s=ttl_s))

    def _make(self, of: sources.CredentialSource) -> MintingSource:  # noqa: PLR0911 - one for each type
        match of:
            case sources.ProjectKubeconfig():
                project = self._project(of)
                self._require_own_identity(of, project)
                origin = f"the user of {project.origin}"
                return PassthroughSource(project.credentials, name=of.name, type=of.type, origin=origin)
            case sources.DatumServiceAccount():
                from milo_discoveryd.credentials.sources.datum_service_account import DatumServiceAccountSource

                return DatumServiceAccountSource(
                    of.name,
                    FileContent(of.key_file),
                    authorities=FileContent(of.ca_file) if of.ca_file else None,
                    audiences=of.audiences,
                    proxy=self._proxy,
                )
            case sources.TokenRequest():
                api, origin = self._infrastructure(of)
                return TokenRequestSource(
                    of.name,
                    api,
                    origin=origin,
                    namespace=of.namespace,
                    service_account=of.service_account,
                    run=self._run,
                    audiences=of.audiences,
                    bound=of.bound,
                    group=self._settings.sharding.group or "",
                    member=member_name(self._settings, self._environ) if self._settings.sharding.group else "",
                )
            case sources.ClientCertificateSettings():
                from milo_discoveryd.credentials.sources.client_certificate import ClientCertificateSource

                return ClientCertificateSource(
                    of.name,
                    authority=FileContent(of.ca_certificate),
                    key=FileContent(of.ca_key),
                    common_name=of.common_name,
                    organizations=of.organizations,
                )
            case sources.ExecSettings():
                return ExecSource(
                    of.name,
                    ExecCommand(api_version=of.api_version, argv=(of.command, *of.args), environment=of.env),
                    project=self._project(of),
                    per_cluster=of.per_cluster,
                    timeout_s=of.timeout.total_seconds(),
                )
            case sources.TokenFile():
                file = FileCredential(token=FileContent(of.path))
                return PassthroughSource(file, name=of.name, type=of.type, origin=str(of.path), audiences=of.audiences)
            case sources.KubeconfigSecret():
                api, origin = self._infrastructure(of)
                return KubeconfigSecretSource(
                    of.name,
                    api,
                    origin=origin,
                    namespace_template=of.namespace_template,
                    secret=of.secret,
                    key=of.key,
                    allow_long_lived=of.allow_long_lived,
                )
            case sources.KubeconfigRequest():
                api, origin = self._infrastructure(of)
                declared = self._served(of).declarative
                assert declared is not None, "required by the settings"
                return KubeconfigRequestSource(
                    of.name,
                    api,
                    origin=origin,
                    resource=declared.definition().resource,
                    subresource=of.subresource,
                    api_version=of.api_version,
                    kind=of.kind,
                )
            case sources.KubeconfigFile():
                named = of.cluster_sources if len(self._projects) > 1 else self._files
                files = {name: self._files[name] for name in named}
                return KubeconfigFileSource(of.name, files, allow_long_lived=of.allow_long_lived)
            case _:
                assert_never(of)

    def _project(self, of: sources.CredentialSource) -> Upstream:
        return next(self._projects[name] for name in (*of.cluster_sources, *self._projects) if name in self._projects)

    def _require_own_identity(self, of: sources.ProjectKubeconfig, project: Upstream) -> None:
        """Reject a source that would issue the daemon's own credential without permission. Raises ConfigError."""
        if of.share_discovery_identity or not of.hand_out:
            return
        for each in self._settings.by_source.values():
            if each.mode == "single" or modes.reads_files(each.mode) or each.source.credentials is not None:
                continue  # discovery does not use a kubeconfig's user
            discovery = load_discovery_upstream(
                each.discovery_kubeconfig, self._environ, each.exec_plugins, plain_loopback=each.plain_loopback
            )
            if share_identity(project.credentials, discovery.credentials):
                raise ConfigError(
                    [
                        f"kubeconfigs.sources: {of.name} would issue the credential that discovery uses "
                        f"({discovery.origin}): set project_kubeconfig to a kubeconfig of another user, or "
                        "share_discovery_identity: true"
                    ]
                )

    def _cluster_sources(self, of: sources.CredentialSource) -> frozenset[str]:
        return frozenset(of.cluster_sources if len(self._projects) > 1 else ())

    def _infrastructure(
        self, of: sources.TokenRequest | sources.KubeconfigSecret | sources.KubeconfigRequest
    ) -> tuple[KubernetesApi, str]:
        served = self._served(of)
        return open_upstream(of.kubeconfig or served.discovery_kubeconfig, served, self._environ, self._closing)

    def _served(self, of: sources.CredentialSource) -> Settings:
        """Return the settings of the source of clusters that a credential source serves: the first one, if there are
        several."""
        settings = self._settings.by_source
        return next(settings[name] for name in (*of.cluster_sources, *settings) if name in settings)

    @property
    def _proxy(self) -> Callable[[str], str | None]:
        return lambda url: environment_proxy(url, self._environ)
