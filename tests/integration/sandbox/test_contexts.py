"""The contexts of organizations and users."""

from collections.abc import Callable

import pytest

from milo_sandbox import Sandbox
from milo_sandbox.api import Features
from milo_sandbox.contexts import ORGANIZATION_LABEL
from tests.integration.sandbox.client import PROJECTS, Client

ACME = "/apis/resourcemanager.miloapis.com/v1alpha1/organizations/acme/control-plane"
ADA = "/apis/iam.miloapis.com/v1alpha1/users/ada/control-plane"


def populate(sandbox: Sandbox) -> None:
    for name, organization, env in (("a", "acme", "prod"), ("b", "acme", "dev"), ("c", "evil", "prod")):
        sandbox.milo.found(name, organization, {"env": env})


async def test_list_is_limited_to_the_organization_whatever_the_request_selects(
    client: Client, sandbox: Sandbox
) -> None:
    populate(sandbox)
    assert (await client.get(ACME + PROJECTS)).names == ["a", "b"]
    for selector in (f"{ORGANIZATION_LABEL}=evil,env in (prod, dev)", f"!{ORGANIZATION_LABEL}", "env in (prod, dev)"):
        assert (await client.get(ACME + PROJECTS, labelSelector=selector)).names == ["a", "b"]
    assert (await client.get(ACME + PROJECTS, labelSelector=f"env=prod,{ORGANIZATION_LABEL} in (evil,x)")).names == [
        "a"
    ]


async def test_project_of_another_organization_can_be_read_by_name(client: Client, sandbox: Sandbox) -> None:
    populate(sandbox)
    assert (await client.get(f"{ACME}{PROJECTS}/c")).json["metadata"]["name"] == "c"
    assert (await client.get(f"{ACME}{PROJECTS}/c/control-plane/readyz")).status == 200


@pytest.mark.parametrize("is_limited", [False, True])
async def test_watch_is_limited_to_the_organization_only_if_organization_watches_is_enabled(
    connect: Callable[[Sandbox], Client], *, is_limited: bool
) -> None:
    async with Sandbox(features=Features(organization_watches=is_limited)) as sandbox:
        populate(sandbox)
        sandbox.milo.found("d", "acme", {})
        async with connect(sandbox).watch(ACME + PROJECTS) as stream:
            found = [name for _, name in await stream.take(3)]
            assert found == (["a", "b", "d"] if is_limited else ["a", "b", "c"])


async def test_context_of_a_user_shows_all_projects(client: Client, sandbox: Sandbox) -> None:
    populate(sandbox)
    assert (await client.get(ADA + PROJECTS)).names == ["a", "b", "c"]


async def test_invalid_organization_is_a_bad_request(client: Client) -> None:
    invalid = await client.get(f"{ACME.replace('acme', '-acme')}{PROJECTS}")
    assert (invalid.status, invalid.json["message"]) == (400, 'invalid organization ID "-acme"')
