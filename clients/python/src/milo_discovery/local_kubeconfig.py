"""Access to an API server from local files: a kubeconfig, or the service account of a pod.

These files belong to the user, so they may refer to other files, a proxy and a credential plugin.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from milo_discovery.errors import UnusableKubeconfig
from milo_discovery.kubeconfig_access import KubeconfigAccess, inline_access, pem_text, render_kubeconfig
from milo_discovery.model import Kubeconfig
from milo_kube import addresses, exec_plugin, kubeconfig
from milo_kube.credential import ClientCertificate, CredentialError, Secret, is_confidential
from milo_kube.exec_plugin import ExecCommand, ExecPluginError, cluster_info
from milo_kube.kubeconfig import ContextAccess, ExecEntry, KubeconfigError
from milo_kube.tls_identity import check_pair

_READ_AGAIN = timedelta(seconds=60)
_PLUGIN_TIMEOUT_S = 30.0
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalAccess:
    """What the local files contained when they were read: server, credential, namespace and proxy."""

    access: KubeconfigAccess
    namespace: str = ""
    """The namespace of the context or the pod; empty if it is not set."""
    proxy: str | None = field(default=None, repr=False)
    """The `proxy-url` of the kubeconfig."""
    plugin: ExecCommand | None = None
    """The plugin to run for a credential, if the kubeconfig has no other credential."""


class ServiceAccount:
    """The service account of the pod that this process runs in."""

    def __init__(self, environment: Mapping[str, str] = os.environ, directory: Path = _SERVICE_ACCOUNT) -> None:
        self._environment = environment
        self._directory = directory

    def read(self) -> LocalAccess:
        """Read the files. Raises UnusableKubeconfig."""
        host, port = (self._environment.get(f"KUBERNETES_SERVICE_{part}") for part in ("HOST", "PORT"))
        if not host or not port:
            raise UnusableKubeconfig(
                "not running in a pod, where KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are set: pass a "
                "kubeconfig instead"
            )
        access = KubeconfigAccess(
            server=f"https://{addresses.bracketed(host)}:{port}",
            authorities=_pem(self._directory / "ca.crt"),
            token=_text(self._directory / "token").strip(),
        )
        return LocalAccess(access=access, namespace=_text(self._directory / "namespace").strip())


class KubeconfigFile:
    """A context of a kubeconfig, by default the current one. Several files are merged as kubectl merges them.

    Later reads are of the context that the first one found, and of its server: a user who switches the current context
    must not send the requests of a running program to another cluster.
    """

    def __init__(self, path: Path, context: str | None = None, *, others: Sequence[Path] = ()) -> None:
        """`others` add entries that `path` lacks. If there are several files, missing ones are skipped."""
        existing = [file for file in (path, *others) if file.exists()] if others else [path]
        self._paths = existing or [path]
        self._context = context
        self._server = ""

    def read(self) -> LocalAccess:
        """Read the kubeconfig and the files that it refers to. Raises UnusableKubeconfig, which quotes no values."""
        try:
            files = [(str(path.parent), kubeconfig.parse(_bytes(path))) for path in self._paths]
            merged = kubeconfig.merged(files)
            context = merged.current_context if self._context is None else self._context
            found = merged.select(kubeconfig.LOCAL, context)
        except KubeconfigError as error:
            raise UnusableKubeconfig(f"{self._name} is refused: {error}") from None
        if self._server and found.server != self._server:
            raise UnusableKubeconfig(
                f"the context {context!r} of {self._name} has a different server than at the start of this program: "
                "restart it to use the new server"
            )
        inline = inline_access(found, self._name)
        access = replace(
            inline,
            authorities=inline.authorities or _if_set(_pem, found.authorities_file),
            token=inline.token or _if_set(_text, found.token_file),
            certificate=inline.certificate or _if_set(_pem, found.certificate_file),
            key=inline.key or _if_set(_pem, found.key_file),
        )
        has_credential = access.token is not None or access.certificate is not None
        is_authenticated = has_credential or found.plugin is not None
        if is_authenticated and not is_confidential(found.server, plain_loopback=True):
            raise UnusableKubeconfig(
                f"{self._name} has a server without TLS, to which the credential would be sent unencrypted; use https"
            )
        self._context, self._server = context, found.server
        return LocalAccess(
            access=access,
            namespace=found.namespace,
            proxy=found.proxy_url or None,
            plugin=None if has_credential or found.plugin is None else self._command(found.plugin, found, access),
        )

    @property
    def _name(self) -> str:
        return f"the kubeconfig {os.pathsep.join(map(str, self._paths))}"

    def _command(self, plugin: ExecEntry, found: ContextAccess, access: KubeconfigAccess) -> ExecCommand:
        authorities = None if access.authorities is None else access.authorities.encode()
        return ExecCommand(
            api_version=plugin.api_version,
            argv=(plugin.command, *plugin.args),
            environment=plugin.env,
            install_hint=plugin.install_hint,
            cluster=(lambda: cluster_info(found, authorities)) if plugin.provide_cluster_info else None,
        )


LocalSource = ServiceAccount | KubeconfigFile


def default_source(kubeconfig: Path | None = None, context: str | None = None) -> LocalSource:
    """Return the kubeconfig; by default that of KUBECONFIG, the service account of the pod, or ~/.kube/config."""
    paths = [Path(path) for path in os.environ.get("KUBECONFIG", "").split(os.pathsep) if path]
    if kubeconfig is not None:
        paths = [kubeconfig]
    if not paths and context is None and (_SERVICE_ACCOUNT / "token").exists():
        return ServiceAccount()
    first, *others = paths or [Path.home() / ".kube" / "config"]
    return KubeconfigFile(first, context, others=others)


async def read(source: LocalSource) -> LocalAccess:
    """Read the files in a thread. Raises UnusableKubeconfig."""
    # Not in the threads of asyncio.to_thread, in which the program may have calls that wait for long.
    reading = ThreadPoolExecutor(1, "kubeconfig")
    try:
        return await asyncio.get_running_loop().run_in_executor(reading, source.read)
    finally:
        reading.shutdown(wait=False)


async def issue(name: str, source: LocalSource) -> Kubeconfig:
    """Return the credential as a kubeconfig.

    It is refreshed before it expires. If its expiry is unknown, the files are read again periodically. Raises
    UnusableKubeconfig.
    """
    found = await read(source)
    access, expires_at = found.access, None
    if found.plugin is not None:
        access, expires_at = await _with_plugin(access, found.plugin)
    _check_pair(access)
    now = datetime.now(UTC)
    return Kubeconfig(
        cluster=name,
        kubeconfig=json.dumps(render_kubeconfig(name, access)).encode(),
        issued_at=now,
        expires_at=expires_at,
        refresh_after=now + _READ_AGAIN if expires_at is None else now + (expires_at - now) / 2,
    )


async def _with_plugin(access: KubeconfigAccess, command: ExecCommand) -> tuple[KubeconfigAccess, datetime | None]:
    """Run the plugin; return `access` with the plugin's credential, and its expiry. Raises UnusableKubeconfig."""
    try:
        output = await exec_plugin.run(command, timeout_s=_PLUGIN_TIMEOUT_S)
        answer = exec_plugin.read_answer(output, command, time.time())
    except ExecPluginError as error:
        raise UnusableKubeconfig(str(error)) from None
    certificate, key = answer.client_certificate_data or None, answer.client_key_data or None
    return replace(access, token=answer.token or None, certificate=certificate, key=key), answer.expiration_timestamp


def _check_pair(access: KubeconfigAccess) -> None:
    """Raise UnusableKubeconfig if the key is not that of the certificate: one file may not be replaced yet."""
    if access.certificate is None or access.key is None:
        return
    try:
        check_pair(ClientCertificate(chain=access.certificate.encode(), key=Secret(access.key)))
    except CredentialError as error:
        raise UnusableKubeconfig(str(error)) from None


def _if_set(read: Callable[[Path], str], file: str) -> str | None:
    return read(Path(file)).strip() if file else None


def _text(path: Path) -> str:
    try:
        return _content(path).decode()
    except UnicodeDecodeError:
        raise UnusableKubeconfig(f"{path} is not a text file") from None


def _pem(path: Path) -> str:
    return pem_text(_content(path), str(path))


def _content(path: Path) -> bytes:
    content = _bytes(path)
    if not content.strip():
        # As while it is written: without a CA, those of the system would be trusted.
        raise UnusableKubeconfig(f"{path} is empty")
    return content


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnusableKubeconfig(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # a NUL character in the path
        raise UnusableKubeconfig(f"cannot read {str(path)!r}: {error}") from error
