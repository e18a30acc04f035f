"""Mode `declarative`: any resource of a Kubernetes API, as the configuration describes it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from milo_discoveryd.model.claims import Claim, ObjectClaim, ObjectReference, earliest
from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.declared_target import DeclaredTarget
from milo_discoveryd.model.objects import Metadata
from milo_discoveryd.model.observation import Malformed, NotReady, ObjectFields, Observation, Ready
from milo_discoveryd.model.resource import Resource
from milo_discoveryd.modes.endpoints import checked_authorities, checked_url
from milo_discoveryd.modes.field_path import FieldPath, Template, text
from milo_discoveryd.modes.mode import ReferencedWatch, Setting, Watch
from milo_discoveryd.modes.reading import (
    DNS_LABEL,
    DNS_SUBDOMAIN,
    MalformedError,
    checked,
    deletion_requested_at,
    labels,
    passed_on,
    shared,
)
from milo_discoveryd.modes.stated_kubeconfig import decoded, server_of
from milo_kube import addresses
from milo_kube.kubeconfig import SERVER

OBJECTS, SECRETS = 0, 1
"""Positions of the resources in `DeclarativeMode.watches`."""


class DeclaredObject(msgspec.Struct, gc=False):
    """The top-level fields of an object in which field paths can begin."""

    metadata: Metadata
    spec: Any = None
    status: Any = None
    data: Any = None

    def document(self) -> Mapping[str, Any]:
        found = self.metadata
        metadata = {
            "name": found.name,
            "namespace": found.namespace,
            "uid": found.uid,
            "labels": found.labels,
            "annotations": found.annotations,
        }
        return {"metadata": metadata, "spec": self.spec, "status": self.status, "data": self.data}


class SecretObject(msgspec.Struct, gc=False):
    metadata: Metadata
    data: dict[str, str] | None = None


class StatedServer(msgspec.Struct, frozen=True, gc=False):
    """The server and the CA certificates of the kubeconfig in a Secret."""

    url: str
    authorities: bytes | None


class Readiness(msgspec.Struct, frozen=True):
    """The condition for engaging a cluster: `field` has one of `values`."""

    field: FieldPath
    values: tuple[str, ...]


class Endpoint(msgspec.Struct, frozen=True):
    """The location of a cluster's API server: one of `template`, `url`, `kubeconfig` and `secret_key`."""

    template: Template | None = None
    url: FieldPath | None = None
    """A field with the whole URL."""
    kubeconfig: FieldPath | None = None
    """A field with a base64-encoded kubeconfig, whose server and CA are used."""
    secret_key: str = ""
    """Key of a kubeconfig in the Secret that the object names."""
    hosts: tuple[str, ...] = ()
    """Accepted hosts: names, or patterns such as `*.example.com` for all names below a domain. Empty: all."""


class SecretReference(msgspec.Struct, frozen=True):
    """A reference to the Secret that an object names."""

    name: Template
    namespace: Template | None = None
    """None: the namespace of the object."""
    label_selector: str = ""
    """Restricts the watch of Secrets, as does `field_selector`."""
    field_selector: str = ""


class Definition(msgspec.Struct, frozen=True):
    """The definition of the objects that stand for clusters, and of their fields."""

    resource: Resource
    name: Template
    endpoint: Endpoint
    readiness: Readiness | None = None
    """None: every existing object is ready."""
    authorities: FieldPath | None = None
    """A field with CA certificates, as PEM or in base64."""
    organization: Template | None = None
    secret: SecretReference | None = None

    @property
    def secrets(self) -> Resource | None:
        """The Secrets to watch, if they contain the clusters' endpoints."""
        of = self.secret
        if of is None or not self.endpoint.secret_key:
            return None
        namespace = self.resource.namespace
        if of.namespace is not None and not of.namespace.paths:
            namespace = of.namespace.source
        return Resource(
            "",
            "v1",
            "secrets",
            namespaced=True,
            namespace=namespace,
            label_selector=of.label_selector,
            field_selector=of.field_selector,
        )


class DeclarativeMode:
    has_own_authorities = True

    def __init__(self, setting: Setting) -> None:
        assert setting.definition is not None, "required by the settings"
        self._definition = setting.definition
        self._annotation_prefixes = setting.annotation_prefixes
        objects, secrets = Watch(self._definition.resource, DeclaredObject, self.claims), self._definition.secrets
        self.watches: tuple[Watch | ReferencedWatch, ...] = (objects,)
        if secrets is not None:
            self.watches = (objects, ReferencedWatch(secrets, SecretObject, self.server))

    def claims(self, obj: DeclaredObject) -> Iterable[Claim]:
        """Return the one cluster that the object stands for."""
        document, metadata = obj.document(), obj.metadata
        name = checked(self._definition.name.fill(document, _name_part), DNS_SUBDOMAIN, 253, "the name")
        try:
            observed = self._observe(name, document, metadata)
        except MalformedError as error:
            observed = Malformed(name, metadata.uid, metadata.resourceVersion, str(error))
        needs: tuple[ObjectReference, ...] = ()
        if self._definition.endpoint.secret_key and isinstance(observed, Ready):
            needs = ((SECRETS, _secret_key(observed.target)),)
        return (Claim(name, observed, needs),)

    def server(self, secret: SecretObject) -> StatedServer | None:
        """Return the server of the kubeconfig in a Secret. Raises MalformedError."""
        key, metadata = self._definition.endpoint.secret_key, secret.metadata
        encoded = (secret.data or {}).get(key)
        if not encoded:
            return None
        origin = f"the key {key!r} of Secret {metadata.namespace}/{metadata.name}"
        url, authorities = server_of(decoded(encoded, origin), SERVER, origin)
        try:
            return StatedServer(checked_url(url, self._definition.endpoint.hosts), authorities)
        except MalformedError as error:
            raise MalformedError(f"{origin}: {error}") from None

    def reduce(self, cluster: str, claims: Sequence[ObjectClaim], uid: str) -> Observation | None:
        observed = earliest(cluster, [claim for claim in claims if claim.watch == OBJECTS])
        if not self._definition.endpoint.secret_key or not isinstance(observed, Ready):
            return observed
        key = _secret_key(observed.target)
        server = next((each.content for each in claims if each.watch == SECRETS and each.object == key), None)
        return self._at(server, observed, key)

    def restored_place(self, stored: Target) -> tuple[str, ...]:
        checked(stored.name, DNS_SUBDOMAIN, 253, "the name")
        return (checked_url(stored.endpoint, self._definition.endpoint.hosts),)

    def _at(self, server: StatedServer | None, observed: Ready, secret: str) -> Observation:
        """Return the observation of a cluster from its object and its Secret."""
        target = observed.target
        assert isinstance(target, DeclaredTarget)
        if server is None:
            missing = (
                f"there is no kubeconfig under the key {self._definition.endpoint.secret_key!r} of Secret {secret}"
            )
            fields = ObjectFields(target.name, target.organization, target.labels)
            return NotReady(target.name, observed.uid, observed.version, missing, fields=fields)
        authorities = target.authorities or server.authorities
        return replace(observed, target=replace(target, place=(server.url,), authorities=authorities))

    def _observe(self, name: str, document: Mapping[str, Any], metadata: Metadata) -> Observation:
        organization = self._organization(document)
        problem = self._not_ready(document)
        if problem is not None:
            fields = ObjectFields(name, organization, labels(metadata))
            return NotReady(name, metadata.uid, metadata.resourceVersion, problem, fields=fields)
        place, authorities = self._endpoint(document)
        target = DeclaredTarget(
            name=name,
            uid=metadata.uid,
            place=place,
            organization=organization,
            labels=labels(metadata),
            annotations=passed_on(metadata.annotations, self._annotation_prefixes),
            deletion_requested_at=deletion_requested_at(metadata),
            object_namespace=metadata.namespace,
            object_name=metadata.name,
            secret=self._secret(document, metadata),
            authorities=authorities,
        )
        return Ready(metadata.uid, metadata.resourceVersion, target)

    def _not_ready(self, document: Mapping[str, Any]) -> str | None:
        readiness = self._definition.readiness
        if readiness is None:
            return None
        found = text(readiness.field.find(document))
        if found in readiness.values:
            return None
        expected = " or ".join(map(repr, readiness.values))
        return f"{readiness.field.source} is {found[:80]!r} instead of {expected}"

    def _endpoint(self, document: Mapping[str, Any]) -> tuple[tuple[str, ...], bytes | None]:
        """Return `Target.place` and the CA certificates, as far as the object itself has them."""
        endpoint, authorities = self._definition.endpoint, self._authorities(document)
        if endpoint.secret_key:
            return (), authorities
        if endpoint.kubeconfig is not None:
            origin = endpoint.kubeconfig.source
            server, found = server_of(decoded(_required(endpoint.kubeconfig, document), origin), SERVER, origin)
            authorities = authorities or found
        elif endpoint.url is not None:
            server = _required(endpoint.url, document)
        else:
            assert endpoint.template is not None, "one of the four is set"
            server = endpoint.template.fill(document, _address_part)
        return (checked_url(server, endpoint.hosts),), authorities

    def _secret(self, document: Mapping[str, Any], metadata: Metadata) -> tuple[str, str]:
        of = self._definition.secret
        if of is None:
            return "", ""
        name = checked(of.name.fill(document, _name_part), DNS_SUBDOMAIN, 253, "the name of the Secret")
        if of.namespace is None:
            return metadata.namespace, name
        return checked(of.namespace.fill(document, _name_part), DNS_LABEL, 63, "the Secret's namespace"), name

    def _authorities(self, document: Mapping[str, Any]) -> bytes | None:
        path = self._definition.authorities
        return None if path is None else checked_authorities(_required(path, document), path.source)

    def _organization(self, document: Mapping[str, Any]) -> str:
        template = self._definition.organization
        if template is None:
            return ""
        try:
            return shared(template.fill(document, _organization_part)[:253])
        except MalformedError:
            return ""  # the organization is optional


def _secret_key(target: Target) -> str:
    """Return the key of the Secret that a cluster's object names."""
    assert isinstance(target, DeclaredTarget)
    return "/".join(target.secret)


def _required(path: FieldPath, document: Mapping[str, Any]) -> str:
    found = path.find(document)
    if not isinstance(found, str) or not found:
        raise MalformedError(f"the field {path.source} is not set")
    return found


def _name_part(value: str, path: str) -> str:
    return checked(value, DNS_SUBDOMAIN, 253, f"the field {path}")


def _organization_part(value: str, path: str) -> str:
    if not value.isprintable():
        raise MalformedError(f"the field {path} contains control characters")
    return value


def _address_part(value: str, path: str) -> str:
    """Return a value for a URL: a name, an address or a port. Anything else could lead to another host."""
    if value.isdecimal() and len(value) <= 5:
        return value
    if addresses.ip_address(value) is None:
        return checked(value, DNS_SUBDOMAIN, 253, f"the field {path}")
    return addresses.bracketed(value)
