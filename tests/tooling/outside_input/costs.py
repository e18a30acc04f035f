"""The largest allowed value of each input, and the code of the daemon that handles it."""

import asyncio
import base64
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
from google.protobuf.duration_pb2 import Duration

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.credentials import jwt
from milo_discoveryd.credentials.issuers import token_endpoint
from milo_discoveryd.credentials.kubeconfig_files import MAX_BYTES, KubeconfigFiles
from milo_discoveryd.model.cluster import Target
from milo_discoveryd.schema.fields import parse_group
from milo_discoveryd.server.calls import requests, revision
from milo_discoveryd.sharding.lease_client import PAGE_BYTES
from milo_discoveryd.sharding.lease_objects import LeaseList, LeaseNames
from milo_discoveryd.sources import reading
from milo_discoveryd.sources.declarative import DeclarativeKind
from milo_discoveryd.sources.keyed import KeyedSource
from milo_discoveryd.sources.kind import SourceKind, SourceOptions
from milo_discoveryd.sources.project import ProjectKind
from milo_discoveryd.sources.service_consumer import ServiceConsumerKind
from milo_discoveryd.state_file import encoding
from milo_kube import file_content
from milo_kube.http.server import FIELDS_LIMIT, REQUEST_LIMIT, HttpReply, HttpServer, ServerRequest
from milo_kube.reflect import wire
from tests.support.stored_fleets import encode
from tests.tooling.outside_input import inputs
from tests.unit.sources.test_kubeconfig_files import files_of

Handling = Callable[[], object]
"""Handles one input, and returns what the daemon keeps of it."""

NOT_MEASURED = {
    "milo_discoveryd.config.layers": "read at the start, before there is an event loop",
    "milo_discoveryd.server.server": "gRPC's memory is not Python's: the attack measures a process",
    "milo_discoveryd.state_file.state_file": "decoded by milo_discoveryd.state_file.encoding",
    "milo_discoveryd.wiring.issuers": "reads 64 bytes",
    "milo_discoveryd.wiring.sharding": "the kubelet writes it",
    "milo_discoveryd.telemetry.board": "reads at most 16 bytes",
    "milo_discoveryd.identity.peer_credentials": "the kernel writes it",
}


def handling(name: str, mark: str, directory: Path) -> Handling:
    """Return the handling of the largest allowed input; inputs with different marks have different contents."""
    if name in inputs.REQUEST_FIELDS:
        return _request(*name.split("."), mark)
    if name in inputs.OBJECT_FIELDS:
        return _object(*name.split("."), mark)
    if name in inputs.RESPONSES:
        return _response(name, mark)
    if name in inputs.FILES:
        return _file(name, mark, directory)
    return _http_request(mark)


# --- requests ---

VALIDATION: dict[str, Callable[[Any], object]] = {
    "WatchClustersRequest": lambda request: requests.watch(request, 30.0),
    "ListClustersRequest": requests.listing,
    "GetClusterRequest": lambda request: requests.name(request.name, "name"),
    "IssueKubeconfigRequest": requests.issue,
    "ReleaseClusterRequest": requests.release,
    "RenewOwnershipRequest": lambda request: requests.subscriber(request.subscriber),
    "EndSubscriptionRequest": lambda request: requests.subscriber(request.subscriber),
}
VALID = {"cluster": "a", "name": "a", "incarnation": "1", "subscriber": "s"}
_LENGTHS = {
    "name": 317,
    "cluster": 317,
    "subscriber": 253,
    "page_token": requests.MAX_TOKEN_LENGTH,
    "incarnation": requests.MAX_INCARNATION_LENGTH,
    "resume_revision": revision.longest(1),
}


def request_with(message: str, field: str, value: object) -> Any:
    """Return a request that is valid apart from this field."""
    if message == "ClusterFilter":
        return request_with("ListClustersRequest", "filter", pb.ClusterFilter(**{field: value}))
    kind = getattr(pb, message)
    names = {descriptor.name for descriptor in kind.DESCRIPTOR.fields}
    return kind(**{name: given for name, given in VALID.items() if name in names} | {field: value})


def _request(message: str, field: str, mark: str) -> Handling:
    match field:
        case "filter":
            value: Any = pb.ClusterFilter(names=_names(mark))
        case "names" | "organizations" | "sources":
            value = _names(mark)
        case "label_selector":
            values = ",".join(f"{number:02}" for number in range(38))
            value = ",".join(f"{mark}{number:02} in ({values})" for number in range(requests.MAX_REQUIREMENTS))
        case "ttl" | "kubeconfig_ttl" | "heartbeat_interval":
            value = Duration(seconds=3600)
        case "page_size":
            value = requests.MAX_PAGE_SIZE
        case "format":
            value = pb.KUBECONFIG_FORMAT_EXEC
        case _:
            value = mark.ljust(_LENGTHS[field], "x") if field in _LENGTHS else True
    request = request_with(message, field, value)
    if message == "WatchClustersRequest" and field == "subscriber":
        request.confirm_releases = True
    validate, data = VALIDATION[request.DESCRIPTOR.name], request.SerializeToString()
    parse = requests.limited(type(request).FromString)
    # A stream keeps its request too, in memory that is not Python's.
    return lambda: (
        validate(requests.whole(parse(data))),
        bytearray(data) if message == "WatchClustersRequest" else b"",
    )


def _names(mark: str) -> list[str]:
    """Return the maximum number of values. They are short: each value takes far more memory than its characters."""
    return [f"{mark[1]}{number:x}" for number in range(requests.MAX_VALUES)]


# --- objects ---

_API = "https://api.example.com"
_PROVIDER = f"{_API}/apis/resourcemanager.miloapis.com/v1alpha1/projects/provider/control-plane"
_SECRET_KEY = "value"
_LONG = 1 << 20
"""Characters of a text in an object. etcd accepts objects of 1.5 MiB."""
_FILLING = b"[" + b"[]," * (1 << 19) + b"[]]"
"""The JSON that takes the most memory: 1.5 MiB of empty lists."""


def _decoder(kind: SourceKind, position: int = 0) -> wire.Decoder[Any, Any]:
    options = SourceOptions(project_server=_API, discovery_server=_PROVIDER, annotation_prefixes=("a/",))
    return KeyedSource(kind.follow(options)).collections[position].decoder


def _declared(**endpoint: str) -> SourceKind:
    resource = {"group": "example.com", "version": "v1", "plural": "clusters", "namespaced": True}
    secret = {"secret": {"name": "{metadata.name}"}} if "secret_key" in endpoint else {}
    return parse_group(DeclarativeKind, {"resource": resource, "endpoint": endpoint, **secret})


_PROJECTS = _decoder(ProjectKind())
_CONSUMERS = _decoder(ServiceConsumerKind(services=("dns",)))
_DECLARED = _decoder(_declared(template="https://{spec.host}"))
_SECRETS = _decoder(_declared(secret_key=_SECRET_KEY), 1)


def _object(struct: str, field: str, mark: str) -> Handling:
    long = mark.ljust(_LONG, "x")
    metadata: dict[str, Any] = {"name": "a", "namespace": "b", "uid": "u", "resourceVersion": "7"}
    spec: dict[str, Any] = {"host": "a.example", "consumerProjectRef": {"name": "a"}}
    condition = {"type": "Ready", "status": "True"}
    status: dict[str, Any] = {"conditions": [condition], "phase": "Active", "serviceName": "dns"}
    document: dict[str, Any] = {"metadata": metadata, "spec": spec, "status": status}
    decoder = _PROJECTS
    match struct:
        case "Metadata":
            metadata |= _metadata(field, mark)
        case "ObjectOwner":
            owner = {"kind": "Organization", field: mark.ljust(reading.ORGANIZATION_CHARACTERS, "x")}
            spec["ownerRef"] = {"kind": long} if field == "kind" else owner
        case "Condition":
            condition |= {"status": "False", field: long}
        case "SuspensionInfo":
            suspension = {"reason": "r", "suspendedAt": "2026-01-01T00:00:00Z", "reinstateAuthority": "me"}
            texts = [f"{mark}{number}".ljust(1000, "x") for number in range(1000)]
            times = [f"2026-01-01T00:00:00.{number:06}Z" for number in range(1000)]
            status["conditions"] = [condition, {"type": "Suspended", "status": "True"}]
            status["suspensions"] = [suspension | {field: text} for text in (times if "At" in field else texts)]
        case "ConsumerCondition":
            decoder, status["conditions"] = _CONSUMERS, [{"type": "Suspended", "status": "True", field: long}]
        case "ConsumerSpec":
            decoder, spec[field] = _CONSUMERS, True
        case "ConsumerStatus":
            decoder, status[field] = _CONSUMERS, long
        case "ProjectReference":
            decoder, spec["consumerProjectRef"] = _CONSUMERS, {field: _dns_name(mark)}
        case "SecretObject":
            decoder, document = _SECRETS, {"metadata": metadata, field: {_SECRET_KEY: _kubeconfig(mark)}}
        case _:
            decoder, document[field] = _DECLARED, {"host": "a.example", "filling": msgspec.Raw(_FILLING)}
    line = msgspec.json.encode({"type": "MODIFIED", "object": document})
    return lambda: decoder.line(line)


def _metadata(field: str, mark: str) -> dict[str, Any]:
    texts = {f"{mark}{number:03}": "x" * 110 for number in range(reading.METADATA_PAIRS)}
    values: dict[str, Any] = {
        "name": _dns_name(mark),
        "namespace": _dns_name(mark),
        "uid": mark.ljust(128, "x"),
        "resourceVersion": mark.ljust(128, "x"),
        "labels": texts,
        "annotations": {f"a/{key}": text for key, text in texts.items()},
        "creationTimestamp": mark.ljust(_LONG, "x"),
        "deletionTimestamp": "2026-01-01T00:00:00Z",
        "finalizers": list(texts.values()),
    }
    more = {"deletionTimestamp": values["deletionTimestamp"]} if field == "finalizers" else {}
    return {field: values[field], **more}


def _dns_name(mark: str) -> str:
    return ".".join((mark.ljust(61, "x"), *["x" * 63] * 3))


def _kubeconfig(mark: str) -> str:
    """Return a kubeconfig with nearly as many bytes and values as are accepted, in base64."""
    text = f"""
apiVersion: v1
kind: Config
clusters: [{{name: a, cluster: {{server: "https://{mark}.example"}}}}]
contexts: [{{name: a, context: {{cluster: a, user: a}}}}]
users: [{{name: a, user: {{token: t}}}}]
current-context: a
extensions:
"""
    return base64.b64encode((text + f"- {mark.ljust(29, 'x')}\n" * 1900).encode()).decode()


# --- responses ---

_LEASES = LeaseNames("default", "group")


def _response(name: str, mark: str) -> Handling:
    module, _, attribute = name.rpartition(".")
    decoder = getattr(importlib.import_module(module), attribute)
    if decoder in (wire._LIST, wire._ITEMS):
        item = b'{"metadata":{"name":"%s"}},' % mark.ljust(wire._SMALLEST_ITEM, "x").encode()
        page = b'{"metadata":{},"items":[%s{"metadata":{}}]}' % (item * (100_000))
        return lambda: _PROJECTS.page(page)  # its objects are decoded in portions
    if module == wire.__name__:
        filling = (b'"x":' + b"[" + b"[]," * (wire.MAX_LINE // 3 - 100) + b"[]]").join((b"{", b"}"))
        line = b'{"type":"%s","object":%s}' % (b"MODIFIED" if decoder is wire._NAMED else b"BOOKMARK", filling)
        return (lambda: _PROJECTS.line(line)) if decoder is not wire._STATUS else (lambda: wire.error_status(filling))
    if module == encoding.__name__:
        data = encode(_fleet(mark))
        return lambda: encoding.decode(data, None)
    size = token_endpoint.MAX_ANSWER if module == token_endpoint.__name__ else 1 << 20
    if module == jwt.__name__:
        size = jwt.MAX_LENGTH * 3 // 4 - 100
    if attribute == "_LEASE_LIST":
        size = PAGE_BYTES
    body = _document(msgspec.inspect.type_info(decoder.type), size, mark)
    if module == jwt.__name__:
        parts = (b'{"alg":"none"}', body) if attribute == "_CLAIMS" else (body, b"{}")
        token = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (*parts, b""))
        return lambda: jwt.claims(token)
    if attribute == "_LEASE_LIST":
        return lambda: _group(body)
    return lambda: decoder.decode(body)


def _group(page: bytes) -> LeaseList:
    leases = LeaseList(_LEASES)
    leases.add(page)
    return leases


def _fleet(mark: str) -> encoding.StoredFleet:
    names = (f"{mark}{number}" for number in range(10_000))
    place = (f"{_API}/projects/", "/control-plane")
    clusters = tuple(encoding.StoredCluster(name, Target(name=name, uid=name, place=place), 0.0) for name in names)
    return encoding.StoredFleet(encoding.StateOrigin("server", "project"), 0.0, clusters)


def _document(kind: Any, size: int, mark: str) -> bytes:
    """Return JSON of this type and about this size, in as many values as possible."""
    match kind:
        case msgspec.inspect.StructType():
            fields = [field for field in kind.fields if field.required]
            rank = [_rank(field.type) for field in kind.fields]
            largest = kind.fields[rank.index(max(rank))] if size else None
            shown = [field for field in kind.fields if field in fields or field is largest]
            parts = [
                b'"%s":%s' % (field.encode_name.encode(), _document(field.type, size if field is largest else 0, mark))
                for field in shown
            ]
            return b"{" + b",".join(parts) + b"}"
        case msgspec.inspect.UnionType():
            return _document(max(kind.types, key=_rank), size, mark)
        case msgspec.inspect.ListType() | msgspec.inspect.VarTupleType():
            item = _document(kind.item_type, 0, mark)
            return b"[" + b",".join([item] * (size // (len(item) + 1))) + b"]"
        case msgspec.inspect.DictType():
            value = _document(kind.value_type, 0, mark)
            entries = (b'"%s%05d":%s' % (mark.encode(), number, value) for number in range(size // (len(value) + 11)))
            return b"{" + b",".join(entries) + b"}"
        case msgspec.inspect.AnyType():
            return b"[" + b"[]," * (size // 3) + b"[]]"
        case msgspec.inspect.StrType():
            return b'"%s"' % mark.ljust(size, "x").encode()
        case msgspec.inspect.DateTimeType():
            return b'"2026-01-01T00:00:00Z"'
        case msgspec.inspect.BoolType():
            return b"true"
        case _:
            return b"1"


def _rank(kind: Any) -> int:
    """Return how much memory a value of this type can take, compared with others."""
    order = (
        msgspec.inspect.NoneType,
        (msgspec.inspect.BoolType, msgspec.inspect.IntType, msgspec.inspect.FloatType, msgspec.inspect.DateTimeType),
        msgspec.inspect.StrType,
        msgspec.inspect.StructType,
        msgspec.inspect.DictType,
        (msgspec.inspect.ListType, msgspec.inspect.VarTupleType),
        msgspec.inspect.AnyType,
    )
    if isinstance(kind, msgspec.inspect.UnionType):
        return max(map(_rank, kind.types))
    return next(rank for rank, types in enumerate(order) if isinstance(kind, types))


# --- files and connections ---


def _file(name: str, mark: str, directory: Path) -> Handling:
    path = directory / mark
    if name == "milo_discoveryd.credentials.kubeconfig_files":
        path.mkdir()
        (path / "a").write_bytes(base64.b64decode(_kubeconfig(mark)).ljust(MAX_BYTES, b"\n"))
        files = KubeconfigFiles(files_of("kubeconfig-directory", path=str(path)), wall=lambda: 4e9)
        return lambda: (files.scan(), files)
    path.write_text(mark.ljust(file_content.MAX_BYTES, "x"))
    content = file_content.FileContent(path)
    return lambda: (content.read(), content)


class _Transport:
    def abort(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, _: str) -> None:
        return None


def _http_request(mark: str) -> Handling:
    """Return the handling of a request that waits for its reply."""

    async def never(request: ServerRequest) -> HttpReply:
        await asyncio.Event().wait()
        raise AssertionError("not reached")

    fields = "&".join(f"{mark}{number:03}" for number in range(FIELDS_LIMIT))
    head = f"GET /?{fields} HTTP/1.1\r\n" + "".join(f"{mark}{number:02}: y\r\n" for number in range(FIELDS_LIMIT - 1))
    data = f"{head}z: {'z' * (REQUEST_LIMIT - len(head) - 10)}\r\n\r\n".encode()

    def handle() -> object:
        connection = HttpServer(never, connections=1)._accepted()
        connection.connection_made(cast(asyncio.Transport, _Transport()))
        connection.data_received(data)
        return connection

    return handle
