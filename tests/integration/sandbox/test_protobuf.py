"""Protobuf bodies as kubectl sends them."""

import pytest

from milo_sandbox import protobuf
from milo_sandbox.refusals import RefusalError


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content


def message(kind: str, raw: bytes) -> bytes:
    return b"k8s\x00" + field(1, field(1, b"v1") + field(2, kind.encode())) + field(2, raw)


def test_protobuf_config_map_is_decoded() -> None:
    metadata = field(1, b"one") + field(3, b"") + field(11, field(1, b"a") + field(2, b"b"))
    raw = field(1, metadata) + field(2, field(1, b"k") + field(2, b"v")) + field(3, field(1, b"x") + field(2, b"\xff"))
    assert protobuf.read(message("ConfigMap", raw + b"\x20\x01")) == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "one", "namespace": "", "labels": {"a": "b"}},
        "data": {"k": "v"},
        "binaryData": {"x": "/w=="},
        "immutable": True,
    }


def test_unknown_fields_of_any_type_are_skipped() -> None:
    unknown = b"\xf9\x01" + bytes(8) + b"\xfd\x01" + bytes(4) + b"\xf8\x01\x96\x01"
    assert protobuf.read(message("Namespace", unknown + field(1, field(1, b"work"))))["metadata"] == {"name": "work"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"k8s\x00",
        b"k8s\x00\x0a\xff",
        b"k8s\x00\x0f",
        b"k8s\x00\x0a",
        b"k8s\x00\x08\x01",
        message("ConfigMap", b"\x08\x01"),
        message("ConfigMap", field(1, field(1, b"\xff"))),
        message("Namespace", b"\x08" + b"\xff" * 11),
    ],
)
def test_invalid_protobuf_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(RefusalError) as error:
        protobuf.read(body)
    assert error.value.code == 400


def test_protobuf_of_an_unsupported_kind_is_an_unsupported_media_type() -> None:
    with pytest.raises(RefusalError, match="Pod") as error:
        protobuf.read(message("Pod", b""))
    assert error.value.code == 415
