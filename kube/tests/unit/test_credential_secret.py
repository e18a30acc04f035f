"""Secrets are masked in every output."""

import copy
import pickle

import pytest

from milo_kube.credential import ClientCertificate, Credential, Secret


def test_secret_value_is_returned_by_reveal() -> None:
    assert Secret("hunter2").reveal() == "hunter2"


@pytest.mark.parametrize(
    "render", [str, repr, "{}".format, "{:>30}".format, "%s".__mod__, lambda secret: f"{secret!r}"]
)
def test_secret_is_masked_in_every_output(render) -> None:  # type: ignore[no-untyped-def]
    assert "hunter2" not in render(Secret("hunter2"))
    credential = Credential(token=Secret("hunter2"), certificate=ClientCertificate(chain=b"", key=Secret("hunter2")))
    assert "hunter2" not in str(render(str(credential)))


def test_secrets_compare_by_value() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1


def test_secret_cannot_be_pickled_or_copied() -> None:
    for attempt in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match="cannot be pickled"):
            attempt(Secret("hunter2"))
