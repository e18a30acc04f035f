"""Warnings about the client certificate and the clock, logged by the transport of the running daemon."""

import datetime as dt
import time
from contextlib import aclosing
from email.utils import formatdate

import pytest
from aiohttp import web

from milo_discoveryd.watchers.transport import MonitoredTransport
from milo_kube.credential import ClientCertificate, Credential, Secret
from milo_kube.credential_providers import StaticCredential
from milo_kube.http.errors import TransportError
from tests.integration.watchers.api_server import ApiServer, upstream
from tests.support.certificates import Authority
from tests.support.logs import capture_logs

RESPONSE_LIMIT = 1 << 20


class Responding:
    """A server whose responses have a given status and the time of its own clock."""

    def __init__(self) -> None:
        self.status = 200
        self.ahead_s = 0.0

    async def __call__(self, _: web.Request) -> web.Response:
        headers = {"Date": formatdate(time.time() + self.ahead_s, usegmt=True)}
        return web.Response(body=b"{}", status=self.status, headers=headers)


def certificate(life: dt.timedelta) -> Credential:
    issued = Authority().issue(life=life)
    return Credential(certificate=ClientCertificate(chain=issued.certificate, key=Secret(issued.key.decode())))


def monitored(server: ApiServer, **differing: object) -> MonitoredTransport:
    return MonitoredTransport(upstream(server, **differing), environ={}, response_limit=RESPONSE_LIMIT)


@pytest.mark.parametrize(
    ("life", "expected"),
    [
        (dt.timedelta(minutes=-5), ["client certificate has expired"]),
        (dt.timedelta(minutes=10), ["client certificate expires soon"]),
        (dt.timedelta(days=30), []),
    ],
)
async def test_client_certificate_that_has_expired_or_expires_soon_is_logged_once(
    life: dt.timedelta, expected: list[str]
) -> None:
    credential = certificate(life)
    async with ApiServer(Responding()) as server:
        transport = monitored(server, credentials=StaticCredential(credential))
        async with aclosing(transport):
            assert transport.certificate_expires_at is None
            with capture_logs() as lines:
                for _ in range(2):
                    assert (await transport.get("/version", timeout_s=10)).status == 200
            assert [line["event"] for line in lines] == expected
            assert all(line["origin"] == "test" for line in lines)
            assert transport.certificate_expires_at == pytest.approx(time.time() + life.total_seconds(), abs=60)


async def test_error_for_a_refused_client_certificate_names_the_certificate_and_its_expiry() -> None:
    responding = Responding()
    responding.status = 401
    async with ApiServer(responding) as server:
        expired = monitored(server, credentials=StaticCredential(certificate(dt.timedelta(minutes=-5))))
        valid = monitored(server, credentials=StaticCredential(certificate(dt.timedelta(days=5))))
        async with aclosing(expired), aclosing(valid):
            refused = r"refused the client certificate of test, which expired at 20\d\d-.* UTC: renew it"
            with pytest.raises(TransportError, match=refused) as raised:
                await expired.get("/version", timeout_s=10)
            assert raised.value.cause == "credential"
            with pytest.raises(TransportError, match=refused):
                async with expired.stream("/version", connect_timeout_s=10, silence_s=10):
                    pass
            assert (await valid.get("/version", timeout_s=10)).status == 401


@pytest.mark.parametrize("ahead_s", [3600, -3600])
async def test_start_and_end_of_a_clock_difference_to_the_server_are_each_logged_once(ahead_s: float) -> None:
    responding = Responding()
    async with ApiServer(responding) as server:
        transport = monitored(server)
        with capture_logs() as lines:
            async with aclosing(transport):
                for difference in (0, ahead_s, ahead_s, 0, 0):
                    responding.ahead_s = difference
                    await transport.get("/version", timeout_s=10)
        assert [(line["event"], line["log_level"]) for line in lines] == [
            ("clock differs from the API server's", "warning"),
            ("clock agrees with the API server's again", "info"),
        ]
        assert lines[0]["server"] == server.url
        assert lines[0]["server_is_ahead_s"] == pytest.approx(ahead_s, abs=30)


async def test_clock_is_compared_when_a_watch_is_opened() -> None:
    responding = Responding()
    responding.ahead_s = 3600
    async with ApiServer(responding) as server:
        with capture_logs() as lines:
            transport = monitored(server)
            async with aclosing(transport), transport.stream("/version", connect_timeout_s=10, silence_s=10):
                pass
        assert [line["event"] for line in lines] == ["clock differs from the API server's"]
