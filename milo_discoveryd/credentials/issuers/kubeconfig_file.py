"""Issues the credentials in the kubeconfig files of a source of clusters."""

import asyncio
import time
from collections.abc import Callable, Mapping
from math import inf

from msgspec.structs import replace

from milo_discoveryd.credentials.issued_credential import LONGEST_S, IssuedCredential, LongLivedError, validate
from milo_discoveryd.credentials.issuers import received_kubeconfig
from milo_discoveryd.credentials.issuers.issuer import MintRequest, Scope
from milo_discoveryd.credentials.issuers.settings import IssuerContext, IssuerSettings
from milo_discoveryd.credentials.kubeconfig_files import FilesError, KubeconfigFiles
from milo_discoveryd.daemon_errors import BackendError, UnfitError
from milo_discoveryd.model.cluster import DeclaredTarget, Target
from milo_discoveryd.sources.kind import IssuerTraits
from milo_kube.credential import CredentialError


class KubeconfigFileIssuer:
    type = "kubeconfig-file"
    scope = Scope.CLUSTER
    takes_ttl = False

    def __init__(
        self,
        name: str,
        files: Mapping[str, KubeconfigFiles],
        *,
        allow_long_lived: bool = False,
    ) -> None:
        """`files` contains the kubeconfig files of each source of clusters, by the name of the source."""
        self.name = name
        self._files = files
        self._longest_s = inf if allow_long_lived else LONGEST_S

    def subscribe(self, renew: Callable[[Callable[[Target], bool]], None]) -> None:
        """Call `renew` when files were replaced, with a function that returns whether a cluster is affected."""
        for source, files in self._files.items():

            def changed(keys: frozenset[str], source: str = source) -> None:
                def is_changed(target: Target) -> bool:
                    return target.source == source and isinstance(target, DeclaredTarget) and target.object_name in keys

                renew(is_changed)

            files.subscribe(changed)

    async def mint(self, request: MintRequest) -> IssuedCredential:
        assert request.cluster is not None
        target = request.cluster.target
        files = self._files.get(target.source)
        if files is None or not isinstance(target, DeclaredTarget):
            raise BackendError(f"the kubeconfig file of {target.name} has not been read yet; retry", of_cluster=True)
        try:
            stored = await asyncio.to_thread(files.kubeconfig, target.object_name)
            received = await asyncio.to_thread(received_kubeconfig.parse, stored.content, stored.origin, stored.context)
            if received.server.rstrip("/") != target.endpoint:
                raise BackendError(f"{stored.origin} names a different server than {target.endpoint}", of_cluster=True)
            issued = validate(received.credential, time.time(), origin=stored.origin, longest_s=self._longest_s)
        except LongLivedError as error:
            raise LongLivedError(f"{error}; set allow_long_lived: true to issue it anyway") from None
        except UnfitError:
            raise
        except (FilesError, CredentialError) as error:
            raise BackendError(str(error), of_cluster=True) from None
        return replace(issued, authorities=received.authorities)


class KubeconfigFileSettings(IssuerSettings, frozen=True, kw_only=True):
    allow_long_lived: bool = False
    """`true` to issue certificates and tokens that are valid for more than 24 hours, and tokens without an expiry."""

    @property
    def traits(self) -> IssuerTraits:
        return IssuerTraits(self.type, is_of_cluster=True)

    def issuer(self, context: IssuerContext) -> KubeconfigFileIssuer:
        files = {served.name: served.files for served in context.served if served.files is not None}
        return KubeconfigFileIssuer(self.name, files, allow_long_lived=self.allow_long_lived)
