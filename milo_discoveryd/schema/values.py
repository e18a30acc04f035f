"""Parsers for the values of settings, from the text of a flag, a variable or a file.

A parser raises ValueError, whose message describes the valid values; the caller adds where the value was given, and the
value itself.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from string import Formatter
from typing import Any
from urllib.parse import urlsplit

import msgspec

from milo_kube import addresses

MAX_UNIX_PATH = 107  # sun_path holds 108 bytes, the last of them NUL

_DURATION = re.compile(r"(?:(?P<d>\d+)d)?(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m)?(?:(?P<s>\d+(?:\.\d+)?)s)?(?:(?P<ms>\d+)ms)?")
_SIZES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SIZE = re.compile(r"(\d{1,12}) ?(B|KiB|MiB|GiB)")
_DNS_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DNS_NAME = re.compile(rf"{_DNS_LABEL}(?:\.{_DNS_LABEL})*")
_INSECURE = "insecure://"
_PLACEHOLDERS = ("name", "uid", "namespace")


class UnixAddress(msgspec.Struct, frozen=True):
    path: Path

    def __str__(self) -> str:
        return f"unix://{self.path}"


class TcpAddress(msgspec.Struct, frozen=True):
    host: str  # empty: all interfaces
    port: int

    def __str__(self) -> str:
        return addresses.host_port(self.host, self.port)


class InsecureAddress(TcpAddress, frozen=True):
    """A loopback address without TLS, open to every local process."""

    def __str__(self) -> str:
        return f"{_INSECURE}{super().__str__()}"


ListenAddress = UnixAddress | TcpAddress


def duration(value: object, *, least: timedelta, most: timedelta) -> timedelta:
    if isinstance(value, timedelta):
        span = value
    else:
        text = str(value).strip()
        match = _DURATION.fullmatch(text)
        if text == "0":
            span = timedelta()
        elif not text or match is None:
            hint = f'; did you mean "{text}s"?' if _DURATION.fullmatch(f"{text}s") else ""
            raise ValueError(f'must be a duration with its unit, such as "30s", "5m" or "1h30m"{hint}')
        else:
            days, hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
            try:
                span = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds, milliseconds=milliseconds)
            except OverflowError:
                span = timedelta.max
    if not least <= span <= most:
        raise ValueError(f"must be between {duration_text(least)} and {duration_text(most)}")
    return span


def duration_or_off(value: object, *, least: timedelta, most: timedelta) -> timedelta | None:
    if value is None or value == "off":
        return None
    try:
        return duration(value, least=least, most=most)
    except ValueError as error:
        raise ValueError(f'must be "off" or {str(error).removeprefix("must be ")}') from None


def duration_text(span: timedelta) -> str:
    """Return the duration in the syntax that `duration` parses: 1h30m, 500ms, 0s."""
    left = round(span / timedelta(milliseconds=1))
    parts: list[str] = []
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def size(value: object, *, least: int, most: int) -> int:
    if isinstance(value, int):
        count = value
    else:
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            raise ValueError('must be a size with its unit, such as "64KiB" or "256MiB"')
        count = int(match[1]) * _SIZES[match[2]]
    if not least <= count <= most:
        raise ValueError(f"must be between {size_text(least)} and {size_text(most)}")
    return count


def size_text(count: int) -> str:
    unit = next(unit for unit in ("GiB", "MiB", "KiB", "B") if count % _SIZES[unit] == 0)
    return f"{count // _SIZES[unit]}{unit}"


def file_path(value: object) -> Path | None:
    """Parse a path; empty means None, because deployments pass `--flag=$(VARIABLE)` with empty variables."""
    text = str(value) if value is not None else ""
    if "\0" in text:
        raise ValueError("must be a path without NUL characters")
    return Path(text).expanduser() if text else None


def permissions(value: object) -> int:
    text = f"0{value:o}" if isinstance(value, int) else str(value)
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError('must be file permissions in octal, such as "0660"')
    mode = int(text, 8)
    if mode & 0o600 != 0o600:
        raise ValueError('must allow the owner to read and write, as in "0660"')
    if mode & 0o002:
        raise ValueError(
            'must not be world-writable, because write permission allows connecting: use a group and "0660"'
        )
    return mode


def listen_address(value: object) -> ListenAddress:
    if isinstance(value, UnixAddress | TcpAddress):
        return value
    text = str(value)
    if text.startswith(_INSECURE):
        address = tcp_address(text.removeprefix(_INSECURE))
        if not addresses.is_loopback(address.host):
            raise ValueError(
                'is not on loopback, so the traffic would be readable on the network: remove "insecure://", and '
                "configure `tls`"
            )
        return InsecureAddress(address.host, address.port)
    if text.startswith(("/", "./", "../", "~/")):
        raise ValueError(
            f'must be "unix://" and an absolute path; did you mean "unix://{Path(text).expanduser().absolute()}"?'
        )
    return client_address(text)


def client_address(value: object) -> ListenAddress:
    """Parse the address at which clients reach the daemon."""
    if isinstance(value, UnixAddress | TcpAddress):
        return value
    text = str(value)
    if ":" not in text:
        raise ValueError('must be "unix://" and an absolute path, or HOST:PORT, such as "127.0.0.1:7070"')
    return _unix_address(text) if text.startswith("unix:") else tcp_address(text)


def tcp_address(value: object) -> TcpAddress:
    if isinstance(value, TcpAddress):
        return value
    text = str(value)
    match = re.fullmatch(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\[\]:/]*)):(?P<port>\d{1,5})", text)
    if match is None:
        raise ValueError('must be HOST:PORT, such as "127.0.0.1:9464" (an IPv6 address in brackets)')
    host, port = match["v6"] or match["host"] or "", int(match["port"])
    if port > 65535:
        raise ValueError("must have a port up to 65535")
    if match["v6"]:
        _require_ip(host)
    elif host and not _DNS_NAME.fullmatch(host.lower()):
        raise ValueError("must have a hostname or an IP address before the port")
    return TcpAddress(host, port)


def _unix_address(text: str) -> UnixAddress:
    path = text.removeprefix("unix://") if text.startswith("unix://") else text.removeprefix("unix:")
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise ValueError('must be "unix://" and an absolute path, such as "unix:///run/milo-discovery/discovery.sock"')
    length = len(path.encode("utf-8", "surrogateescape"))
    if length > MAX_UNIX_PATH:
        raise ValueError(
            f"has a path of {length} bytes; the maximum for a Unix socket is {MAX_UNIX_PATH}: use a shorter one"
        )
    return UnixAddress(Path(path))


def _require_ip(host: str) -> None:
    if addresses.ip_address(host) is None:
        raise ValueError("must have an IPv6 address between the brackets")


def address_template(value: object) -> str:
    """Parse `host[:port]` with placeholders. `ProjectControlPlaneKind` checks that the address is unique per
    project."""
    text = str(value)
    filled = _filled(text, _PLACEHOLDERS)
    try:
        address = tcp_address(filled if re.search(r":\d+$", filled) else f"{filled}:443")
    except ValueError:
        address = TcpAddress("", 0)
    if not address.host or len(address.host) > 253:
        raise ValueError('must be a host with an optional port, such as "api.{namespace}.svc:6443": no scheme, no path')
    return text


def namespace_template(value: object) -> str:
    text = str(value)
    if not re.fullmatch(_DNS_LABEL, _filled(text, ("name", "uid"))):
        raise ValueError('must be the name of a namespace, such as "project-{name}"')
    return text


def secret_namespace_template(value: object) -> str:
    text = str(value)
    if not re.fullmatch(_DNS_LABEL, _filled(text, ("name", "uid", "namespace", "secret_namespace"))):
        raise ValueError('must be the name of a namespace, such as "project-{name}"')
    return text


def secret_name_template(value: object) -> str:
    text = str(value)
    object_name(_filled(text, ("name", "object", "secret")))
    return text


def secret_key_template(value: object) -> str:
    text = str(value)
    if not re.fullmatch(r"[-._a-zA-Z0-9]{1,253}", _filled(text, ("secret_key",))):
        raise ValueError("must be a key of a Secret: letters, digits, '-', '_' and '.'")
    return text


def _filled(template: str, allowed: tuple[str, ...]) -> str:
    """Replace the placeholders of the template by sample values, so that the result can be validated."""
    known = ", ".join(f"{{{name}}}" for name in allowed)
    try:
        parts = list(Formatter().parse(template))
    except ValueError:
        raise ValueError(f"has an unbalanced brace; placeholders are {known}") from None
    for _, field, spec, conversion in parts:
        if field is not None and field not in allowed:
            raise ValueError(f'has the unknown placeholder "{{{field}}}"; placeholders are {known}')
        if spec or conversion:
            raise ValueError(f'has a format or a conversion in the placeholder "{field}": write {{{field}}}')
    return template.format_map(dict.fromkeys(allowed, "x"))


def words(value: object) -> tuple[object, ...]:
    """Parse a YAML list, or the comma-separated list of a flag or variable."""
    if isinstance(value, str):
        return tuple(word.strip() for word in value.split(",") if word.strip())
    if isinstance(value, Iterable) and not isinstance(value, Mapping):
        return tuple(value)
    raise ValueError("must be a list")


def pairs(value: object) -> dict[str, Any]:
    """Parse a YAML mapping, or `key=value,key=value` of a flag or variable."""
    if isinstance(value, str):
        entries = [word.partition("=") for word in value.split(",") if word.strip()]
        if any(not equals for _, equals, _ in entries):
            raise ValueError("must be key=value pairs, separated by commas")
        return {key.strip(): word.strip() for key, _, word in entries}
    if isinstance(value, Mapping):
        return dict(value)
    raise ValueError("must be a mapping")


def repeated(names: Iterable[str]) -> str | None:
    """Return the first name that repeats an earlier one, or None."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def one_of(value: object, *, choices: Collection[str]) -> str:
    if value not in choices:
        raise ValueError(f"must be one of {', '.join(choices)}")
    return str(value)


def https_url(value: object) -> str:
    text = str(value).strip()
    parts = urlsplit(text)
    if parts.scheme != "https" or not parts.hostname or "@" in parts.netloc or parts.fragment:
        raise ValueError("must be a URL of the form https://HOST[:PORT][/PATH]")
    return text


def url_path(value: object) -> str:
    text = str(value)
    if not re.fullmatch(r"(?:/[A-Za-z0-9_-]+)+", text):
        raise ValueError('must be a path of letters, digits, "-" and "_", such as "/readyz"')
    return text


def receiver(value: object) -> str | None:
    if value is None:
        return None
    parts = urlsplit(str(value))
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
        raise ValueError('must be a URL such as "http://localhost:4318", without user or query')
    return str(value)


def cluster_name(value: object) -> str:
    text = str(value)
    if not re.fullmatch(_DNS_LABEL, text):
        raise ValueError("must be up to 63 lowercase letters, digits and hyphens, with a letter or digit at each end")
    return text


def items(value: object) -> tuple[object, ...]:
    """Parse a list of mappings, which can be set only in the configuration file."""
    if isinstance(value, list | tuple) and all(isinstance(item, Mapping) for item in value):
        return tuple(value)
    raise ValueError("must be a list of mappings, which can be set only in the configuration file")


def required_file(value: object) -> Path:
    path = file_path(value)
    if path is None:
        raise ValueError("must be the path of a file")
    return path


def object_name(value: object) -> str:
    text = str(value)
    if len(text) > 253 or not _DNS_NAME.fullmatch(text):
        raise ValueError(
            "must be a Kubernetes object name: up to 253 lowercase letters, digits, hyphens and dots, with a letter or "
            "digit at each end and beside each dot"
        )
    return text


def subject_template(value: object) -> str:
    """Parse the template of a certificate's subject name (common name or organization), with the placeholders `{name}`
    and `{uid}`."""
    text = str(value)
    if not _filled(text, ("name", "uid")).isprintable() or not text.strip():
        raise ValueError('must be a name of printable characters, such as "milo-operator:{name}"')
    return text


def absolute_command(value: object) -> str:
    text = str(value)
    if not text.startswith("/") or "\0" in text:
        raise ValueError("must be the absolute path of a program: PATH is not searched")
    return text
