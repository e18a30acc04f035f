"""The kinds `kubeconfig-directory` and `kind`, whose clusters are in kubeconfig files of this machine.

Pure: the files are read elsewhere.
"""

import uuid
from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec

from milo_discoveryd.model.claims import Claim, ObjectClaim, earliest
from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.declared_target import DeclaredTarget
from milo_discoveryd.model.observation import Observation, Ready
from milo_discoveryd.modes.endpoints import checked_url
from milo_discoveryd.modes.mode import FileObject, Setting
from milo_discoveryd.modes.reading import DNS_SUBDOMAIN, MalformedError, checked
from milo_discoveryd.modes.stated_kubeconfig import parsed, server_of
from milo_kube.kubeconfig import STATED, Kubeconfig

ENDINGS = (".kubeconfig", ".yaml", ".yml", ".conf", ".config", ".json")
"""File name extensions, which are not part of a cluster's name."""
KIND_PREFIX = "kind-"
_IDENTITIES = uuid.UUID("5c0a3d5e-6f1c-4a53-9a0d-6f1f7a8f1a0e")


class DirectorySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    """Directory with one kubeconfig per cluster."""


class KindSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)] = "~/.kube/config"
    """Kubeconfig to which kind writes its clusters."""


class _KubeconfigMode:
    """The common part of modes whose clusters are in kubeconfig files."""

    has_own_authorities = True

    def __init__(self, setting: Setting) -> None:
        self.path: str = setting.settings.path

    def reduce(self, cluster: str, claims: Sequence[ObjectClaim], uid: str) -> Observation | None:
        return earliest(cluster, claims)

    def restored_place(self, stored: Target) -> tuple[str, ...]:
        checked(stored.name, DNS_SUBDOMAIN, 253, "the name")
        return (checked_url(stored.endpoint, ()),)


class KubeconfigDirectoryMode(_KubeconfigMode):
    """A mode in which each file of a directory describes one cluster: its name is the file's, its server the current
    context's."""

    settings_type = DirectorySettings
    is_directory = True

    def read_file(self, file: str, content: bytes) -> Iterable[FileObject]:
        try:
            yield _object(file, cluster_name(file), parsed(content, file), None, file)
        except MalformedError as error:
            yield FileObject(file, problem=str(error))

    def context_of(self, key: str) -> tuple[str, str]:
        return key, ""


class KindMode(_KubeconfigMode):
    """A mode in which each context of a kubeconfig whose name begins with `kind-` describes a cluster."""

    settings_type = KindSettings
    is_directory = False

    def read_file(self, file: str, content: bytes) -> Iterable[FileObject]:
        """Read the contexts. Raises MalformedError if the file cannot be read as a whole: then no cluster is known."""
        config = parsed(content, file)
        for context in dict.fromkeys(config.contexts):
            if not context.startswith(KIND_PREFIX):
                continue
            try:
                yield _object(context, context.removeprefix(KIND_PREFIX), config, context, f"context {context[:80]!r}")
            except MalformedError as error:
                yield FileObject(context, problem=str(error))

    def context_of(self, key: str) -> tuple[str, str]:
        return "", key


def cluster_name(file: str) -> str:
    """Return the name of a file's cluster: the file name without its extension."""
    ending = next((each for each in ENDINGS if file.endswith(each)), "")
    return file.removesuffix(ending)


def _object(key: str, name: str, config: Kubeconfig, context: str | None, origin: str) -> FileObject:
    checked(name, DNS_SUBDOMAIN, 253, "the name of the cluster")
    server, authorities = server_of(config, STATED, origin, context)
    place = checked_url(server, ())
    # A kubeconfig contains no UID, but a cluster that was created again has another CA.
    uid = str(uuid.uuid5(_IDENTITIES, "\n".join((name, place, (authorities or b"").decode("latin-1")))))
    target = DeclaredTarget(
        name=name, uid=uid, place=(place,), object_namespace="", object_name=key, authorities=authorities
    )
    return FileObject(key, uid, (Claim(name, Ready(uid, "", target)),))
