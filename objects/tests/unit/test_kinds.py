"""Kinds say which objects are followed, and are refused with the remedy."""

import msgspec
import pytest

from milo_objects.kinds import Kind


def test_kind_has_path_and_selector_of_its_objects() -> None:
    kind = Kind("example.com/v1/widgets", ["spec.size"], label_selector="team=a")

    assert kind.path == "/apis/example.com/v1/widgets"
    assert kind.query == []
    assert kind.selector.matches([("team", "a")])
    assert str(kind) == "example.com/v1/widgets (team=a)"
    assert kind == Kind("example.com/v1/widgets", ("spec.size",), label_selector="team=a")
    assert {kind: 1}[Kind("example.com/v1/widgets", ["spec.size"], label_selector="team=a")] == 1


@pytest.mark.parametrize(
    ("fields", "metadata_only"),
    [
        ((), True),
        (("metadata.labels", "metadata.ownerReferences[*].uid"), True),
        (("metadata.labels", "status.phase"), False),
    ],
)
def test_kind_without_fields_outside_of_metadata_is_read_as_metadata(
    fields: tuple[str, ...], metadata_only: bool
) -> None:
    assert Kind("v1/namespaces", fields).metadata_only is metadata_only


@pytest.mark.parametrize("resource", ["v1/secrets", "v1beta1/secrets"])
def test_secrets_are_refused_unless_kind_says_secrets(resource: str) -> None:
    with pytest.raises(ValueError, match="unless their kind has secrets=True"):
        Kind(resource)
    with pytest.raises(ValueError, match="unless their kind has secrets=True"):
        Kind(resource, ["metadata.annotations"])

    assert Kind(resource, secrets=True).metadata_only
    assert str(Kind("example.com/v1/secrets")) == "example.com/v1/secrets"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"resource": "namespaces"}, "'namespaces' does not name a resource"),
        ({"resource": "v1/pods", "fields": ["a..b"]}, r"v1/pods: 'a\.\.b' is not the path of a field"),
        ({"resource": "v1/pods", "label_selector": "a=b=c"}, "v1/pods: the label selector 'a=b=c': expected ','"),
    ],
)
def test_invalid_kind_is_refused_with_its_name(given: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Kind(**given)  # type: ignore[arg-type]


def test_fields_as_a_string_are_refused() -> None:
    with pytest.raises(TypeError, match=r"write \['status.phase'\]"):
        Kind("v1/pods", "status.phase")


def test_kind_is_decoded_from_a_declaration() -> None:
    declared = {"resource": "v1/namespaces", "fields": ["status.phase"], "labelSelector": "!internal"}

    assert msgspec.convert(declared, Kind) == Kind("v1/namespaces", ["status.phase"], label_selector="!internal")
    with pytest.raises(msgspec.ValidationError, match="unless their kind has secrets=True"):
        msgspec.convert({"resource": "v1/secrets"}, Kind)
    with pytest.raises(msgspec.ValidationError, match="unknown field `labelselector`"):
        msgspec.convert({"resource": "v1/pods", "labelselector": ""}, Kind)
