"""The fields of a kubeconfig file that the daemon knows, and their strict parsing."""

from pathlib import Path
from typing import Any, NoReturn

import msgspec

from milo_discoveryd import yaml_document
from milo_discoveryd.daemon_errors import ConfigError


class Extension(msgspec.Struct, frozen=True):
    name: str
    extension: Any = None


class ClusterEntry(msgspec.Struct, frozen=True, rename="kebab"):
    server: str = ""
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    tls_server_name: str = ""
    insecure_skip_tls_verify: bool = False
    proxy_url: str = ""
    extensions: list[Extension] | None = None


class Variable(msgspec.Struct, frozen=True):
    name: str
    value: str


class ExecEntry(msgspec.Struct, frozen=True, rename="camel"):
    api_version: str
    command: str
    args: list[str] | None = None
    env: list[Variable] | None = None
    install_hint: str = ""
    provide_cluster_info: bool = False
    interactive_mode: str = "IfAvailable"


class User(msgspec.Struct, frozen=True, rename="kebab"):
    token: str = ""
    token_file: str = msgspec.field(name="tokenFile", default="")
    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""
    exec: ExecEntry | None = None
    # Declared so that they can be rejected with a message.
    username: str = ""
    password: str = ""
    auth_provider: Any = None
    impersonate: str = msgspec.field(name="as", default="")


class Context(msgspec.Struct, frozen=True):
    cluster: str = ""
    user: str = ""


class Named(msgspec.Struct, frozen=True):
    name: str


class NamedCluster(Named, frozen=True):
    cluster: ClusterEntry


class NamedUser(Named, frozen=True):
    user: User | None = None


class NamedContext(Named, frozen=True):
    context: Context


class Kubeconfig(msgspec.Struct, frozen=True):
    current_context: str = msgspec.field(name="current-context", default="")
    clusters: list[NamedCluster] | None = None
    users: list[NamedUser] | None = None
    contexts: list[NamedContext] | None = None


# `convert` runs in several threads at once, where the first use of a type crashes msgspec 0.22: see docs/upstream.md.
msgspec.json.Decoder(Kubeconfig)


def parse(path: Path) -> Kubeconfig:
    def wrong(complaint: str) -> NoReturn:
        raise ConfigError([f"kubeconfig {path}: {complaint}"])

    if ":" in str(path) and not path.exists():
        wrong("is a list of files; name one file (kubectl config view --flatten merges several)")
    try:
        with path.open("rb") as stream:
            content = stream.read(yaml_document.MAX_BYTES + 1)
    except OSError as error:
        wrong(f"cannot be read: {error.strerror or error}")
    return read(content, f"kubeconfig {path}")


def read(content: bytes, origin: str) -> Kubeconfig:
    def wrong(complaint: str) -> NoReturn:
        raise ConfigError([f"{origin}: {complaint}"])

    try:
        document = yaml_document.read(content, scalars="typed")
    except yaml_document.DocumentError as error:
        wrong(str(error))
    if not isinstance(document.value, dict):
        wrong("is not a kubeconfig: it is empty or not a mapping")
    try:
        return msgspec.convert(document.value, Kubeconfig)
    except msgspec.ValidationError as error:
        # msgspec reports types and the path, never the value.
        wrong(f"is not a kubeconfig: {error}")
