"""Keycloak, an OAuth 2 token endpoint that exchanges tokens (RFC 8693), from its distribution on Maven Central."""

import asyncio
import os
import shutil
import signal
import ssl
import subprocess
import zipfile
from asyncio.subprocess import DEVNULL, STDOUT
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.end_to_end.real.builds import cache_directory
from tests.end_to_end.real.certificates import Authority
from tests.support.ports import free_port

VERSION = "26.4.2"
REALM = "milo"
_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"
_STARTED_WITHIN_S = 600.0
_ADMIN = "admin"


def installed() -> Path:
    """Return the directory of the distribution, downloaded once; skip the test where Java or Maven is missing."""
    missing = [name for name in ("java", "mvn") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)} on this machine: Keycloak is a Java program from Maven Central")
    directory = cache_directory() / f"keycloak-{VERSION}"
    if not directory.exists():
        artifact = f"org.keycloak:keycloak-quarkus-dist:{VERSION}:zip"
        staging = directory.with_suffix(".new")
        command = ["mvn", "-q", "-B", f"{_PLUGIN}:copy", f"-Dartifact={artifact}", f"-DoutputDirectory={staging}"]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        with zipfile.ZipFile(staging / f"keycloak-quarkus-dist-{VERSION}.zip") as archive:
            archive.extractall(staging)
        (staging / f"keycloak-{VERSION}/bin/kc.sh").chmod(0o755)
        (staging / f"keycloak-{VERSION}").rename(directory)
        shutil.rmtree(staging)
    return directory


class Keycloak:
    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.token_url = f"{url}/realms/{REALM}/protocol/openid-connect/token"
        self._url = url
        self._session = session

    async def configure(self, clients: list[dict[str, Any]]) -> None:
        """Create the realm with these clients."""
        form = {"grant_type": "password", "client_id": "admin-cli", "username": _ADMIN, "password": _ADMIN}
        token = await self._token(f"{self._url}/realms/master/protocol/openid-connect/token", form)
        realm = {"realm": REALM, "enabled": True, "accessTokenLifespan": 300, "clients": clients}
        headers = {"Authorization": f"Bearer {token}"}
        async with self._session.post(f"{self._url}/admin/realms", json=realm, headers=headers) as answer:
            assert answer.status == 201, await answer.text()

    async def workload_token(self, client: str, secret: str) -> str:
        form = {"grant_type": "client_credentials", "client_id": client, "client_secret": secret}
        return await self._token(self.token_url, form)

    async def _token(self, url: str, form: Mapping[str, str]) -> str:
        async with self._session.post(url, data=form) as answer:
            assert answer.status == 200, await answer.text()
            return str((await answer.json())["access_token"])


@asynccontextmanager
async def keycloak(directory: Path, authority: Authority) -> AsyncIterator[Keycloak]:
    """Run a server on loopback, with data in memory."""
    distribution = await asyncio.to_thread(installed)
    certificate, key = authority.server("localhost")
    port = free_port()
    url, log = f"https://localhost:{port}", directory / "keycloak.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            distribution / "bin/kc.sh", "start-dev", "--http-enabled=false", f"--https-port={port}",
            "--http-host=127.0.0.1", f"--hostname={url}", f"--https-certificate-file={certificate}",
            f"--https-certificate-key-file={key}", "--db=dev-mem",
            env={
                **os.environ,
                "KC_BOOTSTRAP_ADMIN_USERNAME": _ADMIN,
                "KC_BOOTSTRAP_ADMIN_PASSWORD": _ADMIN,
                "JAVA_OPTS_APPEND": "-Xmx512m",
            },
            stdin=DEVNULL, stdout=output, stderr=STDOUT, start_new_session=True,
        )  # fmt: skip
    tls = ssl.create_default_context(cafile=str(authority.file))
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as session:
            async with asyncio.timeout(_STARTED_WITHIN_S):
                while not await _answers(session, f"{url}/realms/master"):
                    assert process.returncode is None, log.read_text()
                    await asyncio.sleep(0.5)
            yield Keycloak(url, session)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False
