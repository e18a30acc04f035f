"""The kind `declarative`: any resource of a Kubernetes API, as the configuration describes it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec.structs import replace

from milo_discoveryd.model.cluster import DeclaredTarget, Target
from milo_discoveryd.model.contributions import Contribution, ObjectContribution, ObjectReference, earliest
from milo_discoveryd.model.observation import Malformed, NotReady, ObjectFields, Observation, Ready
from milo_discoveryd.model.resource import Resource
from milo_discoveryd.schema import values
from milo_discoveryd.schema.fields import Group, ListOf, Nested, Text, Whole, selector_text
from milo_discoveryd.sources.endpoints import (
    HostPattern,
    checked_authorities,
    checked_url,
    decoded_kubeconfig,
    host_pattern,
    server_of,
)
from milo_discoveryd.sources.field_path import DecodedData, FieldPath, Template, text
from milo_discoveryd.sources.kind import (
    SENT_WHERE_OBJECTS_SAY,
    ContributionWatch,
    IssuerTraits,
    ReferencedWatch,
    SeveralResources,
    SourceKind,
    SourceOptions,
)
from milo_discoveryd.sources.reading import (
    DNS_LABEL,
    DNS_SUBDOMAIN,
    MalformedError,
    Metadata,
    checked,
    deletion_requested_at,
    labels,
    passed_on,
    shared,
)
from milo_kube import addresses
from milo_kube.kubeconfig import SERVER

_DATA_KEY = re.compile(r"[-._a-zA-Z0-9]+")


def _path(value: object) -> FieldPath:
    return FieldPath.parse(str(value))


def _template(value: object) -> Template:
    return Template.parse(str(value))


def _url_template(value: object) -> Template:
    template = Template.parse(str(value))
    if not template.literals[0].startswith("https://"):
        raise ValueError("must begin with https://")
    return template


def _host(value: object) -> HostPattern:
    return host_pattern(str(value))


def _data_key(value: object) -> str:
    text = str(value)
    if text and not _DATA_KEY.fullmatch(text):
        raise ValueError("must be a key of a Secret: letters, digits, '-', '_' and '.'")
    return text


_Path = Annotated[FieldPath | None, _path]


class WatchedResource(Group, frozen=True, kw_only=True):
    """The watched resource."""

    group: Annotated[str, Text(most=253)] = ""
    """API group. Default: the core group."""
    version: Annotated[str, values.cluster_name]
    """API version, such as `v1beta1`."""
    plural: Annotated[str, values.object_name]
    """Plural name of the resource, such as `clusters`."""
    namespaced: bool = False
    """Whether the resource is namespaced."""
    namespace: Annotated[str, Text(most=63)] = ""
    """The only namespace that is watched. Default: all."""
    label_selector: Annotated[str, selector_text] = ""
    """Label selector of the watched objects. Default: all."""
    field_selector: Annotated[str, Text(most=1024)] = ""
    """Field selector of the watched objects. Default: all."""

    def __post_init__(self) -> None:
        if self.namespace and not self.namespaced:
            raise ValueError("has a namespace, but is not namespaced: set `namespaced: true`, or remove `namespace`")

    def resource(self) -> Resource:
        return Resource(
            self.group,
            self.version,
            self.plural,
            namespaced=self.namespaced,
            namespace=self.namespace,
            label_selector=self.label_selector,
            field_selector=self.field_selector,
        )


class ReadyField(Group, frozen=True, kw_only=True):
    """The condition or field that decides whether a cluster is engaged."""

    condition: Annotated[str, Text(most=316)] = ""
    """Condition in `status.conditions` that must be True."""
    field: _Path = None
    """Path of a field that must have one of `ready.values`."""
    values: Annotated[tuple[str, ...], ListOf(Text(least=1, most=253))] = ("true",)
    """Values of the field `ready.field` with which a cluster is engaged."""

    def __post_init__(self) -> None:
        if bool(self.condition) == (self.field is not None):
            raise ValueError("requires exactly one of the settings `condition` and `field`")

    @property
    def description(self) -> str:
        if self.field is None:
            return f"condition {self.condition} is True"
        return f"field {self.field.source} is {' or '.join(map(repr, self.values))}"

    @property
    def path(self) -> FieldPath:
        return self.field or FieldPath.parse(f"status.conditions[type={self.condition}].status")

    @property
    def accepted(self) -> tuple[str, ...]:
        return self.values if self.field is not None else ("True",)


class EndpointFields(Group, frozen=True, kw_only=True):
    """The location of a cluster's API server: exactly one of `template`, `field`, `kubeconfig` and `secret_key`."""

    template: Annotated[Template | None, _url_template] = None
    """URL of the API server, with the paths of fields in braces, such as `https://{spec.host}:{spec.port}`."""
    field: _Path = None
    """Path of a field with the URL of the API server, or its host or address, with or without a port."""
    kubeconfig: _Path = None
    """Path of a field with a base64-encoded kubeconfig, such as `data[value]` of a Secret. The kubeconfig's server and
    CA are used."""
    secret_key: Annotated[str, Text(most=253, form=_data_key)] = ""
    """Key of a kubeconfig in the data of the Secret that `secret` names. The kubeconfig's server and CA are
    used. The daemon watches the Secrets. Default: none."""
    hosts: Annotated[tuple[HostPattern, ...], ListOf(_host)] = ()
    """Accepted hosts of endpoints: names and addresses, patterns such as `*.example.com` for all names below a domain,
    and networks such as `10.0.0.0/8`. Required if clusters share a credential. Default: all."""
    port: Annotated[int, Whole(1, 65535)] = 443
    """Port of endpoints that do not specify one."""

    def __post_init__(self) -> None:
        if [self.template, self.field, self.kubeconfig, self.secret_key or None].count(None) != 3:
            raise ValueError("requires exactly one of the settings `template`, `field`, `kubeconfig` and `secret_key`")

    @property
    def has_fixed_host(self) -> bool:
        """Whether the configuration alone decides to which hosts the daemon may connect."""
        if self.hosts:
            return True
        return self.template is not None and "/" in self.template.literals[0].removeprefix("https://")

    def checked(self, endpoint: str) -> str:
        """Return the URL of an endpoint. Raises MalformedError if the daemon must not connect to it."""
        return checked_url(endpoint, self.hosts, self.port)


class SecretFields(Group, frozen=True, kw_only=True):
    """The Secret that an object names. It is read for `endpoint.secret_key`, and by an issuer of type
    `kubeconfig-secret` with the placeholders `{secret}` and `{secret_namespace}`."""

    name: Annotated[Template, _template]
    """Name of the Secret, with the paths of fields in braces, such as `{spec.secretRef.name}`."""
    namespace: Annotated[Template | None, _template] = None
    """Namespace of the Secret, with the paths of fields in braces. Required for cluster-scoped objects, not allowed for
    others. Default: the namespace of the object."""
    key: Annotated[Template | None, _template] = None
    """Key in the Secret that a `kubeconfig-secret` reads with `{secret_key}`, with the paths of fields in braces, such
    as `{spec.secretRef.key}`. Default: none."""
    label_selector: Annotated[str, selector_text] = ""
    """Label selector of the Secrets that are watched for `endpoint.secret_key`. Default: all."""
    field_selector: Annotated[str, Text(most=1024)] = ""
    """Field selector of the Secrets that are watched for `endpoint.secret_key`, such as `type=cluster.x-k8s.io/secret`.
    Default: all."""

    def __post_init__(self) -> None:
        namespace = self.namespace
        if namespace is not None and not namespace.paths and not DNS_LABEL.fullmatch(namespace.source):
            raise ValueError(f"namespace: {namespace.source!r} is not a DNS label")


class DeclarativeKind(SourceKind, frozen=True, kw_only=True):
    resource: Annotated[WatchedResource, Nested(WatchedResource)]
    """The watched resource."""
    name: Annotated[Template, _template] = Template.parse("{metadata.name}")
    """Name of a cluster, with the paths of fields in braces."""
    ready: Annotated[ReadyField | None, Nested(ReadyField)] = None
    """Condition or field that decides whether a cluster is engaged. Default: it is engaged while its object exists."""
    endpoint: Annotated[EndpointFields, Nested(EndpointFields)]
    """Location of a cluster's API server."""
    ca: _Path = None
    """Path of a field with the CA certificates of the cluster's API server, as PEM or base64. Default: those of the
    endpoint's or the credential's kubeconfig, then `ca_file`."""
    ca_file: Annotated[Path | None, values.file_path] = None
    """File with the CA certificates of clusters for which neither `ca` nor a kubeconfig provides any, reloaded when it
    changes. Default: the system's CAs."""
    organization: Annotated[Template | None, _template] = None
    """Organization of a cluster, with the paths of fields in braces. Default: none."""
    secret: Annotated[SecretFields | None, Nested(SecretFields)] = None
    """The Secret that an object names. It is read for `endpoint.secret_key`, and by an issuer of type
    `kubeconfig-secret` with the placeholders `{secret}` and `{secret_namespace}`. Default: none."""
    states_addresses = True

    def __post_init__(self) -> None:
        self._check_secret()
        if self.endpoint.secret_key:
            if self.secret is None:
                raise ValueError(
                    "endpoint.secret_key: requires `secret`, the setting that says which fields of an object name the "
                    "Secret"
                )
        elif self.secret is not None and (self.secret.label_selector or self.secret.field_selector):
            raise ValueError("secret: the selectors have no effect without endpoint.secret_key: remove these settings")

    def _check_secret(self) -> None:
        if self.secret is not None and self.resource.namespaced and self.secret.namespace is not None:
            # A tenant with write access to one namespace could name a Secret in another tenant's namespace.
            raise ValueError(
                "secret.namespace: a namespaced object can only name Secrets in the object's namespace: remove this "
                "setting"
            )
        if self.secret is not None and not self.resource.namespaced and self.secret.namespace is None:
            raise ValueError("secret.namespace: is required, because the objects are cluster-scoped")

    @property
    def ready_when(self) -> str:
        return "" if self.ready is None else self.ready.description

    @property
    def authorities_file(self) -> Path | None:
        return self.ca_file

    @property
    def secrets(self) -> Resource | None:
        """The Secrets to watch, if they contain the clusters' endpoints."""
        secret = self.secret
        if secret is None or not self.endpoint.secret_key:
            return None
        namespace = self.resource.namespace
        if secret.namespace is not None and not secret.namespace.paths:
            namespace = secret.namespace.source
        return Resource(
            "",
            "v1",
            "secrets",
            namespaced=True,
            namespace=namespace,
            label_selector=secret.label_selector,
            field_selector=secret.field_selector,
        )

    def follow(self, options: SourceOptions) -> SeveralResources:
        objects = DeclaredObjects(self, options)
        resource = self.resource.resource()
        watches: tuple[ContributionWatch | ReferencedWatch, ...] = (
            ContributionWatch(resource, DeclaredObject, objects.contributions),
        )
        if (secrets := self.secrets) is not None:
            watches += (ReferencedWatch(secrets, SecretObject, objects.server),)
        return SeveralResources(watches, objects.reduce, objects.restored_place, resource)

    @property
    def has_fixed_hosts(self) -> bool:
        return self.endpoint.has_fixed_host

    def refusal(self, issuer: IssuerTraits) -> str:
        if issuer.type == "kubeconfig-request":
            return ""
        if self.secret is None and any(
            "{secret}" in template or "{secret_namespace}" in template for template in issuer.templates
        ):
            return "{secret} and {secret_namespace} require the source's setting `secret`"
        has_key = self.secret is not None and self.secret.key is not None
        if not has_key and any("{secret_key}" in template for template in issuer.templates):
            return "{secret_key} requires the source's setting `secret.key`"
        refused = super().refusal(issuer)
        if refused == SENT_WHERE_OBJECTS_SAY:
            return f"{refused}: list the hosts that may receive the credential in endpoint.hosts"
        return refused


OBJECTS, SECRETS = 0, 1
"""Indexes of the two resources in `SeveralResources.watches`."""


class DeclaredObject(msgspec.Struct, gc=False):
    """The top-level fields of an object, at one of which each field path begins."""

    metadata: Metadata
    spec: Any = None
    status: Any = None
    data: Any = None

    def document(self) -> Mapping[str, Any]:
        own_metadata = self.metadata
        metadata = {
            "name": own_metadata.name,
            "namespace": own_metadata.namespace,
            "uid": own_metadata.uid,
            "labels": own_metadata.labels,
            "annotations": own_metadata.annotations,
        }
        decoded = DecodedData(self.data) if isinstance(self.data, dict) else None
        return {
            "metadata": metadata,
            "spec": self.spec,
            "status": self.status,
            "data": self.data,
            "stringData": decoded,
        }


class SecretObject(msgspec.Struct, gc=False):
    metadata: Metadata
    data: dict[str, str] | None = None


class StatedServer(msgspec.Struct, frozen=True, gc=False):
    """The server and the CA certificates of the kubeconfig in a Secret."""

    url: str
    authorities: bytes | None


class DeclaredObjects:
    """Derives clusters from objects of any resource, as the settings describe."""

    def __init__(self, kind: DeclarativeKind, options: SourceOptions) -> None:
        self._kind = kind
        self._ready = None if kind.ready is None else (kind.ready.path, kind.ready.accepted)
        self._annotation_prefixes = options.annotation_prefixes

    def contributions(self, obj: DeclaredObject) -> Iterable[Contribution]:
        """Return the contribution of the object to its one cluster."""
        document, metadata = obj.document(), obj.metadata
        name = checked(self._kind.name.fill(document, _name_part), DNS_SUBDOMAIN, 253, "the name")
        try:
            observed = self._observe(name, document, metadata)
        except MalformedError as error:
            observed = Malformed(name, metadata.uid, metadata.resourceVersion, str(error))
        needs: tuple[ObjectReference, ...] = ()
        if self._kind.endpoint.secret_key and isinstance(observed, Ready):
            needs = ((SECRETS, _secret_key(observed.target)),)
        return (Contribution(name, observed, needs),)

    def server(self, secret: SecretObject) -> StatedServer | None:
        """Return the server of the kubeconfig in a Secret. Raises MalformedError."""
        key, metadata = self._kind.endpoint.secret_key, secret.metadata
        encoded = (secret.data or {}).get(key)
        if not encoded:
            return None
        origin = f"the key {key!r} of Secret {metadata.namespace}/{metadata.name}"
        url, authorities = server_of(decoded_kubeconfig(encoded, origin), SERVER, origin)
        try:
            return StatedServer(self._kind.endpoint.checked(url), authorities)
        except MalformedError as error:
            raise MalformedError(f"{origin}: {error}") from None

    def reduce(self, cluster: str, contributions: Sequence[ObjectContribution], uid: str) -> Observation | None:
        observed = earliest(cluster, [contribution for contribution in contributions if contribution.watch == OBJECTS])
        if not self._kind.endpoint.secret_key or not isinstance(observed, Ready):
            return observed
        key = _secret_key(observed.target)
        server = next(
            (
                contribution.content
                for contribution in contributions
                if contribution.watch == SECRETS and contribution.object == key
            ),
            None,
        )
        return self._with_server(server, observed, key)

    def restored_place(self, stored: Target) -> tuple[str, ...]:
        checked(stored.name, DNS_SUBDOMAIN, 253, "the name")
        return (self._kind.endpoint.checked(stored.endpoint),)

    def _with_server(self, server: StatedServer | None, observed: Ready, secret: str) -> Observation:
        """Return the observation of a cluster, derived from its object and its Secret."""
        target = observed.target
        assert isinstance(target, DeclaredTarget)
        if server is None:
            missing = f"there is no kubeconfig under the key {self._kind.endpoint.secret_key!r} of Secret {secret}"
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
            secret_key=self._secret_key(document),
            authorities=authorities,
        )
        return Ready(metadata.uid, metadata.resourceVersion, target)

    def _not_ready(self, document: Mapping[str, Any]) -> str | None:
        if self._ready is None:
            return None
        path, accepted = self._ready
        value = text(path.find(document))
        if value in accepted:
            return None
        expected = " or ".join(map(repr, accepted))
        return f"{path.source} is {value[:80]!r} instead of {expected}"

    def _endpoint(self, document: Mapping[str, Any]) -> tuple[tuple[str, ...], bytes | None]:
        """Return `Target.place` and the CA certificates, as far as the object itself contains them."""
        endpoint, authorities = self._kind.endpoint, self._authorities(document)
        if endpoint.secret_key:
            return (), authorities
        if endpoint.kubeconfig is not None:
            origin = endpoint.kubeconfig.source
            server, kubeconfig_authorities = server_of(
                decoded_kubeconfig(_required(endpoint.kubeconfig, document), origin), SERVER, origin
            )
            authorities = authorities or kubeconfig_authorities
        elif endpoint.field is not None:
            server = _required(endpoint.field, document)
        else:
            assert endpoint.template is not None, "no endpoint setting is set"
            server = endpoint.template.fill(document, _address_part)
        return (endpoint.checked(server),), authorities

    def _secret(self, document: Mapping[str, Any], metadata: Metadata) -> tuple[str, str]:
        secret = self._kind.secret
        if secret is None:
            return "", ""
        name = checked(secret.name.fill(document, _name_part), DNS_SUBDOMAIN, 253, "the name of the Secret")
        if secret.namespace is None:
            return metadata.namespace, name
        return checked(secret.namespace.fill(document, _name_part), DNS_LABEL, 63, "the Secret's namespace"), name

    def _secret_key(self, document: Mapping[str, Any]) -> str:
        secret = self._kind.secret
        return "" if secret is None or secret.key is None else secret.key.fill(document, _key_part)

    def _authorities(self, document: Mapping[str, Any]) -> bytes | None:
        path = self._kind.ca
        return None if path is None else checked_authorities(_required(path, document), path.source)

    def _organization(self, document: Mapping[str, Any]) -> str:
        template = self._kind.organization
        if template is None:
            return ""
        try:
            return shared(template.fill(document, _organization_part)[:253])
        except MalformedError:
            return ""  # the organization is optional


def _secret_key(target: Target) -> str:
    """Return NAMESPACE/NAME of the Secret that a cluster's object names."""
    assert isinstance(target, DeclaredTarget)
    return "/".join(target.secret)


def _required(path: FieldPath, document: Mapping[str, Any]) -> str:
    value = path.find(document)
    if not isinstance(value, str) or not value:
        raise MalformedError(f"the field {path.source} is not set to a nonempty string")
    return value


def _name_part(value: str, path: str) -> str:
    return checked(value, DNS_SUBDOMAIN, 253, f"the field {path}")


def _key_part(value: str, path: str) -> str:
    if not _DATA_KEY.fullmatch(value):
        raise MalformedError(f"the field {path} is not a key of a Secret")
    return value


def _organization_part(value: str, path: str) -> str:
    if not value.isprintable():
        raise MalformedError(f"the field {path} contains control characters")
    return value


def _address_part(value: str, path: str) -> str:
    """Return the value in URL syntax. Raises MalformedError unless it is a name, an address or a port: anything else
    could direct requests to another host."""
    if value.isdecimal() and len(value) <= 5:
        return value
    if addresses.ip_address(value) is None:
        return checked(value, DNS_SUBDOMAIN, 253, f"the field {path}")
    return addresses.bracketed(value)
