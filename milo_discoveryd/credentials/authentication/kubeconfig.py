"""Loads the API server of a kubeconfig's current context, and rejects what the daemon does not support.

Each rejected field is named with an alternative: ignoring a proxy, CA or credential would be worse than not starting.
"""

import base64
import binascii
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import msgspec

from milo_discoveryd.credentials.authentication.credential_provider import (
    CredentialProvider,
    FileCredential,
    StaticCredential,
)
from milo_discoveryd.credentials.authentication.exec_plugin import ExecCommand, ExecPlugin
from milo_discoveryd.credentials.authentication.kubeconfig_schema import (
    ClusterEntry,
    ExecEntry,
    Kubeconfig,
    Named,
    NamedCluster,
    User,
    parse,
)
from milo_discoveryd.credentials.authentication.upstream import Upstream
from milo_discoveryd.credentials.credential import ClientCertificate, Credential, is_confidential, token_of
from milo_discoveryd.credentials.files import FileContent
from milo_discoveryd.credentials.secret import Secret
from milo_discoveryd.daemon_errors import ConfigError, CredentialError

_EXEC_EXTENSION = "client.authentication.k8s.io/exec"
_EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
_PROXY_SCHEMES = ("http", "https")

Entry = TypeVar("Entry", bound=Named)


def load_kubeconfig(path: Path, plugins: Collection[str] = (), *, plain_loopback: bool = False) -> Upstream:
    """Load the kubeconfig, and reload its credential whenever the file changes. Raises ConfigError with all problems.

    `plugins` are the commands that the kubeconfig may run as exec credential plugins, as written there; "*" allows any.
    With `plain_loopback`, credentials may be sent to a server on loopback without TLS.
    """

    def read() -> Upstream:
        return _Reader(path, parse(path), plugins, plain_loopback).upstream()

    found = read()
    if not path.is_file():
        return found  # a pipe, such as a shell's <(command), can be read only once
    return msgspec.structs.replace(found, credentials=ReloadedCredential(FileContent(path), found, read))


class ReloadedCredential:
    """The credential of a kubeconfig that is replaced at runtime: by a mounted Secret, or by a new login.

    Only the credential is reloaded. A new server or CA requires a restart, because it may mean another fleet.
    """

    def __init__(self, file: FileContent, loaded: Upstream, read: Callable[[], Upstream]) -> None:
        self._file = file
        self._loaded = loaded
        self._read = read
        self._content = file.read()

    @property
    def current(self) -> CredentialProvider:
        """The provider of the kubeconfig as it was last read."""
        return self._loaded.credentials

    async def credential(self, *, refused: Credential | None = None) -> Credential:
        content = self._file.read(reread=refused is not None)
        if content != self._content:
            self._reload()
            self._content = content
        return await self._loaded.credentials.credential(refused=refused)

    def _reload(self) -> None:
        try:
            found = self._read()
        except ConfigError as error:
            raise CredentialError(f"the kubeconfig was replaced by an invalid one: {error}") from None
        if found.server != self._loaded.server:
            raise CredentialError(
                f"kubeconfig {self._file.path} now names another server, {found.server}: restart the daemon to use it"
            )
        self._loaded = found


class _Reader(msgspec.Struct):
    path: Path
    content: Kubeconfig
    plugins: Collection[str]
    plain_loopback: bool
    problems: list[str] = msgspec.field(default_factory=list)

    def upstream(self) -> Upstream:
        name = self.content.current_context
        if not name:
            self._wrong("has no current-context; set it with kubectl config use-context")
            self._give_up()
        context = self._named(self.content.contexts, name, "context")
        if context is None:
            self._give_up()
        cluster = self._named(self.content.clusters, context.context.cluster, "cluster")
        user = self._named(self.content.users, context.context.user, "user") if context.context.user else None
        if cluster is None or (user is None and context.context.user):
            self._give_up()
        upstream = self._build(cluster, (user and user.user) or User())
        if upstream is None or self.problems:
            self._give_up()
        return upstream

    def _build(self, named: NamedCluster, user: User) -> Upstream | None:
        about = f'cluster "{named.name}"'
        cluster = named.cluster
        server = self._server(cluster.server, about)
        if cluster.insecure_skip_tls_verify:
            self._wrong(
                f"{about} sets insecure-skip-tls-verify, which is not supported: "
                "set certificate-authority-data, or tls-server-name if only the name differs"
            )
        authorities = self._pem(cluster.certificate_authority, cluster.certificate_authority_data, about, "authority")
        credentials = self._credentials(user, named, authorities)
        proxy = self._proxy(cluster.proxy_url, about)
        if server is None or credentials is None:
            return None
        if user != User() and not is_confidential(server, plain_loopback=self.plain_loopback):
            self._wrong(
                f"{about} has a server without TLS, where the credential would be sent unencrypted: use https, or set "
                "plain_loopback if it is a proxy on this machine"
            )
        return Upstream(
            server=server,
            origin=str(self.path),
            credentials=credentials,
            authorities=authorities,
            tls_server_name=cluster.tls_server_name or None,
            proxy=proxy,
            plain_loopback=self.plain_loopback,
        )

    def _server(self, server: str, about: str) -> str | None:
        problem = server_problem(server)
        if problem is None:
            return server.rstrip("/")
        self._wrong(f"{about} has the server {server!r}, which {problem}")
        return None

    def _proxy(self, url: str, about: str) -> Secret | None:
        if not url:
            return None
        try:
            parts = urlsplit(url)
            good = parts.scheme in _PROXY_SCHEMES and parts.hostname and (parts.port is None or parts.port)
        except ValueError:
            good = False
        if not good:
            # The URL is not shown: it may contain a password.
            self._wrong(
                f"{about} has a proxy-url other than http://HOST:PORT or https://HOST:PORT (SOCKS is not supported)"
            )
        return Secret(url)

    def _credentials(
        self, user: User, named: NamedCluster, authorities: FileContent | bytes | None
    ) -> CredentialProvider | None:
        before = len(self.problems)
        self._refuse_unsupported(user)
        if user.exec is not None:
            return self._exec(user.exec, named, authorities)
        fixed = Credential()
        token_file = FileContent(self._resolve(user.token_file)) if user.token_file else None
        if user.token and token_file is None:  # kubectl prefers the file if both are given
            fixed = self._attempt(lambda: Credential(token=token_of(user.token, "the token"))) or fixed
        chain = self._pem(user.client_certificate, user.client_certificate_data, "user", "certificate")
        key = self._pem(user.client_key, user.client_key_data, "user", "key")
        if (chain is None) != (key is None) and len(self.problems) == before:
            self._wrong("user has a client certificate without a key, or a key without a certificate: set both")
        if len(self.problems) > before:
            return None
        return self._combined(fixed, token_file, chain, key)

    def _combined(
        self,
        fixed: Credential,
        token_file: FileContent | None,
        chain: FileContent | bytes | None,
        key: FileContent | bytes | None,
    ) -> CredentialProvider:
        if isinstance(chain, bytes) and isinstance(key, bytes):
            pair = ClientCertificate(chain=chain, key=Secret(key.decode(errors="replace")))
            fixed = Credential(token=fixed.token, certificate=pair)
            chain = key = None
        if token_file is None and chain is None:
            return StaticCredential(fixed)
        if isinstance(chain, bytes) or isinstance(key, bytes):
            self._wrong("user has the certificate as data and the key as a file, or vice versa: use one form for both")
            chain = key = None
        return FileCredential(fixed=fixed, token=token_file, chain=chain, key=key)

    def _refuse_unsupported(self, user: User) -> None:
        if user.auth_provider is not None:
            self._wrong(
                "user has an auth-provider, which Kubernetes removed: use an exec credential plugin or a tokenFile"
            )
        if user.username or user.password:
            self._wrong(
                "user has a username and password, which API servers no longer accept: use a token or a certificate"
            )
        if user.impersonate:
            self._wrong('user impersonates another user ("as"), which is not supported: give the daemon its own user')

    def _exec(
        self, spec: ExecEntry, named: NamedCluster, authorities: FileContent | bytes | None
    ) -> CredentialProvider | None:
        if spec.api_version not in _EXEC_VERSIONS:
            self._wrong(
                f"user has an exec plugin of {spec.api_version!r}; supported are {' and '.join(_EXEC_VERSIONS)}"
            )
            return None
        if not spec.command:
            self._wrong("user has an exec plugin without a command")
            return None
        if spec.interactive_mode == "Always":
            self._wrong("user has an exec plugin that needs a terminal (interactiveMode: Always); a daemon has none")
            return None
        if spec.command not in self.plugins and "*" not in self.plugins:
            self._wrong(
                f"user has an exec plugin that exec_plugins does not allow: {spec.command}; "
                "add it there if the kubeconfig's author may run commands as the daemon"
            )
            return None
        command = spec.command
        if "/" in command:
            command = str(self._resolve(command))
        return ExecPlugin(
            ExecCommand(
                api_version=spec.api_version,
                argv=(command, *(spec.args or ())),
                environment={variable.name: variable.value for variable in spec.env or ()},
                install_hint=spec.install_hint,
                cluster=(lambda: _cluster_info(named.cluster, authorities)) if spec.provide_cluster_info else None,
            )
        )

    def _pem(self, file: str, data: str, about: str, what: str) -> FileContent | bytes | None:
        """Return the data if there is any, as kubectl does, else the file."""
        if data:
            try:
                return base64.b64decode(data, validate=True)
            except binascii.Error:
                self._wrong(f"{about} has {what} data that is not valid base64")
                return None
        if not file:
            return None
        content = FileContent(self._resolve(file))
        self._attempt(content.read)
        return content

    def _resolve(self, file: str) -> Path:
        if "\0" in file:
            self._wrong("names a file whose path contains a NUL character")
            self._give_up()
        if ".." in Path(file).parts:
            self._wrong(f"names {file}: relative paths must not leave the kubeconfig's directory; use an absolute path")
            self._give_up()
        return self.path.absolute().parent / file

    def _named(self, entries: list[Entry] | None, name: str, kind: str) -> Entry | None:
        found = [entry for entry in entries or () if entry.name == name]
        if found:
            return found[0]
        known = ", ".join(entry.name for entry in entries or ()) or "none"
        self._wrong(f"has no {kind} {name!r}; it has: {known}")
        return None

    def _attempt(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except CredentialError as error:
            self._wrong(f"user or cluster: {error}")
            return None

    def _wrong(self, complaint: str) -> None:
        self.problems.append(f"kubeconfig {self.path}: {complaint}")

    def _give_up(self) -> NoReturn:
        raise ConfigError(self.problems)


def server_problem(server: str) -> str | None:
    """Return what is wrong with an API server's URL, as the end of a sentence, or None."""
    try:
        parts = urlsplit(server)
        port = parts.port
    except ValueError:
        return "is not a URL"
    if parts.scheme not in {"https", "http"} or not parts.hostname or port == 0:
        return "is not https://HOST[:PORT][/PREFIX]"
    if parts.username is not None or parts.query or parts.fragment:
        return "has a user, a query or a fragment: only https://HOST[:PORT][/PREFIX] is allowed"
    if any(segment in {".", ".."} for segment in parts.path.split("/")) or "%" in parts.path:
        return "has an ambiguous path: dot segments and percent signs are not allowed"
    return None


def _cluster_info(cluster: ClusterEntry, authorities: FileContent | bytes | None) -> Mapping[str, object]:
    """Return `spec.cluster` of the ExecCredential that the plugin receives."""
    authority = authorities.read() if isinstance(authorities, FileContent) else authorities
    info: dict[str, object] = {"server": cluster.server}
    if cluster.tls_server_name:
        info["tls-server-name"] = cluster.tls_server_name
    if authority is not None:
        info["certificate-authority-data"] = base64.b64encode(authority).decode()
    if cluster.proxy_url:
        info["proxy-url"] = cluster.proxy_url
    for extension in cluster.extensions or ():
        if extension.name == _EXEC_EXTENSION:
            info["config"] = extension.extension
    return info
