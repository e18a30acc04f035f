"""Seeds of the targets: valid inputs. Findings are files in the corpus."""

import base64
import json
from pathlib import Path

import msgspec
import yaml
from google.protobuf.duration_pb2 import Duration

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.model.cluster import Target
from milo_discoveryd.server.calls.revision import Position, TokenSigner
from milo_discoveryd.state_file.encoding import StateOrigin, StoredCluster, StoredFleet
from tests.support.certificates import CA
from tests.support.giant_keys import GiantPair

CORPUS = Path(__file__).parent / "corpus"

_PROJECT = {
    "metadata": {
        "name": "alpha",
        "uid": "u1",
        "resourceVersion": "7",
        "labels": {"env": "prod"},
        "annotations": {"example.com/a": "b"},
        "deletionTimestamp": "2026-01-01T00:00:00Z",
    },
    "spec": {"ownerRef": {"kind": "Organization", "name": "acme"}},
    "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "ControlPlaneReady", "status": "True"}]},
}
_STATUS = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old", "details": {"name": "alpha"}}
_END = {"metadata": {"resourceVersion": "9", "annotations": {"k8s.io/initial-events-end": "true"}}}
_LIST = {"metadata": {"resourceVersion": "9", "continue": "more"}, "items": [_PROJECT, {"metadata": {"name": "beta"}}]}
_KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": "a", "cluster": {"server": "https://milo.test", "certificate-authority-data": "YQ=="}}],
    "users": [{"name": "a", "user": {"exec": {"apiVersion": "v1", "command": "/x", "args": ["a"]}}}],
    "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
    "current-context": "a",
}
_NOW = 1_800_000_000.0
_GIANT, _SMALL = GiantPair(20_000, _NOW), GiantPair(1_024, _NOW)
_ISSUED = _KUBECONFIG | {
    "users": [
        {
            "name": "a",
            "user": {
                "client-certificate-data": base64.b64encode(_SMALL.certificate).decode(),
                "client-key-data": base64.b64encode(_SMALL.key).decode(),
            },
        }
    ]
}
_GIANTS = _ISSUED | {"users": [{"name": "a", "user": {"token": "ü", "client-key-data": "für"}}]}
_NO_ASCII = "Schlüssel für ☂"
_FLEET = StoredFleet(
    StateOrigin("https://milo.test", "project"),
    1.0,
    (StoredCluster("u1", Target(name="a", uid="u1", place=("https://a",)), 1.0),),
)


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _event(kind: str, value: object) -> bytes:
    return _json({"type": kind, "object": value})


def _jwt(**claims: object) -> bytes:
    parts = ({"alg": "RS256"}, {"sub": "system:serviceaccount:milo:operators", "aud": ["milo"], **claims})
    return b".".join([*(base64.urlsafe_b64encode(_json(part)).rstrip(b"=") for part in parts), b"c2ln"])


SEEDS: dict[str, list[bytes]] = {
    "lines": [b"\x03\x01\x00\x07\x01\x01\x01\x01one\n\ntwo\nthr", b"\0" * 8 + b"x" * 500],
    "watch-events": [
        *(_event(kind, _PROJECT) for kind in ("ADDED", "MODIFIED", "DELETED", "OTHER")),
        _event("BOOKMARK", _END),
        _event("ERROR", _STATUS),
    ],
    "objects": [_json(_PROJECT), b'{"metadata":{"name":"a"}}'],
    "pages": [_json(_LIST), b'{"metadata":{},"items":null}'],
    "deletions": [
        b"\0".join((_event("ADDED", _PROJECT), _event("MODIFIED", _PROJECT), _json(_PROJECT))),
        b"\0".join((_event("ADDED", _PROJECT), _event("DELETED", _PROJECT), _json(_STATUS), _json(_LIST))),
        b"\0".join((b"", _event("ERROR", _STATUS), b"", _json(_LIST))),
    ],
    "refusals": [_json(_STATUS), b"<html>no healthy upstream</html>"],
    "retry-after-headers": [b"30", b"Thu, 01 Jan 2026 12:00:30 GMT", b"Thu, 01 Jan 2026 12:00:30 +0100"],
    "names": [b"alpha", b"a.b-c", b"..", b"%2e%2e", b"a\n", b"\xd0\xb0"],
    "selectors": [b"env=prod,tier in (a, b),!gone,n>5", b"a.b/c notin (x)", b"env!=prod , there"],
    "resume-tokens": [TokenSigner(b"key").sign(str(Position("0123456789abcdef", 7, 3)), "me").encode(), b"0.1"],
    "watch-requests": [
        pb.WatchClustersRequest(
            filter=pb.ClusterFilter(label_selector="env=prod", names=["a"], organizations=["b"]),
            resume_revision="r",
            heartbeat_interval=Duration(seconds=1),
            kubeconfig_ttl=Duration(seconds=600),
        ).SerializeToString()
    ],
    "other-requests": [
        pb.ListClustersRequest(page_size=7, page_token="t").SerializeToString(),
        pb.IssueKubeconfigRequest(cluster="a", ttl=Duration(nanos=-1), incarnation="i").SerializeToString(),
    ],
    "tokens": [_jwt(exp=1_800_000_500, nbf=1, iat=1), _jwt(exp="soon"), b"opaque"],
    "token-requests": [
        _json({"status": {"token": _jwt(exp=1_800_000_500).decode(), "expirationTimestamp": "2027-01-15T08:10:00Z"}})
    ],
    "exec-plugins": [
        _json(
            {
                "apiVersion": "client.authentication.k8s.io/v1",
                "kind": "ExecCredential",
                "status": {"token": "t", "expirationTimestamp": "2027-01-15T08:10:00Z"},
            }
        )
    ],
    "kubeconfigs": [
        _json(_KUBECONFIG),
        yaml.safe_dump(_KUBECONFIG).encode(),
        _json(_ISSUED),
        yaml.safe_dump(_GIANTS, allow_unicode=True).encode(),
    ],
    "kubeconfig-secrets": [
        _NO_ASCII.encode(),
        _json({"data": {"kubeconfig": base64.b64encode(_json(_ISSUED)).decode()}}),
        _json({"data": {"kubeconfig": _NO_ASCII, "t": "ZsO8cg==", "a": _NO_ASCII}}),
        _json({"data": {"c": base64.b64encode(_SMALL.certificate).decode(), "k": _NO_ASCII}}),
        base64.b64encode(_GIANT.certificate + _GIANT.key),
        base64.b64encode(_json(_ISSUED)),
    ],
    "kubeconfig-requests": [
        _NO_ASCII.encode(),
        base64.b64encode(_json(_ISSUED)),
        base64.b64encode(yaml.safe_dump(_GIANTS, allow_unicode=True).encode()),
        _json({"status": {"kubeconfig": "für", "expirationTimestamp": "2027-01-15T08:10:00Z"}}),
    ],
    "stated-servers": [_NO_ASCII.encode(), CA.encode(), base64.b64encode(_json(_KUBECONFIG)), _GIANT.certificate],
    "keys": [
        CA.encode() + _SMALL.certificate + _SMALL.key + _SMALL.key_in_pkcs8,
        _GIANT.certificate + _GIANT.key,
        _GIANT.key_in_pkcs8,
        _NO_ASCII.encode() + CA.encode(),
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n",
    ],
    "tls-of-servers": [
        bytes.fromhex(
            "01020304 16030300 3a 02000036 0303 cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c"
            "00 130200 000e 002b00020304 00330002 0104 0000"
        ),
        b"\1\2\3\4" + bytes.fromhex("140303000101 15030300020100 160303000400000000 1603030005020000ffff"),
        b"\xff\xff\xff\xffHTTP/1.1 400 Bad Request\r\n\r\n",
    ],
    "servers-of-kubeconfigs": [b"https://milo.test:6443/prefix", b"http://[::1]:1", b"https://u@h/../x"],
    "yaml-documents": [b"a: &x [1, 2]\nb: *x\nc: {d: no}\n", b"<<: {a: 1}\n", b"!!python/object:x {}\n"],
    "state-files": [msgspec.msgpack.encode(_FLEET)],
}


def begun_with(target: str) -> list[bytes]:
    kept = sorted((CORPUS / target).glob("*"))
    return [*SEEDS[target], *(path.read_bytes() for path in kept)]
