"""Fixtures: a fast sandbox for each test, and its client."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from random import Random

import aiohttp
import pytest

from milo_sandbox import Features, Pace, Sandbox
from milo_sandbox.resources import CONTROL_PLANE, MILO
from milo_sandbox.store import Store
from tests.integration.sandbox.client import Client

QUICK = Features(pace=Pace(patience=0.01))


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(features=QUICK, seed=1) as running:
        yield running


@pytest.fixture
async def connect() -> AsyncIterator[Callable[[Sandbox], Client]]:
    async with aiohttp.ClientSession() as session:
        yield lambda sandbox: Client(sandbox, session)


@pytest.fixture
def client(sandbox: Sandbox, connect: Callable[[Sandbox], Client]) -> Client:
    return connect(sandbox)


@pytest.fixture
def store() -> Store:
    return Store((*MILO, *CONTROL_PLANE), clock=lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), random=Random(1))
