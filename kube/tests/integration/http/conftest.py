"""The certificate authority of scripted servers, and a client that trusts it."""

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import pytest_asyncio

from kube.tests.integration.http.http2_peer import Authority
from kube.tests.integration.http.http2_requests import client
from milo_kube.http.client import Client


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest_asyncio.fixture
async def using(authority: Authority) -> AsyncIterator[Client]:
    async with aclosing(client(authority)) as made:
        yield made
