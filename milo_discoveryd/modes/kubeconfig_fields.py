"""The server and the CA of a kubeconfig that an object contains. Its credential is not read. Pure."""

import base64
import binascii

import msgspec

from milo_discoveryd import yaml_document
from milo_discoveryd.modes.reading import MalformedError


class _Cluster(msgspec.Struct, frozen=True, rename="kebab"):
    server: str = ""
    certificate_authority_data: str = ""


class _NamedCluster(msgspec.Struct, frozen=True):
    name: str
    cluster: _Cluster


class _Context(msgspec.Struct, frozen=True):
    cluster: str = ""


class _NamedContext(msgspec.Struct, frozen=True):
    name: str
    context: _Context


class _Kubeconfig(msgspec.Struct, frozen=True, rename="kebab"):
    current_context: str = ""
    clusters: list[_NamedCluster] = []
    contexts: list[_NamedContext] = []


def server_of(encoded: str, origin: str) -> tuple[str, bytes | None]:
    """Return the server, and its CA certificates as PEM, of a kubeconfig's current context. Raises MalformedError."""
    try:
        content = base64.b64decode(encoded, validate=True)
        document = yaml_document.read(content, scalars="typed").value
        config = msgspec.convert(document, _Kubeconfig)
        context = next(each.context for each in config.contexts if each.name == config.current_context)
        cluster = next(each.cluster for each in config.clusters if each.name == context.cluster)
        authorities = base64.b64decode(cluster.certificate_authority_data, validate=True)
    except (binascii.Error, ValueError, yaml_document.DocumentError, msgspec.ValidationError, StopIteration):
        # `from None`: the error may quote the content, which holds a secret.
        raise MalformedError(f"{origin} does not contain a kubeconfig whose current context has a cluster") from None
    return cluster.server, authorities or None
