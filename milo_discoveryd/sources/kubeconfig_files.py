"""The kinds `kubeconfig-directory` and `kind`, whose clusters are in kubeconfig files of this machine.

Pure: the files are read elsewhere.
"""

import uuid
from collections.abc import Iterable
from typing import Annotated

from milo_discoveryd.model.cluster import FileTarget, Target
from milo_discoveryd.model.contributions import Contribution
from milo_discoveryd.model.observation import Ready
from milo_discoveryd.schema.fields import Text
from milo_discoveryd.sources.endpoints import checked_url, parsed_kubeconfig, server_of
from milo_discoveryd.sources.kind import FileObject, Files, IssuerTraits, ProjectServer, SourceKind, SourceOptions
from milo_discoveryd.sources.reading import DNS_SUBDOMAIN, MalformedError, checked
from milo_kube.kubeconfig import STATED, ParsedKubeconfig

ENDINGS = (".kubeconfig", ".yaml", ".yml", ".conf", ".config", ".json")
"""File name extensions, which are not part of a cluster's name."""
KIND_PREFIX = "kind-"
_NODES = 5_000
"""Maximum number of YAML nodes in a file of a directory, which may have thousands of files: 200 contexts have about
4,000. More would take a tenth of a second for each change of a file."""
_IDENTITIES = uuid.UUID("5c0a3d5e-6f1c-4a53-9a0d-6f1f7a8f1a0e")


class _KubeconfigKind(SourceKind, frozen=True, kw_only=True):
    """The common part of kinds whose clusters are in kubeconfig files."""

    is_watched = False
    project_server = ProjectServer.NONE

    def refusal(self, issuer: IssuerTraits) -> str:
        if issuer.type == "kubeconfig-file":
            return ""
        return "files decide where the issuer's credential is sent: use an issuer of type kubeconfig-file"


class KubeconfigDirectoryKind(_KubeconfigKind, frozen=True, kw_only=True):
    """Each file of a directory describes one cluster, which has the file's name and the server of the file's current
    context."""

    path: Annotated[str, Text(least=1, most=4096)]
    """Directory with one kubeconfig per cluster."""

    def follow(self, options: SourceOptions) -> Files:
        return Files(self.path, is_directory=True, read_file=_file, context_of=_file_of, restored_place=_place)


class KindKind(_KubeconfigKind, frozen=True, kw_only=True):
    """Each context whose name begins with `kind-`, in one kubeconfig, describes a cluster."""

    path: Annotated[str, Text(least=1, most=4096)] = "~/.kube/config"
    """Kubeconfig to which kind writes its clusters."""

    def follow(self, options: SourceOptions) -> Files:
        return Files(self.path, is_directory=False, read_file=_contexts, context_of=_context_of, restored_place=_place)


def _file(file: str, content: bytes) -> Iterable[FileObject]:
    try:
        yield _object(file, cluster_name(file), parsed_kubeconfig(content, file, nodes=_NODES), None, file)
    except MalformedError as error:
        yield FileObject(file, problem=str(error))


def _file_of(key: str) -> tuple[str, str]:
    return key, ""


def _contexts(file: str, content: bytes) -> Iterable[FileObject]:
    """Read the contexts. Raises MalformedError if the whole file is malformed: then no cluster is known."""
    config = parsed_kubeconfig(content, file)
    for context in dict.fromkeys(config.contexts):
        if not context.startswith(KIND_PREFIX):
            continue
        try:
            yield _object(context, context.removeprefix(KIND_PREFIX), config, context, f"context {context[:80]!r}")
        except MalformedError as error:
            yield FileObject(context, problem=str(error))


def _context_of(key: str) -> tuple[str, str]:
    return "", key


def _place(stored: Target) -> tuple[str, ...]:
    checked(stored.name, DNS_SUBDOMAIN, 253, "the name")
    return (checked_url(stored.endpoint, ()),)


def cluster_name(file: str) -> str:
    """Return the name of a file's cluster: the file name without its extension."""
    ending = next((ending for ending in ENDINGS if file.endswith(ending)), "")
    return file.removesuffix(ending)


def _object(key: str, name: str, config: ParsedKubeconfig, context: str | None, origin: str) -> FileObject:
    checked(name, DNS_SUBDOMAIN, 253, "the name of the cluster")
    server, authorities = server_of(config, STATED, origin, context)
    place = checked_url(server, ())
    # A kubeconfig contains no UID, but a re-created cluster has a new CA.
    uid = str(uuid.uuid5(_IDENTITIES, "\n".join((name, place, (authorities or b"").decode("latin-1")))))
    target = FileTarget(
        name=name, uid=uid, place=(place,), object_namespace="", object_name=key, authorities=authorities
    )
    return FileObject(key, uid, (Contribution(name, Ready(uid, "", target)),))
