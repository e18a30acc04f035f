"""The context of a server's URL."""

import pytest

from milo_discoveryd.sources.context import ContextKind, MiloContext, context_of, root_of, wrong_context

RESOURCES = "/apis/resourcemanager.miloapis.com/v1alpha1"
ORGANIZATION = f"{RESOURCES}/organizations/acme/control-plane"
PROJECT = f"{RESOURCES}/projects/apollo/control-plane"


@pytest.mark.parametrize(
    ("path", "context"),
    [
        ("", MiloContext()),
        ("/milo", MiloContext()),
        (RESOURCES, MiloContext()),
        (f"{RESOURCES}/organizations/acme", MiloContext()),
        (ORGANIZATION, MiloContext(ContextKind.ORGANIZATION, "acme")),
        (f"{ORGANIZATION}/", MiloContext(ContextKind.ORGANIZATION, "acme")),
        (f"/gateway{ORGANIZATION}", MiloContext(ContextKind.ORGANIZATION, "acme")),
        (f"{RESOURCES}/organizations/%61cme%2Fcontrol-plane", MiloContext(ContextKind.ORGANIZATION, "acme")),
        (PROJECT, MiloContext(ContextKind.PROJECT, "apollo")),
        (ORGANIZATION + PROJECT, MiloContext(ContextKind.PROJECT, "apollo")),
        ("/apis/iam.miloapis.com/v1alpha1/users/ada/control-plane", MiloContext(ContextKind.USER, "ada")),
    ],
)
def test_milo_context_is_the_last_context_in_the_server_path(path: str, context: MiloContext) -> None:
    assert context_of(f"https://milo.example.com:6443{path}") == context


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("", ""),
        ("/milo/", "/milo"),
        (RESOURCES, RESOURCES),
        (ORGANIZATION, ""),
        (f"/gateway{PROJECT}/", "/gateway"),
        (ORGANIZATION + PROJECT, ""),
    ],
)
def test_milo_root_is_the_server_path_before_the_contexts(path: str, root: str) -> None:
    assert root_of(f"https://milo.example.com:6443{path}") == f"https://milo.example.com:6443{root}"


def test_milo_context_string_has_kind_and_name() -> None:
    assert [str(MiloContext()), str(MiloContext(ContextKind.ORGANIZATION, "acme"))] == ["root", "organization acme"]


@pytest.mark.parametrize("accepted", [(), (ContextKind.ROOT, ContextKind.PROJECT)])
def test_context_that_the_mode_accepts_is_not_reported(accepted: tuple[ContextKind, ...]) -> None:
    assert wrong_context("any", f"https://milo.example.com{PROJECT}", accepted) is None


def test_context_that_the_mode_rejects_is_reported_with_the_accepted_contexts() -> None:
    wrong = wrong_context("project", f"https://milo.example.com{PROJECT}", (ContextKind.ROOT,))
    assert wrong is not None
    assert "points to the context of project apollo" in wrong[0]
    assert "mode project cannot work there" in wrong[0]
    assert wrong[1] == "set the kubeconfig's server to https://MILO (root)"
