"""Asks the running daemon whether the rules of the configuration file are in force."""

from contextlib import aclosing

import msgspec

from milo_discoveryd.check.finding import Finding, warn
from milo_discoveryd.config import Settings
from milo_discoveryd.telemetry.status import FileRefused, ReloadState, RulesCurrent, RulesWaiting
from milo_discoveryd.watchers.transport import Transport
from milo_kube import addresses
from milo_kube.credential import Credential
from milo_kube.credential_providers import StaticCredential
from milo_kube.http.errors import TransportError
from milo_kube.upstream import Upstream

TIMEOUT_S = 2.0
RESPONSE_LIMIT = 4 << 20
_ON_LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


class _DaemonStatus(msgspec.Struct, frozen=True):
    """The part of a daemon's status that is read."""

    configuration: ReloadState


_DECODER = msgspec.json.Decoder(_DaemonStatus)


async def check_reload(settings: Settings) -> Finding | None:
    """Return a warning if the running daemon has not applied the file's rules; None also if no daemon runs here."""
    if settings.http_listen is None:
        return None
    host = _ON_LOOPBACK.get(settings.http_listen.host, settings.http_listen.host)
    server = f"http://{addresses.host_port(host, settings.http_listen.port)}"
    upstream = Upstream(server=server, origin="http_listen", credentials=StaticCredential(Credential()))
    async with aclosing(Transport(upstream, environ={}, response_limit=RESPONSE_LIMIT)) as transport:
        try:
            answer = await transport.get("/", [("json", "")], timeout_s=TIMEOUT_S)
            state = _DECODER.decode(answer.body).configuration
        except (TransportError, msgspec.MsgspecError, UnicodeDecodeError):
            return None  # nothing listens there, or another program does
    match state:
        case RulesCurrent():
            return None
        case RulesWaiting(problems):
            fix = "restart the daemon; until then, the former rules are in force"
            return warn("rights", f"the daemon at {server} waits for the restart{_shown(problems)}", fix)
        case FileRefused(problems):
            fix = "correct the file; until then, the former rules are in force"
            return warn("rights", f"the daemon at {server} rejected the file{_shown(problems)}", fix)


def _shown(problems: tuple[str, ...]) -> str:
    """Return the problems, which a daemon shows only to callers that may see names."""
    return f": {'; '.join(problems)}" if problems else ""
