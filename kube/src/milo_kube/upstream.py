"""API servers and the identity of this process there, from a kubeconfig or the service account of a pod."""

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeAlias

import msgspec

from milo_kube import addresses, kubeconfig
from milo_kube.api_request import Access
from milo_kube.api_server import no_credential
from milo_kube.authorities_file import AuthoritiesFile
from milo_kube.credential import (
    ClientCertificate,
    Credential,
    CredentialError,
    Secret,
    for_url,
    is_confidential,
    token_of,
)
from milo_kube.credential_providers import (
    CredentialOrigin,
    CredentialProvider,
    ExecOrigin,
    FileOrigin,
    RenewedCredential,
)
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

    async def access(self, *, within_s: float, refused: Credential | None = None) -> Access:
        """Return the server, its CAs and the credential to use now.

        Raises TransportError if there is no credential `within_s`.
        """
        try:
            return self._with(await self.credentials.credential(within_s=within_s, refused=refused))
        except CredentialError as error:
            raise no_credential(error, self.server) from error

    def access_now(self) -> Access:
        """Return the server, its CAs and the newest credential, which may have expired, or none. Raises TransportError
        if the CAs cannot be read."""
        try:
            return self._with(self.credentials.held())
        except CredentialError as error:
            raise no_credential(error, self.server) from error

    async def aclose(self) -> None:
        """End the renewal of the credential."""
        await self.credentials.aclose()

    def _with(self, credential: Credential) -> Access:
        return Access(
            server=self.server,
            authorities=self.trusted(),
            tls_server_name=self.tls_server_name,
            credential=for_url(credential, self.server, plain_loopback=self.plain_loopback),
        )

    def trusted(self) -> bytes | None:
        return self.authorities.read() if isinstance(self.authorities, FileContent) else self.authorities


Note: TypeAlias = Callable[[str, str], None]
"""Called with the origin of a credential and the problem of its renewal when the problem changes; it is empty when the
renewal works again."""


def _unnoted(_origin: str, _problem: str) -> None:
    """Note nothing."""


def load_in_cluster(
    environ: Mapping[str, str], service_account: Path = SERVICE_ACCOUNT, *, note: Note = _unnoted
) -> Upstream:
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        raise UpstreamError(
            "in-cluster: not running in a pod (KUBERNETES_SERVICE_HOST or _PORT is not set): "
            "set kubeconfigs, for example with --discovery-kubeconfig and --project-kubeconfig"
        )
    token, authorities = FileContent(service_account / "token"), AuthoritiesFile(service_account / "ca.crt", note)
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
        credentials=RenewedCredential(FileOrigin(token=token), note=partial(note, "in-cluster")),
        authorities=authorities,
    )


def load_kubeconfig(
    path: Path, plugins: Collection[str] = (), *, plain_loopback: bool = False, note: Note = _unnoted
) -> Upstream:
    """Load a kubeconfig, and reload its credential when the file changes, unless the file is a pipe. Raises
    UpstreamError.

    `plugins` are the commands that the kubeconfig may run as exec credential plugins, as written there; "*" allows any.
    With `plain_loopback`, credentials may be sent to a server on loopback without TLS.
    """

    def read(content: bytes | None = None) -> _Loaded:
        return _Loader(path, plugins, plain_loopback, note).load(content)

    if path.is_file():
        file = FileContent(path)
        try:
            content: bytes | None = file.read()
        except CredentialError:
            content = None  # the error of reading it again says why
        found = read(content)
        origin: CredentialOrigin = KubeconfigOrigin(file, content or b"", found, read)
    else:
        found = read()  # a pipe, such as a shell's <(command), can be read only once
        origin = found.origin
    provider = RenewedCredential(origin, note=partial(note, str(path)))
    return msgspec.structs.replace(found.upstream, credentials=provider)


class _Loaded(msgspec.Struct, frozen=True):
    """The content of a kubeconfig."""

    upstream: Upstream
    origin: CredentialOrigin


class KubeconfigOrigin:
    """The credential of a kubeconfig that is replaced at runtime: by a mounted Secret, or by a new login.

    Only the credential is reloaded. A new server or CA requires a restart, because the fleet may be a different one. As
    long as the new content yields no credential, that of the last good content is renewed.
    """

    is_watched = True

    def __init__(self, file: FileContent, content: bytes, loaded: _Loaded, read: Callable[[bytes], _Loaded]) -> None:
        self.current = loaded.origin
        """The origin of the credential in the last good content."""
        self._refusal = ""
        """Why the newest content yields no credential."""
        self._unused = ""
        """What else the newest content has that is not used before a restart."""
        self._file = file
        self._content = content
        self._upstream = loaded.upstream
        self._read = read
        self._candidate: CredentialOrigin | None = None
        """The origin in newer content that has not yielded a credential yet."""

    def __str__(self) -> str:
        return f"{self._candidate or self.current} of kubeconfig {self._file.path}"

    @property
    def gap_s(self) -> float:
        return (self._candidate or self.current).gap_s

    @property
    def problem(self) -> str:
        return self._refusal or self._unused

    def has_changed(self) -> bool:
        origins = filter(None, (self._candidate, self.current))
        return self._file.read() != self._content or any(origin.has_changed() for origin in origins)

    async def obtain(self, *, refused: Credential | None, is_due: bool) -> Credential:
        if (content := self._file.read(reread=refused is not None)) != self._content:
            await self._load(content)
            self._content = content
        if self._candidate is not None:
            try:
                credential = await self._candidate.obtain(refused=refused, is_due=True)
            except CredentialError as error:
                self._refusal = f"kubeconfig {self._file.path} was replaced, and the new one has no credential: {error}"
            else:
                self.current, self._candidate, self._refusal = self._candidate, None, ""
                return credential
        if self._refusal and not is_due and not self.current.has_changed():
            raise CredentialError(self._refusal)
        credential = await self.current.obtain(refused=refused, is_due=is_due)
        if self._refusal and credential == refused:
            raise CredentialError(self._refusal)
        return credential

    async def _load(self, content: bytes) -> None:
        try:
            found = await asyncio.to_thread(self._read, content)  # parsing thousands of contexts takes seconds
        except UpstreamError as error:
            self._candidate, self._unused = None, ""
            self._refusal = f"kubeconfig {self._file.path} was replaced, and its new content is invalid: {error}"
            return
        self._candidate, self._refusal, self._unused = None, "", ""
        if found.upstream.server != self._upstream.server:
            self._refusal = (
                f"kubeconfig {self._file.path} now names a different server, {found.upstream.server}: restart the "
                "daemon to use it"
            )
            return
        self._candidate = found.origin
        if unused := [*_differences(self._upstream, found.upstream)]:
            fields = " and another ".join(unused)
            self._unused = f"kubeconfig {self._file.path} now has another {fields}: restart the daemon to use it"


def _differences(used: Upstream, found: Upstream) -> Iterator[str]:
    """Yield the fields of a cluster that are not used before a restart."""

    def authority(of: Upstream) -> object:
        return of.authorities.path if isinstance(of.authorities, FileContent) else of.authorities

    if authority(used) != authority(found):
        yield "certificate-authority"
    if used.tls_server_name != found.tls_server_name:
        yield "tls-server-name"
    if used.proxy != found.proxy:
        yield "proxy-url"


class _Loader(msgspec.Struct):
    path: Path
    plugins: Collection[str]
    plain_loopback: bool
    note: Note
    problems: list[str] = msgspec.field(default_factory=list)

    def load(self, content: bytes | None) -> _Loaded:
        """Load the content, by default that of the file."""
        try:
            found = kubeconfig.parse(self._content() if content is None else content).select(kubeconfig.LOCAL)
        except KubeconfigError as error:
            self._give_up(*error.problems)
        if found.has_user and not is_confidential(found.server, plain_loopback=self.plain_loopback):
            self.problems.append(
                f'cluster "{found.cluster}" has a server without TLS, where the credential would be sent unencrypted: '
                "use https, or set `plain_loopback` if the server is a proxy on this machine"
            )
        authorities = found.authorities or self._read(self._authorities(found.authorities_file))
        origin = self._credential(found, authorities)
        if self.problems or origin is None:
            self._give_up()
        upstream = Upstream(
            server=found.server,
            origin=str(self.path),
            credentials=RenewedCredential(origin),
            authorities=authorities,
            tls_server_name=found.tls_server_name or None,
            proxy=Secret(found.proxy_url) if found.proxy_url else None,
            plain_loopback=self.plain_loopback,
        )
        return _Loaded(upstream, origin)

    def _content(self) -> bytes:
        if ":" in str(self.path) and not self.path.exists():
            self._give_up("does not exist; pass one file, not a list (kubectl config view --flatten merges several)")
        try:
            with self.path.open("rb") as stream:
                return stream.read(kubeconfig.MAX_BYTES + 1)
        except OSError as error:
            self._give_up(f"cannot be read: {error.strerror or error}")

    def _credential(self, found: ContextAccess, authorities: FileContent | bytes | None) -> CredentialOrigin | None:
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
        token_file = self._file(found.token_file)
        chain = None if fixed.certificate else self._read(self._file(found.certificate_file))
        key = None if fixed.certificate else self._read(self._file(found.key_file))
        return FileOrigin(fixed=fixed, token=token_file, chain=chain, key=key)

    def _exec(
        self, entry: ExecEntry, found: ContextAccess, authorities: FileContent | bytes | None
    ) -> CredentialOrigin | None:
        if entry.command not in self.plugins and "*" not in self.plugins:
            self.problems.append(
                f"user has an exec plugin that `exec_plugins` does not allow: {entry.command}; "
                "add it to `exec_plugins` if the kubeconfig's author may run commands as the daemon"
            )
            return None

        def cluster() -> Mapping[str, object]:
            return cluster_info(found, authorities.read() if isinstance(authorities, FileContent) else authorities)

        return ExecOrigin(
            ExecCommand(
                api_version=entry.api_version,
                argv=(str(self._resolve(entry.command)) if "/" in entry.command else entry.command, *entry.args),
                environment=entry.env,
                install_hint=entry.install_hint,
                cluster=cluster if entry.provide_cluster_info else None,
            )
        )

    def _authorities(self, file: str) -> FileContent | None:
        return AuthoritiesFile(self._resolve(file), self.note) if file else None

    def _file(self, file: str) -> FileContent | None:
        return FileContent(self._resolve(file)) if file else None

    def _read(self, content: FileContent | None) -> FileContent | None:
        """Return a file that is needed, and note the problem if it cannot be read."""
        if content is not None:
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
    first, second = current_origin(one), current_origin(other)
    if isinstance(first, ExecOrigin) and isinstance(second, ExecOrigin):
        return first.runs_like(second)
    if (file := _file(first)) is not None and (its_file := _file(second)) is not None:
        return file.path.resolve() == its_file.path.resolve() or _is_same(_secret(first), _secret(second))
    return _is_same(_secret(first), _secret(second))


def current_origin(provider: CredentialProvider) -> CredentialOrigin | None:
    """Return where the credential comes from at present; None for a fixed one."""
    origin = provider.origin if isinstance(provider, RenewedCredential) else None
    return origin.current if isinstance(origin, KubeconfigOrigin) else origin


def _file(origin: CredentialOrigin | None) -> FileContent | None:
    return (origin.token or origin.chain) if isinstance(origin, FileOrigin) else None


def _secret(origin: CredentialOrigin | None) -> object:
    """Return the token or certificate that identifies the user. No plugin is run."""
    if not isinstance(origin, FileOrigin):
        return None
    try:
        if origin.token is not None:
            return token_of(origin.token.read().decode(errors="replace"), "a token")
        certificate = origin.fixed.certificate
        return origin.fixed.token or (origin.chain and origin.chain.read()) or (certificate and certificate.chain)
    except CredentialError:
        return None


def _is_same(one: object, other: object) -> bool:
    return one is not None and one == other
