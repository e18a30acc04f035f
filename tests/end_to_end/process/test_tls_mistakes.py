# ruff: noqa: E501 - each case is one row
"""Mistakes in a client's TLS options: one line says what is wrong, and gRPC prints nothing of its own."""

import asyncio
import re
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.end_to_end.process.conftest import Workspace, directory, workspace
from tests.end_to_end.process.daemon import DaemonProcess
from tests.support.certificates import LOOPBACK, Authority
from tests.support.eventually import LIMIT_S
from tests.support.ports import free_address

__all__ = ["directory", "workspace"]

HTTP_INSTEAD = "this port speaks HTTP, not gRPC: connect to an address of --listen, not of --http-listen"
IS_IT_RUNNING = "(is milo-discoveryd running? set its address with --address or MILO_DISCOVERY_ADDRESS)"

CASES = [
    ("--address {plain} --ca-file {ca}", "cannot connect to the daemon at {plain}: this listener does not use TLS: leave out --ca-file"),
    ("--address {tls}", "cannot connect to the daemon at {tls}: this listener uses TLS: set --ca-file"),
    ("--address {tls} --ca-file {ca}", "cannot connect to the daemon at {tls}: the listener requires a client certificate: set --certificate-file and --key-file"),
    ("--address {tls} --ca-file {ca} --certificate-file {strangers} --key-file {strangers_key}", "cannot connect to the daemon at {tls}: the listener does not accept the client certificate {strangers}: use one that is signed by the listener's `client_ca`"),
    ("--address {tls} --ca-file {ca} --certificate-file {expired} --key-file {expired_key}", "cannot connect to the daemon at {tls}: the client certificate {expired} has expired: renew it"),
    ("--address {tls} --ca-file {ca} --certificate-file {future} --key-file {future_key}", "cannot connect to the daemon at {tls}: the client certificate {future} is not valid yet: check the clocks of both machines"),
    ("--address {tls} --ca-file {ca} --certificate-file {certificate} --key-file {key}", "cannot connect to the daemon at {tls}: the client certificate {certificate} is not for clients: issue one with the extended key usage clientAuth"),
    ("--address {expired_ca} --ca-file {ca} --certificate-file {good} --key-file {good_key}", "cannot connect to the daemon at {expired_ca}: the listener reports an expired certificate, but the client certificate {good} has not expired: renew the listener's `client_ca`, or check the clocks of both machines"),
    ("--address {tls} --ca-file {other_ca}", "cannot connect to the daemon at {tls}: the daemon's certificate is not signed by CA {other_ca}"),
    ("--address {misnamed} --ca-file {ca}", "cannot connect to the daemon at {misnamed}: the daemon's certificate is not for 127.0.0.1: connect to an address in the certificate, or issue one for 127.0.0.1"),
    ("--address {misused} --ca-file {ca}", "cannot connect to the daemon at {misused}: the daemon's certificate is not for servers: issue one with the extended key usage serverAuth"),
    ("--address {http}", f"cannot connect to the daemon at {{http}}: {HTTP_INSTEAD}"),
    ("--address {http} --ca-file {ca}", f"cannot connect to the daemon at {{http}}: {HTTP_INSTEAD}"),
    ("--address {nothing}", f"cannot connect to the daemon at {{nothing}}: Connection refused {IS_IT_RUNNING}"),
    ("--address {nothing} --ca-file {ca}", f"cannot connect to the daemon at {{nothing}}: Connection refused {IS_IT_RUNNING}"),
    ("--address {tls} --ca-file none.crt", "cannot read none.crt: No such file or directory"),
    ("--address {tls} --ca-file {key}", "{key} contains no CA certificate in PEM format"),
    ("--address {tls} --ca-file {ca} --certificate-file {certificate} --key-file {strangers_key}", "{certificate} and {strangers_key} do not belong to the same key pair"),
    ("--address {tls} --ca-file {ca} --certificate-file {key} --key-file {certificate}", "{key} and {certificate} are not a certificate and its key in PEM format"),
    ("--address {tls} --ca-file {ca} --certificate-file {certificate}", "--certificate-file and --key-file must be set together"),
    ("--address {plain} --token-file {key}", "the token would be sent to {plain} unencrypted: set --ca-file to use TLS"),
    ("--address {unix} --ca-file {ca}", "{unix} is a Unix socket, which has no TLS: leave out --ca-file"),
]  # fmt: skip


@pytest.fixture
async def places(workspace: Workspace) -> AsyncIterator[dict[str, str]]:
    authority, other = Authority(), Authority("another CA")
    former = Authority("a former CA", life=timedelta(minutes=-5))
    in_here = workspace.directory
    certificate, key = authority.server().write(in_here, "server")
    misnamed, misnamed_key = authority.issue(LOOPBACK[0]).write(in_here, "misnamed")
    misused, misused_key = authority.issue(*LOOPBACK, use=ExtendedKeyUsageOID.CLIENT_AUTH).write(in_here, "misused")
    expired, expired_key = authority.issue(*LOOPBACK, life=timedelta(minutes=-5)).write(in_here, "expired")
    future, future_key = authority.issue(*LOOPBACK, begins_in=timedelta(minutes=5)).write(in_here, "future")
    good, good_key = former.issue(*LOOPBACK).write(in_here, "good")
    strangers, strangers_key = other.issue(*LOOPBACK).write(in_here, "stranger")
    (in_here / "ca.crt").write_bytes(authority.pem)
    (in_here / "other-ca.crt").write_bytes(other.pem)
    (in_here / "former-ca.crt").write_bytes(former.pem)
    plain, tls, other_name, other_use, expired_ca, http, nothing = (free_address() for _ in range(7))
    ca = str(in_here / "ca.crt")
    listen: list[dict[str, object]] = [
        {"name": "unix", "address": workspace.address},
        {"name": "plain", "address": f"insecure://{plain}"},
        {"name": "tls", "address": tls, "tls": {"certificate": str(certificate), "key": str(key), "client_ca": ca}},
        {"name": "misnamed", "address": other_name, "tls": {"certificate": str(misnamed), "key": str(misnamed_key), "client_ca": ca}},
        {"name": "misused", "address": other_use, "tls": {"certificate": str(misused), "key": str(misused_key), "client_ca": ca}},
        {"name": "expired-ca", "address": expired_ca, "tls": {"certificate": str(certificate), "key": str(key), "client_ca": str(in_here / "former-ca.crt")}},
    ]  # fmt: skip
    async with workspace.daemon(listen=listen, http_listen=http) as daemon:
        daemon.address = workspace.address
        await start(daemon)
        yield {
            "plain": plain, "tls": tls, "misnamed": other_name, "misused": other_use,
            "expired_ca": expired_ca, "http": http, "nothing": nothing,
            "unix": workspace.address, "certificate": str(certificate), "key": str(key),
            "expired": str(expired), "expired_key": str(expired_key),
            "future": str(future), "future_key": str(future_key), "good": str(good), "good_key": str(good_key),
            "strangers": str(strangers), "strangers_key": str(strangers_key),
            "ca": ca, "other_ca": str(in_here / "other-ca.crt"),
        }  # fmt: skip


async def start(daemon: DaemonProcess) -> None:
    await daemon.start()
    await daemon.wait_for_output('"synced"')


async def test_mistakes_in_tls_options_print_a_one_line_error(places: dict[str, str], tmp_path: Path) -> None:
    printed = {}
    for arguments, _ in CASES:
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("milo-discovery"), "list", *arguments.format_map(places).split(),
            stdout=PIPE, stderr=PIPE, env={}, cwd=tmp_path,
        )  # fmt: skip
        async with asyncio.timeout(LIMIT_S):
            _, error = await process.communicate()
        printed[arguments] = error.decode()
    expected = {arguments: f"milo-discovery: {message.format_map(places)}\n" for arguments, message in CASES}
    assert list(printed.items()) == list(expected.items())


async def test_watch_does_not_repeat_a_connection_problem_while_it_retries(places: dict[str, str]) -> None:
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("milo-discovery"), "watch", "--address", places["tls"], "--timeout", "3s",
        stdout=PIPE, stderr=PIPE, env={},
    )  # fmt: skip
    async with asyncio.timeout(LIMIT_S):
        _, error = await process.communicate()
    problem = f"cannot connect to the daemon at {places['tls']}: this listener uses TLS: set --ca-file"
    assert re.fullmatch(
        re.escape(f"milo-discovery: {problem}; retrying\nmilo-discovery: {problem}\n"), error.decode()
    ), error.decode()
