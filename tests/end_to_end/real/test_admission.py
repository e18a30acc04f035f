"""One registration of webhooks in Milo's core API receives the writes of all projects."""

import json
from pathlib import Path

import pytest
import trustme

from milo_controllers import Controllers, Deny, Review, WebhookServer
from milo_controllers.webhook_registration import RESOURCES, configurations
from milo_controllers.webhook_server import serve_webhooks
from milo_discovery import Fleet
from tests.end_to_end.real.handing_out import handing_out
from tests.end_to_end.real.programs import Programs
from tests.end_to_end.real.servers import RealApi
from tests.end_to_end.real.watching import create_ready
from tests.end_to_end.scenarios.steps import Mode

pytestmark = pytest.mark.asyncio(loop_scope="session")

CORE: list[Mode] = ["project"]
_PROJECT = "/apis/resourcemanager.miloapis.com/v1alpha1/projects/{}/control-plane"
NOTES = "/api/v1/namespaces/tenant/configmaps"


@pytest.mark.parametrize("mode", CORE)
async def test_registration_in_the_core_reviews_the_writes_of_all_projects(
    built: Programs, server: RealApi, directory: Path
) -> None:
    if not built.has_milo:
        pytest.skip(f"only Milo's own API server has projects' control planes: {'; '.join(built.missing)}")
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1")
    certificate, key = directory / "tls.crt", directory / "tls.key"
    made.private_key_pem.write_to_path(key)
    certificate.write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
    await create_ready(server, "alpha", "beta")
    source = {"type": "project-kubeconfig", "share_discovery_identity": True}
    async with handing_out(server, directory, source) as client, server.client() as api:
        controllers = Controllers(Fleet(client))

        @controllers.validate("v1/configmaps")
        async def short(review: Review) -> None:
            if len(review.object.get("data", {}).get("note", "")) > 5:
                raise Deny(f"at most 5 letters in {review.cluster.name}", field="data.note")

        @controllers.mutate("v1/configmaps")
        def sign(review: Review) -> None:
            review.object.setdefault("data", {})["project"] = review.cluster.name

        async with serve_webhooks(controllers.webhooks, WebhookServer(certificate, key, "127.0.0.1:0")) as url:
            ca = authority.cert_pem.bytes()
            for one in configurations(controllers.webhooks.all, name="notes.example.com", url=url, ca_bundle=ca):
                await api.call("POST", RESOURCES[one["kind"]].collection(), one)
            for project in ("alpha", "beta"):
                notes = _PROJECT.format(project) + NOTES
                namespaces = notes.removesuffix("/tenant/configmaps")
                await api.call("POST", namespaces, {"metadata": {"name": "tenant"}})  # the core has no such namespace
                await api.call("POST", notes, {"metadata": {"name": "a"}, "data": {"note": "short"}})
                stored = await api.call("GET", f"{notes}/a")
                assert stored["data"] == {"note": "short", "project": project}
                refused = await api.refusal("POST", notes, {"metadata": {"name": "b"}, "data": {"note": "too long"}})
                assert refused == 422
            names = json.dumps((await api.call("GET", _PROJECT.format("alpha") + NOTES))["items"])
            assert '"name": "b"' not in names
