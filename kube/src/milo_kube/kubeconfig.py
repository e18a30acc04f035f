"""Reads a context of a kubeconfig under a policy of allowed fields, and renders kubeconfigs. Reads no files.

Fields that the policy does not list are refused, because ignoring a proxy, a CA or an impersonation would be worse than
not connecting.
Errors quote names of contexts, clusters, users and fields, and never a value, which may be a secret.
"""

from __future__ import annotations

import base64
import binascii
import json
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final
from urllib.parse import urlsplit

from milo_kube import act_as, key_sizes
from milo_kube.act_as import ActAs
from milo_kube.key_sizes import OWN_BITS, RECEIVED_BITS, KeySizeError

MAX_BYTES: Final = 1 << 20
RECEIVED_BYTES: Final = 64 << 10
"""Maximum size of a kubeconfig that another user wrote: parsing a larger one would delay the event loop."""
_RECEIVED_NODES: Final = 2_000
LONGEST_URL: Final = 1_024
"""Maximum length of a URL that another user wrote. `urlsplit` normalizes text that is not ASCII, which takes quadratic
time: 7 s for 30,000 characters. It also keeps its last 128 arguments."""
_LONGEST_HOSTNAME: Final = 253
SERVER_VARIABLE: Final = "MILO_DISCOVERY_CLUSTER_SERVER"
"""The environment variable in which a kubeconfig's exec entry repeats the URL of its server for the plugin."""
EXEC_VERSIONS: Final = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")

_TYPES: Final[Mapping[str, tuple[type, str]]] = {
    "exec": (dict, "a mapping"),
    "extensions": (list, "a list"),
    "insecure-skip-tls-verify": (bool, "a boolean"),
    "disable-compression": (bool, "a boolean"),
    "as-groups": (list, "a list"),
    "as-user-extra": (dict, "a mapping"),
}
_WITHOUT_EFFECT: Final = frozenset({"extensions", "disable-compression"})
_AUTHORITIES: Final = "certificate-authority"
_LISTS: Final = {"clusters": "cluster", "users": "user", "contexts": "context"}
_EXEC_FIELDS: Final = frozenset(
    {"apiVersion", "command", "args", "env", "installHint", "interactiveMode", "provideClusterInfo"}
)
_INSTEAD: Final = {
    "insecure-skip-tls-verify": "set certificate-authority-data, or tls-server-name if only the name differs",
    "auth-provider": "Kubernetes removed auth providers; use an exec credential plugin or a tokenFile",
    "username": "API servers no longer accept basic authentication; use a token or a certificate",
    "password": "API servers no longer accept basic authentication; use a token or a certificate",
    "as": "the kubeconfig impersonates another user; use a credential of that user",
}


class KubeconfigError(ValueError):
    """A kubeconfig is refused. Each problem is a predicate without a subject, such as "has no current-context"."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Policy:
    """The fields that the cluster and the user of a context may have."""

    cluster: frozenset[str]
    user: frozenset[str] | None
    """None: the user is not read."""
    instead: str = "not supported"
    """The advice about refused fields that are not in `_INSTEAD`."""
    needs_server: bool = True
    is_exact: bool = False
    """Whether the document must contain exactly one cluster, user and context, and nothing else."""
    is_own: bool = False
    """Whether the user that runs the program wrote the kubeconfig. Its keys may be larger, and its CAs are trusted."""


_DATA: Final = frozenset({"token", "client-certificate-data", "client-key-data"})
_FILES: Final = frozenset({"tokenFile", "client-certificate", "client-key"})
_PATHS: Final = _FILES | {_AUTHORITIES}
_INLINE_ONLY: Final = (
    "the cluster can have only server, certificate-authority-data and tls-server-name; the user only token, or "
    "client-certificate-data with client-key-data"
)
_INLINE: Final = "the user can have only token, or client-certificate-data with client-key-data"

LOCAL: Final = Policy(
    cluster=_WITHOUT_EFFECT
    | {"server", "certificate-authority", "certificate-authority-data", "tls-server-name", "proxy-url"},
    user=_DATA | _FILES | _WITHOUT_EFFECT | {"exec"},
    is_own=True,
)
"""A kubeconfig of the user that runs the program, which may refer to files, a proxy and a plugin."""
SERVER: Final = Policy(
    cluster=_WITHOUT_EFFECT | {"server", "certificate-authority-data"},
    user=None,
    instead="only server and certificate-authority-data are used",
)
"""A kubeconfig of which only the server and its CA are used."""
STATED: Final = Policy(
    cluster=SERVER.cluster,
    user=_DATA | _WITHOUT_EFFECT,
    instead="the cluster can have only server and certificate-authority-data; the user only token, or "
    "client-certificate-data with client-key-data",
)
"""A kubeconfig that another user wrote. It cannot refer to files or commands, which this process would read or run."""
RECEIVED: Final = Policy(
    cluster=LOCAL.cluster | {"insecure-skip-tls-verify"}, user=STATED.user, instead=_INLINE, needs_server=False
)
"""A kubeconfig of which only the credential, and the server and CA if it has them, are used."""
SELF_CONTAINED: Final = Policy(
    cluster=STATED.cluster | {"tls-server-name"}, user=STATED.user, instead=_INLINE_ONLY, needs_server=False
)
"""A kubeconfig that another user wrote, and that contains all that is needed to reach and verify the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecEntry:
    """An exec credential plugin."""

    api_version: str
    command: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    install_hint: str = ""
    provide_cluster_info: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextAccess:
    """A context's API server and user. Empty strings are unset; `..._file` are paths as written."""

    cluster: str
    """The name of the cluster."""
    namespace: str
    server: str
    """Without a trailing slash."""
    authorities: bytes | None
    authorities_file: str
    tls_server_name: str
    proxy_url: str = field(repr=False)
    extensions: tuple[Mapping[str, Any], ...]
    has_user: bool
    token: str = field(repr=False)
    token_file: str
    certificate: bytes | None = field(repr=False)
    certificate_file: str
    key: bytes | None = field(repr=False)
    key_file: str
    plugin: ExecEntry | None
    act_as: ActAs | None = None


class ParsedKubeconfig:
    """A parsed kubeconfig."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._entries = {kind: _entries(document, kind) for kind in _LISTS}
        current = document.get("current-context")
        self.current_context = current if isinstance(current, str) else ""

    def entries(self, kind: str) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """Return the names and contents of the clusters, users or contexts."""
        return self._entries[kind]

    @property
    def contexts(self) -> list[str]:
        return [name for name, _ in self._entries["contexts"]]

    def select(self, policy: Policy, context: str | None = None) -> ContextAccess:
        """Return a context, by default the current one. Raises KubeconfigError."""
        name = context if context is not None else self.current_context
        if not name:
            raise KubeconfigError("has no current-context; set it with kubectl config use-context")
        chosen = self._named("contexts", name)
        problems: list[str] = []
        cluster = _text(chosen, "cluster", "context", problems)
        user = _text(chosen, "user", "context", problems)
        namespace = _text(chosen, "namespace", "context", problems)
        if problems:
            raise KubeconfigError(*problems)
        if policy.is_exact:
            self._require_exact(chosen)
        of_cluster = self._named("clusters", cluster) if policy.needs_server else self._found("clusters", cluster) or {}
        of_user = self._named("users", user) if user and policy.user is not None else {}
        return _Reader(policy).read(cluster, of_cluster, of_user, namespace)

    def _found(self, kind: str, name: str) -> Mapping[str, Any] | None:
        return next((entry for entry_name, entry in self._entries[kind] if entry_name == name), None)

    def _named(self, kind: str, name: str) -> Mapping[str, Any]:
        found = self._found(kind, name)
        if found is None:
            known = ", ".join(entry_name for entry_name, _ in self._entries[kind]) or "none"
            raise KubeconfigError(f"has no {_LISTS[kind]} {name[:80]!r}; it has: {known:.200}")
        return found

    def _require_exact(self, context: Mapping[str, Any]) -> None:
        unknown = {*self._document} - {"apiVersion", "kind", "current-context", *_LISTS} | {*context} - {
            "cluster",
            "user",
        }
        for kind, part in _LISTS.items():
            unknown |= {key for entry in self._document.get(kind) or () for key in entry} - {"name", part}
        if unknown:
            raise KubeconfigError(f"has fields that are not supported: {sorted(unknown)!a:.200}")
        if any(len(entries) != 1 for entries in self._entries.values()):
            raise KubeconfigError("does not have exactly one cluster, one user and one context")


def merged(files: Sequence[tuple[str, ParsedKubeconfig]]) -> ParsedKubeconfig:
    """Merge kubeconfigs as kubectl does: of entries with the same name, and of current contexts, the first applies.

    Each kubeconfig is passed with its directory, to which the paths in it are relative.
    """
    entries: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _LISTS}
    for directory, config in files:
        for kind, part in _LISTS.items():
            known = {entry["name"] for entry in entries[kind]}
            found = config.entries(kind)
            entries[kind] += [
                {"name": name, part: _resolved(entry, directory)} for name, entry in found if name not in known
            ]
    current = next((config.current_context for _, config in files if config.current_context), "")
    return ParsedKubeconfig({**entries, "current-context": current})


def _resolved(entry: Mapping[str, Any], directory: str) -> dict[str, Any]:
    """Return an entry whose paths no longer depend on the directory of its file."""

    def resolved(path: object) -> object:
        return posixpath.join(directory, path) if isinstance(path, str) and path else path

    found = {name: resolved(value) if name in _PATHS else value for name, value in entry.items()}
    if isinstance(plugin := entry.get("exec"), dict) and "/" in str(plugin.get("command", "")):
        found["exec"] = {**plugin, "command": resolved(plugin["command"])}
    return found


def parse_received(content: bytes) -> ParsedKubeconfig:
    """Parse a kubeconfig that another user wrote, within a few milliseconds. Raises KubeconfigError."""
    if len(content) > RECEIVED_BYTES:
        raise KubeconfigError(f"is {len(content)} bytes long; at most {RECEIVED_BYTES} are read")
    digest = blake2b(content).digest()
    if (problems := _REFUSED.get(digest)) is not None:
        raise KubeconfigError(*problems)
    try:
        return parse(content, nodes=_RECEIVED_NODES)
    except KubeconfigError as error:
        while len(_REFUSED) >= _MOST_REFUSED:
            del _REFUSED[next(iter(_REFUSED))]
        _REFUSED[digest] = error.problems
        raise


_REFUSED: Final[dict[bytes, tuple[str, ...]]] = {}
"""The problems of received content, by digest: a relist delivers the same kubeconfigs again."""
_MOST_REFUSED: Final = 1_000


def parse(content: bytes, *, yaml: bool = True, nodes: int | None = None) -> ParsedKubeconfig:
    """Parse JSON or, with `yaml`, YAML. Raises KubeconfigError."""
    if len(content) > MAX_BYTES:
        raise KubeconfigError(f"is {len(content)} bytes long; at most {MAX_BYTES} are read")
    try:
        document = json.loads(content, object_pairs_hook=_unique)
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise KubeconfigError("has an unpaired surrogate, which is not a valid character") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, KubeconfigError):
            raise
        if not yaml:
            raise KubeconfigError("is not JSON") from None
        document = _yaml(content, nodes)
    if not isinstance(document, dict):
        raise KubeconfigError("is not a kubeconfig: it is empty or not a mapping")
    return ParsedKubeconfig(document)


def _yaml(content: bytes, nodes: int | None) -> Any:
    from milo_kube import yaml_document  # noqa: PLC0415  (programs that read only JSON start without it)

    try:
        return yaml_document.read(content, scalars="typed", nodes=nodes or yaml_document.MAX_NODES, fast=True).value
    except yaml_document.DocumentError as error:
        raise KubeconfigError(str(error)) from None


def render(
    name: str, *, server: str, authorities: bytes | None, tls_server_name: str | None, user: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a kubeconfig with one cluster, user and context. Bytes become base64; fields that are None are omitted."""
    cluster = {
        "server": server,
        "certificate-authority-data": authorities,
        "tls-server-name": tls_server_name or None,
    }
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": _rendered(cluster)}],
        "users": [{"name": name, "user": _rendered(user)}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }


def _rendered(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are set, with bytes in base64."""
    return {
        name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
        for name, value in fields.items()
        if value is not None
    }


def server_problem(server: str) -> str | None:
    """Return what is wrong with an API server's URL, as a predicate such as "is not a URL", or None."""
    is_long = len(server) > LONGEST_URL
    if is_long or not server.isprintable() or " " in server:  # urlsplit strips some of them
        return f"is longer than {LONGEST_URL} characters" if is_long else "has a space or a control character"
    try:
        parts = urlsplit(server)
        port = parts.port
    except ValueError:
        return "is not a URL"
    if parts.scheme not in {"https", "http"} or not parts.hostname or port == 0:
        return "is not https://HOST[:PORT][/PREFIX]"
    if parts.username is not None or parts.query or parts.fragment:
        return "has a user, a query or a fragment: only https://HOST[:PORT][/PREFIX] is allowed"
    path = parts.path
    if any(segment in {".", ".."} for segment in path.split("/")) or "%" in path or not path.isascii():
        return "has an ambiguous path: dot segments, percent signs and characters beyond ASCII are not allowed"
    return None


class _Reader:
    """Reads the cluster and the user of a context, and collects their problems."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._problems: list[str] = []
        self._has_wrong_type = False

    def read(self, name: str, cluster: Mapping[str, Any], user: Mapping[str, Any], namespace: str) -> ContextAccess:
        about = f'cluster "{name[:80]}"'
        cluster = self._checked(about, cluster, self._policy.cluster)
        user = self._checked("user", user, self._policy.user or frozenset())
        if self._has_wrong_type:
            raise KubeconfigError(*self._problems)
        server = cluster.get("server") or ""
        if (server or self._policy.needs_server) and (problem := server_problem(server)):
            self._problems.append(f"{about} has a server that {problem}")
        found = ContextAccess(
            cluster=name,
            namespace=namespace,
            server=server.rstrip("/"),
            authorities=self._data(about, cluster, _AUTHORITIES),
            authorities_file=cluster.get("certificate-authority") or "",
            tls_server_name=self._server_name(about, cluster.get("tls-server-name") or ""),
            proxy_url=self._proxy(about, cluster.get("proxy-url") or ""),
            extensions=tuple(extension for extension in cluster.get("extensions") or () if isinstance(extension, dict)),
            has_user=bool(user),
            token="" if user.get("tokenFile") else self._token(user.get("token") or ""),
            token_file=user.get("tokenFile") or "",
            certificate=self._data("user", user, "client-certificate"),
            certificate_file=user.get("client-certificate") or "",
            key=self._data("user", user, "client-key"),
            key_file=user.get("client-key") or "",
            plugin=self._plugin(user["exec"]) if user.get("exec") else None,
            act_as=self._act_as(user),
        )
        self._check_pair(found)
        if self._problems:
            raise KubeconfigError(*self._problems)
        return found

    def _checked(self, about: str, entry: Mapping[str, Any], allowed: frozenset[str]) -> dict[str, Any]:
        """Return the fields that are set and allowed."""
        given = _nonempty_fields(entry)
        refused: dict[str, list[str]] = {}
        for name in sorted(given.keys() - allowed):
            refused.setdefault(_INSTEAD.get(name, self._policy.instead), []).append(name[:80])
        self._problems += [f"{about} has {', '.join(names):.200}: {instead}" for instead, names in refused.items()]
        for name in sorted(given.keys() & allowed):
            self._has_wrong_type |= not _has_right_type(given[name], name, about, self._problems)
        return {name: value for name, value in given.items() if name in allowed}

    def _data(self, about: str, entry: Mapping[str, Any], name: str) -> bytes | None:
        """Return the inline data, or None. As in kubectl, it takes precedence over the file."""
        data = entry.get(f"{name}-data")
        if not data:
            return None
        try:
            # kubectl ignores line breaks in base64, such as those of a folded block of YAML.
            content = base64.b64decode(data.replace("\r", "").replace("\n", ""), validate=True)
            if name != _AUTHORITIES or not self._policy.is_own:
                key_sizes.check(content, OWN_BITS if self._policy.is_own else RECEIVED_BITS)
        except KeySizeError as error:
            self._problems.append(f"{about} has {name}-data that {error}")
        except (binascii.Error, ValueError):
            self._problems.append(f"{about} has {name}-data that is not valid base64")
        else:
            return content or None
        return None

    def _token(self, token: str) -> str:
        token = token if self._policy.is_exact else token.strip()
        if token and (not token.isascii() or not token.isprintable() or " " in token):
            self._problems.append(
                "user has a token that is not a bearer token: only printable ASCII without spaces is allowed"
            )
        return token

    def _server_name(self, about: str, name: str) -> str:
        # The module ssl raises UnicodeError or TypeError for names that do not meet these conditions.
        # Encoding takes quadratic time.
        is_short = len(name) <= _LONGEST_HOSTNAME
        if name and not (is_short and name.isprintable() and " " not in name and _is_encodable(name)):
            self._problems.append(f"{about} has a tls-server-name that is not a hostname")
        return name

    def _proxy(self, about: str, url: str) -> str:
        try:
            parts = urlsplit(url if len(url) <= LONGEST_URL else "")
            good = parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port)
        except ValueError:
            good = False
        if url and not good:
            self._problems.append(f"{about} has a proxy-url that is not http(s)://HOST[:PORT] (SOCKS is not supported)")
        return url

    def _act_as(self, user: Mapping[str, Any]) -> ActAs | None:
        try:
            return act_as.read(user)
        except ValueError as error:
            self._problems.append(f"user {error}")
            return None

    def _check_pair(self, found: ContextAccess) -> None:
        chain, key = found.certificate is not None, found.key is not None
        if (chain or bool(found.certificate_file)) != (key or bool(found.key_file)):
            self._problems.append("user has only one of a client certificate and its key: set both or neither")
        elif chain != key:
            self._problems.append(
                "user has the certificate as data and its key as a file, or vice versa: use data or files for both"
            )

    def _plugin(self, entry: Mapping[str, Any]) -> ExecEntry | None:
        about = "user has an exec plugin"
        version, command = entry.get("apiVersion"), entry.get("command")
        args, env = entry.get("args") or [], entry.get("env") or []
        before = len(self._problems)
        if version not in EXEC_VERSIONS:
            self._problems.append(f"{about} whose apiVersion is not {' or '.join(EXEC_VERSIONS)}")
        if not isinstance(command, str) or not command:
            self._problems.append(f"{about} without a command")
        if entry.get("interactiveMode") == "Always":
            self._problems.append(f"{about} that needs a terminal (interactiveMode: Always), and there is no terminal")
        if {*entry} - _EXEC_FIELDS:
            self._problems.append(f"{about} with fields that are not supported")
        if (
            not _are_texts(args)
            or not isinstance(env, list)
            or not all(
                isinstance(variable, dict) and _are_texts([variable.get("name"), variable.get("value")])
                for variable in env
            )
        ):
            self._problems.append(
                f"{about} whose args are not a list of strings, or whose env is not a list of objects with name and "
                "value"
            )
        if len(self._problems) > before:
            return None
        return ExecEntry(
            api_version=str(version),
            command=str(command),
            args=tuple(args),
            env={variable["name"]: variable["value"] for variable in env},
            install_hint=str(entry.get("installHint") or ""),
            provide_cluster_info=entry.get("provideClusterInfo") is True,
        )


def _nonempty_fields(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in entry.items() if value not in (None, "", False, [], {})}


def _has_right_type(value: Any, name: str, about: str, problems: list[str]) -> bool:
    wanted, type_name = _TYPES.get(name, (str, "a string"))
    if isinstance(value, wanted):
        return True
    problems.append(f"{about} has {name} with the wrong type: it must be {type_name}")
    return False


def _text(entry: Mapping[str, Any], name: str, about: str, problems: list[str]) -> str:
    value = entry.get(name)
    if value not in (None, ""):
        _has_right_type(value, name, about, problems)
    return value or ""


def _is_encodable(hostname: str) -> bool:
    try:
        hostname.encode("idna")
    except UnicodeError:
        return False
    return True


def _are_texts(values: Iterable[Any]) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _entries(document: Mapping[str, Any], kind: str) -> list[tuple[str, Mapping[str, Any]]]:
    part, listed = _LISTS[kind], document.get(kind)
    if listed is None:
        return []
    if not isinstance(listed, list):
        raise KubeconfigError(f"is not a kubeconfig: {kind} must be a list")
    found: list[tuple[str, Mapping[str, Any]]] = []
    for item in listed:
        inner = (item.get(part) or {}) if isinstance(item, dict) else None
        if inner is None or not isinstance(inner, dict) or not isinstance(item.get("name"), str):
            raise KubeconfigError(f"is not a kubeconfig: {kind} must be a list of objects with a name and a {part}")
        found.append((item["name"], inner))
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise KubeconfigError("has a duplicate key")
    return found
