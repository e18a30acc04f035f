"""API servers and the identity of this process there, from a kubeconfig or the service account of a pod."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NoReturn

import msgspec

from milo_kube import addresses, kubeconfig
from milo_kube.api_request import Access
from milo_kube.api_server import no_credential
from milo_kube.credential import (
    ClientCertificate,
    Credential,
    CredentialError,
    Secret,
    for_url,
    is_confidential,
    token_of,
)
from milo_kube.credential_providers import CredentialProvider, ExecPlugin, FileCredential, StaticCredential
from milo_kube.exec_plugin import ExecCommand, cluster_info
from milo_kube.file_content import FileContent
from milo_kube.kubeconfig import ContextAccess, ExecEntry, KubeconfigError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class UpstreamError(Exception):
    """All problems of a kubeconfig or a service account, one per line."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Upstream(msgspec.Struct, frozen=True, kw_only=True):
    server: str
    """scheme://host[:port][/prefix], without a trailing slash."""
    origin: str
    """The kubeconfig's path or "in-cluster", for messages."""
    credentials: CredentialProvider
    authorities: FileContent | bytes | None = None
    """PEM, or a file with PEM that another process renews; None stands for the system's CAs."""
    tls_server_name: str | None = None
    proxy: Secret | None = None
    """The kubeconfig's proxy URL, which may contain a password; None: the proxy of the environment variables."""
    plain_loopback: bool = False
    """Whether credentials may be sent over plain HTTP to addresses on loopback."""

    async def access(self, *, refused: Credential | None = None) -> Access:
        """Return the server, its CAs and the credential to use now. Raises TransportError if there is no credential."""
        try:
            credential = await self.credentials.credential(refused=refused)
            return Access(
                server=self.server,
                authorities=self.trusted(),
                tls_server_name=self.tls_server_name,
                credential=for_url(credential, self.server, plain_loopback=self.plain_loopback),
            )
        except CredentialError as error:
            raise no_credential(error, self.server) from error

    def trusted(self) -> bytes | None:
        return self.authorities.read() if isinstance(self.authorities, FileContent) else self.authorities


def load_in_cluster(environ: Mapping[str, str], service_account: Path = SERVICE_ACCOUNT) -> Upstream:
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        raise UpstreamError(
            "in-cluster: not running in a pod (KUBERNETES_SERVICE_HOST or _PORT is not set): "
            "set kubeconfigs, for example with --discovery-kubeconfig and --project-kubeconfig"
        )
    token, authorities = FileContent(service_account / "token"), FileContent(service_account / "ca.crt")
    problems: list[str] = []
    for file in (token, authorities):
        try:
            file.read()
        except CredentialError as error:
            problems.append(f"in-cluster: {error} (does the pod have automountServiceAccountToken: false?)")
    if problems:
        raise UpstreamError(*problems)
    return Upstream(
        server=f"https://{addresses.bracketed(host)}:{port}",
        origin="in-cluster",
        credentials=FileCredential(token=token),
        authorities=authorities,
    )


def load_kubeconfig(path: Path, plugins: Collection[str] = (), *, plain_loopback: bool = False) -> Upstream:
    """Load a kubeconfig, and reload its credential when the file changes, unless the file is a pipe. Raises
    UpstreamError.

    `plugins` are the commands that the kubeconfig may run as exec credential plugins, as written there; "*" allows any.
    With `plain_loopback`, credentials may be sent to a server on loopback without TLS.
    """

    def read() -> Upstream:
        return _Loader(path, plugins, plain_loopback).upstream()

    found = read()
    if not path.is_file():
        return found  # a pipe, such as a shell's <(command), can be read only once
    return msgspec.structs.replace(found, credentials=ReloadedCredential(FileContent(path), found, read))


class ReloadedCredential:
    """The credential of a kubeconfig that is replaced at runtime: by a mounted Secret, or by a new login.

    Only the credential is reloaded. A new server or CA requires a restart, because the fleet may be a different one.
    """

    def __init__(self, file: FileContent, loaded: Upstream, read: Callable[[], Upstream]) -> None:
        self._file = file
        self._loaded = loaded
        self._read = read
        self._content = file.read()

    @property
    def current(self) -> CredentialProvider:
        """The credential provider of the last valid kubeconfig."""
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
        except UpstreamError as error:
            raise CredentialError(f"the kubeconfig was replaced, and its new content is invalid: {error}") from None
        if found.server != self._loaded.server:
            raise CredentialError(
                f"kubeconfig {self._file.path} now names a different server, {found.server}: restart the daemon to "
                "use it"
            )
        self._loaded = found


class _Loader(msgspec.Struct):
    path: Path
    plugins: Collection[str]
    plain_loopback: bool
    problems: list[str] = msgspec.field(default_factory=list)

    def upstream(self) -> Upstream:
        try:
            found = kubeconfig.parse(self._content()).select(kubeconfig.LOCAL)
        except KubeconfigError as error:
            self._give_up(*error.problems)
        if found.has_user and not is_confidential(found.server, plain_loopback=self.plain_loopback):
            self.problems.append(
                f'cluster "{found.cluster}" has a server without TLS, where the credential would be sent unencrypted: '
                "use https, or set `plain_loopback` if the server is a proxy on this machine"
            )
        authorities = found.authorities or self._file(found.authorities_file)
        credentials = self._credentials(found, authorities)
        if self.problems or credentials is None:
            self._give_up()
        return Upstream(
            server=found.server,
            origin=str(self.path),
            credentials=credentials,
            authorities=authorities,
            tls_server_name=found.tls_server_name or None,
            proxy=Secret(found.proxy_url) if found.proxy_url else None,
            plain_loopback=self.plain_loopback,
        )

    def _content(self) -> bytes:
        if ":" in str(self.path) and not self.path.exists():
            self._give_up("does not exist; pass one file, not a list (kubectl config view --flatten merges several)")
        try:
            with self.path.open("rb") as stream:
                return stream.read(kubeconfig.MAX_BYTES + 1)
        except OSError as error:
            self._give_up(f"cannot be read: {error.strerror or error}")

    def _credentials(self, found: ContextAccess, authorities: FileContent | bytes | None) -> CredentialProvider | None:
        if found.plugin is not None:
            return self._exec(found.plugin, found, authorities)
        fixed = Credential()
        try:
            token = token_of(found.token, "the token") if found.token else None
            fixed = Credential(token=token)
        except CredentialError as error:
            self.problems.append(f"user: {error}")
        if found.certificate is not None and found.key is not None:
            pair = ClientCertificate(chain=found.certificate, key=Secret(found.key.decode(errors="replace")))
            fixed = Credential(token=fixed.token, certificate=pair)
        token_file = self._file(found.token_file, is_needed=False)
        chain = None if fixed.certificate else self._file(found.certificate_file)
        key = None if fixed.certificate else self._file(found.key_file)
        if token_file is None and chain is None:
            return StaticCredential(fixed)
        return FileCredential(fixed=fixed, token=token_file, chain=chain, key=key)

    def _exec(
        self, entry: ExecEntry, found: ContextAccess, authorities: FileContent | bytes | None
    ) -> CredentialProvider | None:
        if entry.command not in self.plugins and "*" not in self.plugins:
            self.problems.append(
                f"user has an exec plugin that `exec_plugins` does not allow: {entry.command}; "
                "add it to `exec_plugins` if the kubeconfig's author may run commands as the daemon"
            )
            return None

        def cluster() -> Mapping[str, object]:
            return cluster_info(found, authorities.read() if isinstance(authorities, FileContent) else authorities)

        return ExecPlugin(
            ExecCommand(
                api_version=entry.api_version,
                argv=(str(self._resolve(entry.command)) if "/" in entry.command else entry.command, *entry.args),
                environment=entry.env,
                install_hint=entry.install_hint,
                cluster=cluster if entry.provide_cluster_info else None,
            )
        )

    def _file(self, file: str, *, is_needed: bool = True) -> FileContent | None:
        if not file:
            return None
        content = FileContent(self._resolve(file))
        if is_needed:
            try:
                content.read()
            except CredentialError as error:
                self.problems.append(f"refers to a file that cannot be used: {error}")
        return content

    def _resolve(self, file: str) -> Path:
        if "\0" in file:
            self._give_up("refers to a file whose path contains a NUL character")
        if ".." in Path(file).parts:
            self._give_up(f'refers to {file}: a path must not contain ".."; use an absolute path without it')
        return self.path.absolute().parent / file

    def _give_up(self, *problems: str) -> NoReturn:
        raise UpstreamError(*(f"kubeconfig {self.path}: {problem}" for problem in (*self.problems, *problems)))


def share_identity(one: CredentialProvider, other: CredentialProvider) -> bool:
    """Return whether two providers have the same token or certificate, read the same file, or run the same plugin."""
    first, second = _current(one), _current(other)
    if isinstance(first, ExecPlugin) and isinstance(second, ExecPlugin):
        return first.runs_like(second)
    if (file := _file(first)) is not None and (its_file := _file(second)) is not None:
        return file.path.resolve() == its_file.path.resolve() or _is_same(_secret(first), _secret(second))
    return _is_same(_secret(first), _secret(second))


def _current(provider: CredentialProvider) -> CredentialProvider:
    return provider.current if isinstance(provider, ReloadedCredential) else provider


def _file(provider: CredentialProvider) -> FileContent | None:
    return (provider.token or provider.chain) if isinstance(provider, FileCredential) else None


def _secret(provider: CredentialProvider) -> object:
    """Return the token, certificate, file or plugin that identifies the user. No plugin is run."""
    match provider:
        case StaticCredential(value=Credential(token=token, certificate=certificate)):
            return token or (certificate and certificate.chain)
        case FileCredential():
            try:
                if provider.token is not None:
                    return token_of(provider.token.read().decode(errors="replace"), "a token")
                return provider.fixed.token or (provider.chain and provider.chain.read())
            except CredentialError:
                return None
    return None


def _is_same(one: object, other: object) -> bool:
    return one is not None and one == other
