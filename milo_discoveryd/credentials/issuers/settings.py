"""The settings of an issuer, from which it is built, and the types of issuers by name.

A module for each type has its settings. Other packages can add types through the entry point group
`milo_discoveryd.issuers`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec

from milo_discoveryd.credentials.issuers.cluster_objects import ClusterObjects
from milo_discoveryd.credentials.issuers.issuer import EachSourceIssuer, Issuer, RequestingDaemon
from milo_discoveryd.credentials.kubeconfig_files import KubeconfigFiles
from milo_discoveryd.credentials.kubernetes_api import KubernetesApi
from milo_discoveryd.daemon_errors import ConfigError
from milo_discoveryd.schema import values
from milo_discoveryd.schema.fields import Group, ListOf, Text, selector_text
from milo_discoveryd.schema.registry import Registry
from milo_discoveryd.sources.kind import IssuerTraits, ProjectServer
from milo_kube.credential_providers import CredentialOrigin, CredentialProvider
from milo_kube.upstream import Upstream

RequiredFile = Annotated[Path, values.required_file]
OptionalFile = Annotated[Path | None, values.file_path]
RequiredText = Annotated[str, Text(least=1, most=1024)]
OptionalText = Annotated[str, Text(most=1024)]
Words = Annotated[tuple[str, ...], ListOf(Text(least=1, most=1024))]
Label = Annotated[str, values.cluster_name]

MIN_TOKEN_TTL_S = 600
"""The shortest lifetime of a token that API servers issue, in seconds."""


class ServedSource(msgspec.Struct, frozen=True, kw_only=True):
    """A source of clusters that an issuer serves."""

    name: str
    project: Upstream
    """The API server that serves the clusters, or whose identity and CA are used for them."""
    project_server: ProjectServer
    discovery_kubeconfig: Path | None
    open_objects: Callable[[], ClusterObjects | None]
    """Returns the objects of the clusters; None for a source that watches none. Raises ConfigError."""
    files: KubeconfigFiles | None
    """The kubeconfig files of a source that has no API server."""


class IssuerContext(msgspec.Struct, frozen=True, kw_only=True):
    """What an issuer is built from, besides its settings."""

    served: tuple[ServedSource, ...]
    """The sources whose clusters the issuer serves."""
    discovery: tuple[Upstream, ...]
    """The watched API servers of all sources, with the users that discovery authenticates as."""
    requesting_daemon: Callable[[], RequestingDaemon]
    open_api: Callable[[Path | None], tuple[KubernetesApi, str]]
    """Returns the API server of a kubeconfig, or of the cluster that the daemon runs in, and its origin for messages.
    Raises ConfigError."""
    renewed: Callable[[CredentialOrigin, str], CredentialProvider]
    """Returns a provider that renews the credential of an origin, which has a name for messages."""
    proxy: Callable[[str], str | None]
    """Returns the proxy for a URL."""
    note: Callable[[str, str], None]
    """Called with the path of a file and its problem when the problem changes; it is empty when it is over."""


class IssuerSettings(Group, frozen=True, kw_only=True):
    """The settings of an issuer. A class for each type derives from this one; its fields are the type's settings."""

    name: Label
    """Name of the credential issuer in authorization rules, metrics and the log."""
    type: RequiredText
    label_selector: Annotated[str, selector_text] = ""
    """Label selector of the clusters that the credential issuer serves. Default: all."""
    sources: Annotated[tuple[str, ...], ListOf(values.cluster_name)] = ()
    """Names of the `sources` whose clusters the credential issuer serves. Required if there are several `sources`, so
    that no credential is sent to an API server that it is not meant for."""
    hand_out: bool = True
    """`false`: only the daemon itself uses the issuer's credentials, and no kubeconfigs are issued with them."""

    serves_several_sources: ClassVar[bool] = True
    min_ttl_s: ClassVar[int] = 0
    """The shortest lifetime of a credential, in seconds."""

    @property
    def traits(self) -> IssuerTraits:
        return IssuerTraits(self.type)

    @property
    def is_per_cluster(self) -> bool:
        """Whether each cluster has its own credential. Otherwise, one is valid for all clusters of an identity."""
        return self.traits.is_of_cluster

    def issuer(self, context: IssuerContext) -> Issuer:
        """Build the issuer. Raises ConfigError if it cannot serve its sources."""
        raise NotImplementedError


class RequestingIssuerSettings(IssuerSettings, frozen=True, kw_only=True):
    """The settings of an issuer that requests credentials from an API server."""

    kubeconfig: OptionalFile = None
    """Kubeconfig of the API server that receives the requests. Default: the `discovery_kubeconfig` of the served source
    of clusters, or else the cluster that the daemon runs in."""

    def api(self, context: IssuerContext, served: ServedSource) -> tuple[KubernetesApi, str]:
        return context.open_api(self.kubeconfig or served.discovery_kubeconfig)

    def for_each_source(
        self, context: IssuerContext, make: Callable[[ServedSource], Issuer], *, distinguishes_sources: bool = False
    ) -> Issuer:
        """Return an issuer that reads each cluster's object at the API server of the cluster's source.

        Raises ConfigError if one API server has the objects of several sources, and names would not distinguish them.
        """
        if len(context.served) > 1 and self.kubeconfig is not None and not distinguishes_sources:
            raise ConfigError(
                [
                    f"kubeconfigs.issuers: {self.name} would issue the same credential for clusters that have the same"
                    " name in different sources: remove `kubeconfig` to use each source's own API server, or"
                    " configure an issuer per source"
                ]
            )
        made = {served.name: make(served) for served in context.served}
        return EachSourceIssuer(made) if len(made) > 1 else next(iter(made.values()))


_MODULES = "milo_discoveryd.credentials.issuers"
ISSUERS = Registry[IssuerSettings](
    "milo_discoveryd.issuers",
    {
        "project-kubeconfig": f"{_MODULES}.passthrough:ProjectKubeconfigSettings",
        "datum-service-account": f"{_MODULES}.datum_service_account:DatumServiceAccountSettings",
        "token-exchange": f"{_MODULES}.token_exchange:TokenExchangeSettings",
        "token-request": f"{_MODULES}.token_request:TokenRequestSettings",
        "client-certificate": f"{_MODULES}.client_certificate:ClientCertificateSettings",
        "exec": f"{_MODULES}.exec_command:ExecSettings",
        "token-file": f"{_MODULES}.passthrough:TokenFileSettings",
        "kubeconfig-secret": f"{_MODULES}.kubeconfig_secret:KubeconfigSecretSettings",
        "kubeconfig-request": f"{_MODULES}.kubeconfig_request:KubeconfigRequestSettings",
        "kubeconfig-file": f"{_MODULES}.kubeconfig_file:KubeconfigFileSettings",
    },
)
