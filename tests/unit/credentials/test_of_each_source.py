"""A credential issuer that uses the API server of each cluster's source."""

import msgspec
import pytest

from milo_discoveryd.credentials.issuers.issuer import EachSourceIssuer, MintRequest, Scope
from milo_discoveryd.credentials.issuers.kubeconfig_secret import KubeconfigSecretIssuer, SecretPlace
from milo_discoveryd.daemon_errors import BackendError
from tests.unit.credentials.backend import ALPHA, ScriptedApi, answering, engaged


async def test_credential_is_read_from_the_api_server_of_the_cluster_source() -> None:
    apis = {name: ScriptedApi(answering(404, {})) for name in ("eu", "us")}
    issuer = EachSourceIssuer(
        {
            name: KubeconfigSecretIssuer(
                "s", api, origin=name, place=SecretPlace("project-{name}", "kubeconfig"), reading="kubeconfig"
            )
            for name, api in apis.items()
        }
    )
    assert (issuer.name, issuer.type, issuer.takes_ttl) == ("s", "kubeconfig-secret", False)
    assert issuer.scope is Scope.CLUSTER
    target = msgspec.structs.replace(ALPHA, name="us#alpha", source="us")
    with pytest.raises(BackendError, match="Secret project-alpha/kubeconfig does not exist"):
        await issuer.mint(MintRequest(ttl_s=600, cluster=engaged(target)))
    assert (len(apis["eu"].asked), len(apis["us"].asked)) == (0, 1)
