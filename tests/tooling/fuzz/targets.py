"""Fuzz targets: each accepts arbitrary bytes, and raises only for a bug."""

import hashlib
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from google.protobuf.message import DecodeError

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.credentials import jwt
from milo_discoveryd.credentials.issued_credential import IssuedCredential, validate
from milo_discoveryd.credentials.issuers.cluster_objects import ClusterObjects
from milo_discoveryd.credentials.issuers.issuer import MintRequest, RequestingDaemon
from milo_discoveryd.credentials.issuers.kubeconfig_request import KubeconfigRequestIssuer
from milo_discoveryd.credentials.issuers.kubeconfig_secret import CredentialPaths, KubeconfigSecretIssuer, SecretPlace
from milo_discoveryd.credentials.issuers.token_request import RequestedTokens, TokenRequestIssuer
from milo_discoveryd.model.cluster import DeclaredTarget, Target
from milo_discoveryd.model.observation import Malformed, NotReady, Observation, Outside, Ready
from milo_discoveryd.model.resource import Resource
from milo_discoveryd.server.calls import requests, revision
from milo_discoveryd.server.calls.grpc_errors import CallError
from milo_discoveryd.sources.endpoints import checked_authorities, decoded_kubeconfig, server_of
from milo_discoveryd.sources.field_path import FieldPath
from milo_discoveryd.sources.kind import SourceOptions
from milo_discoveryd.sources.project import ProjectKind
from milo_discoveryd.sources.project_control_plane import ProjectControlPlaneKind
from milo_discoveryd.sources.reading import MalformedError
from milo_discoveryd.state_file import encoding
from milo_kube import key_sizes, kubeconfig, retry_after, yaml_document
from milo_kube.credential import Credential, CredentialError, Secret, token_of
from milo_kube.exec_plugin import ExecCommand, ExecPluginError, read_answer
from milo_kube.http.tls_records import Reading, ServerHello
from milo_kube.label_selector import SelectorError
from milo_kube.label_selector import parse as parse_selector
from milo_kube.reflect.wire import (
    Bookmark,
    Decoder,
    ErrorStatus,
    Lines,
    LineTooLongError,
    ListPageError,
    ObjectRemoved,
    ObjectSeen,
    Undecodable,
    UnknownEvent,
    error_status,
)
from tests.support.stored_fleets import encode
from tests.tooling.fuzz import chain
from tests.unit.credentials.backend import Answer, ScriptedApi, engaged

T = TypeVar("T")
Fuzzed = Callable[[bytes], None]
TARGETS: dict[str, Fuzzed] = {}

NOW = 1_800_000_000.0
_OPTIONS = SourceOptions(project_server="https://milo.test", annotation_prefixes=("example.com/",))
_FOLLOWED = tuple(kind.follow(_OPTIONS) for kind in (ProjectKind(), ProjectControlPlaneKind()))
_DECODERS = tuple(
    (collection, Decoder(collection.object_type, collection.observe, Malformed)) for collection in _FOLLOWED
)
_ORIGIN = encoding.StateOrigin("https://milo.test", "project")
_LONGEST_LINE = 400
_SHOOT = DeclaredTarget(name="n.a", uid="u", place=("https://a.test",), object_namespace="n", object_name="a")
_FIELDS_OF_SECRETS = (
    CredentialPaths(token=FieldPath.parse("stringData[t]"), ca=FieldPath.parse("stringData[a]")),
    CredentialPaths(certificate=FieldPath.parse("stringData[c]"), private_key=FieldPath.parse("stringData[k]")),
)


def target(fuzzed: Fuzzed) -> Fuzzed:
    TARGETS[fuzzed.__name__.replace("_", "-")] = fuzzed
    return fuzzed


# --- bytes from API servers ---


@target
def lines(data: bytes) -> None:
    """Split bytes into lines: chunk boundaries make no difference."""
    sizes, content = data[:8], data[8:]

    def cut(chunks: list[bytes]) -> list[bytes] | None:
        splitter, found = Lines(_LONGEST_LINE), []
        try:
            for chunk in chunks:
                found += [bytes(line) for line in splitter.feed(chunk)]
        except LineTooLongError:
            return None
        assert splitter.partial == len(content.rpartition(b"\n")[2])
        return found

    chunks, rest = [], content
    for size in sizes:
        chunks.append(rest[:size])
        rest = rest[size:]
    wanted = [line for line in content.split(b"\n")[:-1] if line]
    is_too_long = any(len(line) > _LONGEST_LINE for line in content.split(b"\n"))
    assert cut([*chunks, rest]) == cut([content]) == (None if is_too_long else wanted)


@target
def watch_events(data: bytes) -> None:
    for _, decoder in _DECODERS:
        match decoder.line(data):
            case ObjectSeen(observation):
                _sound(observation)
            case ObjectRemoved(name):
                assert name
            case Bookmark() | ErrorStatus() | Undecodable() | UnknownEvent():
                pass


@target
def objects(data: bytes) -> None:
    for _, decoder in _DECODERS:
        observation = decoder.object(data)
        assert observation == decoder.object(data)
        if observation is not None:
            _sound(observation)


@target
def pages(data: bytes) -> None:
    for _, decoder in _DECODERS:
        try:
            _, found = decoder.page(data)
        except ListPageError:
            continue
        for observation in found:
            _sound(observation)


@target
def deletions(data: bytes) -> None:
    """Send the bytes of an API server to a client's session, with the confirmation of deletions."""
    listed, watched, found, *rest = [*data.split(b"\0", 3), b"", b"", b""]
    kind = chain.KINDS[len(data) % 2]
    page = rest[0] or None
    chain.run(chain.Script(listed, watched, found, page), kind, streaming=page is None)


@target
def refusals(data: bytes) -> None:
    refused = error_status(data, 503)
    assert len(refused.message) <= 600
    refused.message.encode()


@target
def retry_after_headers(data: bytes) -> None:
    delay = retry_after.stated({"Retry-After": data.decode("latin-1")}, datetime.fromtimestamp(NOW, UTC))
    assert delay is None or abs(delay) < 1e12


@target
def names(data: bytes) -> None:
    """Use a name in an endpoint: it leads to one host and path, or is rejected."""
    name = data.decode("utf-8", "replace")
    conditions = [{"type": kind, "status": "True"} for kind in ("Ready", "ControlPlaneReady")]
    metadata = {"name": name, "uid": "u", "resourceVersion": "1"}
    document = {"metadata": metadata, "status": {"conditions": conditions}}
    for mode in _FOLLOWED:
        observation = mode.observe(msgspec.convert(document, mode.object_type))
        if not isinstance(observation, Ready):
            continue
        parts = urlsplit(observation.target.endpoint)
        assert (parts.scheme, parts.query, parts.fragment, parts.username) == ("https", "", "", None)
        if mode is _FOLLOWED[0]:
            assert parts.netloc == "milo.test"
            assert parts.path == f"{mode.resource.path}/{name}/control-plane"
        else:
            assert parts.netloc == f"milo-apiserver.project-{name}.svc.cluster.local:6443"
            assert parts.path == ""


# --- bytes from subscribers ---


@target
def selectors(data: bytes) -> None:
    try:
        selector = parse_selector(data.decode("utf-8", "replace"))
    except SelectorError:
        return
    assert str(parse_selector(str(selector))) == str(selector)
    for labels in ((), (("env", "prod"),), (("env", ""), ("n", "12"))):
        assert parse_selector(str(selector)).matches(labels) == selector.matches(labels)


@target
def resume_tokens(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    position = revision.parse(text)
    signer = revision.TokenSigner(b"key")
    assert signer.verify(text, "holder") is None
    if position is not None:
        signed = signer.sign(str(position), "holder")
        assert revision.parse(signed) == position
        assert signer.verify(signed, "holder") == str(position)
        assert signer.verify(signed, "another") is None


@target
def watch_requests(data: bytes) -> None:
    try:
        request = pb.WatchClustersRequest.FromString(data)
        asked = requests.watch(request, 30.0)
    except (DecodeError, CallError):
        return
    low, high = requests.HEARTBEAT_BOUNDS_S
    assert low <= asked.heartbeat_s <= high
    assert asked.kubeconfig_ttl_s is None or asked.kubeconfig_ttl_s > 0


@target
def other_requests(data: bytes) -> None:
    with suppress(DecodeError, CallError):
        requests.listing(pb.ListClustersRequest.FromString(data))
    with suppress(DecodeError, CallError):
        requests.issue(pb.IssueKubeconfigRequest.FromString(data))


# --- bytes from credential issuers ---


@target
def tokens(data: bytes) -> None:
    """Parse a backend's response: the result is a valid credential, or an error without its content."""
    try:
        token = token_of(data.decode("utf-8", "replace"), "the token")
        minted = validate(Credential(token=token), NOW, origin="a backend", expires_at=NOW + 600, audiences=("milo",))
    except CredentialError as error:
        said = str(error)
    else:
        said = ""
        _good(minted, token)
    assert len(data) < 12 or data.decode("utf-8", "replace") not in said


def _good(minted: IssuedCredential, token: Secret) -> None:
    assert NOW < minted.expires_at <= NOW + 600
    claims = jwt.claims(token.reveal())
    assert claims is None or "milo" in claims.audiences


@target
def token_requests(data: bytes) -> None:
    api = ScriptedApi(Answer(201, data))
    source = TokenRequestIssuer(
        "requested",
        api,
        origin="test",
        tokens=RequestedTokens(namespace="milo", service_account="operators", bound=False),
        daemon=RequestingDaemon(run="fuzz"),
        clock=lambda: NOW,
    )
    with suppress(CredentialError):
        minted = _finished(source.mint(MintRequest(ttl_s=900, cluster=None)))
        assert minted.expires_at > NOW


def _finished(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits, without a loop."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("the coroutine waits, although its response is available")


def _mint(issuer: KubeconfigSecretIssuer | KubeconfigRequestIssuer) -> None:
    """Request a credential: the result is valid and has small keys, or an error of this cluster."""
    with suppress(CredentialError):
        minted = _finished(issuer.mint(MintRequest(ttl_s=900, cluster=engaged(_SHOOT))))
        certificate = minted.credential.certificate
        if certificate is not None:
            key_sizes.check(certificate.chain + certificate.key.reveal().encode(), key_sizes.RECEIVED_BITS)


@target
def kubeconfig_secrets(data: bytes) -> None:
    """Read a Secret as a kubeconfig, and as separate fields. The data is a response, or the value of each key."""
    text = data.decode("utf-8", "replace")
    values = dict.fromkeys("tckak", text) | {"kubeconfig": text}
    for body in (data, msgspec.json.encode({"data": values})):
        for reading in ("kubeconfig", *_FIELDS_OF_SECRETS):
            _mint(
                KubeconfigSecretIssuer(
                    "secret",
                    ScriptedApi(Answer(200, body)),
                    origin="test",
                    place=SecretPlace("n", "s"),
                    reading=reading,
                    states_server=True,
                    allow_long_lived=True,
                    clock=lambda: NOW,
                )
            )


_SHOOTS = Resource("g.test", "v1", "shoots", namespaced=True)


@target
def kubeconfig_requests(data: bytes) -> None:
    """Read the response to a request for a kubeconfig. The data is the response, or the kubeconfig in it."""
    for body in (data, msgspec.json.encode({"status": {"kubeconfig": data.decode("utf-8", "replace")}})):
        _mint(
            KubeconfigRequestIssuer(
                "request",
                ScriptedApi(Answer(201, body)),
                origin="test",
                objects=ClusterObjects(ScriptedApi(Answer(200, body)), "test", _SHOOTS),
                subresource="adminkubeconfig",
                api_version="g.test/v1",
                kind="Request",
                clock=lambda: NOW,
            )
        )


@target
def stated_servers(data: bytes) -> None:
    """Read what objects state: CAs and kubeconfigs, encoded or not."""
    text = data.decode("utf-8", "replace")
    with suppress(MalformedError):
        key_sizes.check(checked_authorities(text, "spec.ca"), key_sizes.RECEIVED_BITS)
    with suppress(MalformedError):
        server_of(decoded_kubeconfig(text, "spec.kubeconfig"), kubeconfig.SERVER, "spec.kubeconfig")


@target
def keys(data: bytes) -> None:
    """Check certificates and keys: what passes is small, and OpenSSL loads it at once or not at all."""
    try:
        key_sizes.check(data, key_sizes.RECEIVED_BITS)
    except key_sizes.KeySizeError:
        return
    with suppress(ValueError, TypeError, UnsupportedAlgorithm):
        key = load_pem_private_key(data, None, unsafe_skip_rsa_key_validation=True)
        assert isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey)
        assert not isinstance(key, rsa.RSAPrivateKey) or key.key_size <= key_sizes.RECEIVED_BITS
    with suppress(ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        for certificate in x509.load_pem_x509_certificates(data):
            public = certificate.public_key()
            assert isinstance(public, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey)
            assert not isinstance(public, rsa.RSAPublicKey) or public.key_size <= key_sizes.RECEIVED_BITS


@target
def tls_of_servers(data: bytes) -> None:
    """Read the first bytes of a server in pieces whose sizes the data begins with: they are read, or refused."""
    sizes, content = data[:4], data[4:]
    whole, divided = ServerHello(), ServerHello()
    outcomes = []
    for hello, pieces in ((whole, [content]), (divided, _divided(content, sizes))):
        try:
            for piece in pieces:
                hello.read(piece)
        except ConnectionAbortedError as error:
            outcomes.append(str(error))
        else:
            outcomes.append("")
    assert outcomes[0] == outcomes[1]
    reading, taken = Reading(), b""
    reading.add(content)
    while reading.has_data:
        reading.begin_turn()
        while piece := reading.take():
            taken += piece
    assert taken == content


def _divided(content: bytes, sizes: bytes) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(content[:size])
        content = content[size:]
    return [*pieces, content]


@target
def kubeconfigs(data: bytes) -> None:
    for policy in (kubeconfig.LOCAL, kubeconfig.STATED, kubeconfig.RECEIVED, kubeconfig.SELF_CONTAINED):
        with suppress(kubeconfig.KubeconfigError):
            kubeconfig.parse(data).select(policy)


@target
def exec_plugins(data: bytes) -> None:
    command = ExecCommand(api_version="client.authentication.k8s.io/v1", argv=("plugin",), environment={})
    with suppress(ExecPluginError):
        read_answer(data, command, NOW)


@target
def servers_of_kubeconfigs(data: bytes) -> None:
    server = data.decode("utf-8", "replace")
    if kubeconfig.server_problem(server) is None:
        parts = urlsplit(server)
        assert parts.scheme in {"http", "https"}
        assert parts.hostname
        assert parts.username is None


@target
def yaml_documents(data: bytes) -> None:
    each: tuple[yaml_document.Scalars, ...] = ("text", "typed")
    for scalars in each:
        with suppress(yaml_document.DocumentError):
            yaml_document.read(data, scalars=scalars)


# --- stored bytes ---


@target
def state_files(data: bytes) -> None:
    """Read the data as a state file, and as the body of a state file whose header has the right checksum."""
    head = f"milo-discoveryd state {encoding.FORMAT} {hashlib.sha256(data).hexdigest()}\n".encode()
    for content in (data, head + data):
        try:
            found = encoding.decode(content, _ORIGIN)
        except encoding.StateFileError:
            continue
        assert encoding.decode(encode(found), _ORIGIN) == found


def _sound(observation: Observation) -> None:
    """Check that an observation has a name, and that its fields can be encoded."""
    match observation:
        case Ready(uid, version, target_):
            assert observation.name
            assert Target(**msgspec.structs.asdict(target_)) == target_
            (uid + version + target_.endpoint + target_.organization).encode()
        case NotReady() | Outside() | Malformed():
            assert observation.name
            observation.message.encode()
