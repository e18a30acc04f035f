"""Settings of mode `declarative`: which objects stand for clusters, and what their fields mean."""

import re
from pathlib import Path
from typing import Annotated

from milo_discoveryd.config import values
from milo_discoveryd.config.fields import Group, ListOf, Nested, Text, selector_text
from milo_discoveryd.model.resource import Resource
from milo_discoveryd.modes.declarative import Definition, Endpoint, Readiness, SecretReference
from milo_discoveryd.modes.field_path import FieldPath, Template
from milo_discoveryd.modes.reading import DNS_LABEL

_HOST = re.compile(r"(?:\*\.)?[A-Za-z0-9](?:[-A-Za-z0-9.:]*[A-Za-z0-9])?")


def _path(value: object) -> FieldPath:
    return FieldPath.parse(str(value))


def _template(value: object) -> Template:
    return Template.parse(str(value))


def _url_template(value: object) -> Template:
    template = Template.parse(str(value))
    if not template.literals[0].startswith("https://"):
        raise ValueError("must begin with https://")
    return template


def _host(value: object) -> str:
    text = str(value)
    if not _HOST.fullmatch(text):
        raise ValueError('must be a host, or all hosts below one, such as "*.example.com"')
    return text.lower()


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
            raise ValueError("has a namespace, but is not namespaced")


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
            raise ValueError("needs either condition or field")

    def readiness(self) -> Readiness:
        if self.field is not None:
            return Readiness(self.field, self.values)
        return Readiness(FieldPath.parse(f"status.conditions[type={self.condition}].status"), ("True",))


class EndpointFields(Group, frozen=True, kw_only=True):
    """The location of a cluster's API server: exactly one of `template`, `field`, `kubeconfig` and `secret_key`."""

    template: Annotated[Template | None, _url_template] = None
    """URL of the API server, with the paths of fields in braces, such as `https://{spec.host}:{spec.port}`."""
    field: _Path = None
    """Path of a field with the URL of the API server."""
    kubeconfig: _Path = None
    """Path of a field with a base64-encoded kubeconfig, such as `data[value]` of a Secret. The kubeconfig's server and
    CA are used."""
    secret_key: Annotated[str, Text(most=253)] = ""
    """Key of a kubeconfig in the data of the Secret that `declarative.secret` names. The kubeconfig's server and CA are
    used. The daemon watches the Secrets. Default: none."""
    hosts: Annotated[tuple[str, ...], ListOf(_host)] = ()
    """Accepted hosts of endpoints: names, or patterns such as `*.example.com` for all names below a domain. Required if
    clusters share a credential. Default: all."""

    def __post_init__(self) -> None:
        if [self.template, self.field, self.kubeconfig, self.secret_key or None].count(None) != 3:
            raise ValueError("needs exactly one of template, field, kubeconfig and secret_key")

    @property
    def has_fixed_host(self) -> bool:
        """Whether the configuration alone decides where the daemon connects."""
        if self.hosts:
            return True
        return self.template is not None and "/" in self.template.literals[0].removeprefix("https://")


class SecretFields(Group, frozen=True, kw_only=True):
    """The Secret that an object names: for `endpoint.secret_key`, and for a `kubeconfig-secret` with `{secret}` and
    `{secret_namespace}`."""

    name: Annotated[Template, _template]
    """Name of the Secret, with the paths of fields in braces, such as `{spec.secretRef.name}`."""
    namespace: Annotated[Template | None, _template] = None
    """Namespace of the Secret, with the paths of fields in braces. Required for cluster-scoped objects, not allowed for
    others. Default: the namespace of the object."""
    label_selector: Annotated[str, selector_text] = ""
    """Label selector of the Secrets that are watched for `endpoint.secret_key`. Default: all."""
    field_selector: Annotated[str, Text(most=1024)] = ""
    """Field selector of the Secrets that are watched for `endpoint.secret_key`, such as `type=cluster.x-k8s.io/secret`.
    Default: all."""

    def __post_init__(self) -> None:
        namespace = self.namespace
        if namespace is not None and not namespace.paths and not DNS_LABEL.fullmatch(namespace.source):
            raise ValueError(f"namespace: {namespace.source!r} is not a DNS label")

    def reference(self) -> SecretReference:
        return SecretReference(self.name, self.namespace, self.label_selector, self.field_selector)


class Declaration(Group, frozen=True, kw_only=True):
    """The settings of mode `declarative`."""

    resource: Annotated[WatchedResource, Nested(WatchedResource)]
    """The watched resource."""
    name: Annotated[Template | None, _template] = None
    """Name of a cluster, with the paths of fields in braces. Default: `{metadata.name}`."""
    ready: Annotated[ReadyField | None, Nested(ReadyField)] = None
    """When a cluster is engaged. Default: as long as its object exists."""
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
    """The Secret that an object names, for `endpoint.secret_key`, and for a `kubeconfig-secret` with `{secret}` and
    `{secret_namespace}`. Default: none."""

    def __post_init__(self) -> None:
        self._check_secret()
        if self.endpoint.secret_key:
            if self.secret is None:
                raise ValueError(
                    "endpoint.secret_key: needs declarative.secret, the fields of an object that name the Secret"
                )
        elif self.secret is not None and (self.secret.label_selector or self.secret.field_selector):
            raise ValueError("secret: the selectors have no effect without endpoint.secret_key: remove them")

    def _check_secret(self) -> None:
        if self.secret is not None and self.resource.namespaced and self.secret.namespace is not None:
            # A tenant with write access to one namespace could name a Secret in another tenant's namespace.
            raise ValueError(
                "secret.namespace: a namespaced object can only name Secrets in the object's namespace: remove it"
            )
        if self.secret is not None and not self.resource.namespaced and self.secret.namespace is None:
            raise ValueError("secret.namespace: is required, because the objects are cluster-scoped")

    def definition(self) -> Definition:
        of = self.resource
        return Definition(
            resource=Resource(
                of.group,
                of.version,
                of.plural,
                namespaced=of.namespaced,
                namespace=of.namespace,
                label_selector=of.label_selector,
                field_selector=of.field_selector,
            ),
            name=self.name or Template.parse("{metadata.name}"),
            endpoint=Endpoint(
                template=self.endpoint.template,
                url=self.endpoint.field,
                kubeconfig=self.endpoint.kubeconfig,
                secret_key=self.endpoint.secret_key,
                hosts=self.endpoint.hosts,
            ),
            readiness=None if self.ready is None else self.ready.readiness(),
            authorities=self.ca,
            organization=self.organization,
            secret=None if self.secret is None else self.secret.reference(),
        )
